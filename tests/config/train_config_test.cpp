#include "sherd/config/train_config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "sherd/comm/connect.h"
#include "tests/data/expect_config_error.h"
#include "tests/data/temporary_folder.h"

namespace sherd {
namespace {

using nlohmann::json;
using Words = std::vector<std::string>;

/// The smallest configuration that is complete.
json minimal() { return {{"model", {{"preset", "tiny"}}}, {"data", {{"synthetic", true}}}}; }

/// The issue's example, on the golden folder.
json example() {
  return json::parse(R"({"model": {"path": ")" SHERD_GOLDEN R"(/tiny"},
    "data": {"tokens": ")" SHERD_GOLDEN R"(/tiny/tokens.bin", "context": 64, "order": "sequential"},
    "batch": {"rows": 4, "micro": "auto", "accumulate": 1},
    "optimizer": {"type": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "no_decay": []},
    "schedule": {"type": "constant"}, "clip": 1.0, "strategy": "zero3", "steps": 20, "seed": 0, "output": "runs/tiny"})");
}

/// `change` as a merge patch (null cannot be set that way) on the minimal configuration.
json with(const char* change) {
  json document = minimal();
  document.merge_patch(json::parse(change));
  return document;
}

TEST(TrainConfig, ReadsTheExample) {
  const TrainConfig config = read_train_config(example());
  EXPECT_EQ(config.model.path, SHERD_GOLDEN "/tiny");
  EXPECT_EQ(config.data.source, DataConfig::Source::tokens);
  EXPECT_EQ(config.data.context, 64);
  EXPECT_EQ(config.data.order, Order::sequential);
  EXPECT_EQ(config.batch.rows, 4);
  EXPECT_EQ(config.batch.micro, 0);
  EXPECT_EQ(config.optimizer.values.lr, 1e-3);
  EXPECT_EQ(config.optimizer.values.beta2, 0.95);
  EXPECT_TRUE(config.optimizer.no_decay.empty());
  EXPECT_EQ(config.clip, 1.0);
  EXPECT_EQ(config.steps, 20);
  EXPECT_EQ(config.output, "runs/tiny");
}

TEST(TrainConfig, DefaultsAreThoseOfTheStruct) {
  json expected = to_json(TrainConfig{});
  expected["model"] = {{"preset", "tiny"}};
  EXPECT_EQ(to_json(read_train_config(minimal())), expected);
}

TEST(TrainConfig, RoundTrips) {
  json full = with(R"({"data": {"order": "sequential", "validation": 0.1, "context": 33, "separator": 3},
    "model": {"dim": 96, "layers": 3, "heads": 6, "kv_heads": 2, "ffn": 200, "vocab": 256, "context": 77,
              "rope_theta": 5e5, "tie_embeddings": true},
    "batch": {"rows": 7, "micro": 2, "accumulate": 3, "reduce": "last", "last": "weighted"},
    "optimizer": {"lr": 0.1, "betas": [0, 0.999], "eps": 1e-6, "weight_decay": 0, "no_decay": ["a*"]},
    "schedule": {"type": "cosine", "warmup": 5, "final_ratio": 0.1},
    "strategy": "hsdp", "reshard_after_forward": true, "transport": "gloo", "mesh": {"replicate": 2, "shard": 3},
    "recompute": "every:3", "persistent_below": 65536,
    "precision": {"compute": "auto", "storage": "fp16", "reduce": "bf16", "master": "fp32", "norms": "compute"},
    "loss_scale": {"initial": 512, "window": 5, "hysteresis": 3, "consecutive_hysteresis": true, "minimum": 0.5},
    "device": "cuda:1", "steps": 12, "seed": 9223372036854775807, "output": "a b/ü", "eval_every": 4, "eval_rows": 3,
    "timeout_s": 1.5})");
  full["clip"] = nullptr;
  const json sgd =
      with(R"({"optimizer": {"type": "sgd", "momentum": 0.9, "nesterov": true, "betas": null, "weight_decay": 0.01}})");
  EXPECT_EQ(read_train_config(sgd).optimizer.rule().momentum, 0.9);
  EXPECT_EQ(read_train_config(sgd).optimizer.rule().nesterov, Nesterov::yes);
  EXPECT_EQ(read_train_config(with(R"({"optimizer": {"type": "adam", "eps": 0.1}})")).optimizer.values.eps, 0.1);
  json eight_bits = with(
      R"({"optimizer": {"type": "adamw8bit", "exclude": ["a"], "groups": [{"match": ["b"], "lr": 1, "betas": [0, 0.5]},
          {"match": ["c", "d"], "weight_decay": 0, "eps": 1e-3}]}})");
  eight_bits["loss_scale"] = nullptr;
  const TrainConfig with_groups = read_train_config(eight_bits);
  EXPECT_EQ(with_groups.optimizer.rule().kind, UpdateRuleOptions::Kind::adamw);
  EXPECT_TRUE(with_groups.optimizer.has_8_bits());
  EXPECT_EQ(with_groups.optimizer.groups[0].beta2, 0.5);
  EXPECT_EQ(with_groups.optimizer.groups[1].match[1], "d");
  EXPECT_EQ(with_groups.optimizer.groups[1].lr, std::nullopt);
  EXPECT_EQ(with_groups.loss_scale.use, LossScaleConfig::Use::never);
  const json muon = with(R"({"optimizer": {"type": "muon", "scale": "original", "products": "fp32", "adamw": ["a"],
      "betas": [0.5, 0.6], "groups": [{"match": ["b"], "eps": 0.1}]}})");
  EXPECT_EQ(read_train_config(muon).optimizer.rule().kind, UpdateRuleOptions::Kind::adamw);
  EXPECT_EQ(read_train_config(muon).optimizer.muon.momentum, 0.95);
  EXPECT_EQ(read_train_config(muon).optimizer.muon.nesterov, Nesterov::yes);
  EXPECT_EQ(read_train_config(muon).optimizer.muon.scale, MuonScale::original);
  EXPECT_EQ(read_train_config(muon).optimizer.muon.products, at::kFloat);
  EXPECT_EQ(read_train_config(with(R"({"optimizer": {"type": "muon", "momentum": 0.5}})")).optimizer.muon.momentum,
            0.5);
  const json lion = with(R"({"optimizer": {"type": "lion8bit", "exclude": ["a"], "weight_decay": 1}})");
  EXPECT_EQ(read_train_config(lion).optimizer.rule().kind, UpdateRuleOptions::Kind::lion);
  EXPECT_TRUE(read_train_config(lion).optimizer.has_8_bits());
  EXPECT_EQ(read_train_config(lion).optimizer.values.lr, 1e-4) << "its own default";
  EXPECT_EQ(read_train_config(lion).optimizer.values.beta2, 0.99);
  const json fixed = with(R"({"loss_scale": 128})");
  EXPECT_EQ(read_train_config(fixed).loss_scale.options.kind, ScaleKind::fixed);
  EXPECT_EQ(read_train_config(fixed).loss_scale.options.initial, 128);
  EXPECT_EQ(read_train_config(minimal()).loss_scale.use, LossScaleConfig::Use::automatic);
  for (const json& document : {full, example(), minimal(), sgd, eight_bits, muon, lion, fixed}) {
    const json once = to_json(read_train_config(document));
    const json twice = to_json(read_train_config(json::parse(once.dump())));
    EXPECT_EQ(once, twice);
    EXPECT_EQ(once.dump(), twice.dump());
  }
  const TrainConfig config = read_train_config(full);
  EXPECT_EQ(config.strategy, "hsdp");
  EXPECT_EQ(config.replicate, 2);
  EXPECT_EQ(config.recompute.text(), "every:3");
  EXPECT_EQ(config.persistent_below, 65536);
  EXPECT_EQ(config.precision.storage, "fp16");
  EXPECT_EQ(config.precision.norms, Norms::compute);
  EXPECT_EQ(config.loss_scale.options.refill, RefillHysteresis::at_every_step);
  EXPECT_EQ(config.loss_scale.options.minimum, 0.5);
  EXPECT_EQ(read_train_config(with(R"({"strategy": "fsdp"})")).strategy, "zero3") << "an alias";
  EXPECT_EQ(read_train_config(with(R"({"recompute": "every:1"})")).recompute.text(), "full");
  EXPECT_EQ(config.reshard_after_forward, ReshardPolicy::all);
  EXPECT_EQ(config.clip, std::nullopt);
  EXPECT_EQ(config.model.head, OutputHead::tied);
  EXPECT_EQ(config.batch.reduce, ReducePoint::last);
  EXPECT_EQ(config.seed, std::numeric_limits<int64_t>::max());
  EXPECT_EQ(config.shard, 3);
  EXPECT_EQ(config.data.separator, 3);
  EXPECT_EQ(config.batch.last, LastBatch::weighted);
  for (auto& [key, value] : full.items()) {
    if (value.is_object() || key == "strategy") continue;
    EXPECT_EQ(to_json(config)[key], value) << key;
  }
}

