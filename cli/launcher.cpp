#include "cli/launcher.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/output_relay.h"
#include "cli/rank_cores.h"
#include "cli/stop_signal.h"
#include "sherd/base/error.h"

namespace sherd {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr const char* kWhere = "launcher";
constexpr int kInterrupted = 130;
constexpr milliseconds kGrace{3000};        // for the others to notice a failure and end
constexpr milliseconds kUntilKilled{3500};  // from the failure
constexpr int kPollMs = 100;                // also bounds how late an ended rank or a signal is seen

/// A listening socket on a free port of the loopback interface.
struct Rendezvous {
  UniqueFd socket;
  int port = 0;
};

Rendezvous listen_on_loopback() {
  UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  if (!socket || ::bind(socket.get(), generic, size) != 0 || ::listen(socket.get(), SOMAXCONN) != 0 ||
      ::getsockname(socket.get(), generic, &size) != 0) {
    fault_errno(kWhere, "no port on 127.0.0.1 for the rendezvous");
  }
  return {std::move(socket), ntohs(address.sin_port)};
}

/// The environment of rank `rank`: ours, with its place in it.
std::vector<std::string> rank_environment(int rank, int ranks, const Rendezvous& rendezvous, size_t cpus) {
  std::map<std::string, std::string> values;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const size_t equals = text.find('=');
    if (equals != std::string::npos) values[text.substr(0, equals)] = text.substr(equals + 1);
  }
  values.try_emplace("OMP_NUM_THREADS", std::to_string(std::max<size_t>(1, cpus / ranks)));
  values["RANK"] = values["LOCAL_RANK"] = std::to_string(rank);
  values["WORLD_SIZE"] = values["LOCAL_WORLD_SIZE"] = std::to_string(ranks);
  values["MASTER_ADDR"] = "127.0.0.1";
  values["MASTER_PORT"] = std::to_string(rendezvous.port);
  values["SHERD_LAUNCHED"] = "1";
  values["SHERD_TTY"] = ::isatty(STDOUT_FILENO) == 1 ? "1" : "0";
  if (rank == 0) values["SHERD_MASTER_FD"] = std::to_string(rendezvous.socket.get());
  std::vector<std::string> environment;
  for (const auto& [name, value] : values) environment.push_back(name + "=" + value);
  return environment;
}

struct Pipe {
  UniqueFd read, write;
};

Pipe make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) fault_errno(kWhere, "no pipe for a rank's output");
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

/// What a child needs between fork and exec, where nothing may be allocated.
struct Child {
  pid_t launcher;
  int out, err;
  int inherited;  // a descriptor to keep over exec, or -1
  const std::vector<int>& cpus;
  char** argv;
  char** environment;
};

[[noreturn]] void become_rank(const Child& child) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != child.launcher) ::_exit(1);  // the launcher died before the line above
  ::dup2(child.out, STDOUT_FILENO);
  ::dup2(child.err, STDERR_FILENO);
  if (child.inherited >= 0) ::fcntl(child.inherited, F_SETFD, 0);
  if (!child.cpus.empty()) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int cpu : child.cpus) CPU_SET(cpu, &set);
    ::sched_setaffinity(0, sizeof(set), &set);
  }
  ::execve("/proc/self/exe", child.argv, child.environment);
  constexpr std::string_view kFailed = "sherd: cannot run /proc/self/exe again\n";
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, kFailed.data(), kFailed.size());
  ::_exit(1);
}

