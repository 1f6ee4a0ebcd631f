// SPDX-License-Identifier: Apache-2.0
#include "rows/closed_rows.hpp"

#include <algorithm>

namespace pyvattn {
namespace {

// As many lists as rows, rounded up to a power of two.
std::uint32_t mask_for(std::uint32_t rows) {
  std::uint32_t lists = 1;
  while (lists < rows) lists <<= 1;
  return lists - 1;
}

}  // namespace

ClosedRows::ClosedRows(const RowTable& table)
    : table_(table),
      mask_(mask_for(table.rows())),
      entries_(table.rows()),
      by_age_(table.rows(), 2),
      by_block_(table.rows(), mask_ + 1) {
  for (std::uint32_t row = 0; row < table.rows(); ++row) add(row);
}

void ClosedRows::add(std::uint32_t row) {
  Entry& entry = entries_[row];
  entry.order = table_.size(row) > 0 ? kMapped : kEmpty;
  by_age_.push_back(entry.order, row);
  if (entry.order == kEmpty) return;
  entry.list = list_of(table_.block(row, 0));
  by_block_.push_back(entry.list, row);
}

void ClosedRows::remove(std::uint32_t row) {
  Entry& entry = entries_[row];
  by_age_.remove(entry.order, row);
  if (entry.order == kMapped) by_block_.remove(entry.list, row);
  entry.order = kNowhere;
}

std::uint32_t ClosedRows::shared_prefix(std::uint32_t row,
                                        const std::vector<BlockId>& blocks) const {
  const auto most =
      static_cast<std::uint32_t>(std::min<std::size_t>(blocks.size(), table_.size(row)));
  std::uint32_t shared = 0;
  while (shared < most && table_.block(row, shared) == blocks[shared]) ++shared;
  return shared;
}

bool ClosedRows::must_wait(const Found& found, const std::vector<BlockId>& blocks) const {
  const std::size_t replaced = std::min<std::size_t>(blocks.size(), table_.size(found.row));
  return replaced > found.shared && !table_.is_ready(found.row);
}

void ClosedRows::look_up(const std::vector<BlockId>& blocks, Found& ready, Found& busy) const {
  constexpr int kMostLooks = 64;
  const std::uint32_t list = list_of(blocks.front());
  int looks = 0;
  for (std::uint32_t row = by_block_.back(list); row != kNone && looks < kMostLooks;
       row = by_block_.previous(list, row), ++looks) {
    const Found found{row, shared_prefix(row, blocks)};
    if (found.shared <= ready.shared) continue;
    Found& best = must_wait(found, blocks) ? busy : ready;
    if (found.shared > best.shared) best = found;
  }
}

std::uint32_t ClosedRows::best(const std::vector<BlockId>& blocks) const {
  // What takes as long as the step that a closed row waits for: some 15 ms, at 60 us each.
  constexpr std::uint32_t kMapsOfAStep = 256;
  Found ready, busy;
  if (!blocks.empty()) look_up(blocks, ready, busy);
  if (busy.shared > ready.shared &&
      std::uint64_t{busy.shared - ready.shared} * table_.geometry().arenas > kMapsOfAStep) {
    return busy.row;
  }
  for (const Order order : {kEmpty, kMapped}) {
    if (ready.row == kNone) ready.row = by_age_.front(order);
  }
  const bool others_wait = ready.row != kNone && ready.shared == 0 && must_wait(ready, blocks);
  return busy.row != kNone && others_wait ? busy.row : ready.row;
}

}  // namespace pyvattn
