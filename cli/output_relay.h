// Carries what the ranks write to the launcher's own stdout and stderr, whole line by whole line.
//
// Rank 0's stdout passes through as it comes, because it may hold a line that is being rewritten; every other line gets
// the prefix "[rank r] ".
#pragma once

#include <poll.h>

#include <string>
#include <string_view>
#include <vector>

#include "sherd/base/unique_fd.h"

namespace sherd {

class OutputRelay {
 public:
  enum class Stream { out, err };

  /// Takes the reading end of a pipe that rank `rank` writes to.
  void add(UniqueFd pipe, int rank, Stream stream);

  /// Waits until a rank has written, ended or `timeout_ms` has passed, or a signal came; then carries what there is.
  void relay(int timeout_ms);

  /// Carries the rest, incomplete lines included. Call it when no rank is left.
  void finish();

  /// A line of the launcher's own, on stderr.
  void say(std::string_view line);

 private:
  struct Source {
    UniqueFd pipe;
    int rank;
    Stream stream;
    std::string line;  // what came after the last newline
  };
  enum class Taken { some, nothing_now, end };

  Taken take(Source& source);
  void write_line(Stream stream, std::string_view line);

  std::vector<Source> sources_;
  std::vector<pollfd> polled_;
  bool line_open_ = false;  // rank 0 has an incomplete line on stdout
};

}  // namespace sherd
