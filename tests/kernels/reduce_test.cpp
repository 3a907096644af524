#include "sherd/kernels/reduce.h"

#include <gtest/gtest.h>

#include <bit>
#include <numeric>

#include "tests/kernels/targets.h"

namespace sherd::kernels {
namespace {

using testing::bits;
using testing::for_each_target;
using testing::kSizes;
using testing::random_floats;

using Sources = std::vector<std::vector<float>>;

Sources make_sources(size_t count, int64_t n) {
  Sources sources;
  for (size_t k = 0; k < count; ++k) sources.push_back(random_floats(n, static_cast<uint32_t>(k + 1)));
  return sources;
}

std::vector<const float*> pointers(const Sources& sources) {
  std::vector<const float*> result;
  for (const auto& source : sources) result.push_back(source.data());
  return result;
}

// Neighbours added level by level, an odd last one carried up.
std::vector<float> reference(Sources level) {
  while (level.size() > 1) {
    Sources next;
    for (size_t k = 0; k + 1 < level.size(); k += 2) {
      next.push_back(level[k]);
      for (size_t i = 0; i < next.back().size(); ++i) next.back()[i] += level[k + 1][i];
    }
    if (level.size() % 2 == 1) next.push_back(level.back());
    level = std::move(next);
  }
  return level.front();
}

TEST(TreeSum, GivesTheReferenceBitsOnEveryTarget) {
  for (const size_t count : {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 16, 17, 24, 31, 33, 64, 65, 100}) {
    for (const int64_t n : kSizes) {
      SCOPED_TRACE(::testing::Message() << count << " sources of " << n);
      const Sources sources = make_sources(count, n);
      const std::vector<float> expected = reference(sources);
      const std::vector<float> before = random_floats(n, 77);
      for_each_target([&] {
        std::vector<float> out = before;
        tree_sum(pointers(sources), n, out.data(), Accumulate::overwrite);
        EXPECT_EQ(bits(out), bits(expected));

        out = before;
        tree_sum(pointers(sources), n, out.data(), Accumulate::add);
        for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(out[i], before[i] + expected[i]);
      });
    }
  }
}

TEST(TreeSum, OutMayBeAnySource) {
  const int64_t n = 2057;
  for (const size_t count : {1, 2, 3, 4, 5, 8, 9, 13, 64}) {
    const Sources sources = make_sources(count, n);
    const std::vector<float> expected = reference(sources);
    for (size_t alias = 0; alias < count; ++alias) {
      for_each_target([&] {
        Sources copies = sources;
        tree_sum(pointers(copies), n, copies[alias].data(), Accumulate::overwrite);
        EXPECT_EQ(bits(copies[alias]), bits(expected)) << count << " sources, out is " << alias;

        copies = sources;
        tree_sum(pointers(copies), n, copies[alias].data(), Accumulate::add);
        std::vector<float> doubled = sources[alias];
        for (size_t i = 0; i < doubled.size(); ++i) doubled[i] += expected[i];
        EXPECT_EQ(bits(copies[alias]), bits(doubled)) << count << " sources, added to " << alias;
      });
    }
  }
}

TEST(TreeSum, TheSameSourceMayBeGivenTwice) {
  const std::vector<float> x = random_floats(37, 5);
  std::vector<float> out(37);
  const std::vector<const float*> sources = {x.data(), x.data()};
  tree_sum(sources, 37, out.data(), Accumulate::overwrite);
  for (size_t i = 0; i < 37; ++i) EXPECT_EQ(out[i], 2.0f * x[i]);
}

TEST(TreeSum, HostsOfAPowerOfTwoAreSubtrees) {
  const int64_t n = 515;
  for (const size_t per_host : {2, 4, 8}) {
    for (const size_t hosts : {2, 3, 5}) {
      const Sources sources = make_sources(per_host * hosts, n);
      Sources partial(hosts, std::vector<float>(static_cast<size_t>(n)));
      const std::vector<const float*> all = pointers(sources);
      for (size_t h = 0; h < hosts; ++h) {
        tree_sum(std::span(all).subspan(h * per_host, per_host), n, partial[h].data(), Accumulate::overwrite);
      }
      std::vector<float> flat(static_cast<size_t>(n)), two_level = flat;
      tree_sum(all, n, flat.data(), Accumulate::overwrite);
      tree_sum(pointers(partial), n, two_level.data(), Accumulate::overwrite);
      EXPECT_EQ(bits(two_level), bits(flat));
    }
  }
}

TEST(TreeSum, TakesAnyAlignmentAndWritesNothingOutside) {
  const int64_t n = 133;
  for (const size_t count : {2, 3, 9}) {
    for_each_target([&] {
      for (const size_t offset : {1, 3, 7, 15}) {
        const Sources sources = make_sources(count, n + 32);
        Sources inner;
        std::vector<const float*> shifted;
        for (size_t k = 0; k < count; ++k) {
          const size_t begin = (offset + k) % 16;
          shifted.push_back(sources[k].data() + begin);
          inner.emplace_back(shifted.back(), shifted.back() + n);
        }
        std::vector<float> out(static_cast<size_t>(n) + 32, -5.0f), expected = out;
        const std::vector<float> sum = reference(inner);
        std::copy(sum.begin(), sum.end(), expected.begin() + static_cast<std::ptrdiff_t>(offset));
        tree_sum(shifted, n, out.data() + offset, Accumulate::overwrite);
        EXPECT_EQ(bits(out), bits(expected));
      }
    });
  }
}

// Large sums go past the caches, unless they go into a source.
TEST(TreeSum, LargeSpansAtAnyAlignmentGiveTheReferenceAndWriteNothingOutside) {
  const size_t n = (size_t{4} << 20) + 37;
  for (const size_t count : {2, 9}) {
    Sources sources(count, std::vector<float>(n));
    for (size_t k = 0; k < count; ++k) std::iota(sources[k].begin(), sources[k].end(), static_cast<float>(k));
    const std::vector<float> sum = reference(sources);
    for_each_target([&] {
      for (const size_t offset : {0, 7}) {
        std::vector<float> out(n + 16, -1.0f), expected = out;
        std::copy(sum.begin(), sum.end(), expected.begin() + static_cast<std::ptrdiff_t>(offset));
        tree_sum(pointers(sources), static_cast<int64_t>(n), out.data() + offset, Accumulate::overwrite);
        EXPECT_TRUE(out == expected) << count << " sources at " << offset;
      }
      Sources copies = sources;
      tree_sum(pointers(copies), static_cast<int64_t>(n), copies.back().data(), Accumulate::overwrite);
      EXPECT_TRUE(copies.back() == sum) << count << " sources into the last";
    });
  }
}

TEST(TreeSum, NoSourceIsABrokenInvariant) {
  float out = 0;
  EXPECT_THROW(tree_sum({}, 1, &out, Accumulate::overwrite), std::logic_error);
}

TEST(CopyAndAdd, MatchPlainLoops) {
  for (const int64_t n : kSizes) {
    const std::vector<float> x = random_floats(n, 8), y = random_floats(n, 9);
    std::vector<float> out(x.size());
    copy(x.data(), n, out.data());
    EXPECT_EQ(bits(out), bits(x));
    for_each_target([&] {
      std::vector<float> sum = y, expected = y;
      add(x.data(), n, sum.data());
      for (size_t i = 0; i < x.size(); ++i) expected[i] += x[i];
      EXPECT_EQ(bits(sum), bits(expected));
      add(sum.data(), n, sum.data());
      for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(sum[i], 2.0f * expected[i]);
    });
  }
}

TEST(Copy, LargeSpansAtAnyAlignmentWriteNothingOutside) {
  const int64_t n = (int64_t{4} << 20) + 37;
  std::vector<float> from(static_cast<size_t>(n) + 16);
  std::iota(from.begin(), from.end(), 1.0f);
  for_each_target([&] {
    for (const size_t offset : {0, 1, 7, 15}) {
      std::vector<float> to(from.size() + 16, -1.0f), expected = to;
      std::copy_n(from.begin() + 3, n, expected.begin() + static_cast<std::ptrdiff_t>(offset));
      copy(from.data() + 3, n, to.data() + offset);
      EXPECT_TRUE(to == expected) << offset;
    }
  });
}

}  // namespace
}  // namespace sherd::kernels
