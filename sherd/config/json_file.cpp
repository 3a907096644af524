#include "sherd/config/json_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <vector>

#include "sherd/base/error.h"

namespace sherd {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxBytes = size_t{16} << 20;

/// Walks a document without building it, to find what the parser would not say or not say where.
class Checker : public nlohmann::json_sax<json> {
 public:
  std::string reason;   // empty: a good document
  size_t position = 0;  // of a syntax error, in bytes

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(int64_t) override { return true; }
  bool number_unsigned(uint64_t) override { return true; }
  bool number_float(double, const std::string&) override { return true; }
  bool string(std::string&) override { return true; }
  bool binary(json::binary_t&) override { return true; }
  bool start_array(size_t) override { return enter(); }
  bool end_array() override { return leave(); }
  bool start_object(size_t) override { return enter(); }
  bool end_object() override { return leave(); }

  bool key(std::string& name) override {
    if (keys_.back().insert(name).second) return true;
    reason = fmt::format("the key '{}' twice in one object", name);
    return false;
  }

  bool parse_error(size_t where, const std::string&, const nlohmann::detail::exception& error) override {
    position = where;
    reason = error.what();
    // "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error while ..." without its head
    if (const size_t head = reason.find("] "); head != std::string::npos) reason.erase(0, head + 2);
    if (reason.starts_with("parse error at")) reason.erase(0, std::min(reason.find(": ") + 2, reason.size()));
    return false;
  }

 private:
  bool enter() {
    keys_.emplace_back();
    if (keys_.size() <= kMaxDepth) return true;
    reason = fmt::format("more than {} levels of nesting", kMaxDepth);
    return false;
  }
  bool leave() {
    keys_.pop_back();
    return true;
  }

  std::vector<std::set<std::string>> keys_;  // of each open object
};

std::string line_and_column(std::string_view text, size_t position) {
  if (position == 0) return "";
  const std::string_view before = text.substr(0, std::min(position - 1, text.size()));
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const size_t start = before.rfind('\n');  // npos + 1 is 0
  return fmt::format(", line {}, column {}", line, before.size() - (start + 1) + 1);
}

/// As parse_json, with the complaint as a value: "" and the document, or why there is none.
std::optional<json> try_parse(std::string_view text, Checker& checker) {
  json::sax_parse(text.begin(), text.end(), &checker);
  if (!checker.reason.empty()) return std::nullopt;
  return json::parse(text.begin(), text.end());
}

}  // namespace

json parse_json(std::string_view text, const std::string& name) {
  Checker checker;
  if (std::optional<json> document = try_parse(text, checker)) return std::move(*document);
  config_error("config", "got {} in {}{}, expected JSON; try to correct it there", checker.reason, name,
               line_and_column(text, checker.position));
}

json read_json_file(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.is_open() || file.bad()) {
    const char* reason = errno == 0 ? "unreadable" : std::strerror(errno);
    config_error("config", "got {} ({}), expected a readable JSON file; try its absolute path", path, reason);
  }
  text.resize(file.gcount());
  if (text.size() > kMaxBytes) {
    config_error("config", "got {} of more than 16 MiB, expected a configuration; try another file", path);
  }
  return parse_json(text, path);
}

void apply_override(json& document, const std::string& assignment) {
  const size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0) {
    config_error("config", "got --set '{}', expected KEY=VALUE; try --set optimizer.lr=1e-3", assignment);
  }
  const std::string path = assignment.substr(0, equals);
  json* place = &document;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('.', begin), path.size());
    const std::string key = path.substr(begin, end - begin);
    if (key.empty()) {
      config_error("config", "got --set '{}' with an empty key, expected keys joined by single dots; try a.b=c",
                   assignment);
    }
    if (!place->is_object()) {
      config_error(
          "config", "got --set '{}', but '{}' is not an object, expected one to put '{}' into; try --set {}=...",
          assignment, path.substr(0, begin == 0 ? 0 : begin - 1), key, path.substr(0, begin == 0 ? 0 : begin - 1));
    }
    json& next = (*place)[key];
    if (next.is_null() && end < path.size()) next = json::object();
    place = &next;
    begin = end + 1;
  }
  const std::string_view text = std::string_view(assignment).substr(equals + 1);
  Checker checker;
  if (std::optional<json> value = try_parse(text, checker)) {
    *place = std::move(*value);
  } else {
    *place = std::string(text);
  }
}

}  // namespace sherd
