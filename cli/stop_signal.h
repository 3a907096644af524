// SIGINT and SIGTERM ask a running training to save and end; the handlers only count them.
#pragma once

namespace sherd {

/// What the second signal does: ends the process at once, or is only counted (by the launcher, and by the ranks that
/// it started and will end itself).
enum class SecondSignal { ends_process, counts };

/// Installs the handlers and lets both signals in (the launcher starts its ranks with them blocked).
void watch_stop_signals(SecondSignal second);

/// How many times a stop was asked for. Signals less than half a second after the first are the same request: a
/// terminal or timeout(1) reaches a process directly and through its group. Costs one load.
int stop_requests();

}  // namespace sherd
