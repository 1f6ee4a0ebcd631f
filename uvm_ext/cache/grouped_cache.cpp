// SPDX-License-Identifier: Apache-2.0
#include "cache/grouped_cache.hpp"

#include <algorithm>
#include <exception>
#include <optional>
#include <string>

#include "adaptors/serialized.hpp"
#include "base/errors.hpp"
#include "base/text.hpp"
#include "cache/exclusive.hpp"

namespace pyvattn {
namespace {

// Memory moves between groups by whole slabs, so they are small: as many as this in all. A host
// slab is a file.
constexpr std::uint64_t kMostSlabs = 512;

// The same slot in the other groups.
SlotRef row_of(const SlotRef& slot) { return {slot.index, SlotRef::kCurrent}; }

}  // namespace

GroupedCache::GroupedCache(const DriverPtr& driver, const std::vector<LayerGroup>& groups,
                           std::uint32_t slots, std::uint32_t max_tokens, BudgetPtr budget,
                           const CacheOptions& options)
    : budget_(std::move(budget)) {
  if (groups.empty() || groups.front().state) {
    throw ConfigError("a cache needs one group of layers that keep tokens at least");
  }
  const bool several = groups.size() > 1;
  const DriverPtr shared = several ? std::make_shared<SerializedAdaptor>(driver) : driver;
  for (const LayerGroup& group : groups) {
    const Geometry geometry{group.arenas,
                            slots,
                            group.state ? 1 : max_tokens,
                            group.guard_tokens,
                            group.token_bytes,
                            driver->page_size(),
                            group.ring_tokens};
    CacheOptions own = options;
    own.window = group.window;
    if (group.state) {
      own.rewritten = true;
      // It must begin with zeros.
      own.strict = false;
    } else if (token_groups_ < caches_.size()) {
      throw ConfigError("groups of states stand behind those that keep tokens");
    } else {
      ++token_groups_;
    }
    if (several && own.slab_bytes == 0) {
      own.slab_bytes = std::max<std::uint64_t>(budget_->limit() / kMostSlabs, 1);
    }
    caches_.push_back(std::make_unique<Cache>(shared, geometry, budget_, own));
  }
}

std::int64_t GroupedCache::tokens_in(std::size_t group, std::int64_t tokens) const {
  return group < token_groups_ ? tokens : std::min<std::int64_t>(tokens, 1);
}

// What a step says to another group than the leader.
std::vector<SlotLength> GroupedCache::rows_in(std::size_t group, const SlotLength* requests,
                                              std::size_t count) const {
  std::vector<SlotLength> rows(requests, requests + count);
  for (SlotLength& each : rows) each = {row_of(each.slot), tokens_in(group, each.length)};
  return rows;
}

void GroupedCache::check_fork(const SlotRef& slot, std::int64_t tokens) {
  const std::int64_t length = leader().length(slot);
  if (token_groups_ == caches_.size() || tokens == 0 || tokens >= length) return;
  throw LengthError("slot " + std::to_string(slot.index) +
                    " has states, which have seen all of its " + std::to_string(length) +
                    " tokens, and cannot be forked at " + std::to_string(tokens) +
                    ": fork it before it gets longer");
}

// Makes a call of one group. Where that runs out of memory, once more with what the others have
// to spare.
template <typename Call>
void GroupedCache::with_room(std::size_t group, const Call& call) {
  std::uint64_t wanted = 0;
  try {
    return call();
  } catch (const OutOfMemory& error) {
    wanted = error.requested;
  }
  for (std::size_t other = 0; other < caches_.size(); ++other) {
    if (other != group) caches_[other]->reclaim(wanted);
  }
  call();
}

void GroupedCache::cancel(const SlotRef& slot, std::size_t groups) {
  for (std::size_t group = 0; group < groups; ++group) {
    caches_[group]->cancel(group == 0 ? slot : row_of(slot));
  }
}

// A slot in every group, or in none.
SlotRef GroupedCache::take(std::int64_t tokens) {
  const SlotRef slot = leader().acquire(tokens);
  for (std::size_t group = 1; group < caches_.size(); ++group) {
    try {
      caches_[group]->acquire(tokens_in(group, tokens), slot.index);
    } catch (...) {
      cancel(slot, group);
      throw;
    }
  }
  return slot;
}

SlotRef GroupedCache::acquire(std::int64_t tokens) {
  if (alone()) return leader().acquire(tokens);
  const Lock lock(mutex_);
  return take(tokens);
}

SlotRef GroupedCache::admit(std::int64_t tokens) {
  if (alone()) return leader().admit(tokens);
  const Lock lock(mutex_);
  const SlotRef slot = take(tokens);
  try {
    const SlotLength request = {slot, tokens};
    step_all(&request, 1, {});
  } catch (...) {
    cancel(slot, caches_.size());
    throw;
  }
  return slot;
}

// Without the lock, as in Cache: `mapped` may make calls for other slots.
void GroupedCache::extend(const SlotRef& slot, std::int64_t tokens, std::uint32_t arenas,
                          const Mapped& mapped) {
  for (std::size_t group = 0; group < caches_.size(); ++group) {
    const Parts parts = {
        arenas, [&](std::uint32_t first, std::uint32_t end) { return mapped(group, first, end); }};
    with_room(group, [&] {
      caches_[group]->extend(group == 0 ? slot : row_of(slot), tokens_in(group, tokens), parts);
    });
  }
}

std::vector<Fork> GroupedCache::fork(const SlotRef& slot, std::int64_t tokens) {
  if (alone()) return {leader().fork(slot, tokens)};
  const Lock lock(mutex_);
  check_fork(slot, tokens);
  return fork_all(slot, tokens);
}

std::vector<Fork> GroupedCache::snapshot(const SlotRef& slot, std::int64_t tokens,
                                         std::uint64_t written) {
  if (alone()) return {leader().fork(slot, tokens, std::nullopt, written)};
  const Lock lock(mutex_);
  return fork_all(slot, tokens, written);
}

std::vector<Fork> GroupedCache::fork_all(const SlotRef& slot, std::int64_t tokens,
                                         std::optional<std::uint64_t> written) {
  std::vector<Fork> made;
  for (std::size_t group = 0; group < caches_.size(); ++group) {
    Cache& cache = *caches_[group];
    try {
      with_room(group, [&] {
        made.push_back(group == 0 ? cache.fork(slot, tokens, std::nullopt, written)
                                  : cache.fork(row_of(slot), tokens_in(group, tokens),
                                               made.front().slot.index, written));
      });
    } catch (...) {
      if (group > 0) cancel(made.front().slot, group);
      throw;
    }
  }
  return made;
}

void GroupedCache::release(const SlotRef& slot, const FencePtr& after) {
  if (alone()) return leader().release(slot, after);
  const Lock lock(mutex_);
  leader().release(slot, after);
  for (std::size_t group = 1; group < caches_.size(); ++group) {
    caches_[group]->release(row_of(slot), after);
  }
}

// Group by group; where one fails, lengths are what they were in all.
void GroupedCache::step_all(const SlotLength* requests, std::size_t count, const Passage& passage) {
  std::vector<SlotLength> rows;
  std::vector<std::vector<SlotMark>> marks;
  for (std::size_t group = 0; group < caches_.size(); ++group) {
    Cache& cache = *caches_[group];
    try {
      if (group > 0) rows = rows_in(group, requests, count);
      const SlotLength* const own = group == 0 ? requests : rows.data();
      marks.push_back(cache.marks(own, count));
      with_room(group, [&] { cache.step(own, count, passage); });
    } catch (...) {
      for (std::size_t done = 0; done < group; ++done) caches_[done]->restore(marks[done]);
      throw;
    }
  }
}

void GroupedCache::step(const SlotLength* requests, std::size_t count, const Passage& passage) {
  if (alone()) return leader().step(requests, count, passage);
  const Exclusive one(stepping_);
  const Lock lock(mutex_);
  step_all(requests, count, passage);
}

bool GroupedCache::try_step(const SlotLength* requests, std::size_t count, const Passage& passage) {
  if (alone()) return leader().try_step(requests, count, passage);
  const Exclusive one(stepping_);
  const Lock lock(mutex_);
  std::vector<std::vector<SlotMark>> marks = {leader().marks(requests, count)};
  std::vector<std::vector<SlotLength>> rows(1);
  for (std::size_t group = 1; group < caches_.size(); ++group) {
    rows.push_back(rows_in(group, requests, count));
    marks.push_back(caches_[group]->marks(rows.back().data(), count));
  }
  for (std::size_t group = 0; group < caches_.size(); ++group) {
    bool enough = false;
    try {
      const SlotLength* const own = group == 0 ? requests : rows[group].data();
      enough = caches_[group]->try_step(own, count, passage);
    } catch (const OutOfMemory&) {
      // Others may have some to spare, which step() sees to.
    } catch (...) {
      for (std::size_t done = 0; done < group; ++done) caches_[done]->restore(marks[done]);
      throw;
    }
    if (enough) continue;
    for (std::size_t done = 0; done < group; ++done) caches_[done]->restore(marks[done]);
    return false;
  }
  return true;
}

void GroupedCache::trim(const SlotRef& slot, std::int64_t length, const FencePtr& after) {
  if (alone()) return leader().trim(slot, length, after);
  const Lock lock(mutex_);
  leader().check_trim(slot, length);
  for (std::size_t group = 0; group < caches_.size(); ++group) {
    caches_[group]->check_trim(row_of(slot), tokens_in(group, length));
  }
  std::exception_ptr failure;
  for (std::size_t group = 0; group < caches_.size(); ++group) {
    try {
      caches_[group]->trim(row_of(slot), tokens_in(group, length), after);
    } catch (const DriverError&) {
      // It is shortened all the same, as the others are.
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

void GroupedCache::trim_front(const SlotRef& slot, std::int64_t tokens, const FencePtr& after) {
  trim_fronts(slot, std::vector<std::int64_t>(token_groups_, tokens), after);
}

void GroupedCache::trim_fronts(const SlotRef& slot, const std::vector<std::int64_t>& tokens,
                               const FencePtr& after) {
  if (tokens.size() != token_groups_) {
    throw ConfigError(std::to_string(tokens.size()) + " fronts for " +
                      std::to_string(token_groups_) + " groups");
  }
  if (alone()) return leader().trim_front(slot, tokens.front(), after);
  const Lock lock(mutex_);
  const std::int64_t length = leader().length(slot);
  const std::int64_t most = *std::max_element(tokens.begin(), tokens.end());
  if (most > length) {
    throw LengthError("slot " + std::to_string(slot.index) + " has " + std::to_string(length) +
                      " tokens and cannot lose the first " + std::to_string(most));
  }
  leader().trim_front(slot, tokens.front(), after);
  for (std::size_t group = 1; group < token_groups_; ++group) {
    caches_[group]->trim_front(row_of(slot), tokens[group], after);
  }
}

std::vector<std::int64_t> GroupedCache::fronts(const SlotRef& slot) {
  const Lock lock(mutex_);
  std::vector<std::int64_t> found;
  for (std::size_t group = 0; group < token_groups_; ++group) {
    found.push_back(caches_[group]->front(group == 0 ? slot : row_of(slot)));
  }
  return found;
}

std::int64_t GroupedCache::least_length(const SlotRef& slot) {
  const Lock lock(mutex_);
  std::int64_t least = 0;
  for (std::size_t group = 0; group < token_groups_; ++group) {
    least = std::max(least, caches_[group]->least_length(group == 0 ? slot : row_of(slot)));
  }
  return least;
}

void GroupedCache::prefetch(const SlotLength* requests, std::size_t count) {
  leader().prefetch(requests, count);
  if (alone()) return;
  const Lock lock(mutex_);
  for (std::size_t group = 1; group < caches_.size(); ++group) {
    caches_[group]->prefetch(rows_in(group, requests, count).data(), count);
  }
}

bool GroupedCache::can_admit(std::int64_t tokens) {
  if (alone()) return leader().can_admit(tokens);
  const Lock lock(mutex_);
  const auto fits = [&] {
    std::uint64_t lacking = 0;
    for (std::size_t group = 0; group < caches_.size(); ++group) {
      lacking += caches_[group]->bytes_lacking(tokens_in(group, tokens));
    }
    return lacking <= budget_->headroom();
  };
  if (!leader().has_free_slot()) return false;
  if (fits()) return true;
  std::uint64_t needed = 0;
  for (std::size_t group = 0; group < caches_.size(); ++group) {
    needed += caches_[group]->bytes_for(tokens_in(group, tokens));
  }
  for (const auto& cache : caches_) cache->reclaim(needed);
  return fits();
}

void GroupedCache::drain() {
  for (const auto& cache : caches_) cache->drain();
}

std::uint64_t GroupedCache::resize(std::uint64_t memory_limit) {
  if (alone()) return leader().resize(memory_limit);
  const Lock lock(mutex_);
  std::uint64_t needed = 0;
  std::uint64_t least = 0;
  for (const auto& cache : caches_) {
    needed += cache->bytes_needed();
    least += cache->geometry().block_bytes();
  }
  needed = std::max(needed, least);
  if (memory_limit < needed) {
    throw LimitError("a limit of " + bytes_text(memory_limit) + " is below the " +
                     bytes_text(needed) + " that live slots hold: release some first");
  }
  for (const auto& cache : caches_) cache->shrink(memory_limit);
  budget_->set_limit(memory_limit);
  std::uint64_t allocated = 0;
  for (const auto& cache : caches_) allocated += cache->give_back();
  return allocated;
}

std::uint64_t GroupedCache::give_back() {
  if (alone()) return leader().give_back();
  const Lock lock(mutex_);
  std::uint64_t allocated = 0;
  for (const auto& cache : caches_) allocated += cache->give_back();
  return allocated;
}

void GroupedCache::close() {
  std::exception_ptr failure;
  for (const auto& cache : caches_) {
    try {
      cache->close();
    } catch (const std::exception&) {
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

void GroupedCache::retire() {
  for (const auto& cache : caches_) cache->retire();
}

CacheStats GroupedCache::stats() {
  CacheStats whole = leader().stats();
  for (std::size_t group = 1; group < caches_.size(); ++group) {
    const CacheStats own = caches_[group]->stats();
    CacheStats sum = whole;
#define PYVATTN_ADD(type, name) sum.name += own.name;
    PYVATTN_CACHE_STATS(PYVATTN_ADD)
#undef PYVATTN_ADD
    // These all groups have in common.
    sum.page_size = whole.page_size;
    sum.slots_live = whole.slots_live;
    sum.memory_limit = whole.memory_limit;
    whole = sum;
  }
  return whole;
}

std::vector<std::pair<LiveSlot, std::size_t>> GroupedCache::live_pages() {
  const Lock lock(mutex_);
  std::vector<std::pair<LiveSlot, std::size_t>> found;
  for (const LiveSlot& slot : leader().live_slots()) found.emplace_back(slot, 0);
  for (const auto& cache : caches_) {
    const std::vector<LiveSlot> slots = cache->live_slots();
    for (std::size_t i = 0; i < slots.size() && i < found.size(); ++i) {
      const std::vector<BlockId>& blocks = slots[i].blocks;
      const auto holes = std::count(blocks.begin(), blocks.end(), RowTable::kHole);
      const std::size_t mapped = blocks.size() - static_cast<std::size_t>(holes);
      found[i].second += mapped * cache->geometry().arenas;
    }
  }
  return found;
}

ArenaPtr GroupedCache::arena(std::uint32_t index) {
  std::uint32_t first = 0;
  for (const auto& cache : caches_) {
    const std::uint32_t arenas = cache->geometry().arenas;
    if (index - first < arenas) return cache->arena(index - first);
    first += arenas;
  }
  throw ConfigError("arena " + std::to_string(index) + " is outside 0.." +
                    std::to_string(first - 1));
}

}  // namespace pyvattn