TEST(TrainConfig, AMaskIsAFileBesideTokens) {
  json document = example();
  document["data"]["mask"] = SHERD_GOLDEN "/tiny/config.json";
  const TrainConfig config = read_train_config(document);
  EXPECT_EQ(config.data.mask, SHERD_GOLDEN "/tiny/config.json");
  EXPECT_EQ(to_json(config)["data"]["mask"], document["data"]["mask"]);
  document["data"]["mask"] = "/none.bin";
  expect_config_error([&] { read_train_config(document); }, {"/none.bin for 'data.mask'", "there is none"});
  document["data"]["mask"] = nullptr;
  EXPECT_TRUE(read_train_config(document).data.mask.empty());
}

TEST(TrainConfig, NumbersThatAreWholeAreIntegers) {
  EXPECT_EQ(read_train_config(with(R"({"steps": 1e3})")).steps, 1000);
  EXPECT_EQ(read_train_config(with(R"({"clip": 2})")).clip, 2.0);
  EXPECT_FALSE(read_train_config(with(R"({"reshard_after_forward": false})")).reshard_after_forward ==
               ReshardPolicy::units);
}

TEST(TrainConfig, TransportsAreThoseThatConnectKnows) {
  for (const std::string_view transport : kTransports) {
    json document = minimal();
    document["transport"] = transport;
    EXPECT_EQ(read_train_config(document).transport, transport);
    EXPECT_NO_THROW(validate_transport(transport));
  }
  EXPECT_THROW(validate_transport("threads"), ConfigError);
  expect_config_error([] { read_train_config(with(R"({"transport": "threads"})")); }, {"'transport'", "auto, host"});
}

