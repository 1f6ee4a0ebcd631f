#include "blocks/page_pool.hpp"

#include <algorithm>
#include <exception>
#include <utility>

#include "base/errors.hpp"

namespace pyvattn {
namespace {

unsigned floor_log2(std::uint64_t value) {
  unsigned order = 0;
  while (value >>= 1) ++order;
  return order;
}

}  // namespace

PagePool::PagePool(Driver& driver, const LimitAdaptor& limit, std::size_t slab_bytes)
    : driver_(driver),
      limit_(limit),
      page_size_(driver.page_size()),
      slab_order_(floor_log2(slab_bytes / page_size_)),
      lists_(list_of(1u << slab_order_) + 1, kNone) {}

PagePool::~PagePool() {
  for (Slab& slab : slabs_) {
    if (slab.pages == 0) continue;
    try {
      driver_.free_slab(slab.id);
    } catch (const std::exception&) {
      // A destructor cannot report it; the driver closes what is left when it goes.
    }
  }
}

// --- free runs ---
//
// Neighbouring free pages are always one run. The first and the last page of a run know
// its length, so that neighbours are found without a search; the first page of each is in
// the list of its length.

// One list for each length while runs are short, then eight for each power of two.
unsigned PagePool::list_of(std::uint32_t count) {
  constexpr unsigned kExact = 64;
  constexpr unsigned kExactOrder = 6;
  if (count < kExact) return count;
  const unsigned order = floor_log2(count);
  return kExact + (order - kExactOrder) * 8 + ((count >> (order - 3)) & 7);
}

void PagePool::push(const Extent& run) {
  Page& first = pages_[run.first];
  std::uint32_t& list = lists_[list_of(run.count)];
  first.run = run.count;
  first.previous = kNone;
  first.next = list;
  if (first.next != kNone) pages_[first.next].previous = run.first;
  list = run.first;
  pages_[run.first + run.count - 1].run = run.count;
}

Extent PagePool::unlink(PageNumber head) {
  const Page& first = pages_[head];
  if (first.previous != kNone) {
    pages_[first.previous].next = first.next;
  } else {
    lists_[list_of(first.run)] = first.next;
  }
  if (first.next != kNone) pages_[first.next].previous = first.previous;
  return {head, first.run};
}

// Makes a run of pages without a holder free, joined with its free neighbours.
void PagePool::join(Extent run) {
  const std::uint32_t slab = slab_index(run.first);
  const PageNumber base = first_page(slab);
  const PageNumber after = run.first + run.count;
  slabs_[slab].pages_free += run.count;
  pages_free_ += run.count;
  if (after < base + slabs_[slab].pages && pages_[after].holders == 0) {
    run.count += unlink(after).count;
  }
  if (run.first > base && pages_[run.first - 1].holders == 0) {
    const std::uint32_t count = pages_[run.first - 1].run;
    unlink(run.first - count);
    run.first -= count;
    run.count += count;
  }
  push(run);
}

// --- taking pages ---

// Takes `wanted`, which lies in the free run that starts at `head`.
void PagePool::carve(PageNumber head, const Extent& wanted) {
  const Extent run = unlink(head);
  const PageNumber end = wanted.first + wanted.count;
  if (wanted.first > run.first) push({run.first, wanted.first - run.first});
  if (end < run.first + run.count) push({end, run.first + run.count - end});
  for (std::uint32_t i = 0; i < wanted.count; ++i) pages_[wanted.first + i].holders = 1;
  slabs_[slab_index(wanted.first)].pages_free -= wanted.count;
  pages_free_ -= wanted.count;
}

// Takes up to `count` pages right behind `after`, if the first of them is free.
bool PagePool::take_behind(PageNumber after, std::uint32_t count, Extent& out) {
  if (after == kAnywhere) return false;
  const PageNumber wanted = after + 1;
  const std::uint32_t slab = slab_index(after);
  if (wanted - first_page(slab) >= slabs_[slab].pages || pages_[wanted].holders != 0) return false;
  out = {wanted, std::min(count, pages_[wanted].run)};
  carve(wanted, out);
  return true;
}

// Takes `count` pages in one run, from about the shortest that has them, or nothing.
bool PagePool::take_run(std::uint32_t count, Extent& out) {
  // In the first list some may be too short; there, a long search is not worth its time.
  constexpr int kMostLooks = 64;
  int looks = 0;
  for (std::size_t list = list_of(count); list < lists_.size(); ++list) {
    for (PageNumber head = lists_[list]; head != kNone && looks < kMostLooks; ++looks) {
      if (pages_[head].run >= count) {
        out = {head, count};
        carve(head, out);
        return true;
      }
      head = pages_[head].next;
    }
    looks = 0;
  }
  return false;
}

// Takes one of the longest runs, or as much of it as is wanted.
bool PagePool::take_longest(std::uint32_t count, Extent& out) {
  for (std::size_t list = lists_.size(); list-- > 0;) {
    const PageNumber head = lists_[list];
    if (head == kNone) continue;
    out = {head, std::min(count, pages_[head].run)};
    carve(head, out);
    return true;
  }
  return false;
}

void PagePool::retake(const Extent& extent, std::vector<Extent>& out) {
  for (Extent left = extent; left.count > 0;) {
    Extent& part = out.emplace_back();
    part = retake_first(left);
    if (part.count == 0) out.pop_back();
  }
}

void PagePool::retake(const Extent& extent) noexcept {
  for (Extent left = extent; left.count > 0;) retake_first(left);
}

// Takes the first free pages of the extent that lie in one run, and cuts the extent
// behind them.
Extent PagePool::retake_first(Extent& extent) {
  const PageNumber end = extent.first + extent.count;
  PageNumber first = extent.first;
  while (first < end && pages_[first].holders != 0) ++first;
  Extent taken = {first, 0};
  if (first < end) {
    PageNumber head = first;
    const PageNumber base = first_page(slab_index(first));
    while (head > base && pages_[head - 1].holders == 0) --head;
    taken.count = std::min(end, head + pages_[head].run) - first;
    carve(head, taken);
  }
  extent = {first + taken.count, end - (first + taken.count)};
  return taken;
}

// Allocates one more slab. False where there is no room for one, or where the
// device has none left and `needed` pages can be had in pieces instead.
bool PagePool::grow(std::uint32_t needed, std::vector<std::uint32_t>& grown) {
  const std::uint64_t room = limit_.headroom() / page_size_;
  if (room == 0) return false;
  const unsigned order = std::min(slab_order_, floor_log2(room));
  grown.reserve(grown.size() + 1);
  std::uint32_t index = static_cast<std::uint32_t>(slabs_.size());
  if (!unused_slabs_.empty()) {
    index = unused_slabs_.back();
  } else {
    if ((std::uint64_t{index} + 1) << slab_order_ > kNone) return false;
    pages_.resize(std::size_t{index + 1} << slab_order_);
    slabs_.emplace_back();
    // Room for every slab: giving one back must not fail.
    unused_slabs_.reserve(slabs_.capacity());
    unused_slabs_.push_back(index);
  }
  const std::uint32_t pages = 1u << order;
  SlabId id = 0;
  try {
    id = driver_.allocate_slab(pages * page_size_);
  } catch (const DriverOutOfMemory&) {
    if (pages_free_ >= needed) return false;
    throw;
  }
  unused_slabs_.pop_back();
  slabs_[index] = {id, pages, pages};
  ++live_slabs_;
  pages_allocated_ += pages;
  pages_free_ += pages;
  push({first_page(index), pages});
  grown.push_back(index);
  return true;
}

void PagePool::allocate(std::uint32_t count, PageNumber after, std::vector<Extent>& out) {
  const std::size_t before = out.size();
  std::vector<std::uint32_t> grown;
  try {
    bool behind = true;
    while (count > 0) {
      // A place for the extent first: pages that were taken must not be lost.
      Extent& extent = out.emplace_back();
      const std::uint32_t run = std::min(count, 1u << slab_order_);
      const bool taken = (std::exchange(behind, false) && take_behind(after, count, extent)) ||
                         take_run(run, extent) || (grow(count, grown) && take_run(run, extent)) ||
                         take_longest(count, extent);
      if (!taken) {
        throw DriverOutOfMemory("allocate pages", 0, std::uint64_t{count} * page_size_,
                                "the page pool is empty");
      }
      count -= extent.count;
    }
  } catch (...) {
    for (std::size_t i = before; i < out.size(); ++i) release(out[i]);
    out.resize(before);
    for (std::uint32_t slab : grown) give_back(slab);
    throw;
  }
}

// --- giving pages back ---

void PagePool::retain(const Extent& extent) {
  for (std::uint32_t i = 0; i < extent.count; ++i) ++pages_[extent.first + i].holders;
}

void PagePool::release(const Extent& extent) {
  std::uint32_t run = 0;
  const std::uint32_t end = extent.first + extent.count;
  for (PageNumber page = extent.first; page <= end; ++page) {
    if (page < end && --pages_[page].holders == 0) {
      ++run;
    } else if (run > 0) {
      join({page - run, run});
      run = 0;
    }
  }
}

// Gives a slab back that holds nothing.
void PagePool::give_back(std::uint32_t slab) {
  Slab& gone = slabs_[slab];
  driver_.free_slab(gone.id);
  unlink(first_page(slab));
  pages_allocated_ -= gone.pages;
  pages_free_ -= gone.pages;
  gone = Slab{};
  unused_slabs_.push_back(slab);
  --live_slabs_;
}

std::size_t PagePool::trim(std::uint64_t target) {
  std::size_t returned = 0;
  // The newest first: what was allocated last is what a failed call took.
  for (std::uint32_t i = static_cast<std::uint32_t>(slabs_.size()); i-- > 0;) {
    if (limit_.allocated() <= target) break;
    const Slab& slab = slabs_[i];
    if (slab.pages == 0 || slab.pages_free != slab.pages) continue;
    give_back(i);
    ++returned;
  }
  return returned;
}

// --- reading the books ---

SlabId PagePool::slab_of(PageNumber page) const { return slabs_[slab_index(page)].id; }

std::size_t PagePool::offset_of(PageNumber page) const {
  return (page - first_page(slab_index(page))) * page_size_;
}

std::uint64_t PagePool::pages_available() const {
  return pages_free_ + limit_.headroom() / page_size_;
}

std::size_t PagePool::bookkeeping_bytes() const {
  return pages_.capacity() * sizeof(Page) + slabs_.capacity() * sizeof(Slab) +
         unused_slabs_.capacity() * sizeof(std::uint32_t);
}

}  // namespace pyvattn
