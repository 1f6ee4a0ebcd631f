// SPDX-License-Identifier: Apache-2.0
// How a row map carries out what was staged, and gives mappings back.
#include <algorithm>
#include <exception>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "base/errors.hpp"
#include "base/stopwatch.hpp"
#include "rows/row_map.hpp"

namespace pyvattn {

BlockId RowMap::wanted_block(const Row& row, std::uint32_t index, std::uint32_t position) const {
  return position < row.same ? table_.block(index, position) : row.added[position - row.same];
}

// Cuts what is mapped at positions [first, end).
void RowMap::plan_cuts(std::uint32_t row, std::uint32_t first, std::uint32_t end, RowBatch& batch) {
  end = std::min(end, table_.size(row));
  std::uint32_t begin = first;
  for (std::uint32_t p = first; p < end; ++p) {
    if (table_.block(row, p) != RowTable::kHole) continue;
    if (p > begin) batch.cut({row, begin, p - begin});
    begin = p + 1;
  }
  if (end > begin) batch.cut({row, begin, end - begin});
}

// Maps what is wanted and not there, in place of what is.
void RowMap::plan_puts(const Row& row, std::uint32_t index, RowBatch& batch) {
  const std::uint32_t end = row.wanted.length;
  const auto differs = [&](std::uint32_t p) REQUIRES(store_->mutex_) {
    return table_.block(index, p) != row.added[p - row.same];
  };
  std::uint32_t p = std::max(row.same, row.wanted.front);
  while (p < end) {
    if (!differs(p)) {
      ++p;
      continue;
    }
    const std::uint32_t first = p;
    while (p < end && differs(p)) ++p;
    for (std::uint32_t i = first; i < p; ++i) {
      const BlockId block = row.added[i - row.same];
      if (store_->pool_->holders(block) > 0) continue;
      throw BlockError("block " + std::to_string(block) + " of row " + std::to_string(index) +
                       " was released before it was mapped: hold it until flush() is done");
    }
    plan_cuts(index, first, p, batch);
    batch.put(index, first, row.added.data() + (first - row.same), p - first);
  }
}

void RowMap::plan(std::uint32_t index, RowBatch& batch) {
  batch.claim(index);
  const Row& row = rows_[index];
  const bool reopened = !row.mapped.open || row.same < row.mapped.front;
  plan_cuts(index, reopened ? 0 : row.mapped.front, row.wanted.front, batch);
  plan_puts(row, index, batch);
  if (row.mapped.open && row.mapped.length > row.wanted.length) {
    plan_cuts(index, std::max(row.wanted.length, row.wanted.front), row.mapped.length, batch);
  }
}

// A row that is staged may be in flight for another thread, which may also be flushing what
// this one has staged.
void RowMap::wait_for_staged() {
  const auto busy = [this]() REQUIRES(store_->mutex_) {
    return flushing_ || std::any_of(staged_.begin(), staged_.end(),
                                    [this](std::uint32_t row) REQUIRES(store_->mutex_) {
                                      return table_.is_in_flight(row);
                                    });
  };
  while (busy()) store_->settled_.wait(store_->mutex_);
  check_usable();
}

// Makes the driver calls of a plan, without the lock.
void RowMap::run(RowBatch& batch) {
  batch.seal();
  // Nobody may open a closed row meanwhile.
  std::vector<std::uint32_t> closed;
  for (std::uint32_t row : batch.rows()) {
    if (closed_.contains(row)) closed.push_back(row);
  }
  for (std::uint32_t row : closed) closed_.remove(row);
  std::exception_ptr failure;
  try {
    const Unlocked unlocked(store_->mutex_);
    batch.execute();
  } catch (...) {
    failure = std::current_exception();
  }
  store_->fence_seconds_ += batch.fence_seconds();
  if (failure) {
    batch.roll_back();
    follow_loss(batch);
  } else {
    batch.commit();
  }
  for (std::uint32_t row : closed) closed_.add(row);
  store_->settled_.notify_all();
  if (failure) std::rethrow_exception(failure);
}

// Where a batch failed and what it had cut could not be put back, the rows are shorter.
void RowMap::follow_loss(const RowBatch& batch) {
  for (std::uint32_t row : batch.rows()) {
    Extent& mapped = rows_[row].mapped;
    const auto is_lost = [&](std::uint32_t p) REQUIRES(store_->mutex_) {
      return table_.block(row, p) == RowTable::kHole;
    };
    while (mapped.front < mapped.length && is_lost(mapped.length - 1)) --mapped.length;
    while (mapped.front < mapped.length && is_lost(mapped.front)) ++mapped.front;
  }
}

// What was wanted is mapped.
void RowMap::flushed(std::uint32_t row) {
  Row& books = rows_[row];
  for (BlockId block : books.added) store_->pool_->mark_dirty({block, 1});
  books.mapped = books.wanted;
  books.same = books.wanted.length;
  books.added.clear();
}

void RowMap::flush() {
  check_usable();
  const Lock lock(store_->mutex_);
  flush_locked();
}

void RowMap::flush_locked() {
  wait_for_staged();
  // Everything that was staged is tried anew.
  failure_ = nullptr;
  const Stopwatch watch(store_->flush_seconds_);
  flushing_ = true;
  try {
    flush_staged();
  } catch (...) {
    flushing_ = false;
    store_->settled_.notify_all();
    throw;
  }
  flushing_ = false;
  store_->settled_.notify_all();
}

void RowMap::flush_staged() {
  // Of a closed row everything stays as it is. It remains staged, so that reclaim() leaves it
  // alone, but may be opened again meanwhile.
  std::vector<std::uint32_t> opened;
  std::vector<std::uint32_t> closed;
  for (std::uint32_t row : staged_) (rows_[row].wanted.open ? opened : closed).push_back(row);
  RowBatch batch(*store_->driver_, *store_->pool_, table_);
  for (std::uint32_t row : opened) plan(row, batch);
  // Rows that others stage meanwhile are for the next flush.
  staged_.assign(closed.begin(), closed.end());
  for (std::uint32_t row : opened) rows_[row].staged = false;
  try {
    run(batch);
  } catch (...) {
    for (std::uint32_t row : opened) stage(row);
    throw;
  }
  for (std::uint32_t row : opened) flushed(row);
  flushed_closed(closed);
}

void RowMap::flushed_closed(const std::vector<std::uint32_t>& rows) {
  for (std::uint32_t row : rows) {
    rows_[row].mapped = {};
    rows_[row].staged = rows_[row].wanted.open;
  }
  const auto is_done = [this](std::uint32_t row)
                           REQUIRES(store_->mutex_) { return !rows_[row].staged; };
  staged_.erase(std::remove_if(staged_.begin(), staged_.end(), is_done), staged_.end());
}

// --- in the background ---

void RowMap::flush_async() {
  check_usable();
  try {
    mapper_->wake();
  } catch (const std::system_error&) {
    // The system has no thread for it: it is left to join().
  }
}

void RowMap::join() {
  check_usable();
  mapper_->drain();
  const Lock lock(store_->mutex_);
  check_usable();
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  if (flushing_ || !staged_.empty()) flush_locked();
}

// The mapper thread's work.
bool RowMap::flush_in_background() {
  const Lock lock(store_->mutex_);
  // A failure that nobody has been told of yet is join()'s.
  if (store_->closed_ || staged_.empty() || failure_) return false;
  try {
    flush_locked();
  } catch (...) {
    failure_ = std::current_exception();
  }
  return false;
}

// --- giving back ---

// Takes mappings behind the first `kept` positions of a row; returns how many blocks have no
// other holder.
std::uint64_t RowMap::plan_reclaim(std::uint32_t row, std::uint32_t kept, RowBatch& batch) {
  std::uint64_t blocks = 0;
  for (std::uint32_t p = kept; p < table_.size(row); ++p) {
    const BlockId block = table_.block(row, p);
    blocks += block != RowTable::kHole && store_->pool_->holders(block) == 1;
  }
  plan_cuts(row, kept, table_.size(row), batch);
  return blocks;
}

std::uint64_t RowMap::reclaim(std::uint64_t blocks) {
  check_usable();
  const Lock lock(store_->mutex_);
  check_usable();
  const auto is_free = [this](std::uint32_t row) REQUIRES(store_->mutex_) {
    return !rows_[row].staged && !table_.is_in_flight(row);
  };
  RowBatch batch(*store_->driver_, *store_->pool_, table_);
  std::uint64_t cut = 0;
  for (std::uint32_t row = closed_.first(); row != ClosedRows::kNone && cut < blocks;
       row = closed_.next(row)) {
    if (is_free(row)) cut += plan_reclaim(row, 0, batch);
  }
  for (std::uint32_t row = 0; row < rows_.size() && cut < blocks; ++row) {
    const Extent& mapped = rows_[row].mapped;
    if (mapped.open && is_free(row)) cut += plan_reclaim(row, mapped.length, batch);
  }
  const std::uint64_t free_before = store_->pool_->blocks_free();
  run(batch);
  const std::uint64_t free_after = store_->pool_->blocks_free();
  return free_after > free_before ? free_after - free_before : 0;
}

void RowMap::zero(std::uint32_t row, std::uint32_t first, std::uint32_t count,
                  const FencePtr& after) {
  const Lock lock(store_->mutex_);
  const Extent& mapped = open_row(row).mapped;
  if (first < mapped.front || std::uint64_t{first} + count > mapped.length) {
    throw RowError("row " + std::to_string(row) + " maps positions " +
                   std::to_string(mapped.front) + " to " + std::to_string(mapped.length) +
                   ", not " + std::to_string(first) + " to " +
                   std::to_string(std::uint64_t{first} + count) + ": flush() first");
  }
  if (count == 0) return;
  const std::vector<Range> ranges = table_.ranges({row, first, count});
  // In flight, so that nobody unmaps it meanwhile; nothing is planned, nor rolled back.
  RowBatch batch(*store_->driver_, *store_->pool_, table_);
  batch.claim(row);
  try {
    const Unlocked unlocked(store_->mutex_);
    const FencePtr done = store_->driver_->zero(ranges, after);
    if (done) done->wait();
  } catch (...) {
    batch.roll_back();
    store_->settled_.notify_all();
    throw;
  }
  batch.commit();
  store_->settled_.notify_all();
}

void RowMap::unmap_everything() {
  while (table_.in_flight() > 0) store_->settled_.wait(store_->mutex_);
  rows_.assign(rows_.size(), Row{});
  staged_.clear();
  unmap_all(*store_->driver_, *store_->pool_, table_);
  table_.drop_arenas();
}

}  // namespace pyvattn
