// The one table of settings. Reader, writer, hints, `sherd train --help-config`, docs/config.md and its schema are made
// from it, so a new setting is one entry, beside the member that it fills.
#pragma once

#include <string>
#include <vector>

#include "sherd/config/section.h"
#include "sherd/config/train_config.h"

namespace sherd {

/// All of them, section by section. Lives as long as the program.
const std::vector<Setting<TrainConfig>>& train_settings();

/// What is known of them, for documentation.
std::vector<SettingInfo> described_settings();

/// "optimizer.lr": every setting that stands in a section, sorted.
const std::vector<std::string>& setting_paths(Caller caller);

/// The sections that are more than a list.
Setting<TrainConfig> model_section();
Setting<TrainConfig> data_section();
Setting<TrainConfig> optimizer_section();
Setting<TrainConfig> precision_section();
Setting<TrainConfig> loss_scale_section();

}  // namespace sherd