struct Mistake {
  const char* change;
  Words words;
};

TEST(TrainConfig, EachMistakeNamesPathValueExpectationAndFix) {
  const Mistake mistakes[] = {
      // unknown keys
      {R"({"optimizer": {"betaz": [0.9, 0.95]}})",
       {"[config] got unknown key 'optimizer.betaz', expected one of adamw, betas, eps, exclude, groups, lr, momentum, "
        "nesterov, no_decay, products, scale, type, weight_decay; try 'betas'"}},
      {R"({"stepz": 3})", {"unknown key 'stepz'", "try 'steps'"}},
      {R"({"qqqqqqqqqq": 3})", {"unknown key 'qqqqqqqqqq'", "try to leave it out"}},
      {R"({"data": {"order ": 1}})", {"'data.order '", "try 'order'"}},
      {R"({"mesh": {"replicas": 1}})", {"'mesh.replicas'", "try 'replicate'"}},
      {R"({"lr": 0.1})", {"unknown key 'lr'", "try 'optimizer.lr'"}},
      {R"({"betas": [0.1, 0.1]})", {"try 'optimizer.betas'"}},
      {R"({"data": {"dim": 4}})", {"unknown key 'data.dim'", "try 'model.dim'"}},
      // wrong types
      {R"({"optimizer": {"lr": "fast"}})", {"\"fast\" (a string)", "'optimizer.lr'", "a number", "0.0003"}},
      {R"({"optimizer": 3})", {"got 3 for 'optimizer'", "an object"}},
      {R"({"optimizer": {"no_decay": "bias"}})", {"\"bias\"", "an array of strings", "try [\"bias\"]"}},
      {R"({"optimizer": {"no_decay": ["a", 3]}})", {"got 3 for 'optimizer.no_decay[1]'"}},
      {R"({"optimizer": {"betas": 0.9}})", {"got 0.9 for 'optimizer.betas'", "array of two numbers", "[0.9, 0.95]"}},
      {R"({"optimizer": {"betas": [0.9]}})", {"an array of 1"}},
      {R"({"optimizer": {"betas": [0.9, true]}})", {"got true for 'optimizer.betas[1]'"}},
      {R"({"steps": "10"})", {"\"10\" (a string) for 'steps'", "integer"}},
      {R"({"steps": true})", {"got true for 'steps'"}},
      {R"({"output": 3})", {"got 3 for 'output'", "string", "runs/latest"}},
      {R"({"output": ""})", {"not empty"}},
      {R"({"output": "a\u0000b"})", {"'output'"}},
      {R"({"data": {"synthetic": 1}})", {"got 1 for 'data.synthetic'", "true or false"}},
      {R"({"clip": "off"})", {"\"off\"", "'clip'", "above 0"}},
      {R"({"reshard_after_forward": "yes"})", {"\"yes\"", "\"auto\", true or false"}},
      {R"({"batch": {"micro": "all"}})", {"\"all\"", "'batch.micro'", "\"auto\" or an integer"}},
      // impossible values
      {R"({"optimizer": {"lr": -0.1}})", {"got -0.1 for 'optimizer.lr'", "at least 0"}},
      {R"({"optimizer": {"betas": [1, 0.95]}})",
       {"got 1 for 'optimizer.betas[0]'", "of at least 0 and below 1", "0.9"}},
      {R"({"optimizer": {"betas": [0.9, -0.5]}})", {"got -0.5 for 'optimizer.betas[1]'"}},
      {R"({"optimizer": {"eps": 0}})", {"'optimizer.eps'", "above 0", "1e-08"}},
      {R"({"optimizer": {"weight_decay": -1}})", {"'optimizer.weight_decay'"}},
      {R"({"optimizer": {"type": "sdg"}})", {"\"sdg\"", "adamw, adam, sgd", "try \"sgd\""}},
      {R"({"optimizer": {"type": "sgd", "betas": [0.9, 0.95]}})", {"'optimizer.betas'", "adamw and adam only"}},
      {R"({"optimizer": {"type": "sgd", "eps": 1e-8}})", {"'optimizer.eps' with optimizer.type \"sgd\""}},
      {R"({"optimizer": {"momentum": 0.9}})",
       {"'optimizer.momentum' with optimizer.type \"adamw\"", "sgd and muon only"}},
      {R"({"optimizer": {"type": "adam", "nesterov": true}})", {"'optimizer.nesterov'", "sgd and muon only"}},
      {R"({"optimizer": {"scale": "original"}})", {"'optimizer.scale' with optimizer.type \"adamw\"", "muon only"}},
      {R"({"optimizer": {"type": "sgd", "adamw": ["a"]}})", {"'optimizer.adamw'", "muon only"}},
      {R"({"optimizer": {"products": "bf16"}})", {"'optimizer.products'", "muon only"}},
      {R"({"optimizer": {"type": "muon", "products": "fp16"}})", {"'optimizer.products'", "auto, fp32, bf16"}},
      {R"({"optimizer": {"type": "muon", "scale": "adamw"}})", {"'optimizer.scale'", "match_adamw, original"}},
      {R"({"optimizer": {"type": "muon", "exclude": ["a"]}})", {"'optimizer.exclude'", "adamw8bit and adam8bit"}},
      {R"({"optimizer": {"type": "lion", "eps": 1e-8}})", {"'optimizer.eps' with optimizer.type \"lion\"", "muon"}},
      {R"({"optimizer": {"type": "sgd", "nesterov": true}})", {"'optimizer.nesterov' without momentum", "try 0.9"}},
      {R"({"optimizer": {"type": "sgd", "momentum": 1}})", {"got 1 for 'optimizer.momentum'", "below 1"}},
      {R"({"optimizer": {"type": "sgd", "nesterov": 1}})", {"got 1 for 'optimizer.nesterov'", "true or false"}},
      {R"({"optimizer": {"exclude": ["x"]}})", {"'optimizer.exclude'", "adamw8bit and adam8bit only"}},
      {R"({"optimizer": {"groups": {"lr": 1}}})", {"'optimizer.groups'", "an array of objects"}},
      {R"({"optimizer": {"groups": [{"lr": 1}]}})", {"no 'optimizer.groups[0].match'", "globs"}},
      {R"({"optimizer": {"groups": [{"match": ["a"], "lrr": 1}]}})", {"'optimizer.groups[0].lrr'", "try 'lr'"}},
      {R"({"optimizer": {"groups": [{"match": ["a"], "betas": [1, 0]}]}})",
       {"got 1 for 'optimizer.groups[0].betas[0]'"}},
      {R"({"precision": {"compute": "bf61"}})", {"\"bf61\"", "'precision.compute'", "try \"bf16\""}},
      {R"({"precision": {"storage": "auto"}})", {"'precision.storage'", "fp32, bf16, fp16"}},
      {R"({"precision": {"master": "both"}})", {"'precision.master'", "fp32, split, none"}},
      {R"({"precision": {"norm": "fp32"}})", {"'precision.norm'", "try 'norms'"}},
      {R"({"compute": "bf16"})", {"unknown key 'compute'", "try 'precision.compute'"}},
      {R"({"loss_scale": 0})", {"got 0 for 'loss_scale'", "above 0"}},
      {R"({"loss_scale": true})", {"got true for 'loss_scale'", "try \"auto\""}},
      {R"({"loss_scale": {"initial": 4, "minimum": 8}})", {"got 8 for 'loss_scale.minimum'"}},
      {R"({"loss_scale": {"windows": 8}})", {"'loss_scale.windows'", "try 'window'"}},
      {R"({"momentum": 0.9})", {"unknown key 'momentum'", "try 'optimizer.momentum'"}},
      {R"({"schedule": {"type": "cosin"}})", {"\"cosin\"", "constant, linear, cosine", "try \"cosine\""}},
      {R"({"schedule": {"final_ratio": 1.5}})", {"got 1.5 for 'schedule.final_ratio'", "at most 1"}},
      {R"({"schedule": {"warmup": -1}})", {"got -1 for 'schedule.warmup'", "from 0"}},
      {R"({"schedule": {"warmup": 50}, "steps": 20})", {"got 50 for 'schedule.warmup'", "'steps' (20)"}},
      {R"({"clip": 0})", {"got 0 for 'clip'", "above 0"}},
      {R"({"steps": 0})", {"got 0 for 'steps'", "from 1"}},
      {R"({"steps": 2.5})", {"got 2.5 for 'steps'", "integer"}},
      {R"({"steps": 1e300})", {"'steps'", "integer from 1 to 1000000000"}},
      {R"({"seed": -1})", {"got -1 for 'seed'"}},
      {R"({"seed": 9223372036854775808})", {"got 9223372036854775808 for 'seed'"}},
      {R"({"seed": 1e17})", {"'seed'"}},
      {R"({"batch": {"rows": -4}})", {"got -4 for 'batch.rows'"}},
      {R"({"batch": {"micro": 0}})", {"got 0 for 'batch.micro'"}},
      {R"({"batch": {"accumulate": 0}})", {"got 0 for 'batch.accumulate'"}},
      {R"({"batch": {"reduce": "lest"}})", {"\"lest\"", "every, last", "try \"last\""}},
      {R"({"batch": {"last": "dorp"}})", {"\"dorp\"", "next_epoch, drop, weighted", "try \"drop\""}},
      {R"({"data": {"mask": "m.bin"}})", {"'data.mask' with data.synthetic", "data.tokens only", "data.mask null"}},
      {R"({"data": {"mask": 3}})", {"got 3 for 'data.mask'", "string"}},
      {R"({"data": {"separator": -1}})", {"got -1 for 'data.separator'"}},
      {R"({"mask": "m.bin"})", {"unknown key 'mask'", "try 'data.mask'"}},
      {R"({"mesh": {"shard": 0}})", {"got 0 for 'mesh.shard'"}},
      {R"({"mesh": {"replicate": 4000000000}})", {"got 4000000000 for 'mesh.replicate'"}},
      {R"({"timeout_s": 0})", {"'timeout_s'", "above 0"}},
      {R"({"eval_every": 10})", {"got 10 for 'eval_every'", "data.validation"}},
      {R"({"eval_every": 10, "eval_rows": 0})", {"got 0 for 'eval_rows'"}},
      {R"({"data": {"validation": 1}})", {"got 1 for 'data.validation'", "below 1"}},
      {R"({"data": {"context": -1}})", {"got -1 for 'data.context'"}},
      {R"({"data": {"order": "random"}})", {"\"random\"", "sequential, shuffled"}},
      {R"({"strategy": "zero4"})", {"\"zero4\" (a string) for 'strategy'", "ddp, zero1, zero2, zero3, fsdp, hsdp"}},
      {R"({"strategy": "dpp"})", {"try \"ddp\""}},
      {R"({"strategy": "ddp", "reshard_after_forward": true})", {"'reshard_after_forward'", "\"ddp\""}},
      {R"({"mesh": {"replicate": 2}})", {"got 2 for 'mesh.replicate'", "\"zero3\"", "try strategy \"hsdp\""}},
      {R"({"recompute": "some"})",
       {"got \"some\" (a string) for 'recompute'", "none, full or every:K", "try \"full\""}},
      {R"({"recompute": "every:0"})", {"got \"every:0\" (a string) for 'recompute'"}},
      {R"({"recompute": true})", {"got true for 'recompute'", "string"}},
      {R"({"persistent_below": -1})", {"got -1 for 'persistent_below'"}},
      {R"({"persistent_below": 10, "strategy": "zero2"})",
       {"'persistent_below'", "\"zero2\"", "keeps parameters whole"}},
      {R"({"transport": "TCP/IP"})", {"\"TCP/IP\" (a string) for 'transport'", "auto, host, gloo"}},
      {R"({"device": "gpu"})", {"\"gpu\" for 'device'", "try \"cpu\""}},
      {R"({"device": "cuda:99999999999999999999"})", {"'device'"}},
      {R"({"device": "meta"})", {"'device'"}},
      // model and data sources
      {R"({"model": {"preset": "tini"}})", {"\"tini\"", "tiny, small, base, 1b, 7b, bytes-10m", "try \"tiny\""}},
      {R"({"model": {"preset": null}})", {"neither a path nor a preset", "bytes-10m"}},
      {R"({"model": {"path": "/"}})", {"both a path and a preset"}},
      {R"({"model": {"preset": null, "path": "/none"}})", {"/none for 'model.path'", "config.json"}},
      {R"({"model": {"preset": null, "path": "/none", "dim": 3}})", {"'model.path'", "1 other keys"}},
      {R"({"model": {"heads": 0}})", {"got 0 for 'model.heads'"}},
      {R"({"model": {"rope_theta": -1}})", {"got -1 for 'model.rope_theta'"}},
      {R"({"model": {"tie_embeddings": "yes"}})", {"'model.tie_embeddings'", "true or false"}},
      {R"({"model": null})", {"no 'model'", "preset"}},
      {R"({"data": null})", {"no 'data'", "synthetic"}},
      {R"({"data": {"synthetic": false}})", {"no source", "exactly one of data.tokens, data.text and data.synthetic"}},
      {R"({"data": {"tokens": "a.bin"}})", {"tokens and synthetic", "data.synthetic null"}},
      {R"({"data": {"synthetic": null, "tokens": "/none.bin"}})", {"/none.bin for 'data.tokens'", "there is none"}},
      {R"({"data": {"synthetic": null, "tokens": "/"}})", {"got / for 'data.tokens'", "uint16"}},
      {R"({"data": {"synthetic": null, "text": []}})", {"'data.text'"}},
      {R"({"data": {"synthetic": null, "text": ["*.x", "/none.txt"]}})", {"/none.txt for 'data.text[1]'"}},
      {R"({"data": {"token_type": "uint32"}})", {"'data.token_type'", "data.synthetic"}},
      {R"({"data": {"token_type": "int8"}})", {"\"int8\"", "uint16, uint32"}},
  };
  for (const Mistake& mistake : mistakes) {
    SCOPED_TRACE(mistake.change);
    expect_config_error([&] { read_train_config(with(mistake.change)); }, mistake.words);
  }
}

