# sherd_plain_layer(NAME DEPS...)  a folder under sherd/ without torch
# sherd_layer(NAME DEPS...)        a folder under sherd/ on libtorch, with the precompiled header
# sherd_use_torch(TARGET)          libtorch and the precompiled header for an executable
find_package(Threads REQUIRED)
find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
    CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
    CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${CCACHE})
endif()

add_library(sherd_flags INTERFACE)
target_compile_options(sherd_flags INTERFACE -Wall -Wextra -Werror -fno-math-errno -ffp-contract=off)
target_include_directories(sherd_flags INTERFACE ${CMAKE_SOURCE_DIR})
target_link_libraries(sherd_flags INTERFACE Threads::Threads sherd_fmt)
if(SHERD_SANITIZE)
  target_compile_options(sherd_flags INTERFACE -fsanitize=${SHERD_SANITIZE} -fno-omit-frame-pointer)
  target_link_options(sherd_flags INTERFACE -fsanitize=${SHERD_SANITIZE})
endif()

file(WRITE ${CMAKE_BINARY_DIR}/pch.cpp.new "// Holds the precompiled header that every torch layer reuses.\n")
configure_file(${CMAKE_BINARY_DIR}/pch.cpp.new ${CMAKE_BINARY_DIR}/pch.cpp COPYONLY)
add_library(sherd_pch STATIC ${CMAKE_BINARY_DIR}/pch.cpp)
target_link_libraries(sherd_pch PUBLIC sherd_flags sherd_libtorch)
target_compile_options(sherd_pch PRIVATE -fpch-preprocess)
target_precompile_headers(sherd_pch PRIVATE ${CMAKE_SOURCE_DIR}/cmake/pch.h)

function(sherd_use_torch target)
  target_link_libraries(${target} PUBLIC sherd_flags sherd_libtorch)
  target_compile_options(${target} PRIVATE -fpch-preprocess)
  target_precompile_headers(${target} REUSE_FROM sherd_pch)
endfunction()

# Compiles the sources of a target several at a time: each compiler run reads the torch headers once. Names in anonymous
# namespaces must then differ within a folder.
function(sherd_unite target)
  if(SHERD_UNITY)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 7)
  endif()
endfunction()

function(sherd_link_layers target)
  foreach(dep IN LISTS ARGN)
    if(TARGET sherd_${dep})
      target_link_libraries(${target} PUBLIC sherd_${dep})
    else()
      target_link_libraries(${target} PUBLIC ${dep})
    endif()
  endforeach()
endfunction()

function(sherd_add_layer name)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/sherd/${name}/*.cpp)
  if(NOT sources)
    set(sources ${CMAKE_BINARY_DIR}/pch.cpp)
  endif()
  add_library(sherd_${name} STATIC ${sources})
  set_property(GLOBAL APPEND PROPERTY SHERD_LAYERS ${name})
  sherd_link_layers(sherd_${name} ${ARGN})
endfunction()

function(sherd_plain_layer name)
  sherd_add_layer(${name} ${ARGN})
  target_link_libraries(sherd_${name} PUBLIC sherd_flags)
endfunction()

function(sherd_layer name)
  sherd_add_layer(${name} ${ARGN})
  sherd_use_torch(sherd_${name})
  sherd_unite(sherd_${name})
endfunction()
