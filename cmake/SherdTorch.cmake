# Finds the libtorch of the Python environment (.venv, or -DSHERD_PYTHON=...), without the
# wheel's own CMake package: that one also looks for CUDA and protobuf and is slow.
if(SKBUILD)  # pip's interpreter
  set(SHERD_PYTHON ${Python3_EXECUTABLE})
endif()
find_program(SHERD_PYTHON NAMES python python3 HINTS ${CMAKE_SOURCE_DIR}/.venv/bin NO_DEFAULT_PATH)
if(NOT SHERD_PYTHON)
  find_program(SHERD_PYTHON NAMES python3 REQUIRED)
endif()
execute_process(
  COMMAND ${SHERD_PYTHON} ${CMAKE_SOURCE_DIR}/scripts/wheel_torch.py
  OUTPUT_VARIABLE torch_found OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE torch_missing ERROR_VARIABLE torch_error)
if(torch_missing)
  message(FATAL_ERROR "${torch_error}")
endif()
string(REPLACE "\n" ";" torch_found "${torch_found}")
list(GET torch_found 0 SHERD_TORCH)
list(GET torch_found 1 SHERD_TORCH_VERSION)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${SHERD_TORCH}/version.py)

find_library(TORCH_CPU_LIBRARY torch_cpu PATHS ${SHERD_TORCH}/lib NO_DEFAULT_PATH REQUIRED)
add_library(sherd_libtorch INTERFACE)
target_include_directories(sherd_libtorch SYSTEM INTERFACE
  ${SHERD_TORCH}/include ${SHERD_TORCH}/include/torch/csrc/api/include)
target_link_directories(sherd_libtorch INTERFACE ${SHERD_TORCH}/lib)
# The standard library first: torch's libraries export parts of one of their own (std::filesystem), and a program takes
# the first that it finds; that of torch 2.11 crashes.
target_link_libraries(sherd_libtorch INTERFACE
  -Wl,--no-as-needed stdc++ torch torch_cpu c10 -Wl,--as-needed)
target_link_options(sherd_libtorch INTERFACE -Wl,-rpath,${SHERD_TORCH}/lib)

# fmt, header-only, at the version that torch ships: one version in the whole program.
add_library(sherd_fmt INTERFACE)
target_include_directories(sherd_fmt SYSTEM INTERFACE ${SHERD_TORCH}/include)
target_compile_definitions(sherd_fmt INTERFACE FMT_HEADER_ONLY=1)

# The OpenMP runtime that torch runs on: one pool of threads in the whole program.
file(GLOB SHERD_GOMP ${SHERD_TORCH}/lib/libgomp*.so*)
add_library(sherd_openmp INTERFACE)
if(SHERD_GOMP)
  list(GET SHERD_GOMP 0 SHERD_OPENMP)
  target_link_options(sherd_openmp INTERFACE -Wl,-rpath,${SHERD_TORCH}/lib)
else()
  find_package(OpenMP REQUIRED COMPONENTS CXX)
  set(SHERD_OPENMP ${OpenMP_CXX_LIBRARIES})
endif()
target_link_libraries(sherd_openmp INTERFACE ${SHERD_OPENMP})
