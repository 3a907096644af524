#include "sherd/config/settings.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "sherd/comm/connect.h"

namespace sherd {
namespace {

constexpr int64_t kAnyNumber = std::numeric_limits<int64_t>::max();
constexpr Name<ReshardPolicy> kReshardNames[] = {
    {ReshardPolicy::units, "auto"}, {ReshardPolicy::all, "true"}, {ReshardPolicy::never, "false"}};

std::vector<Setting<BatchConfig>> batch_settings() {
  using B = BatchConfig;
  return {
      {"rows", &B::rows, integers(), "Sequences of one accumulation step, over all ranks."},
      {"micro", &B::micro, integers().or_auto(), "Rows of one forward on one rank; auto: all of the rank's rows."},
      {"accumulate", &B::accumulate, integers(), "Accumulation steps of one optimizer step."},
      {"reduce", &B::reduce, kReducePointNames,
       "When gradients are reduced: after every micro-batch, or after a step's last one alone."},
      {"last", &B::last, kLastBatchNames,
       "What becomes of an epoch's rows that do not fill a step: the step takes what it lacks from the next epoch, the "
       "rows are dropped, or the step is a smaller one."},
  };
}

std::vector<Setting<ScheduleOptions>> schedule_settings() {
  using S = ScheduleOptions;
  return {
      {"type", &S::kind, kScheduleNames, "What the learning rate does after the warm-up."},
      {"warmup", &S::warmup, integers({.min = 0}), "Steps in which the learning rate rises to its value."},
      {"final_ratio", &S::final_ratio, numbers({.min = 0, .max = 1}),
       "Of the learning rate, at the last step; with linear and cosine."},
  };
}

std::vector<Setting<TrainConfig>> mesh_settings() {
  using T = TrainConfig;
  return {
      {"replicate", &T::replicate, integers(), "Groups of ranks that hold the same shards; above 1 with hsdp only."},
      {"shard", &T::shard, integers().or_auto(), "Ranks of each group; auto: all that replicate leaves."},
  };
}

Values strategy_names() {
  std::vector<std::string> names;
  for (const Strategy& strategy : strategies()) names.emplace_back(strategy.name);
  names.insert(std::find(names.begin(), names.end(), "hsdp"), "fsdp");
  return words(std::move(names));
}

// fsdp is an alias: the table of strategies knows zero3.
void read_strategy(JsonReader& reader, const Reading&, TrainConfig& config) {
  read_value(reader, "strategy", strategy_names(), config.strategy);
  config.strategy = find_strategy(config.strategy).name;
}

void read_recompute(JsonReader& reader, const Reading&, TrainConfig& config) {
  std::string given = config.recompute.text();
  if (!reader.string("recompute", given)) return;
  try {
    config.recompute = RecomputePolicy::parse(given);
  } catch (const ConfigError&) {
    config_error("config", "got \"{}\" (a string) for 'recompute', expected {}; try \"full\"", given,
                 RecomputePolicy::kForm);
  }
}

std::vector<Setting<TrainConfig>> all_settings() {
  using T = TrainConfig;
  const auto itself = [](auto& config) -> auto& { return config; };
  const auto command = [](Setting<T> setting) { return only_for(Caller::command, std::move(setting)); };
  return {
      command(model_section()),
      command(data_section()),
      section<T>("batch", &T::batch, batch_settings(), "Which rows a step reads, and how they are cut up."),
      optimizer_section(),
      precision_section(),
      loss_scale_section(),
      section<T>("schedule", &T::schedule, schedule_settings(), "The learning rate over the steps."),
      {"clip", &T::clip, numbers(kPositive).or_null(), "The largest global gradient norm; null: no clipping."},
      {{"strategy", strategy_names(),
        "What is spread over the ranks: of ddp nothing, then optimizer state (zero1), gradients too (zero2), "
        "parameters too (zero3, also called fsdp; hsdp: over a part of the mesh)."},
       read_strategy,
       [](const T& config, Caller, nlohmann::json& out) { write_word(out, "strategy", config.strategy); }},
      {"reshard_after_forward", &T::reshard_after_forward, kReshardNames,
       "Whether parameters are given up between forward and backward, with zero3 and hsdp; auto: those of blocks."},
      command({{"recompute", text(std::string(RecomputePolicy::kForm)),
                "Blocks whose activations are made again in backward: none, all, or every K-th."},
               read_recompute,
               [](const T& config, Caller, nlohmann::json& out) {
                 write_word(out, "recompute", config.recompute.text());
               }}),
      {"persistent_below", &T::persistent_below, integers({.min = 0, .max = kAnyNumber}),
       "Bytes: smaller parameter groups stay whole on every rank, with zero3 and hsdp."},
      {"transport", &T::transport, words({std::begin(kTransports), std::end(kTransports)}),
       "How ranks exchange bytes; auto: shared memory where all are on one host, else gloo."},
      section<T>("mesh", itself, mesh_settings(), "The ranks on two axes."),
      command({"device", &T::device, text("a device of torch such as cpu, cuda or cuda:0"), "Where the model lives."}),
      {"steps", &T::steps, integers(), "Optimizer steps of the whole run."},
      command({"seed", &T::seed, integers({.min = 0, .max = kAnyNumber}),
               "Of the first weights, the order of rows and synthetic data."}),
      command({"output", &T::output, text("the path of a folder"), "Where the run leaves its files."}),
      command({"eval_every", &T::eval_every, integers({.min = 0}), "Steps between evaluations; 0: none."}),
      command({"eval_rows", &T::eval_rows, integers(), "Validation rows of one evaluation."}),
      {"timeout_s", &T::timeout_s, numbers({.min = 0, .max = 1e6, .low = Bound::open}),
       "Seconds of every wait for another rank."},
      only_for(Caller::program, Setting<T>("units", in(&T::program, &ProgramOptions::units),
                                           some_texts("class names of modules", "LlamaDecoderLayer").or_null(),
                                           "The blocks to shard on their own; null: chosen by sherd.shard.")),
  };
}

}  // namespace

const std::vector<Setting<TrainConfig>>& train_settings() {
  static const std::vector<Setting<TrainConfig>> all = all_settings();
  return all;
}

std::vector<SettingInfo> described_settings() { return object_of(train_settings()).fields; }

const std::vector<std::string>& setting_paths(Caller caller) {
  static const auto all = [] {
    std::vector<std::string> paths[2];
    for (const Caller each : {Caller::command, Caller::program}) {
      auto& own = paths[static_cast<size_t>(each)];
      for (const SettingInfo& section : described_settings())
        for (const SettingInfo& setting : section.values.fields)
          if (section.is_for(each) && setting.is_for(each)) own.push_back(section.key + "." + setting.key);
      std::sort(own.begin(), own.end());
    }
    return std::vector(std::begin(paths), std::end(paths));
  }();
  return all[static_cast<size_t>(caller)];
}

}  // namespace sherd
