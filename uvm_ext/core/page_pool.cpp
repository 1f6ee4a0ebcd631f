#include "core/page_pool.hpp"

#include <algorithm>
#include <exception>
#include <utility>

#include "core/errors.hpp"

namespace pyvattn {
namespace {

unsigned floor_log2(std::uint64_t value) {
  unsigned order = 0;
  while (value >>= 1) ++order;
  return order;
}

unsigned ceil_log2(std::uint64_t value) { return value <= 1 ? 0 : floor_log2(value - 1) + 1; }

}  // namespace

PagePool::PagePool(Driver& driver, const LimitAdaptor& limit, std::size_t slab_bytes)
    : driver_(driver),
      limit_(limit),
      page_size_(driver.page_size()),
      slab_order_(floor_log2(slab_bytes / page_size_)),
      heads_(slab_order_ + 1, kNone) {}

PagePool::~PagePool() {
  for (Slab& slab : slabs_) {
    if (slab.pages == 0) continue;
    try {
      driver_.free_slab(slab.id);
    } catch (const std::exception&) {
      // A destructor has nobody to tell; the driver closes what is left when it goes.
    }
  }
}

// --- the free lists: one for each order, through the first page of each block ---

void PagePool::push(PageNumber page, unsigned order) {
  Page& head = pages_[page];
  head.order = static_cast<std::uint8_t>(order);
  head.heads_free_block = true;
  head.previous = kNone;
  head.next = heads_[order];
  if (head.next != kNone) pages_[head.next].previous = page;
  heads_[order] = page;
}

void PagePool::unlink(PageNumber page) {
  Page& head = pages_[page];
  if (head.previous != kNone) {
    pages_[head.previous].next = head.next;
  } else {
    heads_[head.order] = head.next;
  }
  if (head.next != kNone) pages_[head.next].previous = head.previous;
  head.heads_free_block = false;
}

// Joins the block with its buddy as long as that is free too.
void PagePool::free_block(PageNumber page, unsigned order) {
  const std::uint32_t base = first_page(slab_index(page));
  const std::uint32_t limit = slabs_[slab_index(page)].pages;
  while (order < slab_order_) {
    const std::uint32_t buddy = ((page - base) ^ (1u << order)) + base;
    if (buddy - base + (1u << order) > limit) break;
    if (!pages_[buddy].heads_free_block || pages_[buddy].order != order) break;
    unlink(buddy);
    page = std::min(page, buddy);
    ++order;
  }
  push(page, order);
}

void PagePool::free_aligned_blocks(PageNumber first, std::uint32_t count) {
  const std::uint32_t base = first_page(slab_index(first));
  while (count > 0) {
    const std::uint32_t local = first - base;
    unsigned order = floor_log2(count);
    while (local % (1u << order) != 0) --order;
    free_block(first, order);
    first += 1u << order;
    count -= 1u << order;
  }
}

void PagePool::mark_taken(const Extent& extent) {
  for (std::uint32_t i = 0; i < extent.count; ++i) pages_[extent.first + i].holders = 1;
  slabs_[slab_index(extent.first)].pages_free -= extent.count;
  pages_free_ -= extent.count;
}

// --- taking pages ---

// Takes up to `count` pages right behind `after`, if the first of them is free.
bool PagePool::take_behind(PageNumber after, std::uint32_t count, Extent& out) {
  if (after == kAnywhere) return false;
  const std::uint32_t wanted = after + 1;
  const std::uint32_t base = first_page(slab_index(after));
  if (wanted - base >= slabs_[slab_index(after)].pages) return false;
  for (unsigned order = 0; order <= slab_order_; ++order) {
    const std::uint32_t head = base + ((wanted - base) & ~((1u << order) - 1));
    if (!pages_[head].heads_free_block || pages_[head].order != order) continue;
    const std::uint32_t end = head + (1u << order);
    out = {wanted, std::min(count, end - wanted)};
    unlink(head);
    mark_taken(out);
    free_aligned_blocks(head, wanted - head);
    free_aligned_blocks(wanted + out.count, end - (wanted + out.count));
    return true;
  }
  return false;
}

// Takes `count` pages (at most a slab's) in one run, or nothing.
bool PagePool::take_run(std::uint32_t count, Extent& out) {
  for (unsigned order = ceil_log2(count); order <= slab_order_; ++order) {
    const PageNumber head = heads_[order];
    if (head == kNone) continue;
    out = {head, count};
    unlink(head);
    mark_taken(out);
    free_aligned_blocks(head + count, (1u << order) - count);
    return true;
  }
  return false;
}

// Takes the largest free block, or as much of it as is wanted.
bool PagePool::take_largest(std::uint32_t count, Extent& out) {
  for (unsigned order = slab_order_ + 1; order-- > 0;) {
    if (heads_[order] != kNone) return take_run(std::min(count, 1u << order), out);
  }
  return false;
}

// Allocates one more slab. False where there is no room for one, or where the
// device has none left and `needed` pages can be had in pieces instead.
bool PagePool::grow(std::uint32_t needed) {
  const std::uint64_t room = limit_.headroom() / page_size_;
  if (room == 0) return false;
  const unsigned order = std::min(slab_order_, floor_log2(room));
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
  push(first_page(index), order);
  return true;
}

void PagePool::allocate(std::uint32_t count, PageNumber after, std::vector<Extent>& out) {
  const std::size_t before = out.size();
  const std::uint64_t allocated_before = limit_.allocated();
  try {
    bool behind = true;
    while (count > 0) {
      // A place for the extent first: pages that were taken must not be lost.
      Extent& extent = out.emplace_back();
      const std::uint32_t run = std::min(count, 1u << slab_order_);
      const bool taken = (std::exchange(behind, false) && take_behind(after, count, extent)) ||
                         take_run(run, extent) || (grow(count) && take_run(run, extent)) ||
                         take_largest(count, extent);
      if (!taken) {
        throw DriverOutOfMemory("allocate pages", 0, std::uint64_t{count} * page_size_,
                                "the page pool is empty");
      }
      count -= extent.count;
    }
  } catch (...) {
    for (std::size_t i = before; i < out.size(); ++i) release(out[i]);
    out.resize(before);
    if (limit_.allocated() > allocated_before) trim(allocated_before);
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
      slabs_[slab_index(page - 1)].pages_free += run;
      pages_free_ += run;
      free_aligned_blocks(page - run, run);
      run = 0;
    }
  }
}

std::size_t PagePool::trim(std::uint64_t target) {
  std::size_t returned = 0;
  // The newest first: what was allocated last is what a failed call took.
  for (std::uint32_t i = static_cast<std::uint32_t>(slabs_.size()); i-- > 0;) {
    if (limit_.allocated() <= target) break;
    Slab& slab = slabs_[i];
    if (slab.pages == 0 || slab.pages_free != slab.pages) continue;
    driver_.free_slab(slab.id);
    unlink(first_page(i));
    pages_allocated_ -= slab.pages;
    pages_free_ -= slab.pages;
    slab = Slab{};
    unused_slabs_.push_back(i);
    --live_slabs_;
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
