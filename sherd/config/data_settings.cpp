#include <fmt/ranges.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "sherd/config/settings.h"

namespace sherd {
namespace {

using D = DataConfig;

bool is_true(JsonReader& reader, const char* key) {
  const nlohmann::json* value = reader.find(key);
  return value != nullptr && *value == true;
}

/// Written with a source of tokens alone.
Setting<D> with_tokens(Setting<D> setting) {
  setting.write = [write = setting.write](const D& data, Caller caller, nlohmann::json& out) {
    if (data.source == D::Source::tokens) write(data, caller, out);
  };
  return setting;
}

/// No member of its own: what check_data makes the source where nothing else is.
Setting<D> synthetic() {
  const Values values = boolean().or_unset();
  Setting<D> setting{{"synthetic", values, "An endless stream of made-up tokens that a model can learn."},
                     [=](JsonReader& reader, const Reading&, D&) {
                       bool ignored = false;
                       read_value(reader, "synthetic", values, ignored);
                     },
                     [](const D& data, Caller, nlohmann::json& out) {
                       if (data.source == D::Source::synthetic) out["synthetic"] = true;
                     }};
  setting.info.preset = "false";
  return setting;
}

std::vector<Setting<D>> data_settings() {
  return {
      {"tokens", &D::tokens, text("the path of a file").or_unset(), "A file of token ids."},
      with_tokens({"token_type", &D::token_type, kTokenTypeNames, "What it is a file of, little-endian."}),
      {"text", &D::text, some_texts("files, folders or globs", "corpus/**/*.txt").or_unset(),
       "Texts, whose bytes are the tokens."},
      synthetic(),
      {"context", &D::context, integers().or_auto(), "Tokens of a row; auto: the model's context."},
      {"order", &D::order, kOrderNames, "In which order an epoch takes its rows."},
      {"mask", &D::mask, text("the path of a file").or_unset(),
       "Beside tokens, a file of one byte a token: 0 where it is no target."},
      {"separator", &D::separator, integers({.min = 0, .max = std::numeric_limits<uint32_t>::max()}).or_unset(),
       "A token that ends a document; the token after it is no target."},
      {"validation", &D::validation, numbers(kShare), "The share of the stream, from its end, that is not trained on."},
  };
}

void check_data(JsonReader& reader, D& data) {
  std::vector<std::string> given;
  if (!data.tokens.empty()) given.push_back("tokens");
  if (!data.text.empty()) given.push_back("text");
  if (is_true(reader, "synthetic")) given.push_back("synthetic");
  if (given.size() != 1) {
    config_error("config",
                 "got {} for 'data', expected exactly one of data.tokens, data.text and data.synthetic; try {}",
                 given.empty() ? "no source" : fmt::format("{}", fmt::join(given, " and ")),
                 given.empty() ? "\"synthetic\": true" : fmt::format("data.{} null", given.back()));
  }
  data.source = given[0] == "tokens" ? D::Source::tokens : given[0] == "text" ? D::Source::text : D::Source::synthetic;
  if (data.source == D::Source::tokens) return;
  if (reader.contains("token_type"))
    config_error("config", "got 'data.token_type' with data.{}, expected it with data.tokens only; try to remove it",
                 given[0]);
  if (!data.mask.empty())
    config_error("config", "got 'data.mask' with data.{}, expected it with data.tokens only; try data.mask null",
                 given[0]);
}

}  // namespace

Setting<TrainConfig> data_section() {
  return section<TrainConfig>("data", &TrainConfig::data, data_settings(),
                              "What it is trained on: tokens, text or synthetic.", check_data);
}

}  // namespace sherd
