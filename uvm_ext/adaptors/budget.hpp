// SPDX-License-Identifier: Apache-2.0
// How much memory may be held: a number, or a lease on a share of it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace pyvattn {

// Stands for one holder of a budget that wants to hear of it.
using Watch = std::uint64_t;

// Caches and pools of one process may share a budget. Any thread may call, also under the
// locks of a cache: a budget neither waits for long nor calls back.
class Budget {
 public:
  virtual ~Budget() = default;

  // Bytes that may be held at this moment, by all who share the budget. The limit may move
  // at any time, below what is held as well: then nothing is granted until enough was given
  // back.
  virtual std::uint64_t limit() const = 0;
  virtual std::uint64_t held() const = 0;
  // Bytes that the limit may ever rise to by itself.
  virtual std::uint64_t most() const { return limit(); }
  // Asks for another limit. What a lease is granted may be less.
  virtual void set_limit(std::uint64_t limit) = 0;

  // Takes bytes that are about to be allocated. False, with nothing taken, where so many
  // may not be held.
  virtual bool take(std::uint64_t bytes) = 0;
  // Returns bytes that were freed.
  virtual void give_back(std::uint64_t bytes) noexcept = 0;

  // So many bytes more were needed, and there was no room: a lease asks its neighbours.
  virtual void missed(std::uint64_t bytes) { static_cast<void>(bytes); }

  // Where the limit falls by itself, `give_back` is called by a thread of the budget's, with
  // no lock of it held, until unwatch(), which waits for a call that is under way.
  virtual Watch watch(std::function<void()> give_back) {
    static_cast<void>(give_back);
    return 0;
  }
  virtual void unwatch(Watch watch) { static_cast<void>(watch); }

  // Bytes that take() would grant; an estimate where others take at the same time.
  virtual std::uint64_t headroom() const {
    const std::uint64_t most = limit();
    const std::uint64_t used = held();
    return most > used ? most - used : 0;
  }
};
using BudgetPtr = std::shared_ptr<Budget>;

}  // namespace pyvattn
