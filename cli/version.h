// What `sherd --version` says; the build's own version in CMakeLists.txt is the same (a test compares them).
#pragma once

namespace sherd {

inline constexpr const char* kVersion = "0.1.0";

}  // namespace sherd
