# Header libraries of the system. A required one that is missing ends the configuration; without an optional one it goes
# on: what is then not there is named here, and by the program when it is asked for.
find_path(SHERD_HWY hwy/highway.h)
find_path(SHERD_JSON nlohmann/json.hpp)
find_path(SHERD_GLOO gloo/transport/tcp/device.h)
find_path(SHERD_CLI11 CLI/CLI.hpp)

if(NOT SHERD_HWY)
  message(FATAL_ERROR "no headers of Google Highway; try scripts/setup.sh, or apt-get install libhwy-dev")
endif()
if(NOT SHERD_JSON)
  message(FATAL_ERROR "no headers of nlohmann-json; try scripts/setup.sh, or apt-get install nlohmann-json3-dev")
endif()
if(NOT SHERD_GLOO)
  message(WARNING "no headers of Gloo (libgloo-dev): built without the transport gloo, so all ranks must be on one host")
endif()
if(NOT SHERD_CLI11)
  message(WARNING "no headers of CLI11 (libcli11-dev): built without the command sherd")
endif()
