// Bytes as text that a terminal can show: valid UTF-8 as it is, everything else as \xNN.
#pragma once

#include <cstdint>
#include <string>

namespace sherd {

class VisibleText {
 public:
  /// Takes one byte and returns what can be shown now; an unfinished UTF-8 sequence is kept back.
  std::string add(uint8_t byte);

  /// What was kept back, as \xNN.
  std::string finish();

 private:
  std::string kept_;
};

}  // namespace sherd
