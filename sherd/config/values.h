// Which JSON values a setting takes, as data: the reader checks by it; help, documentation, schema and tests tell it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sherd/config/json_reader.h"

namespace sherd {

struct SettingInfo;

struct Values {
  enum class Kind {
    integer,
    number,
    boolean,
    text,
    texts,    // an array of texts
    pair,     // an array of two numbers
    word,     // one of `words`; "true" and "false" are the booleans
    object,   // with `fields`
    objects,  // an array of such
  };
  enum class Null {
    refused,
    value,   // a value of its own: written where nothing is set
    unsets,  // as if the key were not there
  };

  Kind kind = Kind::text;
  IntegerRange integers = {};
  NumberRange numbers = {};             // of a pair: each
  std::vector<std::string> words = {};  // of a word
  std::string instead = {};             // a word that may stand for a value ("auto")
  Null null = Null::refused;
  std::string form = {};                  // of texts: what they say ("a glob on parameter names")
  std::vector<double> suggestion = {};    // what errors suggest where no default can be
  std::string example = {};               // of texts, likewise
  std::vector<SettingInfo> fields = {};   // of objects
  std::vector<Values> alternatives = {};  // what may stand in the place of an object
  size_t at_least = 0;                    // texts in the array

  Values or_auto() &&;
  Values or_null() &&;
  /// null takes back what was set before ("data.tokens=null").
  Values or_unset() &&;
  Values suggesting(std::vector<double> values) &&;

  /// "auto" or an integer from 1 to 1000000000
  std::string description() const;
};

/// Who reads a configuration: the command, or a program that brings its own model and data (sherd.initialize).
enum class Caller { command, program };

/// What is known of a setting beside where its value goes.
struct SettingInfo {
  std::string key;
  Values values;
  std::string sentence;
  std::string preset = {};  // the default as JSON, or those of types of optimizer; empty: none
  std::vector<Caller> callers = {Caller::command, Caller::program};
  std::string only = {};  // with which types of optimizer; empty: all

  bool is_for(Caller caller) const;
};

/// As they stand in a document: "auto" in quotes, true without.
std::vector<std::string> words_as_json(std::vector<std::string> words);

inline Values integers(IntegerRange range = {}) { return {.kind = Values::Kind::integer, .integers = range}; }
inline Values numbers(NumberRange range) { return {.kind = Values::Kind::number, .numbers = range}; }
inline Values pair_of(NumberRange range) { return {.kind = Values::Kind::pair, .numbers = range}; }
inline Values boolean() { return {.kind = Values::Kind::boolean}; }
inline Values text(std::string form) { return {.kind = Values::Kind::text, .form = std::move(form)}; }
inline Values texts(std::string form) { return {.kind = Values::Kind::texts, .form = std::move(form)}; }
inline Values some_texts(std::string form, std::string example) {
  return {.kind = Values::Kind::texts, .form = std::move(form), .example = std::move(example), .at_least = 1};
}
inline Values words(std::vector<std::string> all) { return {.kind = Values::Kind::word, .words = std::move(all)}; }

constexpr NumberRange kPositive{.min = 0, .low = Bound::open};
constexpr NumberRange kNotNegative{.min = 0};
constexpr NumberRange kShare{.min = 0, .max = 1, .high = Bound::open};

}  // namespace sherd
