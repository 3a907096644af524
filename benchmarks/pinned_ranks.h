// What benchmarks of several ranks share: ranks as processes of one thread, each pinned to a core, and times on the
// slowest of them.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "sherd/comm/rendezvous.h"
#include "sherd/comm/transport.h"

namespace sherd::bench {

/// Forks a process a rank, runs body(world) in it and waits for all. Rank r has the r-th core that this process may use
/// (they share cores where there are fewer) and one thread. An exception is printed and ends the other ranks too.
/// Prints how many cores other processes kept busy meanwhile. Returns the exit code of the program.
int run_pinned_ranks(int ranks, const std::function<void(const World&)>& body);

/// The cores that this process may use.
int core_count();

/// How long `body` takes on the slowest rank, in seconds; all start together. Collective.
double slowest_s(Transport& transport, const std::function<void()>& body);

double median(std::vector<double> values);

/// Contestants in turn (A B C A B C ...), `rounds` times after one round that does not count: seconds, by contestant
/// and round. Collective.
struct Contestant {
  std::string name;
  std::function<void()> prepare;  // before each run, not timed
  std::function<void()> run;
};
std::vector<std::vector<double>> take_turns(Transport& transport, const std::vector<Contestant>& contestants,
                                            int rounds);

}  // namespace sherd::bench
