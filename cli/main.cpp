// The command `sherd`. Exit codes: 0, 2 for a mistake of the user, 1 for everything else that went wrong, and 130
// when an interrupt left nothing to keep.
#include <c10/util/Exception.h>

#include <CLI/CLI.hpp>
#include <exception>
#include <string>

#include "cli/sample_command.h"
#include "cli/train_command.h"
#include "cli/version.h"
#include "sherd/base/error.h"
#include "sherd/base/log.h"

namespace {

int run(int argc, char** argv) {
  CLI::App app("Sharded data-parallel training of PyTorch models", "sherd");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("sherd ") + sherd::kVersion);
  sherd::TrainOptions train;
  sherd::SampleOptions sample;
  const CLI::App* const train_command = sherd::add_train_command(app, train);
  sherd::add_sample_command(app, sample);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return train_command->parsed() ? sherd::run_train_command(train, argv) : sherd::run_sample_command(sample);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const sherd::ConfigError& error) {
    sherd::log_line(error.what());
    return 2;
  } catch (const c10::Error& error) {
    sherd::log_line(error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    sherd::log_line(error.what());
    return 1;
  }
}
