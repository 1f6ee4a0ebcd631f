// How much memory may be allocated: a number, or whatever else grants it.
#pragma once

#include <cstdint>

namespace pyvattn {

// Allocating and freeing slabs keeps `allocated()`: a budget is also an adaptor, or
// stands behind one.
class Budget {
 public:
  virtual ~Budget() = default;

  // Bytes that may be allocated in all, and bytes that are. More may be allocated than
  // allowed, after the limit has moved.
  virtual std::uint64_t limit() const = 0;
  virtual std::uint64_t allocated() const = 0;
  virtual void set_limit(std::uint64_t limit) = 0;

  // Bytes that may still be allocated.
  std::uint64_t headroom() const {
    const std::uint64_t most = limit();
    const std::uint64_t used = allocated();
    return most > used ? most - used : 0;
  }
};

}  // namespace pyvattn
