// SPDX-License-Identifier: Apache-2.0
// A batch: one transaction that maps blocks in rows and takes mappings away, whole or not
// at all.
//
// Planning, commit() and roll_back() want the lock of those who share table and pool;
// execute(), which waits for fences and makes the driver calls, does not: the rows
// concerned are marked in flight instead, and another batch must leave them alone. A batch
// that ends without commit() is rolled back: let it end under the lock.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "rows/row_table.hpp"

namespace pyvattn {

// Of a batch that maps a few arenas at a time, for who uses those while it maps the next.
struct Parts {
  // In each part; the last may have fewer.
  std::uint32_t arenas = 1;
  // Called once arenas [first, end) are mapped. Returns what has to pass before they may be
  // unmapped again, where a later part fails (null: nothing).
  std::function<FencePtr(std::uint32_t first, std::uint32_t end)> mapped;
};

class RowBatch {
 public:
  RowBatch(Driver& driver, BlockPool& pool, RowTable& table);
  ~RowBatch();
  RowBatch(const RowBatch&) = delete;
  RowBatch& operator=(const RowBatch&) = delete;

  // --- the plan ---
  //
  // Mappings are taken away first and made then, so that a position may be cut and filled
  // in one batch. Each of these may throw; the batch must then be dropped.

  // Marks a row in flight: no other batch may plan for it.
  void claim(std::uint32_t row);
  // Takes the mappings of these positions away, once the row's fence has passed; the row
  // lets go of the blocks at commit(). Holes are passed over.
  void cut(const Positions& positions);
  // The same, and lends the blocks to the pool at once: fill() may hand them out in this
  // batch. What is not taken is free from commit() on.
  void cut_and_lend(const Positions& positions);
  // Maps blocks from `position` on, where nothing is mapped or it was cut in this batch:
  // the row becomes one more holder of each.
  void put(std::uint32_t row, std::uint32_t position, const BlockId* blocks, std::uint32_t count);
  // Maps `count` blocks of the pool from `position` on, where the row ends.
  void fill(std::uint32_t row, std::uint32_t position, std::uint32_t count);
  // Waits for one more fence before anything is unmapped.
  void wait_for(FencePtr fence);
  // Ends the plan. From here on commit() needs no memory. Mappings are taken away in the order
  // of their addresses: drivers join what lies side by side, and a system that must replace
  // mappings splits none.
  void seal();

  // --- the driver calls ---

  // Throws DriverError with the mappings as they were before.
  void execute();
  // The same by parts, for a batch that maps blocks of fill() alone. Where a part fails, those
  // before it are zeroed before they are unmapped: their users may have written there.
  void execute(const Parts& parts);

  // --- the end ---

  void commit() noexcept;
  // Everything is as before. Where mappings that were cut cannot be put back, they stay
  // cut, and their blocks are let go of.
  void roll_back() noexcept;

  // Rows that are in flight for this batch.
  const std::vector<std::uint32_t>& rows() const { return rows_; }
  // Blocks that have left the pool for this batch and are in no row yet.
  std::uint64_t blocks_in_flight() const;
  // Blocks whose rows lent them.
  std::uint64_t blocks_lent() const;
  bool empty() const { return cuts_.empty() && puts_.empty(); }
  // What execute() waited for fences.
  double fence_seconds() const { return fence_seconds_; }

 private:
  struct Put {
    std::uint32_t row;
    std::uint32_t position;
    // Where its blocks begin in put_blocks_.
    std::size_t first;
    std::uint32_t count;
  };

  void add_cut(const Positions& positions, bool lend);
  void add_entries(std::uint32_t row, std::uint32_t position, const BlockId* blocks,
                   std::uint32_t count, std::vector<MapEntry>& out);
  void make_cuts();
  void withdraw(const std::vector<MapEntry>& mapped, const std::vector<FencePtr>& used) noexcept;
  void return_blocks() noexcept;
  void cut_rows() noexcept;
  void shorten_rows() noexcept;
  void settle() noexcept;

  Driver& driver_;
  BlockPool& pool_;
  RowTable& table_;
  const std::uint64_t allocated_before_;

  std::vector<std::uint32_t> rows_;
  std::vector<Positions> cuts_;
  std::vector<Put> puts_;
  std::vector<BlockId> put_blocks_;
  // Blocks that rows of this batch have come to hold.
  std::vector<BlockRun> held_;
  // Blocks that are let go of at commit().
  std::vector<BlockRun> dropped_;
  // Blocks that were lent to the pool, and those of them that nobody has taken.
  std::vector<BlockRun> lent_;
  std::vector<BlockRun> withheld_;
  std::vector<MapEntry> unmap_batch_;
  std::vector<MapEntry> map_batch_;
  std::vector<FencePtr> fences_;
  std::uint64_t filled_ = 0;
  double fence_seconds_ = 0;
  bool unmapped_ = false;
  bool ended_ = false;
};

// Takes every mapping of the table away, in one batch; where that fails, row by row as far as
// it goes, and throws the first failure. With the lock held, and no row in flight.
void unmap_all(Driver& driver, BlockPool& pool, RowTable& table);

}  // namespace pyvattn
