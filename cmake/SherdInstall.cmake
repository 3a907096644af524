# cmake --install BUILD --prefix P: public headers, static libraries and a package, so that another project says
#
#   find_package(sherd REQUIRED)
#   target_link_libraries(app PRIVATE sherd::sherd)
#
# Only the libraries need to be built for it (the target sherd_cli builds them all).
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

get_property(layers GLOBAL PROPERTY SHERD_LAYERS)
# Declared bottom up; a static library is linked before those that it needs.
list(REVERSE layers)
list(TRANSFORM layers PREPEND sherd_ OUTPUT_VARIABLE SHERD_LIBRARIES)
install(TARGETS ${SHERD_LIBRARIES} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}/sherd)

# What programs include; the headers that these include come along, and no others.
set(SHERD_PUBLIC_HEADERS
  sherd/base/error.h
  sherd/comm/connect.h
  sherd/data/batch.h
  sherd/engine/engine.h
  sherd/engine/precision.h
  sherd/engine/save_model.h
  sherd/memory/deferred.h
  sherd/models/chunked_loss.h
  sherd/models/llama.h
  sherd/recompute/recompute.h
  sherd/shard/module_values.h
  sherd/shard/unit.h
  sherd/train/training.h)
set(headers)
set(unseen ${SHERD_PUBLIC_HEADERS})
while(unseen)
  list(POP_FRONT unseen header)
  if(header IN_LIST headers)
    continue()
  endif()
  list(APPEND headers ${header})
  file(STRINGS ${CMAKE_SOURCE_DIR}/${header} includes REGEX "^#include \"sherd/")
  list(TRANSFORM includes REPLACE "^#include \"([^\"]*)\".*" "\\1")
  list(APPEND unseen ${includes})
endwhile()
foreach(header IN LISTS headers)
  cmake_path(GET header PARENT_PATH folder)
  install(FILES ${header} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/${folder})
endforeach()

set(config_folder ${CMAKE_INSTALL_LIBDIR}/cmake/sherd)
set(SHERD_INSTALLED_LIBRARIES ${CMAKE_INSTALL_LIBDIR}/sherd)
configure_package_config_file(${CMAKE_SOURCE_DIR}/cmake/sherdConfig.cmake.in ${CMAKE_BINARY_DIR}/sherdConfig.cmake
  INSTALL_DESTINATION ${config_folder} PATH_VARS SHERD_INSTALLED_LIBRARIES CMAKE_INSTALL_INCLUDEDIR
  NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/sherdConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/sherdConfig.cmake ${CMAKE_BINARY_DIR}/sherdConfigVersion.cmake
  DESTINATION ${config_folder})
