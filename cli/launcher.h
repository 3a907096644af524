// `sherd train --ranks N`: runs this program again as N ranks on this host, and stays to look after them.
//
// Rank r gets the environment that torchrun would give it and its share of the allowed cores (when there are at least
// as many cores as ranks); rank 0 also gets a listening socket for the rendezvous, so that no port is lost to a race.
// Output: rank 0's stdout passes through as it is, every other line is prefixed with "[rank r] ".
// Signals: SIGINT and SIGTERM are forwarded, so that the ranks can save and end; a second one kills them.
// Faults: when a rank ends badly, the others get 3 s to notice and end, then SIGTERM, then SIGKILL.
// Ranks die with the launcher, whatever kills it.
#pragma once

namespace sherd {

/// True in a rank that the launcher started.
bool started_by_launcher();

/// Runs `argv` again as `ranks` processes and returns the exit code for the whole: 0, or that of the first rank that
/// ended badly (1 for one killed by a signal), or 130 after a second stop signal. Throws FaultError when they cannot be
/// started.
int launch_ranks(int ranks, char** argv);

}  // namespace sherd
