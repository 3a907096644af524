# cmake --install BUILD --prefix P: headers, static libraries and a package, so that another project says
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
install(DIRECTORY sherd DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")

set(config_folder ${CMAKE_INSTALL_LIBDIR}/cmake/sherd)
set(SHERD_INSTALLED_LIBRARIES ${CMAKE_INSTALL_LIBDIR}/sherd)
configure_package_config_file(${CMAKE_SOURCE_DIR}/cmake/sherdConfig.cmake.in ${CMAKE_BINARY_DIR}/sherdConfig.cmake
  INSTALL_DESTINATION ${config_folder} PATH_VARS SHERD_INSTALLED_LIBRARIES CMAKE_INSTALL_INCLUDEDIR
  NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/sherdConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/sherdConfig.cmake ${CMAKE_BINARY_DIR}/sherdConfigVersion.cmake
  DESTINATION ${config_folder})
