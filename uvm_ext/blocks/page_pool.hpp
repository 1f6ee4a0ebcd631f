// The page pool: the free extents of all slabs, kept as runs as long as
// they can be.
//
// Pages have one number each, over all slabs. Every free page of the pool reads
// as zeros: pages are cleaned before they are given back.
#pragma once

#include <cstdint>
#include <vector>

#include "adaptors/limit.hpp"

namespace pyvattn {

using PageNumber = std::uint32_t;

// A run of pages inside one slab.
struct Extent {
  PageNumber first = 0;
  std::uint32_t count = 0;
};

class PagePool {
 public:
  // `slab_bytes`: a power of two, at least one page; slabs are this large or, where
  // the limit leaves less room, a smaller power of two.
  PagePool(Driver& driver, const LimitAdaptor& limit, std::size_t slab_bytes);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // Appends extents of `count` pages in all, in as few as it can, the first of them
  // right behind page `after`, which is held, where that is free. New slabs are allocated
  // as needed.
  // Throws DriverOutOfMemory with the pool as it was.
  void allocate(std::uint32_t count, PageNumber after, std::vector<Extent>& out);
  // A value of `after` that asks for nothing.
  static constexpr PageNumber kAnywhere = 0xffffffff;

  // One more holder of every page of the extent, which must have one already.
  void retain(const Extent& extent);
  // One holder fewer; pages without a holder are free again.
  void release(const Extent& extent);

  // Takes those pages of the extent that are free, and no others.
  void retake(const Extent& extent) noexcept;
  // The same, and appends what was taken.
  void retake(const Extent& extent, std::vector<Extent>& out);

  // Gives slabs that hold nothing back to the driver until `allocated()` is at most
  // `target` bytes. Returns the number given back.
  std::size_t trim(std::uint64_t target);

  SlabId slab_of(PageNumber page) const;
  std::size_t offset_of(PageNumber page) const;

  std::size_t page_size() const { return page_size_; }
  std::uint64_t pages_allocated() const { return pages_allocated_; }
  std::uint64_t pages_free() const { return pages_free_; }
  // Pages that allocate() can hand out: free ones and those of slabs yet to come.
  std::uint64_t pages_available() const;
  std::size_t slabs() const { return live_slabs_; }
  std::size_t bookkeeping_bytes() const;

 private:
  static constexpr std::uint32_t kNone = 0xffffffff;

  struct Page {
    // Of the first page of a free run: its neighbours in the list of that length.
    std::uint32_t previous = kNone;
    std::uint32_t next = kNone;
    // Of the first and the last page of a free run: its pages.
    std::uint32_t run = 0;
    // None: the page is free.
    std::uint16_t holders = 0;
  };

  struct Slab {
    SlabId id = 0;
    std::uint32_t pages = 0;  // zero: this index is unused
    std::uint32_t pages_free = 0;
  };

  std::uint32_t first_page(std::uint32_t slab) const { return slab << slab_order_; }
  std::uint32_t slab_index(PageNumber page) const { return page >> slab_order_; }

  static unsigned list_of(std::uint32_t count);
  void push(const Extent& run);
  Extent unlink(PageNumber head);
  void join(Extent run);
  void carve(PageNumber head, const Extent& wanted);

  bool take_behind(PageNumber after, std::uint32_t count, Extent& out);
  bool take_run(std::uint32_t count, Extent& out);
  bool take_longest(std::uint32_t count, Extent& out);
  Extent retake_first(Extent& extent);
  bool grow(std::uint32_t needed, std::vector<std::uint32_t>& grown);
  void give_back(std::uint32_t slab);

  Driver& driver_;
  const LimitAdaptor& limit_;
  const std::size_t page_size_;
  const unsigned slab_order_;
  // The first page of the first run in each list.
  std::vector<PageNumber> lists_;
  std::vector<Page> pages_;
  std::vector<Slab> slabs_;
  std::vector<std::uint32_t> unused_slabs_;
  std::size_t live_slabs_ = 0;
  std::uint64_t pages_allocated_ = 0;
  std::uint64_t pages_free_ = 0;
};

}  // namespace pyvattn
