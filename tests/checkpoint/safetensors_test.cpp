#include "sherd/checkpoint/safetensors.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sherd/base/error.h"
#include "tests/checkpoint/temporary_folder.h"

namespace sherd {
namespace {

const std::vector<TensorShape> kTensors = {
    {"odd", {7, 3}}, {"vector", {5}}, {"scalar", {}}, {"none", {0, 4}}, {"cube", {2, 3, 4}}};

std::vector<float> counting(size_t count, float from) {
  std::vector<float> values(count);
  std::iota(values.begin(), values.end(), from);
  return values;
}

void write_all(SafetensorsWriter& writer) {
  writer.write_rows("odd", 0, 7, counting(21, 0).data());
  writer.write_rows("vector", 0, 5, counting(5, 100).data());
  writer.write_rows("scalar", 0, 1, counting(1, 200).data());
  writer.write_rows("none", 0, 0, nullptr);
  writer.write_rows("cube", 0, 2, counting(24, 300).data());
}

std::vector<float> read(const SafetensorsFile& file, const RowRange& range) {
  std::vector<float> out(static_cast<size_t>(range.rows * range.row_elements));
  file.read_rows(range, out.data());
  return out;
}

TEST(Safetensors, RoundTrips) {
  const TemporaryFolder folder;
  auto writer = SafetensorsWriter::create(folder / "f", kTensors, {{"format", "pt"}});
  EXPECT_FALSE(std::filesystem::exists(folder / "f"));
  write_all(writer);
  writer.commit();
  EXPECT_FALSE(std::filesystem::exists(folder / "f.partial"));
  const SafetensorsFile file(folder / "f");
  EXPECT_EQ(file.header().metadata.at("format"), "pt");
  EXPECT_EQ(file.header().data_start % 8, 0U);
  EXPECT_EQ(read(file, {"odd", 0, 7, 3}), counting(21, 0));
  EXPECT_EQ(read(file, {"odd", 2, 3, 3}), counting(9, 6));
  EXPECT_EQ(read(file, {"vector", 4, 1, 1}), counting(1, 104));
  EXPECT_EQ(read(file, {"scalar", 0, 1, 1}), counting(1, 200));
  EXPECT_EQ(read(file, {"cube", 1, 1, 12}), counting(12, 312));
  EXPECT_EQ(read(file, {"cube", 2, 0, 12}).size(), 0U);
  EXPECT_EQ(read(file, {"none", 0, 0, 4}).size(), 0U);
}

TEST(Safetensors, WholeTensorsOfEveryTypeRoundTripAndAreAligned) {
  const TemporaryFolder folder;
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const at::ScalarType type : {at::kBool, at::kByte, at::kChar, at::kShort, at::kHalf, at::kBFloat16, at::kInt,
                                    at::kFloat, at::kLong, at::kDouble}) {
    const std::string name = c10::toString(type);
    tensors.emplace_back(name, at::arange(15).reshape({5, 3}).to(type));
    tensors.emplace_back(name + ".t", at::arange(15).reshape({5, 3}).to(type).t());  // not contiguous
    tensors.emplace_back(name + ".scalar", at::ones({}, type));
    tensors.emplace_back(name + ".none", at::ones({0, 2}, type));
  }
  std::vector<TensorShape> shapes;
  for (const auto& [name, tensor] : tensors)
    shapes.push_back({name, tensor.sizes().vec(), safetensors_dtype(tensor.scalar_type())});
  auto writer = SafetensorsWriter::create(folder / "f", shapes);
  for (const auto& [name, tensor] : tensors) writer.write_tensor(name, tensor);
  writer.commit();
  const SafetensorsFile file(folder / "f");
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor read = file.read_tensor(name);
    EXPECT_EQ(read.scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(at::equal(read, tensor)) << name;
    EXPECT_EQ(file.header().tensors.at(name).begin % tensor.element_size(), 0U) << name;
  }
  EXPECT_EQ(read(file, {"BFloat16", 1, 2, 3}), counting(6, 3));
}

TEST(Safetensors, TensorsOfAnotherTypeOrShapeAreRefused) {
  const TemporaryFolder folder;
  auto writer = SafetensorsWriter::create(folder / "f", {{"long", {2}, "I64"}, {"float", {2}}});
  const auto expect_refused = [](const auto& statement, const std::string& words) {
    try {
      statement();
      ADD_FAILURE() << "no error: " << words;
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
    }
  };
  const float values[] = {1, 2};
  expect_refused([&] { writer.write_rows("long", 0, 2, values); }, "expected I64");
  expect_refused([&] { writer.write_tensor("long", at::zeros({2})); }, "got F32 of shape [2], expected I64 of [2]");
  expect_refused([&] { writer.write_tensor("float", at::zeros({2, 1})); }, "shape [2, 1], expected F32 of [2]");
  expect_refused([&] { writer.write_tensor("none", at::zeros({2})); }, "no tensor \"none\"");
  expect_refused([&] { writer.write_tensor("long", at::zeros({2}, at::kComplexFloat)); }, "ComplexFloat");
  expect_refused([&] { SafetensorsWriter::create(folder / "g", {{"x", {2}, "F8_E4M3"}}); }, "F8_E4M3");
}

TEST(Safetensors, SeveralProcessesWriteTheirRows) {
  const TemporaryFolder folder;
  constexpr int64_t kRows = 29, kRanks = 3, kColumns = 1111;
  auto writer = SafetensorsWriter::create(folder / "f", {{"w", {kRows, kColumns}}});
  std::vector<pid_t> children;
  for (int64_t rank = 1; rank < kRanks; ++rank) {
    const pid_t child = ::fork();
    if (child == 0) {
      auto guest = SafetensorsWriter::open(folder / "f");
      for (int64_t row = rank; row < kRows; row += kRanks)
        guest.write_rows("w", row, 1, counting(kColumns, static_cast<float>(row * kColumns)).data());
      guest.sync();
      ::_exit(0);
    }
    children.push_back(child);
  }
  for (int64_t row = 0; row < kRows; row += kRanks)
    writer.write_rows("w", row, 1, counting(kColumns, static_cast<float>(row * kColumns)).data());
  for (const pid_t child : children) {
    int status = 1;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }
  writer.commit();
  EXPECT_EQ(read(SafetensorsFile(folder / "f"), {"w", 0, kRows, kColumns}), counting(kRows * kColumns, 0));
}

TEST(Safetensors, NothingIsLeftWithoutCommit) {
  const TemporaryFolder folder;
  write_bytes(folder / "f", "the old file");
  {
    auto writer = SafetensorsWriter::create(folder / "f", kTensors);
    { const auto guest = SafetensorsWriter::open(folder / "f"); }
    EXPECT_TRUE(std::filesystem::exists(folder / "f.partial"));  // a guest removes nothing
    const auto moved = std::move(writer);
    EXPECT_TRUE(std::filesystem::exists(folder / "f.partial"));
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "f.partial"));
  EXPECT_EQ(read_bytes(folder / "f"), "the old file");
}

