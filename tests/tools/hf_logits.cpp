// hf_logits FOLDER TOKENS.bin OUT.bin [COPY]
//
// The logits of a Hugging Face Llama, for comparison with transformers. TOKENS.bin: int64 rows, time, then the tokens;
// OUT.bin: fp32, [rows, time, vocab]. With COPY, also writes the model there as a Hugging Face folder.
#include <fstream>
#include <iostream>

#include "sherd/base/error.h"
#include "sherd/checkpoint/hugging_face.h"
#include "sherd/memory/deferred.h"
#include "sherd/models/llama.h"

namespace sherd {
namespace {

std::vector<TensorShape> shapes_of(const torch::nn::Module& module) {
  std::vector<TensorShape> shapes;
  for (const auto& item : module.named_parameters()) shapes.push_back({item.key(), item.value().sizes().vec()});
  return shapes;
}

void write_copy(const std::string& path, const LlamaImpl& model) {
  write_hugging_face_config(path, model.config().to_hugging_face());
  auto writer = create_hugging_face_weights(path, shapes_of(model));
  for (const auto& item : model.named_parameters()) {
    const auto range = whole_parameter(item.key(), item.value().sizes());
    writer.write_rows(item.key(), 0, range.rows, item.value().const_data_ptr<float>());
  }
  writer.commit();
}

void run(const std::string& path, const std::string& tokens_path, const std::string& out_path) {
  const HuggingFaceFolder folder(path);
  Llama model(LlamaConfig::from_hugging_face(folder.config(), path + "/config.json"));
  folder.check_shapes(shapes_of(*model));
  materialize(*model, folder.source());

  const auto text = read_text(tokens_path);
  const auto* numbers = reinterpret_cast<const int64_t*>(text.data());
  SHERD_CHECK(text.size() >= 16 && text.size() == 8 * static_cast<size_t>(2 + numbers[0] * numbers[1]));
  const auto tokens = at::from_blob(const_cast<int64_t*>(numbers + 2), {numbers[0], numbers[1]}, at::kLong);
  const at::NoGradGuard no_grad;
  const auto logits = model->logits(tokens).contiguous();
  auto out = File::create(out_path);
  out.write(logits.const_data_ptr(), logits.nbytes(), 0);
}

void copy(const std::string& path, const std::string& to) {
  const HuggingFaceFolder folder(path);
  Llama model(LlamaConfig::from_hugging_face(folder.config(), path + "/config.json"));
  materialize(*model, folder.source());
  write_copy(to, *model);
}

}  // namespace
}  // namespace sherd

int main(int argc, char** argv) {
  if (argc != 4 && argc != 5) {
    std::cerr << "usage: hf_logits FOLDER TOKENS.bin OUT.bin [COPY]\n";
    return 2;
  }
  try {
    sherd::run(argv[1], argv[2], argv[3]);
    if (argc == 5) sherd::copy(argv[1], argv[4]);
  } catch (const sherd::ConfigError& error) {
    std::cerr << error.what() << '\n';
    return 2;
  }
}
