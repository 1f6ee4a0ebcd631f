// SPDX-License-Identifier: Apache-2.0
#include "cache/slot_table.hpp"

namespace pyvattn {
namespace {

constexpr std::uint32_t kBits = 64;

std::uint32_t lowest_bit(std::uint64_t word) {
  return static_cast<std::uint32_t>(__builtin_ctzll(word));
}

std::uint32_t highest_bit(std::uint64_t word) {
  return kBits - 1 - static_cast<std::uint32_t>(__builtin_clzll(word));
}

}  // namespace

SlotTable::SlotTable(RowTable& rows)
    : rows_(rows),
      heads_(rows.rows()),
      books_(rows.rows()),
      by_state_(rows.rows(), 4),
      by_blocks_(rows.rows(), static_cast<std::uint32_t>(rows.geometry().row_pages()) + 1),
      lengths_(rows.geometry().row_pages() / kBits + 1, 0) {
  for (std::uint32_t slot = 0; slot < size(); ++slot) enter(slot);
}

// --- the lists ---

void SlotTable::enter(std::uint32_t slot) {
  const std::uint32_t state = list_of(heads_[slot].state);
  const std::uint32_t blocks = books_[slot].blocks;
  ++slot_counts_[state];
  block_counts_[state] += held(slot);
  const bool is_free = heads_[slot].state == SlotState::free;
  if (!is_free || blocks > 0) by_state_.push_back(state, slot);
  if (!is_free) return;
  by_blocks_.push_back(blocks, slot);
  lengths_[blocks / kBits] |= std::uint64_t{1} << blocks % kBits;
}

void SlotTable::leave(std::uint32_t slot) {
  const std::uint32_t state = list_of(heads_[slot].state);
  const std::uint32_t blocks = books_[slot].blocks;
  --slot_counts_[state];
  block_counts_[state] -= held(slot);
  const bool is_free = heads_[slot].state == SlotState::free;
  if (!is_free || blocks > 0) by_state_.remove(state, slot);
  if (!is_free) return;
  by_blocks_.remove(blocks, slot);
  if (by_blocks_.front(blocks) == kNone) {
    lengths_[blocks / kBits] &= ~(std::uint64_t{1} << blocks % kBits);
  }
}

void SlotTable::set_state(std::uint32_t slot, SlotState state) {
  leave(slot);
  heads_[slot].state = state;
  enter(slot);
}

void SlotTable::set_extent(std::uint32_t slot, std::uint32_t front, std::uint32_t blocks) {
  Books& books = books_[slot];
  if (blocks == books.blocks && front == books.front) return;
  // The order of the lists is that of requests, not of growth.
  const bool relist = heads_[slot].state == SlotState::free;
  std::uint64_t& count = block_counts_[list_of(heads_[slot].state)];
  if (relist) leave(slot);
  if (!relist) count -= held(slot);
  books.front = front;
  books.blocks = blocks;
  if (!relist) count += held(slot);
  if (relist) enter(slot);
}

// --- finding a free slot ---

// The fewest blocks from `blocks` on that any free slot has; kNone where there is none.
std::uint32_t SlotTable::length_from(std::uint32_t blocks) const {
  std::size_t word = blocks / kBits;
  if (word >= lengths_.size()) return kNone;
  std::uint64_t bits = lengths_[word] & (~std::uint64_t{0} << blocks % kBits);
  while (bits == 0) {
    if (++word == lengths_.size()) return kNone;
    bits = lengths_[word];
  }
  return static_cast<std::uint32_t>(word) * kBits + lowest_bit(bits);
}

// The most blocks below `blocks` that any free slot has; kNone where there is none.
std::uint32_t SlotTable::length_below(std::uint32_t blocks) const {
  if (blocks == 0) return kNone;
  std::size_t word = (blocks - 1) / kBits;
  std::uint64_t bits = lengths_[word] & (~std::uint64_t{0} >> (kBits - 1 - (blocks - 1) % kBits));
  while (bits == 0) {
    if (word-- == 0) return kNone;
    bits = lengths_[word];
  }
  return static_cast<std::uint32_t>(word) * kBits + highest_bit(bits);
}

// The first slot with so many blocks that fits.
template <typename Fits>
std::uint32_t SlotTable::fitting(std::uint32_t blocks, const Fits& fits) const {
  for (std::uint32_t slot = by_blocks_.front(blocks); slot != kNone;
       slot = by_blocks_.next(blocks, slot)) {
    if (fits(slot)) return slot;
  }
  return kNone;
}

std::optional<std::uint32_t> SlotTable::best_fit(std::uint32_t blocks, Among among) const {
  // To ask a fence can be a call to the device.
  int looks = 0;
  const auto fits = [&](std::uint32_t slot) {
    constexpr int kMostLooks = 64;
    if (rows_.is_in_flight(slot)) return false;
    return among == Among::all || (++looks <= kMostLooks && rows_.is_ready(slot));
  };
  constexpr std::uint32_t kFar = 3;
  std::uint32_t longer = kNone;
  for (std::uint32_t n = length_from(blocks); n != kNone && longer == kNone;
       n = length_from(n + 1)) {
    longer = fitting(n, fits);
  }
  if (longer != kNone && books_[longer].blocks <= kFar * blocks) return longer;
  std::uint32_t shorter = kNone;
  for (std::uint32_t n = length_below(blocks); n != kNone && shorter == kNone;
       n = length_below(n)) {
    shorter = fitting(n, fits);
  }
  if (shorter != kNone && books_[shorter].blocks * kFar >= blocks) return shorter;
  const std::uint32_t empty = fitting(0, fits);
  for (const std::uint32_t slot : {empty, longer, shorter}) {
    if (slot != kNone) return slot;
  }
  return std::nullopt;
}

// --- reading the books ---

std::uint64_t SlotTable::blocks_fenced() const {
  std::uint64_t blocks = 0;
  for (std::uint32_t slot = first(SlotState::free); slot != kNone;
       slot = next(SlotState::free, slot)) {
    if (!rows_.is_ready(slot)) blocks += books_[slot].blocks;
  }
  return blocks;
}

std::size_t SlotTable::bookkeeping_bytes() const {
  return heads_.capacity() * sizeof(SlotHead) + books_.capacity() * sizeof(Books) +
         by_state_.bookkeeping_bytes() + by_blocks_.bookkeeping_bytes() +
         lengths_.capacity() * sizeof(std::uint64_t);
}

}  // namespace pyvattn
