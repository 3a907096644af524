// Which cores a rank runs on.
#pragma once

#include <vector>

namespace sherd {

/// The logical CPUs this process may use, ordered so that those of one package and one core stand side by side.
std::vector<int> allowed_cpus();

/// Rank `rank`'s consecutive share of `cpus`; empty where there are fewer CPUs than ranks, and nothing is pinned.
std::vector<int> share_of_cpus(const std::vector<int>& cpus, int rank, int ranks);

}  // namespace sherd
