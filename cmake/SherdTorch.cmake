# Finds the libtorch of the Python environment (.venv, or -DSHERD_PYTHON=...), without the
# wheel's own CMake package: that one also looks for CUDA and protobuf and is slow.
if(SKBUILD)  # pip's interpreter
  set(SHERD_PYTHON ${Python3_EXECUTABLE})
endif()
find_program(SHERD_PYTHON NAMES python python3 HINTS ${CMAKE_SOURCE_DIR}/.venv/bin NO_DEFAULT_PATH)
if(NOT SHERD_PYTHON)
  find_program(SHERD_PYTHON NAMES python3 REQUIRED)
endif()
# While pip builds, what is installed cannot be imported, but it can be found.
execute_process(
  COMMAND ${SHERD_PYTHON} -c "import os, sys, sysconfig
places = [os.path.join(p, 'torch') for p in [sysconfig.get_path('platlib'), *sys.path]]
print(next(p for p in places if os.path.exists(os.path.join(p, 'lib', 'libtorch_cpu.so'))))"
  OUTPUT_VARIABLE SHERD_TORCH OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE torch_missing ERROR_QUIET)
if(torch_missing)
  message(FATAL_ERROR "no torch in ${SHERD_PYTHON}; try scripts/setup.sh, or pip install torch==2.13.0")
endif()

find_library(TORCH_CPU_LIBRARY torch_cpu PATHS ${SHERD_TORCH}/lib NO_DEFAULT_PATH REQUIRED)
add_library(sherd_libtorch INTERFACE)
target_include_directories(sherd_libtorch SYSTEM INTERFACE
  ${SHERD_TORCH}/include ${SHERD_TORCH}/include/torch/csrc/api/include)
target_link_directories(sherd_libtorch INTERFACE ${SHERD_TORCH}/lib)
target_link_libraries(sherd_libtorch INTERFACE
  -Wl,--no-as-needed torch torch_cpu c10 -Wl,--as-needed)
if(EXISTS ${SHERD_TORCH}/lib/libtorch_cuda.so)
  target_link_libraries(sherd_libtorch INTERFACE -Wl,--no-as-needed torch_cuda c10_cuda -Wl,--as-needed)
endif()
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
