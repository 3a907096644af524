// Damaged and lying headers: only ConfigError may come out.
#include <gtest/gtest.h>

#include <random>

#include "sherd/base/error.h"
#include "sherd/checkpoint/safetensors.h"
#include "tests/checkpoint/temporary_folder.h"

namespace sherd {
namespace {

std::string file_of(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + std::string(data_bytes, '\0');
}

constexpr const char* kGood =
    R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
    R"("b":{"dtype":"BF16","shape":[],"data_offsets":[24,26]},"c":{"dtype":"F64","shape":[0,5],"data_offsets":[26,26]}}  )";

TEST(SafetensorsHeader, ReadsAGoodOne) {
  const TemporaryFolder folder;
  write_bytes(folder / "f", file_of(kGood, 26));
  const SafetensorsFile file(folder / "f");
  EXPECT_EQ(file.header().tensors.size(), 3U);
  EXPECT_EQ(file.header().tensors.at("a").shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(file.header().tensors.at("b").dtype, "BF16");
  EXPECT_EQ(file.header().metadata.at("format"), "pt");
}

TEST(SafetensorsHeader, EachLieIsNamed) {
  struct Lie {
    std::string bytes, said;
  };
  const auto one = [](const std::string& entry) { return file_of(R"({"w":)" + entry + "}", 24); };
  std::string huge = file_of(kGood, 26), long_header = huge;
  const uint64_t too_long = 100'000'001, past_end = huge.size() - 7;
  huge.replace(0, 8, reinterpret_cast<const char*>(&too_long), 8);
  long_header.replace(0, 8, reinterpret_cast<const char*>(&past_end), 8);
  const Lie lies[] = {
      {"", "got a file of 0 bytes"},
      {"1234567", "got a file of 7 bytes"},
      {huge, "header of 100000001 bytes"},
      {long_header, "it is cut off"},
      {file_of("", 0), "does not begin with {"},
      {file_of("[]", 0), "does not begin with {"},
      {file_of("{\"a\":", 0), "not JSON"},
      {file_of("{\"\xff\":1}", 0), "not JSON"},
      {file_of(kGood, 25), "cut off"},
      {file_of(kGood, 27), "got 27 bytes of data, expected 26"},
      {file_of(R"({"w":{"dtype":"F32","shape":[[[[1]]]],"data_offsets":[0,4]}})", 4), "nested"},
      {one(R"({"dtype":"F32","shape":[6],"data_offsets":[0,24]},"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]})"),
       "\"w\" twice"},
      {one("[1]"), "tensor \"w\""},
      {one(R"({"shape":[6],"data_offsets":[0,24]})"), "text \"dtype\""},
      {one(R"({"dtype":"F31","shape":[6],"data_offsets":[0,24]})"), "got dtype \"F31\""},
      {one(R"({"dtype":"F32","data_offsets":[0,24]})"), "list \"shape\""},
      {one(R"({"dtype":"F32","shape":[-6],"data_offsets":[0,24]})"), "got dimension -6"},
      {one(R"({"dtype":"F32","shape":[6.0],"data_offsets":[0,24]})"), "got dimension 6.0"},
      {one(R"({"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,24]})"), "fits in memory"},
      {one(R"({"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,24]})"),
       "got dimension 18446744073709551615"},
      {one(R"({"dtype":"F32","shape":[6]})"), "pair \"data_offsets\""},
      {one(R"({"dtype":"F32","shape":[6],"data_offsets":[0]})"), "pair \"data_offsets\""},
      {one(R"({"dtype":"F32","shape":[6],"data_offsets":["0",24]})"), "got offset \"0\""},
      {one(R"({"dtype":"F32","shape":[6],"data_offsets":[24,0]})"), "expected 24 bytes"},
      {one(R"({"dtype":"F32","shape":[5],"data_offsets":[0,24]})"), "expected 20 bytes"},
      {one(R"({"dtype":"F32","shape":[5],"data_offsets":[4,24]})"), "expected it from byte 0"},
      {one(R"({"dtype":"F32","shape":[6],"data_offsets":[0,24]},"v":{"dtype":"U8","shape":[4],"data_offsets":[20,24]})"),
       "tensor \"v\": got data from byte 20"},
      {file_of(R"({"__metadata__":[]})", 0), "__metadata__"},
      {file_of(R"({"__metadata__":{"step":1}})", 0), "\"step\" as number"},
  };
  const TemporaryFolder folder;
  for (const auto& lie : lies) {
    write_bytes(folder / "f", lie.bytes);
    const auto said = error_of<ConfigError>([&] { SafetensorsFile file(folder / "f"); });
    EXPECT_NE(said.find(lie.said), std::string::npos) << "expected " << lie.said << ", got " << said;
    EXPECT_NE(said.find(folder / "f"), std::string::npos) << said;
  }
}

// Reads a file that may be damaged; true if it was accepted.
bool accepts(const std::string& path) {
  try {
    const SafetensorsFile file(path);
    for (const auto& [name, tensor] : file.header().tensors) {
      RowRange range{.fqn = name, .first_row = 0, .rows = tensor.shape.empty() ? 1 : tensor.shape[0]};
      for (size_t dim = 1; dim < tensor.shape.size(); ++dim) range.row_elements *= tensor.shape[dim];
      std::vector<float> values(static_cast<size_t>(tensor.end - tensor.begin) + 1);
      file.read_rows(range, values.data());
    }
  } catch (const ConfigError&) {
    return false;
  }
  return true;
}

TEST(SafetensorsHeader, FlippedBytesGiveOnlyConfigErrors) {
  const TemporaryFolder folder;
  const std::string good = file_of(kGood, 26);
  std::mt19937 random(20260101);
  const auto below = [&](size_t bound) { return std::uniform_int_distribution<size_t>(0, bound - 1)(random); };
  int accepted = 0, refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = good;
    for (size_t flips = 1 + below(3); flips > 0; --flips) bytes[below(bytes.size())] = static_cast<char>(below(256));
    if (below(4) == 0) bytes.resize(below(bytes.size()));
    write_bytes(folder / "f", bytes);
    ++(accepts(folder / "f") ? accepted : refused);
  }
  EXPECT_GT(accepted, 50);
  EXPECT_GT(refused, 1000);
}

TEST(SafetensorsHeader, DigitsInPlaceOfOthersGiveOnlyConfigErrors) {
  const TemporaryFolder folder;
  const std::string good = file_of(kGood, 26);
  std::mt19937 random(7);
  for (size_t at = 8; at < good.size() - 26; ++at) {
    if (std::isdigit(static_cast<unsigned char>(good[at])) == 0) continue;
    for (const std::string other :
         {"0", "1", "9", "-1", "1e3", "18446744073709551615", "99999999999999999999", "null"}) {
      auto header = good.substr(8, good.size() - 34);
      header.replace(at - 8, 1, other);
      write_bytes(folder / "f", file_of(header, 26));
      accepts(folder / "f");
    }
  }
}

}  // namespace
}  // namespace sherd
