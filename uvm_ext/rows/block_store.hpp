// SPDX-License-Identifier: Apache-2.0
// A block pool for engines that have a block manager of their own: blocks that the engine
// holds by id, shared by row maps and threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "adaptors/budget.hpp"
#include "adaptors/statistics.hpp"
#include "base/mutex.hpp"
#include "blocks/block_pool.hpp"

namespace pyvattn {

class RowMap;

// The two lists of which the struct and its binding are made.
#define PYVATTN_STORE_STATS(F) \
  F(blocks_allocated)          \
  F(blocks_free)               \
  F(blocks_available)          \
  F(block_bytes)               \
  F(slabs)                     \
  F(memory_limit)              \
  F(map_calls)                 \
  F(map_batches)               \
  F(unmap_calls)               \
  F(driver_failures)           \
  F(bookkeeping_bytes)
#define PYVATTN_STORE_SECONDS(F) \
  F(map_seconds)                 \
  F(unmap_seconds)               \
  F(flush_seconds)               \
  F(fence_seconds)

struct StoreStats {
#define PYVATTN_FIELD(name) std::uint64_t name = 0;
  PYVATTN_STORE_STATS(PYVATTN_FIELD)
#undef PYVATTN_FIELD
#define PYVATTN_FIELD(name) double name = 0;
  PYVATTN_STORE_SECONDS(PYVATTN_FIELD)
#undef PYVATTN_FIELD
};

class BlockStore {
 public:
  BlockStore(const DriverPtr& driver, std::uint32_t arenas, BudgetPtr budget,
             std::size_t slab_bytes);
  ~BlockStore();
  BlockStore(const BlockStore&) = delete;
  BlockStore& operator=(const BlockStore&) = delete;

  // Blocks that the caller holds once each, in runs as long as can be, the first right
  // behind block `after` where that is free. Throws OutOfMemory with nothing taken.
  std::vector<BlockId> allocate(std::uint32_t count, BlockId after);
  // One more hold of each. Throws BlockError, with nothing changed, where the caller holds
  // one of them not at all.
  void retain(const std::vector<BlockId>& blocks);
  // One hold less of each. A block is free once neither caller nor row holds it.
  void release(const std::vector<BlockId>& blocks);
  // Whether each may hold what somebody wrote: a block of a fresh slab reads as zeros.
  std::vector<bool> dirty(const std::vector<BlockId>& blocks);

  // Moves the budget's limit and gives free slabs back; returns the bytes that stay
  // allocated. Throws LimitError where more is held.
  std::uint64_t resize(std::uint64_t memory_limit);
  // Gives free slabs back that the budget, whose limit has fallen, no longer has room for;
  // returns the bytes that stay allocated.
  std::uint64_t give_back();
  // Unmaps every row of every map, and frees everything. Idempotent.
  void close();
  // For the end of the process: refuses further calls. Memory stays where it is, because
  // threads may still use tensors.
  void retire();
  bool closed() const { return closed_; }
  bool inherited() const;
  StoreStats stats();
  // Of those that are open.
  std::vector<RowMap*> maps();

  std::uint32_t arenas() const { return arenas_; }
  std::size_t page_size() const { return driver_->page_size(); }

 private:
  friend class RowMap;

  void check_usable() const;
  void check_held(const std::vector<BlockId>& blocks) const REQUIRES(mutex_);
  void wait_for_readers() REQUIRES(mutex_);
  void stop_background() REQUIRES(closing_) EXCLUDES(mutex_);

  const std::uint32_t arenas_;
  const BudgetPtr budget_;
  Watch watch_ = 0;
  const std::shared_ptr<StatisticsAdaptor> statistics_;
  const DriverPtr driver_;
  const int fork_generation_;
  std::atomic<bool> closed_{false};

  // Of those who close the store, or end one of its maps; taken before mutex_.
  Mutex closing_;
  // Of the store and of all its maps.
  Mutex mutex_;
  // A row is in flight no more.
  Condition settled_;
  std::unique_ptr<BlockPool> pool_ PT_GUARDED_BY(mutex_);
  // How often the caller holds each block, apart from rows.
  std::vector<std::uint32_t> held_ GUARDED_BY(mutex_);
  std::vector<RowMap*> maps_ GUARDED_BY(mutex_);
  // What batches waited for kernels before they took mappings away.
  double fence_seconds_ GUARDED_BY(mutex_) = 0;
  // What RowMap::flush() took, in whatever thread, fences and driver calls included.
  double flush_seconds_ GUARDED_BY(mutex_) = 0;
};
using BlockStorePtr = std::shared_ptr<BlockStore>;

}  // namespace pyvattn
