// SPDX-License-Identifier: Apache-2.0
#include "rows/block_store.hpp"

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "adaptors/limit.hpp"
#include "adaptors/serialized.hpp"
#include "base/errors.hpp"
#include "base/fork.hpp"
#include "base/text.hpp"
#include "drivers/both_fences.hpp"
#include "rows/row_map.hpp"

namespace pyvattn {
namespace {

[[noreturn]] void refuse(BlockId block) {
  throw BlockError("block " + std::to_string(block) +
                   " is not held: name blocks that allocate() returned, until release()");
}

}  // namespace

BlockStore::BlockStore(const DriverPtr& driver, std::uint32_t arenas, BudgetPtr budget,
                       std::size_t slab_bytes)
    : arenas_(arenas),
      budget_(std::move(budget)),
      statistics_(
          std::make_shared<StatisticsAdaptor>(std::make_shared<LimitAdaptor>(driver, budget_))),
      driver_(std::make_shared<SerializedAdaptor>(statistics_)),
      fork_generation_(fork_generation()),
      pool_(std::make_unique<BlockPool>(
          *driver_, *budget_, arenas, slab_blocks(*driver, arenas, budget_->most(), slab_bytes))) {
  watch_ = budget_->watch([this] { give_back(); });
}

BlockStore::~BlockStore() {
  budget_->unwatch(watch_);
  // What a parent had locked stays locked in its child.
  if (inherited()) static_cast<void>(pool_.release());
}

bool BlockStore::inherited() const { return fork_generation_ != fork_generation(); }

void BlockStore::check_usable() const {
  if (inherited()) {
    throw ForkError(
        "this block pool belongs to the parent process: open one in each process, after fork(); "
        "CUDA does not survive fork(), for a GPU start worker processes with the method 'spawn'");
  }
  if (closed_) throw ClosedError("the block pool is closed: open a new one");
}

void BlockStore::check_held(const std::vector<BlockId>& blocks) const {
  for (BlockId block : blocks) {
    if (block >= held_.size() || held_[block] == 0) refuse(block);
  }
}

std::vector<BlockId> BlockStore::allocate(std::uint32_t count, BlockId after) {
  check_usable();
  const Lock lock(mutex_);
  check_usable();
  if (after != BlockPool::kAnywhere) check_held({after});
  std::vector<BlockRun> runs;
  try {
    pool_->allocate(count, after, runs);
  } catch (const DriverOutOfMemory& error) {
    const std::uint64_t block = pool_->block_bytes();
    budget_->missed((count - std::min<std::uint64_t>(count, pool_->blocks_free())) * block);
    throw OutOfMemory("out of blocks: " + std::to_string(count) + " asked for, " +
                          std::to_string(pool_->blocks_available()) + " left, limit " +
                          bytes_text(budget_->limit()) +
                          ": release() some, let go of closed rows with RowMap.reclaim(), or "
                          "raise the limit with resize() [" +
                          error.what() + "]",
                      count * block, pool_->blocks_available() * block, 0);
  }
  std::vector<BlockId> blocks;
  blocks.reserve(count);
  for (const BlockRun& run : runs) {
    for (std::uint32_t i = 0; i < run.count; ++i) blocks.push_back(run.first + i);
  }
  if (!blocks.empty()) {
    const BlockId last = *std::max_element(blocks.begin(), blocks.end());
    if (last >= held_.size()) held_.resize(std::size_t{last} + 1, 0);
  }
  for (BlockId block : blocks) held_[block] = 1;
  return blocks;
}

void BlockStore::retain(const std::vector<BlockId>& blocks) {
  check_usable();
  const Lock lock(mutex_);
  check_held(blocks);
  for (BlockId block : blocks) {
    ++held_[block];
    pool_->retain({block, 1});
  }
}

void BlockStore::release(const std::vector<BlockId>& blocks) {
  check_usable();
  const Lock lock(mutex_);
  // A block may be named more than once: each is a hold of its own.
  for (std::size_t done = 0; done < blocks.size(); ++done) {
    const BlockId block = blocks[done];
    if (block < held_.size() && held_[block] > 0) {
      --held_[block];
      continue;
    }
    for (std::size_t i = 0; i < done; ++i) ++held_[blocks[i]];
    refuse(block);
  }
  for (BlockId block : blocks) pool_->release({block, 1});
}

std::vector<bool> BlockStore::dirty(const std::vector<BlockId>& blocks) {
  check_usable();
  const Lock lock(mutex_);
  check_held(blocks);
  std::vector<bool> dirty;
  dirty.reserve(blocks.size());
  for (BlockId block : blocks) dirty.push_back(pool_->is_dirty(block));
  return dirty;
}

std::uint64_t BlockStore::resize(std::uint64_t memory_limit) {
  check_usable();
  const Lock lock(mutex_);
  check_usable();
  const std::uint64_t used =
      (pool_->blocks_allocated() - pool_->blocks_free()) * pool_->block_bytes();
  if (memory_limit < std::max(used, pool_->block_bytes())) {
    throw LimitError("a limit of " + bytes_text(memory_limit) + " is below the " +
                     bytes_text(std::max(used, pool_->block_bytes())) +
                     " that are held: release() blocks first, and let go of closed rows with "
                     "RowMap.reclaim()");
  }
  pool_->trim_to_limit(memory_limit);
  budget_->set_limit(memory_limit);
  return pool_->bytes_allocated();
}

std::uint64_t BlockStore::give_back() {
  check_usable();
  const Lock lock(mutex_);
  check_usable();
  pool_->trim_to_limit(budget_->limit());
  return pool_->bytes_allocated();
}

// Until nobody reads what rows map; without the lock, so that others who call meanwhile are
// told that the pool is closed.
void BlockStore::wait_for_readers() {
  std::vector<FencePtr> fences;
  for (const RowMap* map : maps_) {
    const std::vector<FencePtr> of_map = map->fences();
    fences.insert(fences.end(), of_map.begin(), of_map.end());
  }
  const Unlocked unlocked(mutex_);
  wait_for_all(fences);
}

// Each map's thread ends after the flush that it is at. Nobody ends a map meanwhile.
void BlockStore::stop_background() {
  for (RowMap* map : maps()) map->stop_background();
}

void BlockStore::close() {
  if (inherited()) check_usable();
  const Lock one(closing_);
  closed_ = true;
  stop_background();
  const Lock lock(mutex_);
  wait_for_readers();
  std::exception_ptr failure;
  for (RowMap* map : maps_) {
    try {
      map->unmap_everything();
    } catch (const std::exception&) {
      failure = std::current_exception();
    }
  }
  for (BlockId block = 0; block < held_.size(); ++block) {
    for (; held_[block] > 0; --held_[block]) pool_->release({block, 1});
  }
  pool_->trim(0);
  // Calling again after a failure gives back the rest.
  if (failure) std::rethrow_exception(failure);
}

void BlockStore::retire() {
  if (inherited()) return;
  const Lock one(closing_);
  closed_ = true;
  stop_background();
  // A call that began before has ended when the lock is free.
  const Lock lock(mutex_);
}

std::vector<RowMap*> BlockStore::maps() {
  const Lock lock(mutex_);
  return maps_;
}

StoreStats BlockStore::stats() {
  if (inherited()) check_usable();
  const Lock lock(mutex_);
  const OperationCounts counts = statistics_->counts();
  const auto count = [&](Operation operation) {
    return counts[static_cast<std::size_t>(operation)];
  };
  StoreStats s;
  s.blocks_allocated = pool_->blocks_allocated();
  s.blocks_free = pool_->blocks_free();
  s.blocks_available = pool_->blocks_available();
  s.block_bytes = pool_->block_bytes();
  s.slabs = pool_->slabs();
  s.memory_limit = budget_->limit();
  s.map_calls = count(Operation::map).calls;
  s.map_batches = count(Operation::map).batches;
  s.unmap_calls = count(Operation::unmap).calls;
  s.map_seconds = count(Operation::map).seconds;
  s.unmap_seconds = count(Operation::unmap).seconds;
  s.flush_seconds = flush_seconds_;
  s.fence_seconds = fence_seconds_;
  for (const OperationCount& each : counts) s.driver_failures += each.failures;
  s.bookkeeping_bytes = pool_->bookkeeping_bytes() + held_.capacity() * sizeof(std::uint32_t);
  return s;
}

}  // namespace pyvattn
