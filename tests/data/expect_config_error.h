// Asserts that a statement raises ConfigError in the form "[where] got X, expected Y; try Z" with certain words in it.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "sherd/base/error.h"

namespace sherd {

inline void expect_config_error(const std::function<void()>& statement, const std::vector<std::string>& words) {
  try {
    statement();
  } catch (const ConfigError& error) {
    const std::string text = error.what();
    for (const char* part : {"[", "] got ", "expected ", "; try "}) {
      EXPECT_NE(text.find(part), std::string::npos) << "no '" << part << "' in: " << text;
    }
    for (const std::string& word : words) {
      EXPECT_NE(text.find(word), std::string::npos) << "no '" << word << "' in: " << text;
    }
    return;
  }
  ADD_FAILURE() << "no ConfigError";
}

}  // namespace sherd
