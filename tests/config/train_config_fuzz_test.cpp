// Damaged documents by the thousand, from a fixed seed: whatever is in them, only ConfigError may come out, and what is
// accepted must survive a round trip.
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <random>

#include "sherd/base/error.h"
#include "sherd/config/json_file.h"
#include "sherd/config/train_config.h"

namespace sherd {
namespace {

using nlohmann::json;

class Fuzz {
 public:
  explicit Fuzz(uint32_t seed) : random_(seed) {}

  size_t below(size_t count) { return std::uniform_int_distribution<size_t>(0, count - 1)(random_); }

  json document() {
    json full = {
        {"model", {{"preset", "tiny"}, {"dim", 64}, {"context", 128}, {"rope_theta", 1e4}, {"tie_embeddings", true}}},
        {"data",
         {{"tokens", SHERD_GOLDEN "/tiny/tokens.bin"},
          {"token_type", "uint16"},
          {"context", "auto"},
          {"order", "sequential"},
          {"validation", 0.1}}},
        {"batch", {{"rows", 4}, {"micro", "auto"}, {"accumulate", 2}, {"reduce", "last"}}},
        {"optimizer",
         {{"type", "adamw"},
          {"lr", 1e-3},
          {"betas", {0.9, 0.95}},
          {"eps", 1e-8},
          {"weight_decay", 0.1},
          {"no_decay", {"*norm*", "*bias"}}}},
        {"schedule", {{"type", "cosine"}, {"warmup", 2}, {"final_ratio", 0.1}}},
        {"mesh", {{"replicate", 1}, {"shard", "auto"}}},
        {"clip", nullptr},
        {"strategy", "fsdp"},
        {"recompute", "every:2"},
        {"persistent_below", 4096},
        {"reshard_after_forward", true},
        {"transport", "gloo"},
        {"device", "cpu"},
        {"steps", 20},
        {"seed", 1},
        {"output", "runs/x"},
        {"eval_every", 5},
        {"eval_rows", 2},
        {"timeout_s", 3.5}};
    if (below(2) == 0) full["model"] = {{"path", SHERD_GOLDEN "/tiny"}};
    if (below(3) == 0) full["data"] = {{"text", {"*.txt"}}, {"validation", 0.5}};
    if (below(3) == 0) full["optimizer"] = {{"type", "sgd"}, {"lr", 0.1}, {"momentum", 0.9}, {"nesterov", true}};
    if (below(4) == 0)
      full["optimizer"] = {
          {"type", "muon"}, {"scale", "original"}, {"products", "bf16"}, {"adamw", {"a"}}, {"betas", {0, 0.5}}};
    return full;
  }

  json value() {
    switch (below(16)) {
      case 0:
        return nullptr;
      case 1:
        return below(2) == 0;
      case 2:
        return json::array();
      case 3:
        return json::object();
      case 4:
        return "auto";
      case 5:
        return "";
      case 6:
        return std::string(below(300), 'x');
      case 7:
        return std::string("\xc3\x28\0\n", 1 + below(4));
      case 8:
        return std::numeric_limits<double>::quiet_NaN();
      case 9:
        return below(2) == 0 ? HUGE_VAL : -HUGE_VAL;
      case 10:
        return std::numeric_limits<uint64_t>::max();
      case 11:
        return std::numeric_limits<int64_t>::min();
      case 12:
        return static_cast<int64_t>(below(5)) - 2;
      case 13:
        return 1e308 * (static_cast<double>(below(3)) - 1);
      case 14:
        return json::array({value(), value()});
      default:
        return {{key(), value()}};
    }
  }

  std::string key() {
    const char* const keys[] = {"lr", "model", "tokens", "", "a.b", "betas", "*", "\xff", "validation", "stepz"};
    return keys[below(std::size(keys))];
  }

  /// Deletes, replaces, inserts or moves something at a random place.
  void mutate(json& place) {
    if (!place.is_structured() || place.empty() || below(12) == 0) {
      place = value();
      return;
    }
    auto child = place.begin();
    std::advance(child, below(place.size()));
    switch (below(6)) {
      case 0:
        place.erase(child);
        return;
      case 1:
        *child = value();
        return;
      case 2:
        if (place.is_object())
          place[key()] = value();
        else
          place.push_back(value());
        return;
      default:
        mutate(*child);
    }
  }

  std::string text() {
    std::string bytes = document().dump(below(2) == 0 ? -1 : 2);
    for (size_t i = below(4); i > 0; --i) {
      const size_t at = below(bytes.size());
      switch (below(4)) {
        case 0:
          bytes[at] = static_cast<char>(below(256));
          break;
        case 1:
          bytes[at] ^= static_cast<char>(1 << below(8));
          break;
        case 2:
          bytes.erase(at, 1 + below(20));
          break;
        default:
          bytes.insert(at, 1 + below(3), "0123456789eE.-+{}[]\",:\\u\0"[below(26)]);
      }
      if (bytes.empty()) bytes = "{";
    }
    return bytes;
  }

 private:
  std::mt19937 random_;
};

/// Reads a document, which may fail with ConfigError only; true when it was accepted.
template <class Read>
bool accepted(const Read& read) {
  try {
    const json once = to_json(read());
    EXPECT_EQ(to_json(read_train_config(json::parse(once.dump()))), once);
    return true;
  } catch (const ConfigError& error) {
    const std::string message = error.what();
    EXPECT_TRUE(message.starts_with("[config] got ")) << message;
    EXPECT_NE(message.find("; try "), std::string::npos) << message;
    return false;
  }
}

TEST(TrainConfigFuzz, MutatedValues) {
  Fuzz fuzz(1);
  int good = 0, bad = 0;
  for (int round = 0; round < 8000; ++round) {
    json document = fuzz.document();
    for (size_t i = fuzz.below(3); i > 0; --i) fuzz.mutate(document);
    ++(accepted([&] { return read_train_config(document); }) ? good : bad);
    if (HasFailure()) break;
  }
  EXPECT_GT(good, 1000);
  EXPECT_GT(bad, 1000);
}

TEST(TrainConfigFuzz, MutatedText) {
  Fuzz fuzz(2);
  int good = 0, bad = 0;
  for (int round = 0; round < 8000; ++round) {
    const std::string text = fuzz.text();
    ++(accepted([&] { return read_train_config(parse_json(text, "fuzz.json")); }) ? good : bad);
    if (HasFailure()) FAIL() << text;
  }
  EXPECT_GT(good, 500);
  EXPECT_GT(bad, 1000);
}

TEST(TrainConfigFuzz, MutatedOverrides) {
  Fuzz fuzz(3);
  for (int round = 0; round < 8000; ++round) {
    std::string assignment = "optimizer.betas=[0.9, 0.95]";
    for (size_t i = fuzz.below(5); i > 0; --i)
      assignment[fuzz.below(assignment.size())] = ".=a[{\"0,\xff"[fuzz.below(9)];
    json document = fuzz.document();
    accepted([&] {
      apply_override(document, assignment);
      return read_train_config(document);
    });
    if (HasFailure()) FAIL() << assignment;
  }
}

}  // namespace
}  // namespace sherd
