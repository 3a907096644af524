#include "sherd/checkpoint/safetensors.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <unistd.h>

#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>
#include <utility>

#include "sherd/base/bytes.h"
#include "sherd/base/error.h"

namespace sherd {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

const StoredTensor& find(const SafetensorsHeader& header, const std::string& name, const std::string& path) {
  const auto found = header.tensors.find(name);
  if (found == header.tensors.end())
    config_error(path, "got no tensor \"{}\" in the file; try the weights that belong to the model", name);
  return found->second;
}

// Elements of one row; throws if the tensor does not have these rows.
uint64_t check_rows(const StoredTensor& tensor, const std::string& name, const std::string& path, int64_t first_row,
                    int64_t rows) {
  const int64_t all_rows = tensor.shape.empty() ? 1 : tensor.shape[0];
  if (first_row < 0 || rows < 0 || first_row > all_rows || rows > all_rows - first_row)
    config_error(path, "tensor \"{}\": got rows {} to {}, expected at most its {} rows", name, first_row,
                 first_row + rows, all_rows);
  uint64_t elements = 1;
  for (size_t dim = 1; dim < tensor.shape.size(); ++dim) elements *= static_cast<uint64_t>(tensor.shape[dim]);
  return elements;
}

template <class Stored>
void read_converted(const File& file, uint64_t offset, uint64_t count, float* out) {
  constexpr uint64_t kPiece = 256 * 1024;
  std::vector<Stored> piece(std::min(count, kPiece));
  for (uint64_t done = 0; done < count; done += kPiece) {
    const uint64_t now = std::min(kPiece, count - done);
    file.read(piece.data(), now * sizeof(Stored), offset + done * sizeof(Stored));
    for (uint64_t i = 0; i < now; ++i) out[done + i] = static_cast<float>(piece[i]);
  }
}

struct StorableType {
  std::string_view dtype;
  at::ScalarType type;
};
constexpr StorableType kStorable[] = {
    {"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf}, {"BF16", at::kBFloat16}, {"I64", at::kLong},
    {"I32", at::kInt},    {"I16", at::kShort}, {"I8", at::kChar},  {"U8", at::kByte},       {"BOOL", at::kBool}};

at::ScalarType type_of(const std::string& dtype, const std::string& name, const std::string& path) {
  for (const StorableType& storable : kStorable)
    if (storable.dtype == dtype) return storable.type;
  config_error(path, "tensor \"{}\": got dtype {}, expected one that torch has; try F32", name, dtype);
}

std::string partial_path(const std::string& path) { return fmt::format("{}.partial", path); }

// The length, and the JSON padded with spaces so that the data is aligned to 8 bytes.
std::string header_text(const std::vector<TensorShape>& tensors, const std::map<std::string, std::string>& metadata,
                        const std::string& path, uint64_t& data_bytes) {
  nlohmann::ordered_json object = nlohmann::ordered_json::object();
  if (!metadata.empty()) object["__metadata__"] = metadata;
  data_bytes = 0;
  std::vector<std::pair<uint64_t, const TensorShape*>> order;  // with the bytes of an element
  for (const auto& tensor : tensors)
    order.emplace_back(c10::elementSize(type_of(tensor.dtype, tensor.name, path)), &tensor);
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  for (const auto& [element, place] : order) {
    const TensorShape& tensor = *place;
    uint64_t bytes = element;
    for (const int64_t size : tensor.shape) bytes *= static_cast<uint64_t>(size);
    if (object.contains(tensor.name))
      config_error(path, "got tensor \"{}\" twice, expected names that differ", tensor.name);
    object[tensor.name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {data_bytes, data_bytes + bytes}}};
    data_bytes += bytes;
  }
  std::string text = object.dump();
  text.resize(static_cast<size_t>(round_up(static_cast<int64_t>(text.size()), 8)), ' ');
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + text;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path)
    : file_(File::open_for_reading(path)), header_(read_safetensors_header(file_)) {}

void SafetensorsFile::read_rows(const RowRange& range, float* out) const {
  const auto& tensor = find(header_, range.fqn, file_.path());
  const uint64_t row = check_rows(tensor, range.fqn, file_.path(), range.first_row, range.rows);
  if (row != static_cast<uint64_t>(range.row_elements))
    config_error(file_.path(), "tensor \"{}\": got rows of {} elements, expected {} as in the model", range.fqn, row,
                 range.row_elements);
  const uint64_t count = row * static_cast<uint64_t>(range.rows), first = row * static_cast<uint64_t>(range.first_row);
  const uint64_t start = header_.data_start + tensor.begin;
  if (tensor.dtype == "F32") {
    file_.read(out, count * sizeof(float), start + first * sizeof(float));
  } else if (tensor.dtype == "F64") {
    read_converted<double>(file_, start + first * 8, count, out);
  } else if (tensor.dtype == "BF16") {
    read_converted<c10::BFloat16>(file_, start + first * 2, count, out);
  } else if (tensor.dtype == "F16") {
    read_converted<c10::Half>(file_, start + first * 2, count, out);
  } else {
    config_error(file_.path(),
                 "tensor \"{}\": got dtype {}, expected F32, F64, F16 or BF16; try saving the model as one of these",
                 range.fqn, tensor.dtype);
  }
}

at::Tensor SafetensorsFile::read_tensor(const std::string& name) const {
  const auto& tensor = find(header_, name, file_.path());
  const at::Tensor values = at::empty(tensor.shape, type_of(tensor.dtype, name, file_.path()));
  if (values.numel() > 0) file_.read(values.mutable_data_ptr(), values.nbytes(), header_.data_start + tensor.begin);
  return values;
}

std::string safetensors_dtype(at::ScalarType type) {
  for (const StorableType& storable : kStorable)
    if (storable.type == type) return std::string(storable.dtype);
  config_error("safetensors", "got a tensor of type {}, expected one that the format has; try .to(torch::kFloat32)",
               c10::toString(type));
}

SafetensorsWriter::SafetensorsWriter(std::string path, File file, Role role)
    : path_(std::move(path)), file_(std::move(file)), role_(role) {}

SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&& other) noexcept
    : path_(std::move(other.path_)),
      file_(std::move(other.file_)),
      header_(std::move(other.header_)),
      role_(std::exchange(other.role_, Role::done)) {}

