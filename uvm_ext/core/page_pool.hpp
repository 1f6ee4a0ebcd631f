// The page pool: the free extents of all slabs, kept by a buddy allocator.
//
// Pages have one number each, over all slabs. Every free page of the pool reads
// as zeros: whoever gives a page back has cleaned it.
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
  // right behind page `after` where that is free. New slabs are allocated as needed.
  // Throws DriverOutOfMemory with the pool as it was.
  void allocate(std::uint32_t count, PageNumber after, std::vector<Extent>& out);
  // A value of `after` that asks for nothing.
  static constexpr PageNumber kAnywhere = 0xffffffff;

  // One more holder of every page of the extent, which must have one already.
  void retain(const Extent& extent);
  // One holder fewer; pages without a holder are free again.
  void release(const Extent& extent);

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
    std::uint32_t previous = kNone;
    std::uint32_t next = kNone;
    std::uint16_t holders = 0;
    std::uint8_t order = 0;
    bool heads_free_block = false;
  };

  struct Slab {
    SlabId id = 0;
    std::uint32_t pages = 0;  // zero: this index is unused
    std::uint32_t pages_free = 0;
  };

  std::uint32_t first_page(std::uint32_t slab) const { return slab << slab_order_; }
  std::uint32_t slab_index(PageNumber page) const { return page >> slab_order_; }

  void push(PageNumber page, unsigned order);
  void unlink(PageNumber page);
  void mark_taken(const Extent& extent);
  void free_aligned_blocks(PageNumber first, std::uint32_t count);
  void free_block(PageNumber page, unsigned order);

  bool take_behind(PageNumber after, std::uint32_t count, Extent& out);
  bool take_run(std::uint32_t count, Extent& out);
  bool take_largest(std::uint32_t count, Extent& out);
  bool grow(std::uint32_t needed);

  Driver& driver_;
  const LimitAdaptor& limit_;
  const std::size_t page_size_;
  const unsigned slab_order_;
  std::vector<std::uint32_t> heads_;
  std::vector<Page> pages_;
  std::vector<Slab> slabs_;
  std::vector<std::uint32_t> unused_slabs_;
  std::size_t live_slabs_ = 0;
  std::uint64_t pages_allocated_ = 0;
  std::uint64_t pages_free_ = 0;
};

}  // namespace pyvattn
