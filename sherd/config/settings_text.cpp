#include "sherd/config/settings_text.h"

#include <fmt/ranges.h>

#include "sherd/config/settings.h"

namespace sherd {
namespace {

constexpr size_t kColumns = 100;
constexpr const char* kIntroduction =
    "CONFIG.json is an object of these settings; all but model and data may be left out. Each stands here with its "
    "default, what it may be, and what it means. On the command line --set optimizer.lr=1e-3 changes one. "
    "sherd.initialize(config=...) in Python takes the same, without what is the command's only.";

/// A setting with its whole path.
struct Line {
  std::string path;
  SettingInfo setting;
};

/// What stands together: first the section itself, which has no path where it is all that stands in no section.
using Section = std::vector<Line>;

void add_lines(Section& section, const std::string& path, const SettingInfo& setting) {
  section.push_back({path, setting});
  const std::string below = path + (setting.values.kind == Values::Kind::objects ? "[i]." : ".");
  for (const SettingInfo& field : setting.values.fields) add_lines(section, below + field.key, field);
}

std::vector<Section> sections() {
  std::vector<Section> all(1);
  all.front().push_back({"", {.key = "", .values = {.kind = Values::Kind::object}, .sentence = "The whole run."}});
  for (const SettingInfo& setting : described_settings()) {
    const bool is_section = !setting.values.fields.empty();
    add_lines(is_section ? all.emplace_back() : all.front(), setting.key, setting);
  }
  return all;
}

/// Who alone reads it, and with which optimizers.
std::string condition(const SettingInfo& setting) {
  std::vector<std::string> parts;
  if (setting.callers.size() == 1)
    parts.push_back(setting.is_for(Caller::command) ? "the command only" : "Python only");
  if (!setting.only.empty()) parts.push_back("with " + setting.only);
  return parts.empty() ? "" : fmt::format(" ({})", fmt::join(parts, "; "));
}

/// Whether a line has a value of its own, or only begins a section.
bool has_value(const Line& line) {
  return line.setting.values.kind != Values::Kind::object || !line.setting.preset.empty();
}

/// The text in lines that begin with `indent` spaces.
std::string wrapped(std::string_view text, size_t indent) {
  std::string out;
  while (!text.empty()) {
    const size_t room = kColumns - indent;
    size_t end = text.size() <= room ? text.size() : text.rfind(' ', room);
    if (end == std::string_view::npos) end = std::min(text.find(' '), text.size());
    out += fmt::format("{:{}}{}\n", "", indent, text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

/// "|" would end a cell of a table.
std::string cell(std::string text) {
  for (size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 2) text.insert(at, 1, '\\');
  return text;
}

}  // namespace

std::string setting_values(const std::string& key) {
  for (const SettingInfo& setting : described_settings())
    if (setting.key == key) return setting.values.description();
  SHERD_CHECK(false);
}

std::string settings_help() {
  std::string out = wrapped(kIntroduction, 0);
  for (const Section& section : sections()) {
    const auto& [title, about] = section.front();
    out +=
        "\n" + wrapped(fmt::format("{}{}{}{}", title, title.empty() ? "" : ": ", about.sentence, condition(about)), 0);
    for (const Line& line : section) {
      if (!has_value(line)) continue;
      const auto& [path, setting] = line;
      out += wrapped(setting.preset.empty() ? path : fmt::format("{} = {}", path, setting.preset), 2);
      out += wrapped(setting.values.description() + condition(setting), 6);
      if (&line != &section.front()) out += wrapped(setting.sentence, 6);
    }
  }
  return out;
}

std::string settings_markdown() {
  std::string out = fmt::format(
      "# Settings\n\n{}\nMade by `sherd train --help-config=markdown`. [config.schema.json](config.schema.json) says "
      "the "
      "same to editors.\n",
      wrapped(kIntroduction, 0));
  for (const Section& section : sections()) {
    const auto& [title, about] = section.front();
    out += fmt::format("\n## {}\n\n{}{}\n\n| setting | default | values | meaning |\n|---|---|---|---|\n",
                       title.empty() ? "the run" : title, about.sentence, condition(about));
    for (const Line& line : section) {
      if (!has_value(line)) continue;
      const auto& [path, setting] = line;
      const std::string preset = setting.preset.empty() ? "" : fmt::format("`{}`", cell(setting.preset));
      const std::string sentence = &line == &section.front() ? "see above" : setting.sentence + condition(setting);
      out += fmt::format("| `{}` | {} | {} | {} |\n", path, preset, cell(setting.values.description()), cell(sentence));
    }
  }
  return out;
}

}  // namespace sherd
