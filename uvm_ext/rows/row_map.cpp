// SPDX-License-Identifier: Apache-2.0
#include "rows/row_map.hpp"

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "base/errors.hpp"
#include "drivers/both_fences.hpp"

namespace pyvattn {
RowMap::RowMap(BlockStorePtr store, const Geometry& geometry)
    : store_(std::move(store)),
      geometry_(geometry),
      table_(store_->driver_, geometry),
      rows_(geometry.slots),
      closed_(table_),
      mapper_(std::make_unique<Mapper>([this] { return flush_in_background(); })) {
  check_usable();
  const Lock lock(store_->mutex_);
  staged_.reserve(geometry.slots);
  store_->maps_.push_back(this);
}

RowMap::~RowMap() {
  if (store_->inherited()) {
    // The parent's thread does not exist here, and what it had locked stays locked.
    mapper_->abandon();
    static_cast<void>(mapper_.release());
    return;
  }
  const Lock one(store_->closing_);
  stop_background();
  const Lock lock(store_->mutex_);
  wait_for_readers();
  try {
    unmap_everything();
  } catch (const std::exception&) {
    // A destructor cannot report it; the driver gives back what is left when it goes.
  }
  auto& maps = store_->maps_;
  maps.erase(std::remove(maps.begin(), maps.end(), this), maps.end());
}

// Without the lock: other maps of the store go on meanwhile.
void RowMap::wait_for_readers() {
  const std::vector<FencePtr> fences = table_.fences();
  const Unlocked unlocked(store_->mutex_);
  wait_for_all(fences);
}

// --- what is refused ---

void RowMap::check_usable() const { store_->check_usable(); }

RowMap::Row& RowMap::open_row(std::uint32_t row) {
  check_usable();
  if (row >= rows_.size() || !rows_[row].wanted.open) {
    throw RowError("row " + std::to_string(row) +
                   " is not open: name what open() returned, until close()");
  }
  // What a batch is at does not change by staging.
  while (table_.is_in_flight(row)) store_->settled_.wait(store_->mutex_);
  check_usable();
  if (!rows_[row].wanted.open) throw RowError("row " + std::to_string(row) + " was closed");
  return rows_[row];
}

void RowMap::check_length(std::uint64_t positions) const {
  if (positions > geometry_.row_pages()) {
    throw LengthError("a row has " + std::to_string(geometry_.row_pages()) + " positions, not " +
                      std::to_string(positions) +
                      ": open the map with a larger max_tokens, or cut the request");
  }
}

// --- staging ---

void RowMap::stage(std::uint32_t row) {
  if (!rows_[row].staged) staged_.push_back(row);
  rows_[row].staged = true;
}

// No mapping of the row is taken away before the fence has passed.
void RowMap::guard(std::uint32_t row, const FencePtr& after) {
  if (!after) return;
  static_cast<void>(table_.is_ready(row));
  table_.set_fence(row, both(table_.fence(row), after));
}

std::uint32_t RowMap::open(const std::vector<BlockId>& blocks) {
  check_usable();
  check_length(blocks.size());
  const Lock lock(store_->mutex_);
  store_->check_held(blocks);
  const std::uint32_t row = closed_.best(blocks);
  if (row == ClosedRows::kNone) {
    throw OutOfSlots("all " + std::to_string(rows_.size()) +
                     " rows are open: close() one, or make the map with more rows");
  }
  Row& books = rows_[row];
  closed_.remove(row);
  books.added = blocks;
  books.same = 0;
  books.wanted = {true, 0, static_cast<std::uint32_t>(blocks.size())};
  stage(row);
  return row;
}

void RowMap::extend(std::uint32_t row, const std::vector<BlockId>& blocks) {
  const Lock lock(store_->mutex_);
  Row& books = open_row(row);
  store_->check_held(blocks);
  check_length(std::uint64_t{books.wanted.length} + blocks.size());
  books.added.insert(books.added.end(), blocks.begin(), blocks.end());
  books.wanted.length += static_cast<std::uint32_t>(blocks.size());
  stage(row);
}

void RowMap::trim(std::uint32_t row, std::uint32_t front, std::uint32_t tail,
                  const FencePtr& after) {
  const Lock lock(store_->mutex_);
  Row& books = open_row(row);
  const std::uint32_t have = books.wanted.length - books.wanted.front;
  if (std::uint64_t{front} + tail > have) {
    throw RowError("row " + std::to_string(row) + " has " + std::to_string(have) +
                   " blocks, and cannot lose " + std::to_string(front) + " in front and " +
                   std::to_string(tail) + " at the end");
  }
  guard(row, after);
  books.wanted.front += front;
  books.wanted.length -= tail;
  books.same = std::min(books.same, books.wanted.length);
  books.added.resize(books.wanted.length - books.same);
  stage(row);
}

void RowMap::close(std::uint32_t row, const FencePtr& after) {
  const Lock lock(store_->mutex_);
  Row& books = open_row(row);
  guard(row, after);
  books.wanted = {};
  books.same = 0;
  books.added.clear();
  closed_.add(row);
  stage(row);
}

void RowMap::discard() {
  check_usable();
  const Lock lock(store_->mutex_);
  wait_for_staged();
  failure_ = nullptr;
  for (std::uint32_t row : staged_) {
    Row& books = rows_[row];
    const bool was_open = books.wanted.open;
    books.wanted = books.mapped;
    if (was_open && !books.wanted.open) closed_.add(row);
    if (!was_open && books.wanted.open) closed_.remove(row);
    books.same = books.mapped.length;
    books.added.clear();
    books.staged = false;
  }
  staged_.clear();
}

// --- reading the books ---

std::vector<BlockId> RowMap::blocks(std::uint32_t row) {
  const Lock lock(store_->mutex_);
  const Row& books = open_row(row);
  std::vector<BlockId> blocks(books.wanted.front, RowTable::kHole);
  for (std::uint32_t p = books.wanted.front; p < books.wanted.length; ++p) {
    blocks.push_back(wanted_block(books, row, p));
  }
  return blocks;
}

std::vector<std::uint32_t> RowMap::open_rows() {
  check_usable();
  const Lock lock(store_->mutex_);
  std::vector<std::uint32_t> open;
  for (std::uint32_t row = 0; row < rows_.size(); ++row) {
    if (rows_[row].wanted.open) open.push_back(row);
  }
  return open;
}

ArenaPtr RowMap::arena(std::uint32_t index) {
  check_usable();
  const Lock lock(store_->mutex_);
  check_usable();
  if (index >= geometry_.arenas) {
    throw ConfigError("arena " + std::to_string(index) + " is outside 0.." +
                      std::to_string(geometry_.arenas - 1));
  }
  return table_.arenas()[index];
}

}  // namespace pyvattn
