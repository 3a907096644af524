// Where tokens come from: a file of token ids, text read as bytes, or a made-up stream that a model can learn.
//
// A TokenSource is one long stream with random access. It is immutable, may be read from several threads, and
// holds file names and sizes, not file contents: reads go through the page cache, which all ranks of a host
// share. Opening raises ConfigError; a file that shrinks or vanishes in mid-run is a FaultError in read().
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "sherd/base/names.h"

namespace sherd {

/// bytes: the tokens are the bytes of a text, and a model for them has a vocabulary of exactly 256.
enum class TokenKind { ids, bytes };

class TokenSource {
 public:
  virtual ~TokenSource() = default;

  /// Tokens in the stream.
  virtual int64_t size() const = 0;

  /// Writes tokens [first, first + count), which must lie in the stream, to `out`. Throws FaultError.
  virtual void read(int64_t first, int64_t count, int64_t* out) const = 0;

  /// Writes for each of these tokens whether it may be a target (1) or is only read (0). Throws FaultError.
  virtual void read_targets(int64_t /*first*/, int64_t count, uint8_t* out) const {
    std::fill_n(out, count, uint8_t{1});
  }

  /// Every token may be a target: there is no need to ask.
  virtual bool all_are_targets() const { return true; }

  /// Every token is below this without looking at them: 256 for bytes, 65536 for uint16.
  virtual int64_t vocab_bound() const = 0;

  virtual TokenKind kind() const { return TokenKind::ids; }

  /// What messages call it: the file, "text", "synthetic".
  virtual std::string name() const = 0;
};

enum class TokenType { uint16, uint32 };
inline constexpr Name<TokenType> kTokenTypeNames[] = {{TokenType::uint16, "uint16"}, {TokenType::uint32, "uint32"}};

/// "uint16" or "uint32". Throws ConfigError.
TokenType parse_token_type(const std::string& name);

/// A flat file of little-endian ids. A missing, empty or odd-sized file is a ConfigError.
std::shared_ptr<const TokenSource> open_token_file(const std::string& path, TokenType type);

/// The bytes of the files that find_files(patterns) lists, in that order, with nothing between two files.
/// Opens each file once to learn its size; a file that cannot be read, or no bytes at all, is a ConfigError.
/// Holds neither contents nor descriptors: a read opens the files that it touches.
std::shared_ptr<const TokenSource> open_text(const std::vector<std::string>& patterns);

/// An endless stream in which mostly t is followed by 5t + 7 (mod vocab), and one token in five is drawn at random.
/// Each token is a function of seed, vocab and position. Throws ConfigError for vocab < 1.
std::shared_ptr<const TokenSource> synthetic_source(int64_t vocab, uint64_t seed);

/// Raises ConfigError for text given to a model whose vocabulary is not 256, and for the first token >= vocab, with
/// its position. Reads the whole stream if vocab_bound() does not settle it (about 0.6 GB/s from the page cache).
void check_vocab(const TokenSource& source, int64_t vocab);

}  // namespace sherd
