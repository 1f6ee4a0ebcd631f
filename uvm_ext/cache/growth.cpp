#include "cache/growth.hpp"

#include <algorithm>
#include <exception>

#include "base/errors.hpp"

namespace pyvattn {

std::vector<MapEntry> map_entries(const PagePool& pool, const std::vector<ArenaPtr>& arenas,
                                  const Geometry& geometry, std::uint32_t slot,
                                  std::uint32_t first_row_page,
                                  const std::vector<PageNumber>& pages) {
  std::vector<MapEntry> entries;
  const std::size_t page_size = geometry.page_size;
  const std::size_t rows = pages.size() / geometry.arenas;
  for (std::uint32_t arena = 0; arena < geometry.arenas; ++arena) {
    const Address row = arenas[arena]->address() + slot * geometry.row_bytes();
    const std::size_t first_entry = entries.size();
    for (std::size_t p = 0; p < rows; ++p) {
      const PageNumber page = pages[p * geometry.arenas + arena];
      const SlabId slab = pool.slab_of(page);
      const std::size_t offset = pool.offset_of(page);
      if (entries.size() > first_entry) {
        MapEntry& last = entries.back();
        if (last.slab == slab && last.offset + last.length == offset) {
          last.length += page_size;
          continue;
        }
      }
      entries.push_back({row + (first_row_page + p) * page_size, page_size, slab, offset});
    }
  }
  return entries;
}

namespace {

// The pages as extents, as few as may be.
std::vector<Extent> runs_of(std::vector<PageNumber> pages, const PagePool& pool) {
  std::vector<Extent> runs;
  std::sort(pages.begin(), pages.end());
  for (PageNumber page : pages) {
    const bool behind = !runs.empty() && runs.back().first + runs.back().count == page;
    if (behind && pool.slab_of(page) == pool.slab_of(page - 1)) {
      ++runs.back().count;
    } else {
      runs.push_back({page, 1});
    }
  }
  return runs;
}

}  // namespace

std::uint64_t Growth::pages_needed(const std::vector<GrowthTarget>& targets) const {
  std::uint64_t pages = 0;
  for (const GrowthTarget& t : targets) {
    pages += std::uint64_t{t.row_pages - slots_.row_pages(t.slot)} * geometry_.arenas;
  }
  return pages;
}

std::uint64_t Growth::pages_reclaimed() const {
  std::uint64_t pages = 0;
  for (const Extent& extent : donated_) pages += extent.count;
  return pages;
}

std::uint64_t Growth::pages_in_flight() const {
  std::uint64_t pages = 0;
  for (const Extent& extent : extents_) pages += extent.count;
  for (const Extent& extent : withheld_) pages += extent.count;
  return pages - pages_reclaimed();
}

// Lends the pool a tail, whole: what is left over serves the next that grow without
// another call, and the pool joins it with its neighbours.
void Growth::take_tail(const SpareTail& spare) {
  const auto& [slot, kept] = spare;
  const std::vector<PageNumber>& table = slots_.pages(slot).pages;
  const std::vector<PageNumber> tail(table.begin() + std::ptrdiff_t{kept} * geometry_.arenas,
                                     table.end());
  const auto entries = map_entries(pool_, arenas_, geometry_, slot, kept, tail);
  unmap_batch_.insert(unmap_batch_.end(), entries.begin(), entries.end());
  tails_.push_back(spare);
  if (!slots_.is_ready(slot)) fences_.push_back(slots_.pages(slot).fence);
  const std::vector<Extent> runs = runs_of(tail, pool_);
  donated_.insert(donated_.end(), runs.begin(), runs.end());
  for (const Extent& run : runs) pool_.release(run);
}

void Growth::take_tails(std::uint64_t pages, const std::vector<SpareTail>& spare) {
  for (const SpareTail& tail : spare) {
    if (pages_reclaimed() >= pages) return;
    // Slots that grow here are in flight: none of them gives.
    if (!slots_.head(tail.slot).in_flight) take_tail(tail);
  }
  if (pages_reclaimed() < pages) {
    throw DriverOutOfMemory("reclaim pages", 0, pages * geometry_.page_size,
                            "other slots can spare too few pages");
  }
}

void Growth::append_from_pool(std::uint32_t count, PageNumber after, std::vector<PageNumber>& run) {
  const std::size_t before = extents_.size();
  pool_.allocate(count, after, extents_);
  for (std::size_t i = before; i < extents_.size(); ++i) {
    for (std::uint32_t p = 0; p < extents_[i].count; ++p) run.push_back(extents_[i].first + p);
  }
}

void Growth::fill_targets() {
  const std::uint32_t arenas = geometry_.arenas;
  std::vector<PageNumber> run;
  for (const GrowthTarget& target : targets_) {
    const std::vector<PageNumber>& table = slots_.pages(target.slot).pages;
    const std::uint32_t have = slots_.row_pages(target.slot);
    const std::uint32_t more = target.row_pages - have;
    std::vector<PageNumber> fresh(std::size_t{more} * arenas);
    for (std::uint32_t arena = 0; arena < arenas; ++arena) {
      const PageNumber after =
          have > 0 ? table[std::size_t{have - 1} * arenas + arena] : PagePool::kAnywhere;
      run.clear();
      append_from_pool(more, after, run);
      for (std::uint32_t p = 0; p < more; ++p) fresh[std::size_t{p} * arenas + arena] = run[p];
    }
    const auto entries = map_entries(pool_, arenas_, geometry_, target.slot, have, fresh);
    map_batch_.insert(map_batch_.end(), entries.begin(), entries.end());
    new_pages_.push_back(std::move(fresh));
  }
}

void Growth::mark_in_flight(bool in_flight) {
  for (const GrowthTarget& target : targets_) slots_.head(target.slot).in_flight = in_flight;
  for (const SpareTail& tail : tails_) slots_.head(tail.slot).in_flight = in_flight;
}

void Growth::plan(const std::vector<GrowthTarget>& targets, std::uint64_t from_pool,
                  const std::vector<SpareTail>& spare, const PageMath& math) {
  targets_ = targets;
  allocated_before_ = limit_.allocated();
  mark_in_flight(true);
  try {
    const std::uint64_t needed = pages_needed(targets);
    if (needed > from_pool) take_tails(needed - from_pool, spare);
    fill_targets();
    // What was not taken is still mapped, and stays out of the pool as long as it is.
    for (const Extent& extent : donated_) pool_.retake(extent, withheld_);
    // Room first: commit() must not fail.
    for (std::size_t i = 0; i < targets_.size(); ++i) {
      std::vector<PageNumber>& table = slots_.pages(targets_[i].slot).pages;
      table.reserve(std::max(table.capacity(), table.size() + new_pages_[i].size()));
    }
  } catch (...) {
    take_back();
    mark_in_flight(false);
    throw;
  }
  mark_in_flight(true);
  for (const SpareTail& tail : tails_) {
    slots_.head(tail.slot).capacity = math.capacity(tail.row_pages_kept);
  }
}

void Growth::execute() {
  for (const FencePtr& fence : fences_) fence->wait();
  if (!unmap_batch_.empty()) driver_.unmap(unmap_batch_);
  tails_unmapped_ = true;
  driver_.map(map_batch_);
}

void Growth::cut_tails() {
  for (const SpareTail& tail : tails_) {
    slots_.forget_pages(tail.slot);
    slots_.pages(tail.slot).pages.resize(std::size_t{tail.row_pages_kept} * geometry_.arenas);
    slots_.count_pages(tail.slot);
  }
}

void Growth::commit(const PageMath& math) {
  cut_tails();
  for (std::size_t i = 0; i < targets_.size(); ++i) {
    const std::uint32_t slot = targets_[i].slot;
    std::vector<PageNumber>& table = slots_.pages(slot).pages;
    slots_.forget_pages(slot);
    table.insert(table.end(), new_pages_[i].begin(), new_pages_[i].end());
    slots_.count_pages(slot);
    slots_.head(slot).capacity = math.capacity(slots_.row_pages(slot));
  }
  for (const Extent& extent : withheld_) pool_.release(extent);
  mark_in_flight(false);
}

// Pool and tails get back what was theirs.
void Growth::take_back() noexcept {
  for (const Extent& extent : extents_) pool_.release(extent);
  for (const Extent& extent : withheld_) pool_.release(extent);
  extents_.clear();
  withheld_.clear();
  for (const Extent& extent : donated_) pool_.retake(extent);
  try {
    if (limit_.allocated() > allocated_before_) pool_.trim(allocated_before_);
  } catch (const std::exception&) {
    // The slab stays in the pool, free: a failed call may leave that.
  }
}

void Growth::roll_back(const PageMath& math) noexcept {
  take_back();
  if (tails_unmapped_ && !unmap_batch_.empty()) {
    try {
      driver_.map(unmap_batch_);
    } catch (const std::exception&) {
      // The tails cannot be put back: their clean pages go to the pool instead.
      for (const Extent& extent : donated_) pool_.release(extent);
      cut_tails();
    }
  }
  for (const SpareTail& tail : tails_) {
    slots_.head(tail.slot).capacity = math.capacity(slots_.row_pages(tail.slot));
  }
  mark_in_flight(false);
}

}  // namespace pyvattn
