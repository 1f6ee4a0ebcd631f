// SPDX-License-Identifier: Apache-2.0
// One caller at a time, where a second is a mistake of the caller's.
#pragma once

#include <atomic>

#include "base/errors.hpp"

namespace pyvattn {

// Holds a flag for one call; refuses a second caller.
class Exclusive {
 public:
  explicit Exclusive(std::atomic<bool>& flag) : flag_(flag) {
    if (flag_.exchange(true)) {
      throw BusyError(
          "two threads called step() at once: let one thread step, or hold a lock around it");
    }
  }
  Exclusive(const Exclusive&) = delete;
  Exclusive& operator=(const Exclusive&) = delete;
  ~Exclusive() { flag_ = false; }

 private:
  std::atomic<bool>& flag_;
};

}  // namespace pyvattn
