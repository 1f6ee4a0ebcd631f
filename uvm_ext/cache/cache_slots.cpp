// SPDX-License-Identifier: Apache-2.0
// What is done with one slot between its admission and its end.
#include <algorithm>
#include <cstring>

#include "cache/cache.hpp"

namespace pyvattn {

std::vector<LiveSlot> Cache::live_slots() {
  check_usable();
  const Lock lock(mutex_);
  check_usable();
  std::vector<LiveSlot> live;
  live.reserve(slots_.slots_in(SlotState::live));
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
    const SlotHead& head = slots_.head(slot);
    if (head.state != SlotState::live) continue;
    live.push_back({{slot, head.generation}, head.length, head.written, rows_.blocks(slot)});
  }
  return live;
}

// All ones is NaN in every floating-point dtype that a cache can have.
void Cache::poison(std::uint32_t slot) {
  constexpr int kPoison = 0xff;
  if (geometry_.is_ring()) return poison_ring(slot);
  if (rows_.is_in_flight(slot)) return;
  const std::uint64_t begin = slots_.head(slot).length * geometry_.token_bytes;
  const std::uint64_t end = slots_.blocks(slot) * geometry_.page_size;
  if (begin >= end) return;
  for (std::uint32_t arena = 0; arena < geometry_.arenas; ++arena) {
    std::memset(reinterpret_cast<void*>(rows_.address(arena, slot, 0) + begin), kPoison,
                end - begin);
  }
  const auto first = static_cast<std::uint32_t>(begin / geometry_.page_size);
  for (std::uint32_t i = first; i < slots_.blocks(slot); ++i) {
    pool_->mark_dirty({rows_.block(slot, i), 1});
  }
}

}  // namespace pyvattn
