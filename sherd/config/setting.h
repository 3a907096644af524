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
#include <vector>

#include "sherd/config/setting_value.h"
#include "sherd/config/values.h"

namespace sherd {

template <class Owner>
struct Setting {
  SettingInfo info;
  /// Fills its member if the key is there. Throws ConfigError.
  std::function<void(JsonReader& reader, const Reading& reading, Owner& owner)> read;
  /// Puts its value into the object, unless it has none.
  std::function<void(const Owner& owner, Caller caller, nlohmann::json& out)> write;

  Setting(SettingInfo about, decltype(read) reads, decltype(write) writes)
      : info(std::move(about)), read(std::move(reads)), write(std::move(writes)) {}

  /// `member`: a pointer to one, or a function from the struct to a reference.
  template <class Member>
  Setting(std::string key, Member member, Values values, std::string sentence)
      : Setting(
            {key, values, std::move(sentence)},
            [=](JsonReader& reader, const Reading&, Owner& owner) {
              read_value(reader, key, values, std::invoke(member, owner));
            },
            [=](const Owner& owner, Caller, nlohmann::json& out) {
              write_value(out, key, values, std::invoke(member, owner));
            }) {
    info.preset = written_by(Owner{});
  }

  /// A value by its name.
  template <class Member, class Value, size_t N>
  Setting(std::string key, Member member, const Name<Value> (&names)[N], std::string sentence)
      : Setting(
            {key, words(texts_of(names)), std::move(sentence)},
            [=, &names](JsonReader& reader, const Reading&, Owner& owner) {
              Value& value = std::invoke(member, owner);
              value = names[read_word(reader, key, texts_of(names), text_of(names, value))].value;
            },
            [=, &names](const Owner& owner, Caller, nlohmann::json& out) {
              const Value& value = std::invoke(member, owner);
              write_word(out, key, text_of(names, value));
            }) {
    info.preset = written_by(Owner{});
  }

  /// Two numbers in an array.
  template <class Member>
  Setting(std::string key, Member first, Member second, Values values, std::string sentence)
      : Setting(
            {key, values, std::move(sentence)},
            [=](JsonReader& reader, const Reading&, Owner& owner) {
              read_pair(reader, key, values, std::invoke(first, owner), std::invoke(second, owner));
            },
            [=](const Owner& owner, Caller, nlohmann::json& out) {
              write_pair(out, key, std::invoke(first, owner), std::invoke(second, owner));
            }) {
    info.preset = written_by(Owner{});
  }

  /// A section: settings of a struct inside, and what they must be together.
  template <class Member, class Inner>
  Setting(
      std::string key, Member member, std::vector<Setting<Inner>> settings, std::string sentence,
      void (*check)(JsonReader&, Inner&) = [](JsonReader&, Inner&) {})
      : Setting(
            {key, object_of(settings), std::move(sentence)},
            [=](JsonReader& reader, const Reading& reading, Owner& owner) {
              if (auto below = reader.object(key)) {
                Inner& inner = std::invoke(member, owner);
                read_fields(*below, reading, settings, inner);
                check(*below, inner);
              }
            },
            [=](const Owner& owner, Caller caller, nlohmann::json& out) {
              write_below(out, key, [&](nlohmann::json& below) {
                write_fields(below, caller, settings, std::invoke(member, owner));
              });
            }) {}

  /// The setting's value as JSON; empty where it has none.
  std::string written_by(const Owner& owner) const {
    return text_written(info.key, [&](nlohmann::json& out) { write(owner, Caller::command, out); });
  }
};

template <class Owner>
Values object_of(const std::vector<Setting<Owner>>& settings, Values::Kind kind = Values::Kind::object) {
  Values values{.kind = kind};
  for (const auto& setting : settings) values.fields.push_back(setting.info);
  return values;
}

/// Reads all settings of an object, and refuses every other key.
template <class Owner>
void read_fields(JsonReader& reader, const Reading& reading, const std::vector<Setting<Owner>>& settings,
                 Owner& owner) {
  for (const auto& setting : settings) {
    if (setting.info.is_for(reading.caller)) {
      setting.read(reader, reading, owner);
    } else if (reader.contains(setting.info.key)) {
      refuse_setting(reader.path(setting.info.key), reading.caller);
    }
  }
  reader.finish(reading.paths);
}

template <class Owner>
void write_fields(nlohmann::json& out, Caller caller, const std::vector<Setting<Owner>>& settings, const Owner& owner) {
  for (const auto& setting : settings)
    if (setting.info.is_for(caller)) setting.write(owner, caller, out);
}

/// The same, of one caller alone.
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
