// SPDX-License-Identifier: Apache-2.0
// What to expect of the next requests, from those before; the newest count most.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pyvattn {

class Forecast {
 public:
  // A request was acquired for so many tokens.
  void acquired(std::uint32_t tokens) { tokens_ += (tokens - tokens_) / 4; }

  // A request ended that was acquired for `asked` tokens (zero: not stated) and was
  // `written` tokens long at its longest.
  void ended(std::uint32_t asked, std::uint32_t written) {
    if (asked == 0) return;
    const double growth = written - std::min<double>(asked, written);
    growth_ += (growth - growth_) / 16;
  }

  // What a request is acquired for.
  std::uint32_t tokens() const { return static_cast<std::uint32_t>(tokens_); }
  // By how much it outgrows that.
  std::uint32_t growth() const { return static_cast<std::uint32_t>(growth_); }

 private:
  double tokens_ = 0;
  double growth_ = 0;
};

}  // namespace pyvattn
