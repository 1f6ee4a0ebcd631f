// SPDX-License-Identifier: Apache-2.0
// The row table: which block is mapped at each position of each row. Books alone: what
// maps and unmaps is RowBatch, and nothing else changes them.
#pragma once

#include <cstdint>
#include <vector>

#include "blocks/block_pool.hpp"
#include "rows/arena.hpp"
#include "rows/geometry.hpp"

namespace pyvattn {

// Positions [first, first + count) of a row.
struct Positions {
  std::uint32_t row = 0;
  std::uint32_t first = 0;
  std::uint32_t count = 0;
};

class RowTable {
 public:
  // What stands at a position where nothing is mapped.
  static constexpr BlockId kHole = 0xffffffff;

  // Makes one arena for each of the geometry's.
  RowTable(const DriverPtr& driver, const Geometry& geometry);

  std::uint32_t rows() const { return static_cast<std::uint32_t>(rows_.size()); }
  // Positions up to the last that is mapped.
  std::uint32_t size(std::uint32_t row) const {
    return static_cast<std::uint32_t>(rows_[row].blocks.size());
  }
  BlockId block(std::uint32_t row, std::uint32_t position) const {
    return position < size(row) ? rows_[row].blocks[position] : kHole;
  }
  const std::vector<BlockId>& blocks(std::uint32_t row) const { return rows_[row].blocks; }

  // Whether a batch maps or unmaps there at this moment, perhaps without the lock.
  bool is_in_flight(std::uint32_t row) const { return rows_[row].in_flight; }
  std::uint32_t in_flight() const { return in_flight_; }

  // What must have passed before a mapping of the row is taken away, or its blocks get
  // another owner. Null: nothing.
  const FencePtr& fence(std::uint32_t row) const { return rows_[row].fence; }
  void set_fence(std::uint32_t row, FencePtr fence) { rows_[row].fence = std::move(fence); }
  // Whether its fence has passed, or it has none. What has passed is forgotten.
  bool is_ready(std::uint32_t row);
  // The same without forgetting.
  bool is_ready(std::uint32_t row) const;
  // Those of all rows.
  std::vector<FencePtr> fences() const;

  // The addresses of the positions, one range in each arena.
  std::vector<Range> ranges(const Positions& positions) const;
  Address address(std::uint32_t arena, std::uint32_t row, std::uint32_t position) const {
    return starts_[arena] + row * geometry_.row_bytes() + position * geometry_.page_size;
  }

  // The arena that has the address.
  std::uint32_t arena_of(Address address) const;

  // How far behind its address in the row a position is mapped once more; zero: it is not.
  std::uint64_t mirror_offset() const {
    return geometry_.is_ring() ? geometry_.row_bytes() / 2 : 0;
  }

  const Geometry& geometry() const { return geometry_; }
  const std::vector<ArenaPtr>& arenas() const { return arenas_; }
  // Tensors keep theirs; the table has none from here on.
  void drop_arenas() { arenas_.clear(); }
  std::size_t bookkeeping_bytes() const;

 private:
  friend class RowBatch;

  // One to a cache line: requests come and go far apart.
  struct alignas(64) Row {
    std::vector<BlockId> blocks;
    FencePtr fence;
    bool in_flight = false;
  };

  const Geometry geometry_;
  std::vector<ArenaPtr> arenas_;
  std::vector<Address> starts_;
  std::vector<Row> rows_;
  std::uint32_t in_flight_ = 0;
};

}  // namespace pyvattn
