// SPDX-License-Identifier: Apache-2.0
// Slots whose rows are rings: what their tokens write over, and what that leaves of a slot.
//
// Token p lies at p modulo the ring, so a slot of `length` tokens has the last ones alone. Once
// every page of a ring is there a step calls no driver: older tokens make room for new ones, and
// kernels that read them come earlier in the stream than those that write.
#include <algorithm>
#include <cstring>
#include <string>

#include "base/errors.hpp"
#include "cache/cache.hpp"

namespace pyvattn {

void Cache::check_ring_fits() const {
  const std::uint64_t ring = geometry_.ring_tokens;
  if (window_ == 0) throw ConfigError("a ring keeps a window of tokens: give its group one");
  if (ring * geometry_.token_bytes % geometry_.page_size != 0) {
    throw ConfigError("a ring of " + std::to_string(ring) + " tokens of " +
                      std::to_string(geometry_.token_bytes) + " bytes does not fill pages of " +
                      std::to_string(geometry_.page_size) + ": make it longer");
  }
  const std::uint64_t least = std::uint64_t{window_} + geometry_.guard_tokens;
  if (ring < least) {
    throw ConfigError("a ring of " + std::to_string(ring) + " tokens has no room for a window of " +
                      std::to_string(window_) + " and a guard of " +
                      std::to_string(geometry_.guard_tokens) + ": use " + std::to_string(least) +
                      " at least");
  }
}

// The least length whose next query finds its window, once `length` tokens were written.
std::uint32_t Cache::lowest_after(std::uint64_t length) const {
  if (length <= geometry_.ring_tokens) return 0;
  const std::uint64_t lowest = length - geometry_.ring_tokens + window_ - 1;
  return static_cast<std::uint32_t>(std::min(lowest, length));
}

// Refuses a step that would write over what a length `rollback` tokens lower needs.
void Cache::check_rings(const SlotLength* requests, std::size_t count,
                        std::uint32_t rollback) const {
  for (std::size_t i = 0; rollback > 0 && i < count; ++i) {
    const std::uint64_t first = slots_.head(requests[i].slot.index).length;
    const auto length = static_cast<std::uint64_t>(requests[i].length);
    if (length <= first) continue;
    const std::uint64_t fallen = first - std::min<std::uint64_t>(first, rollback);
    if (fallen >= lowest_after(length)) continue;
    throw LengthError("slot " + std::to_string(requests[i].slot.index) + " has a ring of " +
                      std::to_string(geometry_.ring_tokens) + " tokens for a window of " +
                      std::to_string(window_) + ": after a step from " + std::to_string(first) +
                      " to " + std::to_string(length) + " tokens its length cannot fall to " +
                      std::to_string(fallen) + ": step in smaller chunks, or make the ring longer");
  }
}

// The tokens of these lengths may now be written, over older ones.
void Cache::keep_above_overwritten(const SlotLength* requests, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const auto length = static_cast<std::uint64_t>(requests[i].length);
    raise_lowest(requests[i].slot.index, lowest_after(length));
  }
}

// Whatever the ring holds besides tokens that may still be read is NaN.
void Cache::poison_ring(std::uint32_t slot) {
  constexpr int kPoison = 0xff;
  if (rows_.is_in_flight(slot)) return;
  const std::uint64_t ring = geometry_.ring_tokens;
  const std::uint64_t length = slots_.head(slot).length;
  const std::uint64_t kept = std::min(ring, length - slots_.trimmed(slot));
  const std::uint64_t mapped = slots_.blocks(slot) * geometry_.page_size;
  const std::uint64_t begin = length % ring;
  const std::uint64_t end = begin + (ring - kept);
  const auto fill = [&](std::uint64_t first_token, std::uint64_t end_token) REQUIRES(mutex_) {
    const std::uint64_t first = first_token * geometry_.token_bytes;
    const std::uint64_t last = std::min(end_token * geometry_.token_bytes, mapped);
    if (first >= last) return;
    for (std::uint32_t arena = 0; arena < geometry_.arenas; ++arena) {
      std::memset(reinterpret_cast<void*>(rows_.address(arena, slot, 0) + first), kPoison,
                  last - first);
    }
  };
  fill(begin, std::min(end, ring));
  fill(0, end - std::min(end, ring));
  for (std::uint32_t i = 0; i < slots_.blocks(slot); ++i) {
    pool_->mark_dirty({rows_.block(slot, i), 1});
  }
}

}  // namespace pyvattn
