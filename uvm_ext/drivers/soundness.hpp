// SPDX-License-Identifier: Apache-2.0
// Whether what a driver has mapped is what its caller believes: not where a call failed and
// could not be undone either. The failed call reports its own failure; every one that maps
// after it reports this.
#pragma once

#include "base/errors.hpp"
#include "drivers/driver.hpp"

namespace pyvattn {

class Soundness {
 public:
  void lose() noexcept { lost_ = true; }
  bool is_lost() const noexcept { return lost_; }
  void require(const char* operation, const Range& range) const {
    if (!lost_) return;
    throw DriverError(
        operation, range.address, range.length, "roll back failed",
        "an earlier failure could not be undone: close this cache and make a new one");
  }

 private:
  bool lost_ = false;
};

}  // namespace pyvattn
