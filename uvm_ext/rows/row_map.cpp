#include "rows/row_map.hpp"

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "base/errors.hpp"

namespace pyvattn {
namespace {

// Has passed once two others have.
class BothFences final : public Fence {
 public:
  BothFences(FencePtr first, FencePtr second)
      : first_(std::move(first)), second_(std::move(second)) {}
  bool passed() override { return first_->passed() && second_->passed(); }
  void wait() override {
    first_->wait();
    second_->wait();
  }

 private:
  const FencePtr first_;
  const FencePtr second_;
};

}  // namespace

RowMap::RowMap(BlockStorePtr store, const Geometry& geometry)
    : store_(std::move(store)),
      geometry_(geometry),
      table_(store_->driver_, geometry),
      rows_(geometry.slots) {
  check_usable();
  const Lock lock(store_->mutex_);
  staged_.reserve(geometry.slots);
  store_->maps_.push_back(this);
}

RowMap::~RowMap() {
  if (store_->inherited()) return;
  const Lock lock(store_->mutex_);
  try {
    unmap_everything();
  } catch (const std::exception&) {
    // A destructor cannot report it; the driver gives back what is left when it goes.
  }
  auto& maps = store_->maps_;
  maps.erase(std::remove(maps.begin(), maps.end(), this), maps.end());
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
  const bool ready = table_.is_ready(row);
  table_.set_fence(row, ready ? after : std::make_shared<BothFences>(table_.fence(row), after));
}

// The closed row that has most of the blocks where they are wanted; of those the one that
// would lose the fewest mappings, of those the longest closed.
std::uint32_t RowMap::best_row(const std::vector<BlockId>& blocks) {
  std::uint32_t best = RowTable::kHole;
  std::uint32_t best_equal = 0;
  std::uint32_t best_lost = 0;
  for (std::uint32_t row = 0; row < rows_.size(); ++row) {
    if (rows_[row].wanted.open || table_.is_in_flight(row)) continue;
    std::uint32_t equal = 0;
    const auto shared = std::min<std::size_t>(blocks.size(), table_.size(row));
    for (std::uint32_t i = 0; i < shared; ++i) equal += table_.block(row, i) == blocks[i];
    const auto lost = static_cast<std::uint32_t>(shared) - equal;
    const bool better =
        best == RowTable::kHole || equal > best_equal ||
        (equal == best_equal &&
         (lost < best_lost || (lost == best_lost && rows_[row].closed_at < rows_[best].closed_at)));
    if (!better) continue;
    best = row;
    best_equal = equal;
    best_lost = lost;
  }
  return best;
}

std::uint32_t RowMap::open(const std::vector<BlockId>& blocks) {
  check_usable();
  check_length(blocks.size());
  const Lock lock(store_->mutex_);
  store_->check_held(blocks);
  const std::uint32_t row = best_row(blocks);
  if (row == RowTable::kHole) {
    throw OutOfSlots("all " + std::to_string(rows_.size()) +
                     " rows are open: close() one, or make the map with more rows");
  }
  Row& books = rows_[row];
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
  books.closed_at = ++closes_;
  stage(row);
}

void RowMap::discard() {
  check_usable();
  const Lock lock(store_->mutex_);
  wait_for_staged();
  for (std::uint32_t row : staged_) {
    Row& books = rows_[row];
    books.wanted = books.mapped;
    books.same = books.mapped.length;
    books.added.clear();
    books.staged = false;
  }
  staged_.clear();
}

// --- carrying it out ---

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
  // Of a closed row everything stays as it is.
  if (!row.wanted.open) return;
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
  try {
    const Unlocked unlocked(store_->mutex_);
    batch.execute();
  } catch (...) {
    batch.roll_back();
    follow_loss(batch);
    store_->settled_.notify_all();
    throw;
  }
  batch.commit();
  store_->settled_.notify_all();
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
  wait_for_staged();
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
  RowBatch batch(*store_->driver_, *store_->budget_, *store_->pool_, table_);
  for (std::uint32_t row : staged_) plan(row, batch);
  // Rows that others stage meanwhile are for the next flush.
  std::vector<std::uint32_t> rows;
  rows.reserve(staged_.capacity());
  rows.swap(staged_);
  for (std::uint32_t row : rows) rows_[row].staged = false;
  try {
    run(batch);
  } catch (...) {
    for (std::uint32_t row : rows) stage(row);
    throw;
  }
  for (std::uint32_t row : rows) flushed(row);
}

// --- giving back ---

std::uint64_t RowMap::reclaim(std::uint64_t blocks) {
  check_usable();
  const Lock lock(store_->mutex_);
  check_usable();
  std::vector<std::uint32_t> order;
  for (std::uint32_t row = 0; row < rows_.size(); ++row) {
    const Row& books = rows_[row];
    const bool spare = table_.size(row) > books.mapped.length || !books.mapped.open;
    if (spare && !books.staged && !table_.is_in_flight(row)) order.push_back(row);
  }
  std::sort(order.begin(), order.end(),
            [this](std::uint32_t a, std::uint32_t b)
                REQUIRES(store_->mutex_) { return rows_[a].closed_at < rows_[b].closed_at; });
  const std::uint64_t free_before = store_->pool_->blocks_free();
  std::uint64_t cut = 0;
  RowBatch batch(*store_->driver_, *store_->budget_, *store_->pool_, table_);
  for (std::uint32_t row : order) {
    if (cut >= blocks) break;
    const std::uint32_t first = rows_[row].mapped.open ? rows_[row].mapped.length : 0;
    for (std::uint32_t p = first; p < table_.size(row); ++p) {
      const BlockId block = table_.block(row, p);
      cut += block != RowTable::kHole && store_->pool_->holders(block) == 1;
    }
    plan_cuts(row, first, table_.size(row), batch);
  }
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
  RowBatch batch(*store_->driver_, *store_->budget_, *store_->pool_, table_);
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
  std::exception_ptr failure;
  for (std::uint32_t row = 0; row < rows_.size(); ++row) {
    rows_[row] = Row{};
    try {
      RowBatch batch(*store_->driver_, *store_->budget_, *store_->pool_, table_);
      plan_cuts(row, 0, table_.size(row), batch);
      batch.seal();
      batch.execute();
      batch.commit();
    } catch (const std::exception&) {
      failure = std::current_exception();
    }
  }
  staged_.clear();
  if (failure) std::rethrow_exception(failure);
  table_.drop_arenas();
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