SafetensorsWriter SafetensorsWriter::create(const std::string& path, const std::vector<TensorShape>& tensors,
                                            const std::map<std::string, std::string>& metadata) {
  uint64_t data_bytes = 0;
  const auto text = header_text(tensors, metadata, path, data_bytes);
  SafetensorsWriter writer(path, File::create(partial_path(path)), Role::creator);
  writer.file_.reserve(text.size() + data_bytes);
  writer.file_.write(text.data(), text.size(), 0);
  writer.header_ = read_safetensors_header(writer.file_);
  return writer;
}

SafetensorsWriter SafetensorsWriter::open(const std::string& path) {
  SafetensorsWriter writer(path, File::open_for_writing(partial_path(path)), Role::guest);
  writer.header_ = read_safetensors_header(writer.file_);
  return writer;
}

SafetensorsWriter::~SafetensorsWriter() {
  if (role_ == Role::creator) ::unlink(file_.path().c_str());
}

void SafetensorsWriter::write_rows(const std::string& name, int64_t first_row, int64_t rows, const float* values) {
  SHERD_CHECK(role_ != Role::done);
  const auto& tensor = find(header_, name, file_.path());
  if (tensor.dtype != "F32")
    config_error(file_.path(), "tensor \"{}\": got rows of F32, expected {}; try write_tensor()", name, tensor.dtype);
  const uint64_t row = check_rows(tensor, name, file_.path(), first_row, rows) * sizeof(float);
  file_.write(values, row * static_cast<uint64_t>(rows),
              header_.data_start + tensor.begin + row * static_cast<uint64_t>(first_row));
}

void SafetensorsWriter::write_tensor(const std::string& name, const at::Tensor& values) {
  SHERD_CHECK(role_ != Role::done);
  const auto& tensor = find(header_, name, file_.path());
  if (values.sizes() != at::IntArrayRef(tensor.shape) || safetensors_dtype(values.scalar_type()) != tensor.dtype)
    config_error(file_.path(), "tensor \"{}\": got {} of shape [{}], expected {} of [{}]; try .to() or .reshape()",
                 name, safetensors_dtype(values.scalar_type()), fmt::join(values.sizes(), ", "), tensor.dtype,
                 fmt::join(tensor.shape, ", "));
  const at::Tensor plain = values.detach().cpu().contiguous();
  if (plain.numel() > 0) file_.write(plain.const_data_ptr(), plain.nbytes(), header_.data_start + tensor.begin);
}

void SafetensorsWriter::sync() { file_.sync(); }

void SafetensorsWriter::commit() {
  SHERD_CHECK(role_ == Role::creator);
  file_.sync();
  rename_durably(file_.path(), path_);
  role_ = Role::done;
}

}  // namespace sherd
