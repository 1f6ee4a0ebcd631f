// SPDX-License-Identifier: Apache-2.0
// The shape of a cache in addresses: equal arenas, each with one row per slot.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace pyvattn {

// Addresses that a cache may reserve: half of what a process has on x86-64, and the most
// that was tried on a GPU. pyvattn.CacheSpec asks for it here.
constexpr std::uint64_t kMaxVirtualBytes = std::uint64_t{64} << 40;

struct Geometry {
  std::uint32_t arenas = 0;
  std::uint32_t slots = 0;
  std::uint32_t max_tokens = 0;
  // Tokens past a slot's length that kernels may read.
  std::uint32_t guard_tokens = 0;
  // Bytes of one token in one arena.
  std::uint64_t token_bytes = 0;
  std::uint64_t page_size = 0;
  // Zero: a row has addresses for every token of a request. Otherwise it is a ring: token p lies
  // at p modulo so many, which fill whole pages, and the row's pages are mapped twice, the second
  // time right behind the first, so that any run of tokens is contiguous from where it begins.
  std::uint32_t ring_tokens = 0;

  bool is_ring() const { return ring_tokens > 0; }
  // A row holds the guard of its longest request too, so that no kernel strays
  // into the next row.
  std::uint64_t row_pages() const { return divide_up(row_tokens() * token_bytes, page_size); }
  std::uint64_t row_bytes() const { return row_pages() * page_size * (is_ring() ? 2 : 1); }
  std::uint64_t block_bytes() const { return page_size * arenas; }
  std::uint64_t arena_bytes() const { return row_bytes() * slots; }

  // Whether all arenas together stay below the limit; true only where no size overflows.
  bool fits_addresses() const {
    const double row = static_cast<double>(row_tokens()) * static_cast<double>(token_bytes);
    const double most = static_cast<double>(kMaxVirtualBytes);
    if (row > most) return false;
    return static_cast<double>(row_bytes()) * slots * arenas <= most;
  }

  static std::uint64_t divide_up(std::uint64_t value, std::uint64_t unit) {
    return (value + unit - 1) / unit;
  }

 private:
  // Tokens that pages are for.
  std::uint64_t row_tokens() const {
    return is_ring() ? ring_tokens : std::uint64_t{max_tokens} + guard_tokens;
  }
};

// How many private pages a length needs, and what a number of pages can hold.
// Where the driver cannot share the guard, it is backed by private pages too.
class PageMath {
 public:
  PageMath(const Geometry& geometry, bool private_guard)
      : geometry_(geometry), guard_(private_guard ? geometry.guard_tokens : 0) {}

  std::uint32_t pages_for(std::uint32_t tokens) const {
    return tokens == 0 ? 0 : pages_of(std::uint64_t{tokens} + guard_);
  }
  // Pages that hold any of the first `tokens` tokens, without a guard.
  std::uint32_t pages_touched(std::uint32_t tokens) const { return pages_of(tokens); }

  // The longest length for which `row_pages` private pages are enough.
  std::uint32_t capacity(std::uint32_t row_pages) const {
    // Behind the last token of a ring that is whole lie older ones.
    if (geometry_.is_ring() && row_pages == geometry_.row_pages()) return geometry_.max_tokens;
    const std::uint64_t backed = row_pages * geometry_.page_size / geometry_.token_bytes;
    const std::uint64_t tokens = backed > guard_ ? backed - guard_ : 0;
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(tokens, geometry_.max_tokens));
  }

 private:
  std::uint32_t pages_of(std::uint64_t tokens) const {
    const std::uint64_t pages =
        Geometry::divide_up(tokens * geometry_.token_bytes, geometry_.page_size);
    return static_cast<std::uint32_t>(geometry_.is_ring() ? std::min(pages, geometry_.row_pages())
                                                          : pages);
  }

  const Geometry geometry_;
  const std::uint64_t guard_;
};

}  // namespace pyvattn
