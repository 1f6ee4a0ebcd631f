// SPDX-License-Identifier: Apache-2.0
// The block pool: memory by the block, which is one page in every arena.
//
// Every token has bytes in each arena, so arenas grow together, and one number stands for
// a page in each. A slab holds a part for each arena, and the pages of a block lie at the
// same place of each part: blocks whose ids follow each other are pages that follow each
// other, in every arena.
//
// The pool knows neither rows nor requests: it counts holders. Free blocks are kept as
// runs as long as they can be. Not thread-safe: callers bring their own lock.
#pragma once

#include <cstdint>
#include <vector>

#include "adaptors/budget.hpp"
#include "drivers/driver.hpp"

namespace pyvattn {

using BlockId = std::uint32_t;

// Blocks whose ids follow each other, inside one slab.
struct BlockRun {
  BlockId first = 0;
  std::uint32_t count = 0;
};

// How many blocks a slab should have, a power of two; `slab_bytes` zero: chosen from the
// limit. Throws ConfigError where the limit holds not one block.
std::uint32_t slab_blocks(const Driver& driver, std::uint32_t arenas, std::uint64_t memory_limit,
                          std::size_t slab_bytes);

class BlockPool {
 public:
  // A value of `after` that asks for nothing.
  static constexpr BlockId kAnywhere = 0xffffffff;

  // `slab_blocks`: a power of two. Slabs have so many blocks or, where the budget leaves
  // less room, a smaller power of two.
  BlockPool(Driver& driver, const Budget& budget, std::uint32_t arenas, std::uint32_t slab_blocks);
  ~BlockPool();
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // Appends runs of `count` blocks in all, in as few as it can, the first of them right
  // behind block `after`, which is held, where that is free. New slabs are allocated as
  // needed. Throws DriverOutOfMemory with the pool as it was.
  void allocate(std::uint32_t count, BlockId after, std::vector<BlockRun>& out);

  // One more holder of every block of the run, which must have one already.
  void retain(const BlockRun& run);
  // One holder fewer; blocks without a holder are free again.
  void release(const BlockRun& run);
  // Zero: the block is free, or never was.
  std::uint32_t holders(BlockId block) const;
  // Holders of all blocks but the first of each: how often blocks would be counted twice.
  std::uint64_t further_holders() const { return further_holders_; }

  // A dirty block may hold what somebody wrote, and stays dirty when it is free. A fresh
  // slab is clean.
  void mark_dirty(const BlockRun& run);
  void mark_clean(const BlockRun& run);
  bool is_dirty(BlockId block) const { return (blocks_[block].word & kDirty) != 0; }

  // Takes those blocks of the run that are free, and no others.
  void retake(const BlockRun& run) noexcept;
  // The same, and appends what was taken.
  void retake(const BlockRun& run, std::vector<BlockRun>& out);

  // Gives slabs that hold nothing back to the driver until no more than `target` bytes of
  // the pool's are allocated; returns how many slabs. Throws DriverError.
  std::size_t trim(std::uint64_t target);
  // The same until the budget holds no more than `limit`, with what others hold of it.
  std::size_t trim_to_limit(std::uint64_t limit);

  // Where the pages of a block lie: that of arena `a` at `offset + a * stride` of `slab`.
  struct Place {
    SlabId slab = 0;
    std::size_t offset = 0;
    std::size_t stride = 0;
  };
  Place place_of(BlockId block) const;
  // Whether `next` lies right behind `block`, in the same slab.
  bool follows(BlockId block, BlockId next) const {
    return next == block + 1 && slab_index(next) == slab_index(block);
  }

  std::uint32_t arenas() const { return arenas_; }
  std::size_t page_size() const { return page_size_; }
  std::uint64_t block_bytes() const { return std::uint64_t{arenas_} * page_size_; }
  std::uint64_t blocks_allocated() const { return blocks_allocated_; }
  std::uint64_t bytes_allocated() const { return blocks_allocated_ * block_bytes(); }
  std::uint64_t blocks_free() const { return blocks_free_; }
  // Blocks that allocate() can hand out: free ones and those of slabs yet to come.
  std::uint64_t blocks_available() const;
  std::size_t slabs() const { return live_slabs_; }
  std::size_t bookkeeping_bytes() const;

 private:
  static constexpr std::uint32_t kNone = 0xffffffff;
  static constexpr std::uint32_t kHeld = 1u << 31;
  static constexpr std::uint32_t kDirty = 1u << 30;
  static constexpr std::uint32_t kCount = kDirty - 1;

  // Twelve bytes: a cache of a million tokens has tens of thousands of these.
  struct Block {
    // Of the first block of a free run: its neighbours in the list of that length.
    std::uint32_t previous = kNone;
    std::uint32_t next = kNone;
    // kHeld and kDirty, and a count: the holders of a held block, the length of the run in
    // the first and the last block of a free one.
    std::uint32_t word = 0;
  };

  struct Slab {
    SlabId id = 0;
    std::uint32_t blocks = 0;  // zero: this index is unused
    std::uint32_t blocks_free = 0;
  };

  bool is_free(BlockId block) const { return (blocks_[block].word & kHeld) == 0; }
  std::uint32_t count_of(BlockId block) const { return blocks_[block].word & kCount; }
  void set_count(BlockId block, std::uint32_t flags, std::uint32_t count);

  BlockId first_block(std::uint32_t slab) const { return slab << slab_order_; }
  std::uint32_t slab_index(BlockId block) const { return block >> slab_order_; }

  static unsigned list_of(std::uint32_t count);
  void push(const BlockRun& run);
  BlockRun unlink(BlockId head);
  void join(BlockRun run);
  void carve(BlockId head, const BlockRun& wanted);

  bool take_behind(BlockId after, std::uint32_t count, BlockRun& out);
  bool take_run(std::uint32_t count, BlockRun& out);
  bool take_longest(std::uint32_t count, BlockRun& out);
  BlockRun retake_first(BlockRun& run);
  std::uint32_t unused_slab();
  bool grow(std::uint32_t needed, std::vector<std::uint32_t>& grown);
  void give_back(std::uint32_t slab);

  Driver& driver_;
  const Budget& budget_;
  const std::uint32_t arenas_;
  const std::size_t page_size_;
  const unsigned slab_order_;
  // The first block of the first run in each list.
  std::vector<BlockId> lists_;
  std::vector<Block> blocks_;
  std::vector<Slab> slabs_;
  std::vector<std::uint32_t> unused_slabs_;
  std::size_t live_slabs_ = 0;
  std::uint64_t blocks_allocated_ = 0;
  std::uint64_t blocks_free_ = 0;
  std::uint64_t further_holders_ = 0;
};

}  // namespace pyvattn
