#include "cli/output_relay.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

namespace sherd {
namespace {

constexpr size_t kLongestLine = 1 << 16;  // longer ones are cut

void write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0 && errno == EAGAIN) {
      pollfd full{fd, POLLOUT, 0};
      ::poll(&full, 1, -1);
      continue;
    }
    if (written < 0) return;  // nobody is left to be told
    text.remove_prefix(static_cast<size_t>(written));
  }
}

int own(OutputRelay::Stream stream) { return stream == OutputRelay::Stream::out ? STDOUT_FILENO : STDERR_FILENO; }

}  // namespace

void OutputRelay::add(UniqueFd pipe, int rank, Stream stream) {
  ::fcntl(pipe.get(), F_SETFL, ::fcntl(pipe.get(), F_GETFL) | O_NONBLOCK);
  sources_.push_back({std::move(pipe), rank, stream, {}});
}

void OutputRelay::relay(int timeout_ms) {
  polled_.clear();
  for (const Source& source : sources_) polled_.push_back({source.pipe.get(), POLLIN, 0});
  if (::poll(polled_.data(), polled_.size(), timeout_ms) <= 0) return;
  std::erase_if(sources_, [this](Source& source) { return take(source) == Taken::end; });
}

void OutputRelay::finish() {
  for (Source& source : sources_) {
    while (take(source) == Taken::some) continue;
  }
  sources_.clear();
}

void OutputRelay::say(std::string_view line) { write_line(Stream::err, fmt::format("sherd: {}\n", line)); }

OutputRelay::Taken OutputRelay::take(Source& source) {
  std::array<char, kLongestLine> bytes;
  const ssize_t count = ::read(source.pipe.get(), bytes.data(), bytes.size());
  if (count < 0) return errno == EINTR ? Taken::some : Taken::nothing_now;
  const std::string_view text(bytes.data(), static_cast<size_t>(count));
  if (source.rank == 0 && source.stream == Stream::out) {
    write_all(STDOUT_FILENO, text);
    if (!text.empty()) line_open_ = text.back() != '\n';
    return count == 0 ? Taken::end : Taken::some;
  }
  source.line += text;
  if (!source.line.empty() && (count == 0 || source.line.size() > kLongestLine)) source.line += '\n';
  for (size_t end = 0; (end = source.line.find('\n')) != std::string::npos; source.line.erase(0, end + 1)) {
    write_line(source.stream, fmt::format("[rank {}] {}", source.rank, source.line.substr(0, end + 1)));
  }
  return count == 0 ? Taken::end : Taken::some;
}

void OutputRelay::write_line(Stream stream, std::string_view line) {
  // On a terminal the line that is being rewritten makes way; its next state comes below.
  if (line_open_ && ::isatty(own(stream)) == 1) write_all(own(stream), "\r\x1b[K");
  write_all(own(stream), line);
}

}  // namespace sherd
