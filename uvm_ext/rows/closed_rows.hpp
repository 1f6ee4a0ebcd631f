// SPDX-License-Identifier: Apache-2.0
// The closed rows of a row map: which of them fits new blocks best.
//
// However many there are, few are looked at: those whose first block is the one that is
// wanted first, the last closed before the others.
#pragma once

#include <cstdint>
#include <vector>

#include "base/index_lists.hpp"
#include "rows/row_table.hpp"

namespace pyvattn {

class ClosedRows {
 public:
  static constexpr std::uint32_t kNone = IndexLists::kEnd;

  // All rows of the table, which are empty.
  explicit ClosedRows(const RowTable& table);

  // A row that has been closed, or whose mappings have changed since.
  void add(std::uint32_t row);
  void remove(std::uint32_t row);
  bool contains(std::uint32_t row) const { return entries_[row].order != kNowhere; }

  // The row with the longest run of these blocks from its first position on, of those that
  // begin with the first; failing that an empty one, and failing that the longest closed. A row
  // that has to wait for kernels before it can be changed comes after those that have not, unless
  // it saves as many maps as take that long.
  std::uint32_t best(const std::vector<BlockId>& blocks) const;

  // The rows that map anything, the longest closed first, until kNone.
  std::uint32_t first() const { return by_age_.front(kMapped); }
  std::uint32_t next(std::uint32_t row) const { return by_age_.next(kMapped, row); }

 private:
  enum Order : std::uint8_t { kMapped, kEmpty, kNowhere };
  struct Entry {
    Order order = kNowhere;
    // The list of by_block_ that it is in, where it is in order kMapped.
    std::uint32_t list = 0;
  };

  struct Found {
    std::uint32_t row = kNone;
    std::uint32_t shared = 0;
  };

  std::uint32_t list_of(BlockId block) const { return block & mask_; }
  std::uint32_t shared_prefix(std::uint32_t row, const std::vector<BlockId>& blocks) const;
  // Whether these blocks, of which it has the first `shared`, take the place of others there
  // that kernels may be reading.
  bool must_wait(const Found& found, const std::vector<BlockId>& blocks) const;
  // The best that begin with the first block: one that can be had at once, and one that cannot.
  void look_up(const std::vector<BlockId>& blocks, Found& ready, Found& busy) const;

  const RowTable& table_;
  const std::uint32_t mask_;
  std::vector<Entry> entries_;
  IndexLists by_age_;
  // By the block at the first position; several blocks have one list.
  IndexLists by_block_;
};

}  // namespace pyvattn
