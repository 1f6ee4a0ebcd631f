// A block pool for engines that have a block manager of their own: blocks that the engine
// holds by id, shared by row maps and threads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "adaptors/limit.hpp"
#include "adaptors/statistics.hpp"
#include "base/mutex.hpp"
#include "blocks/block_pool.hpp"

namespace pyvattn {

class RowMap;

struct StoreStats {
  std::uint64_t blocks_allocated = 0;
  std::uint64_t blocks_free = 0;
  std::uint64_t blocks_available = 0;
  std::uint64_t block_bytes = 0;
  std::uint64_t slabs = 0;
  std::uint64_t memory_limit = 0;
  std::uint64_t map_calls = 0;
  std::uint64_t map_batches = 0;
  std::uint64_t unmap_calls = 0;
  std::uint64_t driver_failures = 0;
  std::uint64_t bookkeeping_bytes = 0;
};

class BlockStore {
 public:
  BlockStore(const DriverPtr& driver, std::uint32_t arenas, std::uint64_t memory_limit,
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

  // Moves the limit and gives free slabs back; returns the bytes that stay allocated.
  std::uint64_t resize(std::uint64_t memory_limit);
  // Unmaps every row of every map, and frees everything. Idempotent.
  void close();
  bool closed() const { return closed_; }
  bool inherited() const;
  StoreStats stats();

  std::uint32_t arenas() const { return arenas_; }
  std::size_t page_size() const { return driver_->page_size(); }

 private:
  friend class RowMap;

  void check_usable() const;
  void check_held(const std::vector<BlockId>& blocks) const REQUIRES(mutex_);

  const std::uint32_t arenas_;
  const std::shared_ptr<LimitAdaptor> budget_;
  const std::shared_ptr<StatisticsAdaptor> statistics_;
  const DriverPtr driver_;
  const int fork_generation_;
  std::atomic<bool> closed_{false};

  // Of the store and of all its maps.
  Mutex mutex_;
  // A row is in flight no more.
  Condition settled_;
  std::unique_ptr<BlockPool> pool_ PT_GUARDED_BY(mutex_);
  // How often the caller holds each block, apart from rows.
  std::vector<std::uint32_t> held_ GUARDED_BY(mutex_);
  std::vector<RowMap*> maps_ GUARDED_BY(mutex_);
};
using BlockStorePtr = std::shared_ptr<BlockStore>;

}  // namespace pyvattn
