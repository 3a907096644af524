// One entry of the table of settings: what is known of a setting, and the member of a plain struct that it fills.
//
//   {"rows", &BatchConfig::rows, integers(), "Sequences of one accumulation step over all ranks."}
//
// The type of the member says how JSON becomes a value: integers, numbers, texts, a bool or an enum of two values
// (false is the first), an enum by its table of names, and std::optional of these. Defaults are the struct's own.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "sherd/config/setting_value.h"
#include "sherd/config/values.h"

namespace sherd {

template <class Owner>
struct Setting {
  using Read = std::function<void(JsonReader& reader, const Reading& reading, Owner& owner)>;
  using Write = std::function<void(const Owner& owner, Caller caller, nlohmann::json& out)>;

  SettingInfo info;
  Read read;    // fills its member if the key is there; throws ConfigError
  Write write;  // puts its value into the object, unless it has none

  Setting(SettingInfo about, Read reads, Write writes)
      : info(std::move(about)), read(std::move(reads)), write(std::move(writes)) {
    info.preset = written_by(Owner{});
  }

  /// `member`: a pointer to one, or a function from the struct to a reference.
  template <class Member>
  Setting(std::string key, Member member, Values values, std::string sentence)
      : Setting(
            {key, values, std::move(sentence)},
            [=](JsonReader& reader, const Reading&, Owner& o) {
              read_value(reader, key, values, std::invoke(member, o));
            },
            [=](const Owner& o, Caller, nlohmann::json& out) {
              write_value(out, key, values, std::invoke(member, o));
            }) {}

  /// A value by its name.
  template <class Member, class Value, size_t N>
  Setting(std::string key, Member member, const Name<Value> (&names)[N], std::string sentence)
      : Setting(
            {key, words(texts_of(names)), std::move(sentence)},
            [=, &names](JsonReader& reader, const Reading&, Owner& o) {
              Value& value = std::invoke(member, o);
              value = names[read_word(reader, key, texts_of(names), text_of(names, value))].value;
            },
            [=, &names](const Owner& o, Caller, nlohmann::json& out) {
              const Value& value = std::invoke(member, o);
              write_word(out, key, text_of(names, value));
            }) {}

  /// Two numbers in an array.
  template <class Member>
  Setting(std::string key, Member first, Member second, Values values, std::string sentence)
      : Setting(
            {key, values, std::move(sentence)},
            [=](JsonReader& reader, const Reading&, Owner& o) {
              read_pair(reader, key, values, std::invoke(first, o), std::invoke(second, o));
            },
            [=](const Owner& o, Caller, nlohmann::json& out) {
              write_pair(out, key, std::invoke(first, o), std::invoke(second, o));
            }) {}

  /// The setting's value as JSON; empty where it has none.
  std::string written_by(const Owner& owner) const {
    return text_written(info.key, [&](nlohmann::json& out) { write(owner, Caller::command, out); });
  }
};

/// A setting of one caller alone.
template <class Owner>
Setting<Owner> only_for(Caller caller, Setting<Owner> setting) {
  setting.info.callers = {caller};
  return setting;
}

/// The member of a member.
template <class Owner, class Outer, class Inner>
auto in(Outer Owner::*outer, Inner Outer::*inner) {
  return [=](auto& owner) -> auto& { return owner.*outer.*inner; };
}

}  // namespace sherd
