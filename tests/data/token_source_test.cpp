#include "sherd/data/token_source.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <numeric>

#include "tests/data/expect_config_error.h"
#include "tests/data/temporary_folder.h"

namespace sherd {
namespace {

std::vector<int64_t> read_all(const TokenSource& source) {
  std::vector<int64_t> tokens(source.size());
  source.read(0, source.size(), tokens.data());
  return tokens;
}

/// Every piece of a source is that piece of the whole.
void expect_pieces(const TokenSource& source, const std::vector<int64_t>& whole) {
  ASSERT_EQ(source.size(), static_cast<int64_t>(whole.size()));
  for (int64_t first = 0; first <= source.size(); first += 1 + first / 7) {
    for (int64_t count : {int64_t{0}, int64_t{1}, int64_t{2}, int64_t{9}, int64_t{4097}, source.size() - first}) {
      if (count > source.size() - first) continue;
      std::vector<int64_t> piece(count + 1, -7);
      source.read(first, count, piece.data());
      ASSERT_TRUE(std::equal(piece.begin(), piece.end() - 1, whole.begin() + first)) << first << " " << count;
      ASSERT_EQ(piece.back(), -7) << "wrote past the end";
    }
  }
}

TEST(TokenFile, ReadsBothTypesAtAnyPlace) {
  const TemporaryFolder folder;
  std::vector<uint16_t> small(9001);
  std::vector<uint32_t> large(5003);
  for (size_t i = 0; i < small.size(); ++i) small[i] = static_cast<uint16_t>(i * 40503);
  for (size_t i = 0; i < large.size(); ++i) large[i] = static_cast<uint32_t>(i * 2654435761u);
  const auto source16 = open_token_file(folder.write_ids("a.bin", small), TokenType::uint16);
  const auto source32 = open_token_file(folder.write_ids("b.bin", large), TokenType::uint32);
  expect_pieces(*source16, std::vector<int64_t>(small.begin(), small.end()));
  expect_pieces(*source32, std::vector<int64_t>(large.begin(), large.end()));
  EXPECT_EQ(source16->vocab_bound(), 65536);
  EXPECT_EQ(source32->vocab_bound(), int64_t{1} << 32);
  EXPECT_EQ(source16->kind(), TokenKind::ids);
}

TEST(TokenFile, OneTokenIsEnough) {
  const TemporaryFolder folder;
  const auto source = open_token_file(folder.write_ids<uint32_t>("a", {0xffffffff}), TokenType::uint32);
  EXPECT_EQ(read_all(*source), std::vector<int64_t>{0xffffffff});
}

TEST(TokenFile, BadFilesAreConfigErrors) {
  const TemporaryFolder folder;
  const auto open = [](const std::string& path, TokenType type) { return [=] { open_token_file(path, type); }; };
  const std::string odd = folder.write("odd.bin", "abc");
  const std::string half = folder.write("half.bin", "abcdef");
  const std::string empty = folder.write("empty.bin", "");
  expect_config_error(open(odd, TokenType::uint16), {odd, "3 bytes", "multiple of 2"});
  expect_config_error(open(half, TokenType::uint32), {half, "6 bytes", "multiple of 4", "data.token_type uint16"});
  expect_config_error(open(empty, TokenType::uint16), {empty, "0 bytes"});
  expect_config_error(open(folder / "none", TokenType::uint16), {"none", "No such file"});
  expect_config_error(open(folder.path(), TokenType::uint16), {"regular file"});
  EXPECT_EQ(parse_token_type("uint32"), TokenType::uint32);
  expect_config_error([] { parse_token_type("int8"); }, {"int8", "uint16"});
}

TEST(TokenFile, AFileThatShrinksIsAFault) {
  const TemporaryFolder folder;
  const std::string path = folder.write_ids("a.bin", std::vector<uint16_t>(100));
  const auto source = open_token_file(path, TokenType::uint16);
  std::filesystem::resize_file(path, 50);
  int64_t out[100];
  EXPECT_NO_THROW(source->read(0, 25, out));
  EXPECT_THROW(source->read(0, 26, out), FaultError);
  EXPECT_THROW(source->read(90, 11, out), std::logic_error);
}

TEST(Text, ConcatenatesFilesWithoutSeparator) {
  const TemporaryFolder folder;
  folder.write("a", "one");
  folder.write("b", "");
  folder.write("c", std::string(10000, '\xff'));
  folder.write("d", std::string("\0z", 2));
  const auto source = open_text({folder.path()});
  std::vector<int64_t> whole{'o', 'n', 'e'};
  whole.insert(whole.end(), 10000, 255);
  whole.insert(whole.end(), {0, 'z'});
  expect_pieces(*source, whole);
  EXPECT_EQ(source->vocab_bound(), 256);
  EXPECT_EQ(source->kind(), TokenKind::bytes);
}

TEST(Text, NothingToReadIsAConfigError) {
  const TemporaryFolder folder;
  const std::string empty = folder.write("empty.txt", "");
  expect_config_error([&] { open_text({empty}); }, {empty, "at least one byte"});
  expect_config_error([&] { open_text({}); }, {"no text"});
  expect_config_error([&] { open_text({folder / "none.txt"}); }, {"none.txt", "names no file"});
}

TEST(Text, AChangedFileIsAFault) {
  const TemporaryFolder folder;
  const std::string path = folder.write("a", "12345");
  const auto source = open_text({path});
  int64_t out[5];
  folder.write("a", "1234");
  EXPECT_THROW(source->read(0, 2, out), FaultError);
  std::filesystem::remove(path);
  EXPECT_THROW(source->read(0, 2, out), FaultError);
}

TEST(Synthetic, IsAFunctionOfThePosition) {
  const auto source = synthetic_source(1000, 3);
  std::vector<int64_t> whole(3000);
  source->read(0, 3000, whole.data());
  for (int64_t first = 0; first < 2900; first += 37) {
    std::vector<int64_t> piece(100);
    source->read(first, 100, piece.data());
    ASSERT_TRUE(std::equal(piece.begin(), piece.end(), whole.begin() + first)) << first;
  }
  int64_t last = -1;
  source->read(source->size() - 1, 1, &last);
  EXPECT_TRUE(last >= 0 && last < 1000);
  std::vector<int64_t> other(3000);
  synthetic_source(1000, 4)->read(0, 3000, other.data());
  EXPECT_NE(whole, other);
}

TEST(Synthetic, CanBeLearnedAndStaysInTheVocabulary) {
  for (int64_t vocab : {1, 2, 7, 256, 32000}) {
    const auto source = synthetic_source(vocab, 0);
    EXPECT_EQ(source->vocab_bound(), vocab);
    std::vector<int64_t> t(20000);
    source->read(12345, t.size(), t.data());
    int64_t successors = 0;
    for (size_t i = 0; i < t.size(); ++i) {
      ASSERT_TRUE(t[i] >= 0 && t[i] < vocab);
      if (i > 0 && t[i] == (5 * t[i - 1] + 7) % vocab) ++successors;
    }
    EXPECT_GT(successors, 0.78 * t.size());
    if (vocab > 100) {
      EXPECT_LT(successors, 0.83 * t.size());
    }
  }
  expect_config_error([] { synthetic_source(0, 0); }, {"vocabulary of 0"});
}

TEST(CheckVocab, NamesTheFirstOffender) {
  const TemporaryFolder folder;
  for (int64_t at : {0, 1, 16383, 16384, 40000}) {
    std::vector<uint16_t> ids(40001, 255);
    ids[at] = 300;
    ids[40000] = 301;
    const auto source = open_token_file(folder.write_ids("ids.bin", ids), TokenType::uint16);
    expect_config_error([&] { check_vocab(*source, 256); },
                        {at == 40000 ? "token 301" : "token 300", "position " + std::to_string(at) + " of", "ids.bin"});
    EXPECT_NO_THROW(check_vocab(*source, 302));
    EXPECT_NO_THROW(check_vocab(*source, 100000));
  }
}

TEST(CheckVocab, TextNeedsAByteModel) {
  const TemporaryFolder folder;
  const auto text = open_text({folder.write("a", "hello")});
  EXPECT_NO_THROW(check_vocab(*text, 256));
  for (int64_t vocab : {128, 255, 257, 32000}) {
    expect_config_error([&] { check_vocab(*text, vocab); }, {"bytes of text", "vocabulary is not bytes",
                                                             std::to_string(vocab), "bytes-10m", "data.tokens"});
  }
  EXPECT_NO_THROW(check_vocab(*synthetic_source(100, 0), 100)) << "endless, and settled by its bound";
}

TEST(CheckVocab, GoldenTokensAreBytes) {
  const auto source = open_token_file(SHERD_GOLDEN "/tiny/tokens.bin", TokenType::uint16);
  EXPECT_EQ(source->size(), 20 * 4 * 64 + 1);
  EXPECT_NO_THROW(check_vocab(*source, 256));
}

}  // namespace
}  // namespace sherd
