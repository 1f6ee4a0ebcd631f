// SPDX-License-Identifier: Apache-2.0
// A cache from its opening to its end, and the limit in between.
#include "cache/cache.hpp"

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "adaptors/limit.hpp"
#include "adaptors/serialized.hpp"
#include "base/errors.hpp"
#include "base/fork.hpp"
#include "base/text.hpp"
#include "drivers/both_fences.hpp"

namespace pyvattn {
namespace {

const Geometry& checked(const Geometry& g) {
  if (g.arenas == 0 || g.slots == 0 || g.max_tokens == 0 || g.token_bytes == 0 ||
      g.page_size == 0) {
    throw ConfigError("arenas, slots, max_tokens, token_bytes and page_size must be positive");
  }
  if (!g.fits_addresses()) {
    throw ConfigError("the arenas would reserve more than " + bytes_text(kMaxVirtualBytes) +
                      " of addresses: lower max_slots or max_tokens");
  }
  return g;
}

}  // namespace

Cache::Cache(const DriverPtr& driver, const Geometry& geometry, BudgetPtr budget,
             const CacheOptions& options)
    : budget_(std::move(budget)),
      statistics_(
          std::make_shared<StatisticsAdaptor>(std::make_shared<LimitAdaptor>(driver, budget_))),
      driver_(std::make_shared<SerializedAdaptor>(statistics_)),
      geometry_(checked(geometry)),
      math_(geometry, !driver->capabilities().zero_backed),
      eager_(options.eager),
      read_ahead_(options.read_ahead),
      strict_(options.strict),
      window_(options.window),
      rewritten_(options.rewritten),
      fork_generation_(fork_generation()),
      rows_(driver_, geometry),
      pool_(std::make_unique<BlockPool>(
          *driver_, *budget_, geometry.arenas,
          slab_blocks(*driver, geometry.arenas, budget_->most(), options.slab_bytes))),
      slots_(rows_) {
  constexpr std::int32_t kCpu = 1;
  if (strict_ && driver->capabilities().dlpack_device_type != kCpu) {
    throw ConfigError(
        "strict=True writes past lengths with the CPU, which does not reach the "
        "memory of driver '" +
        driver->capabilities().name + "': use device='cpu'");
  }
  if (geometry_.is_ring()) check_ring_fits();
  wanted_slots_.reserve(geometry.slots);
  if (eager_) {
    mapper_ = std::make_unique<Mapper>([this] { return do_background_work(); });
    mapper_->start();
  }
  // The last thing: from here on another thread may call.
  watch_ = budget_->watch([this] { give_back(); });
}

Cache::~Cache() {
  budget_->unwatch(watch_);
  if (inherited()) {
    // The parent's thread does not exist here, and what it had locked stays locked.
    if (mapper_) mapper_->abandon();
    static_cast<void>(mapper_.release());
    static_cast<void>(pool_.release());
    return;
  }
  try {
    close();
  } catch (const std::exception&) {
    // A destructor cannot report it; the driver gives back what is left when it goes.
  }
}

std::uint64_t Cache::resize(std::uint64_t memory_limit) {
  check_usable();
  const Lock lock(mutex_);
  check_usable();
  settle();
  const std::uint64_t block = geometry_.block_bytes();
  const std::uint64_t live = blocks_needed_live();
  if (memory_limit < std::max<std::uint64_t>(live, 1) * block) {
    throw LimitError("a limit of " + bytes_text(memory_limit) + " is below the " +
                     bytes_text(std::max<std::uint64_t>(live, 1) * block) +
                     " that live slots hold: release some first");
  }
  give_back_past(memory_limit);
  budget_->set_limit(memory_limit);
  return pool_->bytes_allocated();
}

std::uint64_t Cache::give_back() { return shrink(budget_->limit()); }

std::uint64_t Cache::shrink(std::uint64_t limit) {
  check_usable();
  const Lock lock(mutex_);
  check_usable();
  settle();
  give_back_past(limit);
  return pool_->bytes_allocated();
}

std::uint64_t Cache::bytes_needed() {
  check_usable();
  const Lock lock(mutex_);
  check_usable();
  settle();
  return blocks_needed_live() * geometry_.block_bytes();
}

std::uint64_t Cache::blocks_needed_live() {
  return slots_.blocks_in(SlotState::live) + slots_.blocks_in(SlotState::free) - spare_blocks() -
         doubles().live;
}

std::uint64_t Cache::bytes_for(std::int64_t tokens) const {
  return math_.pages_for(check_length(tokens)) * geometry_.block_bytes();
}

void Cache::reclaim(std::uint64_t bytes) {
  check_usable();
  const Lock lock(mutex_);
  check_usable();
  for (const std::uint32_t slot : wanted_slots_) slots_.wanted(slot) = 0;
  wanted_slots_.clear();
  admission_wanted_ = false;
  settle();
  const std::uint64_t limit = budget_->limit();
  give_back_past(limit - std::min(limit, bytes));
}

// Until the budget holds no more than the limit: slabs that hold nothing, and then those that
// hold nothing once spare tails are gone.
void Cache::give_back_past(std::uint64_t limit) {
  pool_->trim_to_limit(limit);
  if (budget_->held() <= limit) return;
  for (const Tail& tail : spare_tails(spare_blocks())) {
    unmap_tail(tail, From::foreground);
    pool_->trim_to_limit(limit);
    if (budget_->held() <= limit) return;
  }
}

// Until nobody reads what was released or trimmed; without the lock, so that others who call
// meanwhile are told that the cache is closed.
void Cache::wait_for_readers() {
  for (const auto& [slot, waiting] : behind_) {
    for (const Behind& each : waiting) rows_.set_fence(slot, both(rows_.fence(slot), each.after));
  }
  behind_.clear();
  const std::vector<FencePtr> fences = rows_.fences();
  const Unlocked unlocked(mutex_);
  wait_for_all(fences);
}

void Cache::close() {
  if (inherited()) check_usable();
  const Lock one(closing_);
  closed_ = true;
  if (mapper_) mapper_->stop();
  const Lock lock(mutex_);
  wait_for_readers();
  // Another thread may be zeroing a slot on its own behalf, or shortening one.
  while (slots_.slots_in(SlotState::cleaning) > 0 || rows_.in_flight() > 0) settled_.wait(mutex_);
  std::exception_ptr failure;
  try {
    unmap_all(*driver_, *pool_, rows_);
  } catch (const std::exception&) {
    failure = std::current_exception();
  }
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
    SlotHead& head = slots_.head(slot);
    if (head.state == SlotState::live) ++head.generation;
    slots_.set_state(slot, SlotState::free);
    slots_.set_extent(slot, 0, rows_.size(slot));
    head.capacity = math_.capacity(rows_.size(slot));
  }
  tokens_used_ = 0;
  pool_->trim(0);
  // Calling again after a failure gives back the rest.
  if (failure) std::rethrow_exception(failure);
  rows_.drop_arenas();
}

void Cache::retire() {
  if (inherited()) return;
  const Lock one(closing_);
  closed_ = true;
  if (mapper_) mapper_->stop();
  // A call that began before has ended when the lock is free.
  const Lock lock(mutex_);
}

}  // namespace pyvattn
