// SPDX-License-Identifier: Apache-2.0
#include "rows/row_batch.hpp"

#include <algorithm>
#include <exception>
#include <utility>

#include "base/stopwatch.hpp"

namespace pyvattn {
namespace {

std::uint64_t total(const std::vector<BlockRun>& runs) {
  std::uint64_t blocks = 0;
  for (const BlockRun& run : runs) blocks += run.count;
  return blocks;
}

// Adds a block to the last run where it lies right behind, and begins a run otherwise.
void append(std::vector<BlockRun>& runs, std::size_t first_run, BlockId block,
            const BlockPool& pool) {
  if (runs.size() > first_run) {
    BlockRun& last = runs.back();
    if (pool.follows(last.first + last.count - 1, block)) {
      ++last.count;
      return;
    }
  }
  runs.push_back({block, 1});
}

}  // namespace

RowBatch::RowBatch(Driver& driver, BlockPool& pool, RowTable& table)
    : driver_(driver), pool_(pool), table_(table), allocated_before_(pool.bytes_allocated()) {}

RowBatch::~RowBatch() {
  if (!ended_) roll_back();
}

// --- the plan ---

void RowBatch::claim(std::uint32_t row) {
  RowTable::Row& books = table_.rows_[row];
  if (books.in_flight) return;
  rows_.push_back(row);
  books.in_flight = true;
  ++table_.in_flight_;
}

// One entry for each arena and run of blocks, and one for the second time that a ring maps it:
// both are made, and taken away, together. Those of an arena follow each other, so that drivers
// can join what lies side by side.
void RowBatch::add_entries(std::uint32_t row, std::uint32_t position, const BlockId* blocks,
                           std::uint32_t count, std::vector<MapEntry>& out) {
  struct Piece {
    std::uint32_t position;
    std::uint32_t count;
    BlockPool::Place place;
  };
  std::vector<Piece> pieces;
  for (std::uint32_t i = 0; i < count; ++i) {
    if (blocks[i] == RowTable::kHole) continue;
    const bool behind = !pieces.empty() && i > 0 && blocks[i - 1] != RowTable::kHole &&
                        pool_.follows(blocks[i - 1], blocks[i]);
    if (behind) {
      ++pieces.back().count;
    } else {
      pieces.push_back({position + i, 1, pool_.place_of(blocks[i])});
    }
  }
  const std::size_t page = pool_.page_size();
  const std::uint64_t mirror = table_.mirror_offset();
  for (std::uint32_t arena = 0; arena < pool_.arenas(); ++arena) {
    for (std::uint64_t offset = 0; offset <= mirror; offset += std::max<std::uint64_t>(mirror, 1)) {
      for (const Piece& piece : pieces) {
        out.push_back({table_.address(arena, row, piece.position) + offset, piece.count * page,
                       piece.place.slab, piece.place.offset + arena * piece.place.stride});
      }
    }
  }
}

void RowBatch::add_cut(const Positions& positions, bool lend) {
  const std::vector<BlockId>& blocks = table_.blocks(positions.row);
  claim(positions.row);
  cuts_.push_back(positions);
  add_entries(positions.row, positions.first, blocks.data() + positions.first, positions.count,
              unmap_batch_);
  if (!table_.is_ready(positions.row)) wait_for(table_.fence(positions.row));
  std::vector<BlockId> sorted(blocks.begin() + positions.first,
                              blocks.begin() + positions.first + positions.count);
  std::sort(sorted.begin(), sorted.end());
  const std::size_t first_lent = lent_.size();
  const std::size_t first_dropped = dropped_.size();
  for (BlockId block : sorted) {
    if (block == RowTable::kHole) continue;
    // A block with other holders as well cannot be lent.
    if (lend && pool_.holders(block) == 1) {
      append(lent_, first_lent, block, pool_);
    } else {
      append(dropped_, first_dropped, block, pool_);
    }
  }
  for (std::size_t i = first_lent; i < lent_.size(); ++i) pool_.release(lent_[i]);
}

void RowBatch::cut(const Positions& positions) { add_cut(positions, false); }

void RowBatch::cut_and_lend(const Positions& positions) { add_cut(positions, true); }

void RowBatch::put(std::uint32_t row, std::uint32_t position, const BlockId* blocks,
                   std::uint32_t count) {
  claim(row);
  for (std::uint32_t i = 0; i < count; ++i) {
    // A place first: a holder must not be lost.
    held_.push_back({blocks[i], 0});
    pool_.retain({blocks[i], 1});
    held_.back().count = 1;
  }
  puts_.push_back({row, position, put_blocks_.size(), count});
  put_blocks_.insert(put_blocks_.end(), blocks, blocks + count);
  add_entries(row, position, blocks, count, map_batch_);
}

void RowBatch::fill(std::uint32_t row, std::uint32_t position, std::uint32_t count) {
  claim(row);
  const BlockId last = position > 0 ? table_.block(row, position - 1) : RowTable::kHole;
  const BlockId after = last == RowTable::kHole ? BlockPool::kAnywhere : last;
  const std::size_t first_run = held_.size();
  pool_.allocate(count, after, held_);
  filled_ += count;
  puts_.push_back({row, position, put_blocks_.size(), count});
  for (std::size_t i = first_run; i < held_.size(); ++i) {
    for (std::uint32_t b = 0; b < held_[i].count; ++b) put_blocks_.push_back(held_[i].first + b);
  }
  add_entries(row, position, put_blocks_.data() + puts_.back().first, count, map_batch_);
}

void RowBatch::wait_for(FencePtr fence) {
  if (fence) fences_.push_back(std::move(fence));
}

void RowBatch::seal() {
  // What was not taken is still mapped, and stays out of the pool as long as it is.
  for (const BlockRun& run : lent_) pool_.retake(run, withheld_);
  for (const Put& put : puts_) {
    std::vector<BlockId>& blocks = table_.rows_[put.row].blocks;
    const std::size_t size = std::size_t{put.position} + put.count;
    // Decoding adds a block at a time: not every one should move the row.
    if (size > blocks.capacity()) blocks.reserve(size + size / 8);
  }
  std::sort(unmap_batch_.begin(), unmap_batch_.end(),
            [](const MapEntry& a, const MapEntry& b) { return a.address < b.address; });
}

// --- the driver calls ---

void RowBatch::make_cuts() {
  {
    const Stopwatch watch(fence_seconds_);
    for (const FencePtr& fence : fences_) fence->wait();
  }
  if (!unmap_batch_.empty()) driver_.unmap(unmap_batch_);
  unmapped_ = true;
}

void RowBatch::execute() {
  make_cuts();
  if (!map_batch_.empty()) driver_.map(map_batch_);
}

void RowBatch::execute(const Parts& parts) {
  make_cuts();
  std::vector<std::vector<MapEntry>> by_arena(pool_.arenas());
  for (const MapEntry& entry : map_batch_) {
    by_arena[table_.arena_of(entry.address)].push_back(entry);
  }
  std::vector<MapEntry> mapped;
  std::vector<FencePtr> used;
  try {
    for (std::uint32_t first = 0; first < pool_.arenas(); first += parts.arenas) {
      const std::uint32_t end = std::min(first + parts.arenas, pool_.arenas());
      std::vector<MapEntry> part;
      for (std::uint32_t arena = first; arena < end; ++arena) {
        part.insert(part.end(), by_arena[arena].begin(), by_arena[arena].end());
      }
      mapped.reserve(mapped.size() + part.size());
      if (!part.empty()) driver_.map(part);
      mapped.insert(mapped.end(), part.begin(), part.end());
      used.push_back(parts.mapped(first, end));
    }
  } catch (...) {
    withdraw(mapped, used);
    throw;
  }
}

// Where that fails the blocks stay held, by nobody: what was written may still be there.
void RowBatch::withdraw(const std::vector<MapEntry>& mapped,
                        const std::vector<FencePtr>& used) noexcept {
  if (mapped.empty()) return;
  try {
    for (const FencePtr& fence : used) {
      if (fence) fence->wait();
    }
    std::vector<Range> ranges;
    for (const MapEntry& entry : mapped) ranges.push_back({entry.address, entry.length});
    const FencePtr zeroed = driver_.zero(ranges, nullptr);
    if (zeroed) zeroed->wait();
    driver_.unmap(mapped);
  } catch (const std::exception&) {
    held_.clear();
  }
}

// --- the end ---

void RowBatch::cut_rows() noexcept {
  for (const Positions& cut : cuts_) {
    std::vector<BlockId>& blocks = table_.rows_[cut.row].blocks;
    std::fill_n(blocks.begin() + cut.first, cut.count, RowTable::kHole);
  }
}

// A row ends with its last mapping.
void RowBatch::shorten_rows() noexcept {
  for (std::uint32_t row : rows_) {
    std::vector<BlockId>& blocks = table_.rows_[row].blocks;
    while (!blocks.empty() && blocks.back() == RowTable::kHole) blocks.pop_back();
  }
}

void RowBatch::settle() noexcept {
  for (std::uint32_t row : rows_) table_.rows_[row].in_flight = false;
  table_.in_flight_ -= static_cast<std::uint32_t>(rows_.size());
  ended_ = true;
}

void RowBatch::commit() noexcept {
  cut_rows();
  for (const Put& put : puts_) {
    std::vector<BlockId>& blocks = table_.rows_[put.row].blocks;
    const std::size_t end = std::size_t{put.position} + put.count;
    if (blocks.size() < end) blocks.resize(end, RowTable::kHole);
    std::copy_n(put_blocks_.begin() + static_cast<std::ptrdiff_t>(put.first), put.count,
                blocks.begin() + put.position);
  }
  shorten_rows();
  for (const BlockRun& run : dropped_) pool_.release(run);
  for (const BlockRun& run : withheld_) pool_.release(run);
  settle();
}

// Pool and rows get back what was theirs.
void RowBatch::return_blocks() noexcept {
  for (const BlockRun& run : held_) pool_.release(run);
  for (const BlockRun& run : withheld_) pool_.release(run);
  held_.clear();
  withheld_.clear();
  for (const BlockRun& run : lent_) pool_.retake(run);
  try {
    pool_.trim(allocated_before_);
  } catch (const std::exception&) {
    // The slab stays in the pool, free: a failed call may leave that.
  }
}

void RowBatch::roll_back() noexcept {
  return_blocks();
  if (unmapped_ && !unmap_batch_.empty()) {
    try {
      driver_.map(unmap_batch_);
    } catch (const std::exception&) {
      cut_rows();
      shorten_rows();
      for (const BlockRun& run : dropped_) pool_.release(run);
      for (const BlockRun& run : lent_) pool_.release(run);
    }
  }
  settle();
}

// --- the end of a table ---

namespace {

void unmap_rows(Driver& driver, BlockPool& pool, RowTable& table, std::uint32_t first,
                std::uint32_t end) {
  RowBatch batch(driver, pool, table);
  for (std::uint32_t row = first; row < end; ++row) batch.cut({row, 0, table.size(row)});
  batch.seal();
  batch.execute();
  batch.commit();
}

}  // namespace

void unmap_all(Driver& driver, BlockPool& pool, RowTable& table) {
  std::exception_ptr failure;
  try {
    unmap_rows(driver, pool, table, 0, table.rows());
    return;
  } catch (const std::exception&) {
    failure = std::current_exception();
  }
  for (std::uint32_t row = 0; row < table.rows(); ++row) {
    try {
      unmap_rows(driver, pool, table, row, row + 1);
    } catch (const std::exception&) {
      // The first says why.
    }
  }
  std::rethrow_exception(failure);
}

// --- reading the books ---

std::uint64_t RowBatch::blocks_lent() const { return total(lent_); }

std::uint64_t RowBatch::blocks_in_flight() const {
  return filled_ + total(withheld_) - total(lent_);
}

}  // namespace pyvattn
