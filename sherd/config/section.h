// Settings that stand in one object, and the section that such an object is.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "sherd/config/setting.h"

namespace sherd {

/// What an object of these settings may be.
template <class Owner>
Values object_of(const std::vector<Setting<Owner>>& settings, Values::Kind kind = Values::Kind::object) {
  Values values{.kind = kind};
  for (const auto& setting : settings) values.fields.push_back(setting.info);
  return values;
}

/// Reads all settings of an object, in the order of the table, and refuses every other key. Throws ConfigError.
template <class Owner>
void read_fields(JsonReader& reader, const Reading& reading, const std::vector<Setting<Owner>>& settings,
                 Owner& owner) {
  for (const auto& setting : settings) {
    if (setting.info.is_for(reading.caller))
      setting.read(reader, reading, owner);
    else if (reader.contains(setting.info.key))
      refuse_setting(reader.path(setting.info.key), reading.caller);
  }
  reader.finish(reading.paths);
}

template <class Owner>
void write_fields(nlohmann::json& out, Caller caller, const std::vector<Setting<Owner>>& settings, const Owner& owner) {
  for (const auto& setting : settings)
    if (setting.info.is_for(caller)) setting.write(owner, caller, out);
}

/// Settings of a member of `Owner`, or of a function's from it; `check` says what they must be together.
template <class Owner, class Member, class Inner>
Setting<Owner> section(
    std::string key, Member member, std::vector<Setting<Inner>> settings, std::string sentence,
    void (*check)(JsonReader&, Inner&) = [](JsonReader&, Inner&) {}) {
  Setting<Owner> made{{key, object_of(settings), std::move(sentence)},
                      [=](JsonReader& reader, const Reading& reading, Owner& owner) {
                        auto below = reader.object(key);
                        if (!below) return;
                        Inner& inner = std::invoke(member, owner);
                        read_fields(*below, reading, settings, inner);
                        check(*below, inner);
                      },
                      [=](const Owner& owner, Caller caller, nlohmann::json& out) {
                        write_below(out, key, [&](nlohmann::json& below) {
                          write_fields(below, caller, settings, std::invoke(member, owner));
                        });
                      }};
  made.info.preset = "";
  return made;
}

}  // namespace sherd
