// In the place of gloo_backend.cpp where Gloo's headers were not there (cmake/SherdLibraries.cmake).
#include "sherd/base/error.h"
#include "sherd/comm/gloo_backend.h"

namespace sherd {

c10::intrusive_ptr<c10d::Backend> gloo_backend(const World&) {
  config_error("transport",
               "got 'gloo', or ranks on several hosts, in a build without Gloo, expected ranks on one host; try to "
               "install Gloo's headers (libgloo-dev) and build again");
}

}  // namespace sherd