TEST(Safetensors, ConvertsHalvesAndDoubles) {
  const TemporaryFolder folder;
  const std::string header =
      R"({"f16":{"dtype":"F16","shape":[4],"data_offsets":[0,8]},"bf16":{"dtype":"BF16","shape":[4],"data_offsets":[8,16]},)"
      R"("f64":{"dtype":"F64","shape":[4],"data_offsets":[16,48]},"i32":{"dtype":"I32","shape":[1],"data_offsets":[48,52]}})";
  const uint64_t length = header.size();
  std::string bytes = std::string(reinterpret_cast<const char*>(&length), 8) + header;
  const double values[] = {1.0, -0.3333, 6.1e-5, 65504.0};
  for (const double value : values) {
    const c10::Half half(static_cast<float>(value));
    bytes.append(reinterpret_cast<const char*>(&half), 2);
  }
  for (const double value : values) {
    const c10::BFloat16 half(static_cast<float>(value));
    bytes.append(reinterpret_cast<const char*>(&half), 2);
  }
  for (const double value : values) bytes.append(reinterpret_cast<const char*>(&value), 8);
  write_bytes(folder / "f", bytes + "1234");
  const SafetensorsFile file(folder / "f");
  const auto f16 = read(file, {"f16", 0, 4, 1}), bf16 = read(file, {"bf16", 0, 4, 1}),
             f64 = read(file, {"f64", 1, 3, 1});
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(f16[i] / values[i], 1.0, 1e-3);
    EXPECT_NEAR(bf16[i] / values[i], 1.0, 5e-3);
    if (i > 0) {
      EXPECT_EQ(f64[i - 1], static_cast<float>(values[i]));
    }
  }
  EXPECT_NE(error_of<ConfigError>([&] {
              read(file, {"i32", 0, 1, 1});
            }).find("tensor \"i32\": got dtype I32"),
            std::string::npos);
}

TEST(Safetensors, RefusesRowsThatAreNotThere) {
  const TemporaryFolder folder;
  auto writer = SafetensorsWriter::create(folder / "f", kTensors);
  const auto values = counting(24, 0);
  EXPECT_NE(error_of<ConfigError>([&] { writer.write_rows("odd", 5, 3, values.data()); }).find("\"odd\""),
            std::string::npos);
  EXPECT_NE(error_of<ConfigError>([&] { writer.write_rows("odd", -1, 1, values.data()); }), "");
  EXPECT_NE(error_of<ConfigError>([&] { writer.write_rows("even", 0, 1, values.data()); }).find("\"even\""),
            std::string::npos);
  write_all(writer);
  writer.commit();
  const SafetensorsFile file(folder / "f");
  EXPECT_NE(error_of<ConfigError>([&] {
              read(file, {"odd", 6, 2, 3});
            }).find("rows 6 to 8, expected at most its 7"),
            std::string::npos);
  EXPECT_NE(error_of<ConfigError>([&] {
              read(file, {"odd", 0, 1, 4});
            }).find("rows of 3 elements, expected 4"),
            std::string::npos);
  EXPECT_NE(error_of<ConfigError>([&] {
              read(file, {"even", 0, 1, 4});
            }).find("no tensor \"even\""),
            std::string::npos);
  EXPECT_NE(error_of<ConfigError>([&] { SafetensorsWriter::create(folder / "g", {{"a", {1}}, {"a", {1}}}); }), "");
}

TEST(Safetensors, AFileThatShrinksIsAFault) {
  const TemporaryFolder folder;
  auto writer = SafetensorsWriter::create(folder / "f", kTensors);
  write_all(writer);
  writer.commit();
  const SafetensorsFile file(folder / "f");
  std::filesystem::resize_file(folder / "f", file.header().data_start + 10);
  EXPECT_NE(error_of<FaultError>([&] { read(file, {"odd", 0, 7, 3}); }).find(folder / "f"), std::string::npos);
}

TEST(Safetensors, RefusesAFolderThatIsNotThere) {
  const TemporaryFolder folder;
  EXPECT_NE(error_of<ConfigError>([&] { SafetensorsWriter::create(folder / "no/f", kTensors); }).find("no/f"),
            std::string::npos);
  EXPECT_NE(error_of<ConfigError>([&] { SafetensorsWriter::open(folder / "f"); }).find("f.partial"), std::string::npos);
  EXPECT_NE(error_of<ConfigError>([&] { SafetensorsFile file(folder / "f"); }).find(folder / "f"), std::string::npos);
}

}  // namespace
}  // namespace sherd
