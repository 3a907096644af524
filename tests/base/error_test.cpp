#include "sherd/base/error.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace sherd {
namespace {

template <class Error>
std::string text_of(const auto& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing of this kind was thrown";
}

TEST(Error, TheTwoKindsSayWhereAndAreDistinct) {
  EXPECT_EQ(text_of<ConfigError>([] { config_error("mesh", "got {}, expected {}; try {}", 3, 4, 4); }),
            "[mesh] got 3, expected 4; try 4");
  EXPECT_EQ(text_of<FaultError>([] { fault("host", "rank {} died", 2); }), "[host] rank 2 died");
  EXPECT_THROW(config_error("a", "b"), std::runtime_error);
  EXPECT_FALSE((std::is_base_of_v<ConfigError, FaultError> || std::is_base_of_v<FaultError, ConfigError>));
}

TEST(Error, BracesInArgumentsAreText) {
  EXPECT_EQ(text_of<ConfigError>([] { config_error("{}", "got '{}'", "{0} {x}"); }), "[{}] got '{0} {x}'");
}

TEST(Error, FaultErrnoAddsTheTextOfErrno) {
  EXPECT_EQ(text_of<FaultError>([] {
              errno = ENOSPC;
              fault_errno("disk", "cannot write '{}'");
            }),
            "[disk] cannot write '{}': No space left on device");
}

TEST(Error, ACheckNamesConditionFileAndLine) {
  int asked = 0;
  SHERD_CHECK(++asked == 1);
  EXPECT_EQ(asked, 1);
  const int line = __LINE__ + 1;
  const std::string text = text_of<std::logic_error>([&] { SHERD_CHECK(asked == 2); });
  EXPECT_EQ(text, fmt::format("[sherd] internal check failed: asked == 2 ({}:{})", __FILE__, line));
}

}  // namespace
}  // namespace sherd
