// The safetensors format: reading rows of tensors, and writing one file from several processes.
//
//   bytes [0, 8)        little-endian length n of the header, n <= 100 MB
//   bytes [8, 8 + n)    JSON: {"name": {"dtype": "F32", "shape": [r, c], "data_offsets": [begin, end]}, ...,
//                       "__metadata__": {"key": "text"}}
//   bytes [8 + n, end)  data, row-major, little-endian; the tensors' offsets tile it without gap or overlap
//
// A header is checked in full before anything is read: whatever the bytes are, opening succeeds or throws ConfigError
// with the file and the tensor. Values are read and written by pread and pwrite at their place, never the whole file.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "sherd/base/parameter_source.h"
#include "sherd/checkpoint/file.h"

namespace sherd {

/// A tensor by name, sizes and type, in safetensors' spelling.
struct TensorShape {
  std::string name;
  std::vector<int64_t> shape;
  std::string dtype = "F32";
};

/// "F32", "BF16", ... for a tensor of this type. Throws ConfigError for a type that cannot be stored (F64, F32, F16,
/// BF16, I64, I32, I16, I8, U8 and BOOL can).
std::string safetensors_dtype(at::ScalarType type);

/// A tensor in a file; `begin` and `end` are byte offsets in the data.
struct StoredTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  uint64_t begin = 0;
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::map<std::string, StoredTensor> tensors;
  std::map<std::string, std::string> metadata;
  uint64_t data_start = 0;
};

/// Reads and checks the header. Throws ConfigError.
SafetensorsHeader read_safetensors_header(const File& file);

/// A file open for reading. Safe to use from several threads.
class SafetensorsFile {
 public:
  /// Throws ConfigError if the file is missing or not a safetensors file.
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const SafetensorsHeader& header() const { return header_; }

  /// Writes rows of tensor `range.fqn` as fp32 to `out`, reading just those bytes. F32, F64, F16 and BF16.
  /// Throws ConfigError if the tensor is absent or the range is not of its shape, FaultError if the disk fails.
  void read_rows(const RowRange& range, float* out) const;

  /// A whole tensor in its own type, on the CPU. Throws ConfigError if it is absent or of a type that torch lacks.
  at::Tensor read_tensor(const std::string& name) const;

 private:
  File file_;
  SafetensorsHeader header_;
};

/// A file being written: one process creates it, any number open it and write their own rows, the creator commits.
/// Until then the bytes are in PATH.partial; a creator that ends without commit() removes them.
class SafetensorsWriter {
 public:
  /// Lays out the tensors (those of larger elements first, so that all are aligned; otherwise in the given order),
  /// writes the header and reserves the space.
  /// Throws ConfigError if the file cannot be created there, FaultError if the disk is full.
  static SafetensorsWriter create(const std::string& path, const std::vector<TensorShape>& tensors,
                                  const std::map<std::string, std::string>& metadata = {});

  /// Opens what another process created. Throws ConfigError.
  static SafetensorsWriter open(const std::string& path);

  SafetensorsWriter(SafetensorsWriter&& other) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&&) = delete;
  ~SafetensorsWriter();

  /// Writes rows [first_row, first_row + rows) of dim 0 of an F32 tensor. Throws ConfigError for rows or a tensor that
  /// the file does not have, FaultError with the path if the disk fails.
  void write_rows(const std::string& name, int64_t first_row, int64_t rows, const float* values);

  /// Writes a whole tensor of any type, from any device. Throws ConfigError unless sizes and type are the file's.
  void write_tensor(const std::string& name, const at::Tensor& values);

  /// Makes this process's rows durable. Where processes are on several hosts, each calls it before commit().
  void sync();

  /// Creator only, after all have written: makes the file durable and gives it its name. Throws FaultError.
  void commit();

 private:
  enum class Role { creator, guest, done };
  SafetensorsWriter(std::string path, File file, Role role);

  std::string path_;
  File file_;
  SafetensorsHeader header_;
  Role role_;
};

}  // namespace sherd
