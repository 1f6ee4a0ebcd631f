// SPDX-License-Identifier: Apache-2.0
// A budget that is a number.
#pragma once

#include <atomic>

#include "adaptors/budget.hpp"

namespace pyvattn {

class MemoryLimit final : public Budget {
 public:
  explicit MemoryLimit(std::uint64_t limit) : limit_(limit) {}

  std::uint64_t limit() const override { return limit_; }
  std::uint64_t held() const override { return held_; }
  void set_limit(std::uint64_t limit) override { limit_ = limit; }

  bool take(std::uint64_t bytes) override {
    std::uint64_t held = held_;
    do {
      const std::uint64_t most = limit_;
      if (held > most || bytes > most - held) return false;
    } while (!held_.compare_exchange_weak(held, held + bytes));
    return true;
  }
  void give_back(std::uint64_t bytes) noexcept override { held_ -= bytes; }

 private:
  std::atomic<std::uint64_t> limit_;
  std::atomic<std::uint64_t> held_{0};
};

}  // namespace pyvattn
