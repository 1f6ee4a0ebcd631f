// SPDX-License-Identifier: Apache-2.0
// What a cache counts. pyvattn.stats.Stats says what each field means.
#pragma once

#include <cstdint>

namespace pyvattn {

// F(type, name): the one list, of which the struct and its binding are made.
#define PYVATTN_CACHE_STATS(F)        \
  F(std::uint64_t, pages_allocated)   \
  F(std::uint64_t, pages_free)        \
  F(std::uint64_t, pages_mapped)      \
  F(std::uint64_t, pages_quarantined) \
  F(std::uint64_t, pages_live)        \
  F(std::uint64_t, pages_retained)    \
  F(std::uint64_t, pages_ahead)       \
  F(std::uint64_t, page_size)         \
  F(std::uint64_t, slabs)             \
  F(std::uint64_t, slots_live)        \
  F(std::uint64_t, memory_limit)      \
  F(std::uint64_t, bytes_used)        \
  F(std::uint64_t, bytes_reserved)    \
  F(std::uint64_t, map_calls)         \
  F(std::uint64_t, map_batches)       \
  F(std::uint64_t, map_bytes)         \
  F(std::uint64_t, unmap_calls)       \
  F(std::uint64_t, driver_failures)   \
  F(std::uint64_t, prefetch_failures) \
  F(std::uint64_t, reclaimed_pages)   \
  F(std::uint64_t, zeroed_bytes)      \
  F(double, map_seconds_blocking)     \
  F(double, map_seconds_hidden)       \
  F(double, zero_seconds)             \
  F(std::uint64_t, bookkeeping_bytes)

struct CacheStats {
#define PYVATTN_FIELD(type, name) type name = 0;
  PYVATTN_CACHE_STATS(PYVATTN_FIELD)
#undef PYVATTN_FIELD
};

}  // namespace pyvattn
