// SPDX-License-Identifier: Apache-2.0
#include "rows/row_table.hpp"

#include <utility>

namespace pyvattn {

RowTable::RowTable(const DriverPtr& driver, const Geometry& geometry)
    : geometry_(geometry), arenas_(make_arenas(driver, geometry)), rows_(geometry.slots) {
  for (const ArenaPtr& arena : arenas_) starts_.push_back(arena->address());
}

bool RowTable::is_ready(std::uint32_t row) {
  const bool ready = std::as_const(*this).is_ready(row);
  if (ready) rows_[row].fence.reset();
  return ready;
}

bool RowTable::is_ready(std::uint32_t row) const {
  const FencePtr& fence = rows_[row].fence;
  return !fence || fence->passed();
}

std::vector<FencePtr> RowTable::fences() const {
  std::vector<FencePtr> fences;
  for (const Row& row : rows_) {
    if (row.fence) fences.push_back(row.fence);
  }
  return fences;
}

std::vector<Range> RowTable::ranges(const Positions& positions) const {
  std::vector<Range> ranges;
  ranges.reserve(starts_.size());
  for (std::uint32_t arena = 0; arena < geometry_.arenas; ++arena) {
    ranges.push_back(
        {address(arena, positions.row, positions.first), positions.count * geometry_.page_size});
  }
  return ranges;
}

std::uint32_t RowTable::arena_of(Address address) const {
  std::uint32_t arena = 0;
  while (address - starts_[arena] >= geometry_.arena_bytes()) ++arena;
  return arena;
}

std::size_t RowTable::bookkeeping_bytes() const {
  std::size_t bytes = rows_.capacity() * sizeof(Row);
  for (const Row& row : rows_) bytes += row.blocks.capacity() * sizeof(BlockId);
  return bytes;
}

}  // namespace pyvattn
