// SPDX-License-Identifier: Apache-2.0
#include "cache/cache.hpp"

namespace pyvattn {

CacheStats Cache::stats() {
  if (inherited()) check_usable();
  const Lock lock(mutex_);
  const OperationCounts counts = statistics_->counts();
  const auto count = [&](Operation operation) {
    return counts[static_cast<std::size_t>(operation)];
  };
  // Every page belongs to a block, and a block counts in one place.
  const std::uint64_t pages = geometry_.arenas;
  const std::uint64_t free = slots_.blocks_in(SlotState::free);
  const std::uint64_t spare = spare_blocks();
  // Once: a fence may pass at any time.
  const std::uint64_t fenced = slots_.blocks_fenced();
  const Doubles twice = doubles();
  const std::uint64_t behind = blocks_behind();
  CacheStats s;
  s.page_size = geometry_.page_size;
  s.pages_allocated = pool_->blocks_allocated() * pages;
  s.pages_free = pool_->blocks_free() * pages;
  s.pages_live =
      (slots_.blocks_in(SlotState::live) + free - spare + live_in_flight_ - twice.live - behind) *
      pages;
  s.pages_quarantined = (slots_.blocks_in(SlotState::released) +
                         slots_.blocks_in(SlotState::cleaning) + fenced - twice.released + behind) *
                        pages;
  s.pages_retained = (spare - fenced + free_in_flight_) * pages;
  s.pages_ahead = (spare - free) * pages;
  s.pages_mapped = s.pages_live + s.pages_retained;
  s.slabs = pool_->slabs();
  s.slots_live = slots_.slots_in(SlotState::live);
  s.memory_limit = budget_->limit();
  s.bytes_used = tokens_used_ * geometry_.token_bytes * geometry_.arenas;
  s.bytes_reserved = geometry_.arena_bytes() * geometry_.arenas;
  s.map_calls = count(Operation::map).calls;
  s.map_batches = count(Operation::map).batches;
  s.map_bytes = count(Operation::map).bytes;
  s.unmap_calls = count(Operation::unmap).calls;
  for (const OperationCount& each : counts) s.driver_failures += each.failures;
  s.prefetch_failures = prefetch_failures_;
  s.reclaimed_pages = reclaimed_blocks_ * pages;
  s.zeroed_bytes = count(Operation::zero).bytes;
  s.zero_seconds = count(Operation::zero).seconds;
  s.map_seconds_blocking = blocking_seconds_;
  s.map_seconds_hidden = hidden_seconds_;
  s.bookkeeping_bytes =
      pool_->bookkeeping_bytes() + rows_.bookkeeping_bytes() + slots_.bookkeeping_bytes();
  return s;
}

}  // namespace pyvattn
