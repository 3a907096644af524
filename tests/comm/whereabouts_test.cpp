#include "sherd/comm/whereabouts.h"

#include <gtest/gtest.h>

#include <memory>

namespace sherd::testing {
namespace {

TEST(Whereabouts, SayWhereARankIs) {
  const auto rank = std::make_unique<Whereabouts>();
  EXPECT_EQ(where_it_is(*rank), "is in none of sherd's calls");
  rank->set_call("the forward of unit 'a'");
  EXPECT_EQ(where_it_is(*rank), "is in the forward of unit 'a'");
  rank->set_call("step");
  EXPECT_EQ(rank->call(), "step") << "nothing is left of a longer one";
  rank->set_call(std::string(500, 'x'));
  EXPECT_EQ(rank->call(), std::string(sizeof(rank->words) - 1, 'x'));
  rank->end = Whereabouts::End::finished;
  EXPECT_EQ(where_it_is(*rank), "has finished");
}

}  // namespace
}  // namespace sherd::testing
