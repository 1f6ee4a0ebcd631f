// SPDX-License-Identifier: Apache-2.0
// What callers of a cache pass and get.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "blocks/block_pool.hpp"
#include "drivers/driver.hpp"

namespace pyvattn {

struct CacheOptions {
  // Zero: chosen from the limit.
  std::size_t slab_bytes = 0;
  // Map the next decode step's pages, and those of the next admission, in the
  // background; clean released slots there as well.
  bool eager = true;
  // Where the page pool has room, growing slots get pages for so many more tokens than
  // they need now, as far as requests tend to grow. No slot gives up pages for it, and
  // slots that need pages may take them back. Zero: none.
  std::uint32_t read_ahead = 0;
  // For finding bugs, where the CPU reaches the memory: after every step, what is mapped past
  // a slot's length is NaN in every dtype, so that who reads there, or reads what was never
  // written, sees it.
  bool strict = false;
  // Layers need no more than so many tokens before a query, itself among them: each step leaves
  // what lies before behind. Zero: all.
  std::uint32_t window = 0;
  // What rows hold is written again and again: a fork shares none of it, all is for the caller to
  // copy.
  bool rewritten = false;
};

// What a step says of kernels, for caches with a window: those of earlier steps have ended once
// `after` (null: now) has passed, and lengths may fall by `rollback` tokens below where this
// step's queries begin.
struct Passage {
  FencePtr after;
  std::uint32_t rollback = 0;
};

// A slot as it was acquired: the generation tells a slot from its later uses.
struct SlotRef {
  // Any request that is live in the row: for callers who keep track of rows themselves.
  static constexpr std::uint32_t kCurrent = 0;

  std::uint32_t index = 0;
  std::uint32_t generation = kCurrent;
};

// What a step changes of a slot, to be put back where it fails elsewhere.
struct SlotMark {
  std::uint32_t slot = 0;
  std::uint32_t length = 0;
  std::uint32_t written = 0;
  std::uint32_t claimed = 0;
  std::uint32_t lowest = 0;
};

struct SlotLength {
  SlotRef slot;
  std::int64_t length = 0;
};

// A slot that was made of another. Of the bytes of its row in each arena those before `first`
// are the other's; [first, end) are for the caller to copy.
struct Fork {
  SlotRef slot;
  std::uint64_t first = 0;
  std::uint64_t end = 0;
};

// A live slot, and the blocks under its row.
struct LiveSlot {
  SlotRef slot;
  std::uint32_t length = 0;
  // The longest length so far.
  std::uint32_t written = 0;
  // RowTable::kHole where its front was trimmed.
  std::vector<BlockId> blocks;
};

}  // namespace pyvattn
