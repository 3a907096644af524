// The header of a safetensors file: everything that a hostile or damaged one can say is checked here.
#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "sherd/base/error.h"
#include "sherd/checkpoint/safetensors.h"

namespace sherd {
namespace {

/// The file is not what it says it is.
template <class... Args>
[[noreturn]] void spoilt(const std::string& path, fmt::format_string<Args...> format, Args&&... args) {
  config_error(path, "{}; try copying or downloading the file again", fmt::format(format, std::forward<Args>(args)...));
}

using nlohmann::json;

constexpr uint64_t kLargestHeader = 100'000'000;
constexpr int kDeepest = 3;  // {"name": {"shape": [...]}}

uint64_t element_bytes(const std::string& dtype) {
  static const std::map<std::string, uint64_t> sizes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},
      {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"I64", 8},     {"U64", 8}, {"F64", 8}};
  const auto found = sizes.find(dtype);
  return found == sizes.end() ? 0 : found->second;
}

json parse(const std::string& text, const std::string& path) {
  std::set<std::string> names;
  const auto check = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > kDeepest) spoilt(path, "got a header nested deeper than a list of tensors, expected safetensors");
    if (event == json::parse_event_t::key && depth == 1 && !names.insert(value.get<std::string>()).second)
      spoilt(path, "got tensor \"{}\" twice in the header", value.get<std::string>());
    return true;
  };
  try {
    return json::parse(text, check);
  } catch (const json::exception& error) {
    spoilt(path, "got a header that is not JSON ({}), expected a safetensors file", error.what());
  }
}

uint64_t read_unsigned(const json& value, const std::string& path, const std::string& name, std::string_view what) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
    spoilt(path, "tensor \"{}\": got {} {}, expected a size", name, what, value.dump());
  return value.get<uint64_t>();
}

std::map<std::string, std::string> read_metadata(const json& value, const std::string& path) {
  std::map<std::string, std::string> metadata;
  if (!value.is_object()) spoilt(path, "got \"__metadata__\" as {}, expected texts by name", value.type_name());
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) spoilt(path, "got \"__metadata__\": \"{}\" as {}, expected a text", key, text.type_name());
    metadata[key] = text.get<std::string>();
  }
  return metadata;
}

StoredTensor read_tensor(const json& value, const std::string& path, const std::string& name) {
  const auto expect = [&](bool good, std::string_view what) {
    if (!good) spoilt(path, "tensor \"{}\": got no {} in its entry", name, what);
  };
  expect(value.is_object(), "\"dtype\", \"shape\" and \"data_offsets\"");
  expect(value.contains("dtype") && value["dtype"].is_string(), "text \"dtype\"");
  expect(value.contains("shape") && value["shape"].is_array(), "list \"shape\"");
  expect(value.contains("data_offsets") && value["data_offsets"].is_array() && value["data_offsets"].size() == 2,
         "pair \"data_offsets\"");
  StoredTensor tensor{.dtype = value["dtype"].get<std::string>(), .shape = {}};
  uint64_t bytes = element_bytes(tensor.dtype);
  if (bytes == 0) spoilt(path, "tensor \"{}\": got dtype {}, expected one of safetensors", name, value["dtype"].dump());
  for (const auto& size : value["shape"]) {
    const uint64_t extent = read_unsigned(size, path, name, "dimension");
    tensor.shape.push_back(static_cast<int64_t>(extent));
    if (__builtin_mul_overflow(bytes, extent, &bytes))
      spoilt(path, "tensor \"{}\": got shape {}, expected one that fits in memory", name, value["shape"].dump());
  }
  tensor.begin = read_unsigned(value["data_offsets"][0], path, name, "offset");
  tensor.end = read_unsigned(value["data_offsets"][1], path, name, "offset");
  if (tensor.end < tensor.begin || tensor.end - tensor.begin != bytes)
    spoilt(path, "tensor \"{}\": got data_offsets {}, expected {} bytes for {} of shape {}", name,
           value["data_offsets"].dump(), bytes, tensor.dtype, value["shape"].dump());
  return tensor;
}

// Offsets tile the data: no tensor overlaps another, no byte is left over, and none is missing.
void check_tiling(const SafetensorsHeader& header, uint64_t data_bytes, const std::string& path) {
  std::vector<const std::pair<const std::string, StoredTensor>*> order;
  for (const auto& item : header.tensors) order.push_back(&item);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  uint64_t at = 0;
  for (const auto* item : order) {
    if (item->second.begin != at)
      spoilt(path, "tensor \"{}\": got data from byte {}, expected it from byte {}, where the one before ends",
             item->first, item->second.begin, at);
    at = item->second.end;
    if (at > data_bytes)
      spoilt(path, "tensor \"{}\": got data up to byte {}, expected at most {}; the file is cut off", item->first, at,
             data_bytes);
  }
  if (at != data_bytes) spoilt(path, "got {} bytes of data, expected {}, where the last tensor ends", data_bytes, at);
}

}  // namespace

SafetensorsHeader read_safetensors_header(const File& file) {
  const std::string& path = file.path();
  const uint64_t size = file.size();
  if (size < 8) spoilt(path, "got a file of {} bytes, expected a safetensors file", size);
  uint64_t length = 0;
  file.read(&length, 8, 0);
  if (length > kLargestHeader)
    spoilt(path, "got a header of {} bytes, expected at most {}; this is no safetensors file", length, kLargestHeader);
  if (length > size - 8)
    spoilt(path, "got a header of {} bytes in a file of {}, expected a longer file; it is cut off", length, size);
  std::string text(length, '\0');
  file.read(text.data(), length, 8);
  if (!text.starts_with('{')) spoilt(path, "got a header that does not begin with {{, expected a safetensors file");

  const json object = parse(text, path);
  SafetensorsHeader header;
  header.data_start = 8 + length;
  for (const auto& [name, value] : object.items()) {
    if (name == "__metadata__") {
      header.metadata = read_metadata(value, path);
    } else {
      header.tensors.emplace(name, read_tensor(value, path, name));
    }
  }
  check_tiling(header, size - header.data_start, path);
  return header;
}

}  // namespace sherd
