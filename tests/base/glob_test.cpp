#include "sherd/base/glob.h"

#include <gtest/gtest.h>

namespace sherd {
namespace {

TEST(Glob, StandsForTheWholeText) {
  struct Case {
    std::string_view glob, text;
    bool expected;
  };
  for (const auto& [glob, text, expected] : std::vector<Case>{
           {"", "", true},
           {"", "a", false},
           {"a", "", false},
           {"*", "", true},
           {"*", "model.norm.weight", true},
           {"**", "x", true},
           {"?", "", false},
           {"?", "x", true},
           {"?", "xy", false},
           {"*norm*", "model.layers.0.input_layernorm.weight", true},
           {"*norm", "model.norm.weight", false},
           {"*norm.weight", "model.norm.weight", true},
           {"norm*", "model.norm.weight", false},
           {"model.layers.?.mlp.*", "model.layers.7.mlp.up_proj.weight", true},
           {"model.layers.?.mlp.*", "model.layers.11.mlp.up_proj.weight", false},
           {"*a*b*c", "xaxbxbxc", true},
           {"*a*b*c", "xaxcxb", false},
           {"*aab", "aaaab", true},
           {"a*?", "a", false},
           {"a*?", "ab", true},
           {"Model", "model", false},
           {"a.b", "axb", false},
       }) {
    EXPECT_EQ(glob_matches(glob, text), expected) << glob << " on " << text;
  }
}

TEST(Glob, ManyStarsStayFast) {
  std::string glob;
  for (int k = 0; k < 30; ++k) glob += "*a";
  EXPECT_FALSE(glob_matches(glob + "b", std::string(5000, 'a')));
}

}  // namespace
}  // namespace sherd
