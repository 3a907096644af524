#include "sherd/engine/save_model.h"

#include <memory>
#include <optional>

#include "sherd/checkpoint/hugging_face.h"

namespace sherd {

void save_weights(Engine& engine, const std::string& folder) {
  Transport& transport = engine.transport();
  const auto leave = [before = transport.say("saving")](Transport* t) { t->say(before); };
  const std::unique_ptr<Transport, decltype(leave)> in_call(&transport, leave);
  const std::vector<OwnedShard> shards = engine.master_shards();
  std::optional<SafetensorsWriter> writer;
  if (transport.rank() == 0) {
    std::vector<TensorShape> shapes;
    for (const auto& shard : shards) shapes.push_back({shard.fqn, shard.sizes});
    for (const auto& [name, buffer] : engine.buffers())
      shapes.push_back({name, buffer.sizes().vec(), safetensors_dtype(buffer.scalar_type())});
    writer.emplace(create_hugging_face_weights(folder, shapes));
    for (const auto& [name, buffer] : engine.buffers()) writer->write_tensor(name, buffer);
  }
  barrier(transport, "saving");
  if (!writer) writer.emplace(SafetensorsWriter::open(hugging_face_weights(folder)));
  for (const auto& shard : shards) {
    if (shard.rows.count == 0 || !engine.holds_first_copy()) continue;
    const at::Tensor values = shard.values.cpu();
    writer->write_rows(shard.fqn, shard.rows.first, shard.rows.count, values.const_data_ptr<float>());
  }
  writer->sync();
  barrier(transport, "saving");
  if (transport.rank() == 0) writer->commit();
}

}  // namespace sherd
