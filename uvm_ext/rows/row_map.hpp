// SPDX-License-Identifier: Apache-2.0
// The row map: which block is mapped at each position of each row, for engines that have a
// block manager of their own. It works on ids and knows no requests.
//
// open(), extend(), trim() and close() are staged; flush() carries out what is staged, as
// one batch for the driver, whole or not at all:
//  1. After flush() the MMU maps what the map says; one that failed has changed nothing, and
//     what was staged still is.
//  2. An open row maps its blocks in order.
//  3. A mapping is taken away only where the fences of all that could read it have passed.
//  4. A block may be mapped in many rows and positions; it is free when its last holder, the
//     caller or a row, lets go.
//  5. flush() makes its driver calls without the lock: other rows can be staged and flushed
//     meanwhile, by other threads. flush_async() leaves it to the map's own thread.
// A closed row keeps its mappings until it is reused or reclaim() takes them; open() prefers
// the row that begins with the most of the blocks.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <vector>

#include "base/mapper.hpp"
#include "rows/block_store.hpp"
#include "rows/closed_rows.hpp"
#include "rows/row_batch.hpp"
#include "rows/row_table.hpp"

namespace pyvattn {

class RowMap {
 public:
  // Rows of `geometry.row_pages()` positions.
  RowMap(BlockStorePtr store, const Geometry& geometry);
  ~RowMap();
  RowMap(const RowMap&) = delete;
  RowMap& operator=(const RowMap&) = delete;

  // A row for these blocks, at positions 0, 1, … Throws OutOfSlots where every row is open,
  // BlockError for a block that the caller does not hold, LengthError for too many.
  std::uint32_t open(const std::vector<BlockId>& blocks);
  // Blocks behind the last of an open row. Throws RowError where it is not open.
  void extend(std::uint32_t row, const std::vector<BlockId>& blocks);
  // Takes `front` more positions away from the front, which leaves the others where they
  // are, and `tail` from the end; they are unmapped once `after` has passed.
  void trim(std::uint32_t row, std::uint32_t front, std::uint32_t tail, const FencePtr& after);
  // Ends a row. Its mappings are not touched before `after` has passed.
  void close(std::uint32_t row, const FencePtr& after);
  // Throws DriverError, or BlockError where a block was released that is yet to be mapped.
  void flush();
  // Has the map's own thread flush(), once it is done with what it is at, and returns at once:
  // without the store's lock. Where no thread can be had, join() does it.
  void flush_async();
  // Returns once everything staged is carried out: by the thread, and here where nobody has
  // begun it. Throws what the thread's last flush() threw, whose rows are then still staged, or
  // what flush() throws.
  void join();
  // Forgets what is staged: every row is as the last flush() left it.
  void discard();

  // Takes mappings that no open row needs, the longest closed first, until so many blocks
  // have come free or none is left; returns how many.
  std::uint64_t reclaim(std::uint64_t blocks);
  // Writes zeros over `count` positions of an open row once `after` has passed, and returns
  // when they are there.
  void zero(std::uint32_t row, std::uint32_t first, std::uint32_t count, const FencePtr& after);

  // The blocks of an open row as staged; RowTable::kHole where its front was trimmed.
  std::vector<BlockId> blocks(std::uint32_t row);
  std::vector<std::uint32_t> open_rows();
  ArenaPtr arena(std::uint32_t index);
  // True in a child process that got the map through fork().
  bool inherited() const { return store_->inherited(); }
  const Geometry& geometry() const { return geometry_; }

 private:
  friend class BlockStore;

  // Positions [front, length) are mapped.
  struct Extent {
    bool open = false;
    std::uint32_t front = 0;
    std::uint32_t length = 0;
  };
  struct Row {
    Extent mapped;
    Extent wanted;
    // Positions below `same` are as they are mapped; what is wanted from there on.
    std::uint32_t same = 0;
    std::vector<BlockId> added;
    bool staged = false;
  };

  void wait_for_readers() REQUIRES(store_->mutex_);
  void check_usable() const;
  Row& open_row(std::uint32_t row) REQUIRES(store_->mutex_);
  void check_length(std::uint64_t positions) const;
  void stage(std::uint32_t row) REQUIRES(store_->mutex_);
  void guard(std::uint32_t row, const FencePtr& after) REQUIRES(store_->mutex_);
  BlockId wanted_block(const Row& row, std::uint32_t index, std::uint32_t position) const
      REQUIRES(store_->mutex_);
  void plan(std::uint32_t index, RowBatch& batch) REQUIRES(store_->mutex_);
  void plan_cuts(std::uint32_t row, std::uint32_t first, std::uint32_t end, RowBatch& batch)
      REQUIRES(store_->mutex_);
  void plan_puts(const Row& row, std::uint32_t index, RowBatch& batch) REQUIRES(store_->mutex_);
  std::uint64_t plan_reclaim(std::uint32_t row, std::uint32_t kept, RowBatch& batch)
      REQUIRES(store_->mutex_);
  void run(RowBatch& batch) REQUIRES(store_->mutex_);
  void flush_locked() REQUIRES(store_->mutex_);
  bool flush_in_background() EXCLUDES(store_->mutex_);
  void flush_staged() REQUIRES(store_->mutex_);
  void flushed(std::uint32_t row) REQUIRES(store_->mutex_);
  void flushed_closed(const std::vector<std::uint32_t>& rows) REQUIRES(store_->mutex_);
  void follow_loss(const RowBatch& batch) REQUIRES(store_->mutex_);
  void wait_for_staged() REQUIRES(store_->mutex_);
  // For the store, which holds its lock.
  std::vector<FencePtr> fences() const NO_THREAD_SAFETY_ANALYSIS { return table_.fences(); }
  void unmap_everything() NO_THREAD_SAFETY_ANALYSIS;
  // With the store's closing_ held, and without its mutex_, which the thread may want.
  void stop_background() { mapper_->stop(); }

  const BlockStorePtr store_;
  const Geometry geometry_;
  RowTable table_ GUARDED_BY(store_->mutex_);
  std::vector<Row> rows_ GUARDED_BY(store_->mutex_);
  ClosedRows closed_ GUARDED_BY(store_->mutex_);
  std::vector<std::uint32_t> staged_ GUARDED_BY(store_->mutex_);
  // A thread is carrying out what was staged, perhaps by others.
  bool flushing_ GUARDED_BY(store_->mutex_) = false;
  // Of the background's last attempt, which makes no other, until join() has thrown it, or flush()
  // or discard() has dealt with what is staged.
  std::exception_ptr failure_ GUARDED_BY(store_->mutex_);
  // Has a lock of its own, which is taken with the store's held or without. The last field:
  // its thread uses the others.
  std::unique_ptr<Mapper> mapper_;
};

}  // namespace pyvattn