TEST(TrainConfig, RefusesWhatOnlyAProgramCanWrite) {
  for (const double number : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    for (const char* key : {"clip", "timeout_s", "steps", "seed"}) {
      json document = minimal();
      document[key] = number;
      expect_config_error([&] { read_train_config(document); }, {std::string("'") + key + "'"});
    }
  }
  json document = minimal();
  document["output"] = "\xff\xfe";
  expect_config_error([&] { read_train_config(document); }, {"'output'", "UTF-8"});
  document = minimal();
  document["\xff"] = 3;
  expect_config_error([&] { read_train_config(document); }, {"unknown key"});
  document = minimal();
  document["steps"] = json::binary({1, 2});
  expect_config_error([&] { read_train_config(document); }, {"binary"});
  expect_config_error([] { read_train_config(json::array()); }, {"an array of 0", "JSON object"});
  expect_config_error([] { read_train_config(nullptr); }, {"got null"});
}

TEST(LoadTrainConfig, AppliesOverridesInOrder) {
  const TemporaryFolder folder;
  const std::string file = folder.write("c.json", minimal().dump());
  const TrainConfig config = load_train_config(
      file, {"steps=5", "steps=6", "optimizer.lr=0.5", "strategy=ddp", "model.preset=1b", "mesh.shard=2", "clip=null",
             "data.synthetic=null", "data.tokens=" SHERD_GOLDEN "/tiny/tokens.bin", "output=runs/a=b",
             "optimizer.no_decay=[\"x\"]"});
  EXPECT_EQ(config.steps, 6);
  EXPECT_EQ(config.optimizer.values.lr, 0.5);
  EXPECT_EQ(config.strategy, "ddp");
  EXPECT_EQ(config.model.preset, "1b");
  EXPECT_EQ(config.shard, 2);
  EXPECT_EQ(config.clip, std::nullopt);
  EXPECT_EQ(config.data.source, DataConfig::Source::tokens);
  EXPECT_EQ(config.output, "runs/a=b");
  EXPECT_EQ(config.optimizer.no_decay, std::vector<std::string>{"x"});
  expect_config_error([&] { load_train_config(file, {"optimizer.betaz=1"}); }, {"optimizer.betaz", "try 'betas'"});
  expect_config_error([&] { load_train_config(file, {"steps=ten"}); }, {"\"ten\"", "'steps'"});
}

}  // namespace
}  // namespace sherd
