// A cache from its opening to its end, and the limit in between.
#include "cache/cache.hpp"

#include <algorithm>
#include <exception>
#include <string>

#include "adaptors/serialized.hpp"
#include "base/errors.hpp"
#include "base/fork.hpp"
#include "base/text.hpp"

namespace pyvattn {
namespace {

void check(const Geometry& g) {
  if (g.arenas == 0 || g.slots == 0 || g.max_tokens == 0 || g.token_bytes == 0 ||
      g.page_size == 0) {
    throw ConfigError("arenas, slots, max_tokens, token_bytes and page_size must be positive");
  }
  if (!g.fits_addresses()) {
    throw ConfigError("the arenas would reserve more than " + bytes_text(kMaxVirtualBytes) +
                      " of addresses: lower max_slots or max_tokens");
  }
}

// A sixteenth of the limit lets a long prompt have one extent, and a shrinking
// limit find slabs that are empty.
std::size_t slab_size(const Driver& driver, const CacheOptions& options) {
  const std::uint64_t page = driver.page_size();
  if (options.memory_limit < page) {
    throw ConfigError("a memory limit of " + bytes_text(options.memory_limit) +
                      " holds not one page of " + bytes_text(page) + ": raise it");
  }
  if (driver.capabilities().slab_per_page) return page;
  const std::uint64_t wanted =
      options.slab_bytes != 0
          ? options.slab_bytes
          : std::clamp<std::uint64_t>(options.memory_limit / 16, page, std::uint64_t{1} << 30);
  std::uint64_t size = page;
  while (size * 2 <= wanted) size *= 2;
  return size;
}

}  // namespace

Cache::Cache(const DriverPtr& driver, const Geometry& geometry, const CacheOptions& options)
    : limit_(std::make_shared<LimitAdaptor>(driver, options.memory_limit)),
      statistics_(std::make_shared<StatisticsAdaptor>(limit_)),
      driver_(std::make_shared<SerializedAdaptor>(statistics_)),
      geometry_(geometry),
      math_(geometry, !driver->capabilities().zero_backed),
      eager_(options.eager),
      read_ahead_(options.read_ahead),
      fork_generation_(fork_generation()),
      slots_(geometry.slots, geometry.arenas),
      wanted_(geometry.slots, 0) {
  check(geometry);
  wanted_slots_.reserve(geometry.slots);
  const std::size_t slab = slab_size(*driver, options);
  arenas_ = make_arenas(driver_, geometry);
  pool_ = std::make_unique<PagePool>(*driver_, *limit_, slab);
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) slots_.count_pages(slot);
  if (eager_) mapper_ = std::make_unique<Mapper>([this] { return do_background_work(); });
}

Cache::~Cache() {
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
  Lock lock = lock_usable();
  settle(lock);
  const std::uint64_t live =
      (slots_.pages_in(SlotState::live) + slots_.pages_in(SlotState::free) - spare_pages()) *
      geometry_.page_size;
  if (memory_limit < live || memory_limit < geometry_.page_size) {
    throw LimitError("a limit of " + bytes_text(memory_limit) + " is below the " +
                     bytes_text(std::max(live, geometry_.page_size)) +
                     " that live slots hold: release some first");
  }
  if (memory_limit < limit_->allocated()) {
    pool_->trim(memory_limit);
    for (const SpareTail& tail : spare_tails(spare_pages())) {
      if (limit_->allocated() <= memory_limit) break;
      unmap_tail(tail);
      pool_->trim(memory_limit);
    }
  }
  limit_->set_limit(memory_limit);
  return limit_->allocated();
}

// Unmaps pages that are not in use and gives them to the pool.
void Cache::unmap_tail(const SpareTail& tail) {
  const auto& [slot, kept] = tail;
  SlotPages& row = slots_.pages(slot);
  const auto cut = row.pages.begin() + std::ptrdiff_t{kept} * geometry_.arenas;
  const std::vector<PageNumber> pages(cut, row.pages.end());
  if (pages.empty()) return;
  if (row.fence) row.fence->wait();
  driver_->unmap(map_entries(*pool_, arenas_, geometry_, slot, kept, pages));
  slots_.forget_pages(slot);
  row.pages.erase(cut, row.pages.end());
  slots_.count_pages(slot);
  slots_.head(slot).capacity = math_.capacity(kept);
  for (PageNumber page : pages) pool_->release({page, 1});
}

void Cache::close() {
  if (inherited()) check_usable();
  const std::lock_guard<std::mutex> one(closing_);
  closed_ = true;
  if (mapper_) mapper_->stop();
  Lock lock(mutex_);
  // Another thread may be zeroing a slot on its own behalf.
  settled_.wait(lock, [this] { return slots_.slots_in(SlotState::cleaning) == 0; });
  std::exception_ptr failure;
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
    SlotHead& head = slots_.head(slot);
    if (head.state == SlotState::live) ++head.generation;
    slots_.set_state(slot, SlotState::free);
    try {
      unmap_tail({slot, 0});
    } catch (const std::exception&) {
      failure = std::current_exception();
    }
  }
  tokens_used_ = 0;
  pool_->trim(0);
  // Calling again after a failure gives back the rest.
  if (failure) std::rethrow_exception(failure);
  arenas_.clear();
}

void Cache::retire() {
  if (inherited()) return;
  const std::lock_guard<std::mutex> one(closing_);
  closed_ = true;
  if (mapper_) mapper_->stop();
  // A call that began before has ended when the lock is free.
  const Lock lock(mutex_);
}

}  // namespace pyvattn