/// Blocks SIGINT and SIGTERM for a moment, so that a rank starts with them blocked and loses none.
class StopSignalsBlocked {
 public:
  StopSignalsBlocked() {
    sigset_t both;
    ::sigemptyset(&both);
    ::sigaddset(&both, SIGINT);
    ::sigaddset(&both, SIGTERM);
    ::pthread_sigmask(SIG_BLOCK, &both, &before_);
  }
  ~StopSignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  StopSignalsBlocked(const StopSignalsBlocked&) = delete;
  StopSignalsBlocked& operator=(const StopSignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

/// How a rank ended, as waitpid tells it.
struct Ending {
  int rank;
  int status;

  bool bad() const { return !WIFEXITED(status) || WEXITSTATUS(status) != 0; }
  bool by_signal() const { return WIFSIGNALED(status); }
  int exit_code() const { return by_signal() ? 1 : WEXITSTATUS(status); }
  std::string text() const {
    if (!by_signal()) return fmt::format("rank {} ended with exit code {}", rank, exit_code());
    return fmt::format("rank {} was killed by signal {} ({})", rank, WTERMSIG(status), ::strsignal(WTERMSIG(status)));
  }
};

/// The running ranks: started by the constructor's caller, none left when run() returns or this is destroyed.
class Ranks {
 public:
  Ranks() = default;
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;
  ~Ranks() {
    signal_all(SIGKILL);
    for (const pid_t pid : pids_) {
      if (pid > 0) ::waitpid(pid, nullptr, 0);
    }
  }

  void start(int rank, int ranks, const Rendezvous& rendezvous, const std::vector<int>& cpus, char** argv);
  int run();

 private:
  bool any_left() const {
    return std::any_of(pids_.begin(), pids_.end(), [](pid_t pid) { return pid > 0; });
  }
  void signal_all(int signal);
  std::optional<Ending> reap();
  void forward_stop();
  void end_after_failure();

  std::vector<pid_t> pids_;  // 0 once the rank has ended
  OutputRelay output_;
  int forwarded_ = 0;              // stop requests
  std::optional<Ending> failure_;  // the first
  Clock::time_point failed_at_;
  int last_sent_ = 0;  // to the others after a failure
};

void Ranks::start(int rank, int ranks, const Rendezvous& rendezvous, const std::vector<int>& cpus, char** argv) {
  std::vector<std::string> environment = rank_environment(rank, ranks, rendezvous, cpus.size());
  std::vector<char*> pointers;
  for (std::string& entry : environment) pointers.push_back(entry.data());
  pointers.push_back(nullptr);
  Pipe out = make_pipe(), err = make_pipe();
  const std::vector<int> share = share_of_cpus(cpus, rank, ranks);
  const Child child{::getpid(), out.write.get(), err.write.get(), rank == 0 ? rendezvous.socket.get() : -1, share,
                    argv,       pointers.data()};
  const StopSignalsBlocked blocked;
  const pid_t pid = ::fork();
  if (pid == 0) become_rank(child);
  if (pid < 0) fault_errno(kWhere, fmt::format("cannot start rank {}", rank));
  pids_.push_back(pid);
  output_.add(std::move(out.read), rank, OutputRelay::Stream::out);
  output_.add(std::move(err.read), rank, OutputRelay::Stream::err);
}

void Ranks::signal_all(int signal) {
  for (const pid_t pid : pids_) {
    if (pid > 0) ::kill(pid, signal);
  }
}

/// Collects the ranks that have ended; of those that ended badly in this round, one killed by a signal comes first:
/// the others then ended because of it.
std::optional<Ending> Ranks::reap() {
  std::optional<Ending> worst;
  for (size_t rank = 0; rank < pids_.size(); ++rank) {
    int status = 0;
    if (pids_[rank] == 0 || ::waitpid(pids_[rank], &status, WNOHANG) != pids_[rank]) continue;
    pids_[rank] = 0;
    const Ending ending{static_cast<int>(rank), status};
    if (ending.bad() && (!worst || (ending.by_signal() && !worst->by_signal()))) worst = ending;
  }
  return worst;
}

void Ranks::forward_stop() {
  const int requests = stop_requests();
  if (requests == forwarded_) return;
  if (forwarded_ == 0) output_.say("stopping: the ranks save and end; once more ends them at once");
  signal_all(requests == 1 ? SIGTERM : SIGKILL);
  forwarded_ = requests;
}

void Ranks::end_after_failure() {
  const auto since = Clock::now() - failed_at_;
  if (last_sent_ == 0 && since >= kGrace) {
    output_.say("the other ranks did not end by themselves; ending them");
    signal_all(last_sent_ = SIGTERM);
  } else if (last_sent_ == SIGTERM && since >= kUntilKilled) {
    signal_all(last_sent_ = SIGKILL);
  }
}

int Ranks::run() {
  while (any_left()) {
    output_.relay(kPollMs);
    forward_stop();
    const std::optional<Ending> ending = reap();
    if (ending && !failure_) {
      failure_ = ending;
      failed_at_ = Clock::now();
      const bool asked = forwarded_ > 1 || (forwarded_ == 1 && ending->exit_code() == kInterrupted);
      if (!asked) output_.say(ending->text());
    }
    if (failure_) end_after_failure();
  }
  output_.finish();
  if (forwarded_ > 1) return kInterrupted;
  return failure_ ? failure_->exit_code() : 0;
}

}  // namespace

bool started_by_launcher() { return std::getenv("SHERD_LAUNCHED") != nullptr; }

int launch_ranks(int ranks, char** argv) {
  watch_stop_signals(SecondSignal::counts);
  ::signal(SIGCHLD, SIG_DFL);  // an inherited SIG_IGN would hide how the ranks end
  const std::vector<int> cpus = allowed_cpus();
  Ranks running;
  {
    const Rendezvous rendezvous = listen_on_loopback();
    for (int rank = 0; rank < ranks; ++rank) running.start(rank, ranks, rendezvous, cpus, argv);
  }
  return running.run();
}

}  // namespace sherd
