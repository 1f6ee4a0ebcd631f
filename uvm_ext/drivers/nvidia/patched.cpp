// SPDX-License-Identifier: Apache-2.0
#include "drivers/nvidia/patched.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/errors.hpp"
#include "drivers/nvidia/borders.hpp"

namespace pyvattn {
namespace {

using nvidia::Answer;
using nvidia::kHugePage;
using nvidia::region_of;

template <typename Act>
auto or_refuse(Act act) -> decltype(act()) {
  try {
    return act();
  } catch (const DriverUnavailable& error) {
    throw DriverUnavailable(std::string("patched cannot be used here: ") + error.what() +
                            ". driver='cumem' works on any CUDA GPU, with 2M pages");
  }
}

nvidia::PatchQuery require_usable(nvidia::PatchQuery query) {
  if (!query.usable) throw DriverUnavailable(query.reason);
  return query;
}

std::vector<Range> ranges_of(const std::vector<MapEntry>& batch) {
  std::vector<Range> ranges;
  ranges.reserve(batch.size());
  for (const MapEntry& entry : batch) ranges.push_back({entry.address, entry.length});
  return ranges;
}

}  // namespace

Capabilities PatchedDriver::describe(const nvidia::Platform& platform, int device) {
  return or_refuse([&] {
    nvidia::require_native_driver(*platform.system);
    const nvidia::PatchQuery query = require_usable(nvidia::query_patch(*platform.system));
    find_cuda_device(*platform.cuda, device);
    Capabilities capabilities;
    capabilities.name = "patched";
    capabilities.page_sizes = query.page_sizes;
    capabilities.zero_backed = true;
    capabilities.batch_is_one_call = true;
    capabilities.dlpack_device_type = 2;
    capabilities.dlpack_device_id = device;
    return capabilities;
  });
}

PatchedDriver::PatchedDriver(const nvidia::Platform& platform, int device, std::size_t page_size,
                             Capabilities capabilities, std::size_t chunk)
    : capabilities_(std::move(capabilities)),
      page_size_(page_size),
      chunk_(chunk),
      context_(std::make_shared<CudaContext>(*platform.cuda, device)),
      addresses_(context_, chunk),
      probe_(addresses_.reserve(kHugePage, kHugePage)),
      gpu_(or_refuse([&] { return nvidia::identify_gpu(platform, device); })),
      uvm_(or_refuse([&] { return open_space(platform); })),
      vattn_(*platform.system, uvm_.fd(), gpu_.uuid),
      limits_(or_refuse([&] { return require_gpu(); })),
      bytes_(context_) {
  try {
    coarse_zeros_ = {allocate(kHugePage, chunk), kHugePage, chunk};
    if (fine()) fine_zeros_ = {allocate(page_size, kHugePage), page_size, kHugePage};
  } catch (...) {
    drop_everything();
    throw;
  }
}

PatchedDriver::~PatchedDriver() { drop_everything(); }

nvidia::UvmSpace PatchedDriver::open_space(const nvidia::Platform& platform) const {
  // Only UVM_UNMAP_EXTERNAL is used of UVM's own ioctls, and every known release has the
  // same parameters for it.
  return nvidia::UvmSpace(*platform.system, nvidia::layout_rows().back().layout, gpu_.uuid, probe_,
                          chunk_);
}

nvidia::PatchQuery PatchedDriver::require_gpu() const {
  nvidia::PatchQuery query = require_usable(vattn_.query());
  const std::vector<std::size_t>& sizes = query.page_sizes;
  for (const std::size_t needed : {page_size_, kHugePage}) {
    if (std::find(sizes.begin(), sizes.end(), needed) != sizes.end()) continue;
    throw DriverUnavailable("the patched nvidia-uvm has no pages of " +
                            std::to_string(needed >> 10) + "K on this GPU");
  }
  return query;
}

void PatchedDriver::drop_everything() noexcept {
  if (context_->forked()) return;
  for (const Range& range : addresses_.all()) uvm_.unmap(range);
  for (const auto& [id, slab] : slabs_) vattn_.free(slab.handle);
  for (const Zeros& zeros : {fine_zeros_, coarse_zeros_}) {
    if (zeros.handle != 0) vattn_.free(zeros.handle);
  }
}

void PatchedDriver::fail(const Failure& failure, const char* operation) const {
  const Range& range = failure.range;
  if (!failure.answer.out_of_memory()) {
    check_cuda(context_->library(), operation, range.address, range.length, context_->state());
  }
  nvidia::check(failure.answer, operation, range.address, range.length);
  throw DriverError(operation, range.address, range.length, failure.answer.name());
}

std::uint64_t PatchedDriver::allocate(std::size_t page, std::size_t bytes) {
  std::uint64_t handle = 0;
  const Answer answer = vattn_.allocate(page, bytes / page, &handle);
  if (!answer.ok()) fail({answer, {0, bytes}}, "allocate_slab (UVM_VATTN_ALLOC)");
  return handle;
}

Address PatchedDriver::reserve(std::size_t bytes, std::size_t alignment) {
  context_->require_parent("reserve");
  const Range range = addresses_.reserve(bytes, std::max(alignment, kHugePage));
  try {
    Entries entries;
    add_zeros(coarse_zeros_, range, &entries);
    std::size_t done = 0;
    const Failure failure = send(entries, &done);
    if (!failure.answer.ok()) fail(failure, "reserve (UVM_VATTN_MAP of zeros)");
  } catch (...) {
    uvm_.unmap(range);
    addresses_.release(range.address);
    throw;
  }
  fine_regions_.add(range);
  return range.address;
}

void PatchedDriver::release_reservation(Address address) {
  context_->require_parent("release_reservation");
  const Range range = addresses_.find(address);
  std::size_t unmapped = 0;
  const Answer answer = uvm_.unmap(range, &unmapped);
  try {
    if (!answer.ok() && !is_lost()) {
      fail({answer, range}, "release_reservation (UVM_UNMAP_EXTERNAL)");
    }
    addresses_.release(range.address);
  } catch (...) {
    const Range empty{range.address, unmapped};
    Entries entries;
    add_zeros(coarse_zeros_, empty, &entries);
    std::size_t done = 0;
    if (!send(entries, &done).answer.ok() && !is_lost()) sound_.lose();
    fine_regions_.set(empty, false);
    throw;
  }
  fine_regions_.remove(range.address);
}

SlabId PatchedDriver::allocate_slab(std::size_t bytes) {
  context_->require_parent("allocate_slab");
  slabs_.emplace(next_slab_, Slab{allocate(page_size_, bytes), bytes});
  return next_slab_++;
}

void PatchedDriver::free_slab(SlabId id) {
  context_->require_parent("free_slab");
  const auto found = slabs_.find(id);
  if (found == slabs_.end()) {
    throw DriverError("free_slab", 0, 0, "unknown slab", "slab " + std::to_string(id));
  }
  const Answer answer = vattn_.free(found->second.handle);
  if (!answer.ok() && !is_lost()) {
    fail({answer, {0, found->second.bytes}}, "free_slab (UVM_VATTN_FREE)");
  }
  slabs_.erase(found);
}

void PatchedDriver::add_zeros(const Zeros& zeros, Range range, Entries* entries) const {
  while (range.length > 0) {
    const std::size_t bytes = std::min(nvidia::bytes_to_border(range, chunk_), zeros.bytes);
    uvm_vattn_map_entry entry{};
    entry.address = range.address;
    entry.handle = zeros.handle;
    entry.page_count = static_cast<std::uint32_t>(bytes / zeros.page);
    entry.flags = UVM_VATTN_MAP_READ_ONLY | UVM_VATTN_MAP_REPLACE;
    entries->push_back(entry);
    range.address += bytes;
    range.length -= bytes;
  }
}

PatchedDriver::Entries PatchedDriver::page_entries(const std::vector<MapEntry>& batch) const {
  Entries entries;
  entries.reserve(batch.size());
  for (const MapEntry& page : batch) {
    const auto found = slabs_.find(page.slab);
    if (found == slabs_.end()) {
      throw DriverError("map", page.address, page.length, "unknown slab",
                        "slab " + std::to_string(page.slab));
    }
    nvidia::for_each_chunk({page.address, page.length}, chunk_, [&](const Range& part) {
      const std::size_t offset = page.offset + (part.address - page.address);
      uvm_vattn_map_entry entry{};
      entry.address = part.address;
      entry.handle = found->second.handle;
      entry.first_page = static_cast<std::uint32_t>(offset / page_size_);
      entry.page_count = static_cast<std::uint32_t>(part.length / page_size_);
      entry.flags = UVM_VATTN_MAP_REPLACE;
      entries.push_back(entry);
    });
  }
  return entries;
}

std::vector<Address> PatchedDriver::regions_to_refine(const std::vector<MapEntry>& batch) const {
  std::vector<Address> regions;
  if (!fine()) return regions;
  for (const MapEntry& entry : batch) {
    fine_regions_.for_each_coarse(entry.address, entry.address + entry.length + kLookAhead,
                                  [&](Address region) { regions.push_back(region); });
  }
  std::sort(regions.begin(), regions.end());
  regions.erase(std::unique(regions.begin(), regions.end()), regions.end());
  return regions;
}

// What the batch, sorted by address, leaves free of a region.
void PatchedDriver::add_zeros_between(const std::vector<Range>& sorted, Address region,
                                      Entries* entries) const {
  auto range = std::lower_bound(
      sorted.begin(), sorted.end(), region,
      [](const Range& one, Address address) { return one.address + one.length <= address; });
  const Address end = region + kHugePage;
  Address next = region;
  for (; range != sorted.end() && range->address < end; ++range) {
    if (range->address > next) {
      add_zeros(fine_zeros_, {next, static_cast<std::size_t>(range->address - next)}, entries);
    }
    next = range->address + range->length;
  }
  if (next < end) add_zeros(fine_zeros_, {next, static_cast<std::size_t>(end - next)}, entries);
}

// A small entry cannot take the place of a large one: the coarse zeros go first. They are
// beyond kLookAhead of everything mapped, where no kernel reads.
PatchedDriver::Failure PatchedDriver::take_away(const std::vector<Address>& regions) noexcept {
  std::vector<uvm_vattn_unmap_entry> entries;
  for (const Address region : regions) entries.push_back({region, kHugePage});
  for (std::size_t done = 0; done < entries.size();) {
    const std::size_t count = std::min<std::size_t>(limits_.max_batch, entries.size() - done);
    const Answer answer = vattn_.unmap(entries.data() + done, count);
    if (!answer.ok()) {
      put_back({regions.begin(), regions.begin() + static_cast<std::ptrdiff_t>(done)});
      return {answer, {regions[done], kHugePage}};
    }
    done += count;
  }
  return {};
}

void PatchedDriver::put_back(const std::vector<Address>& regions) noexcept {
  Entries entries;
  for (const Address region : regions) add_zeros(coarse_zeros_, {region, kHugePage}, &entries);
  std::size_t done = 0;
  if (!entries.empty() && !send(entries, &done).answer.ok() && !is_lost()) sound_.lose();
}

void PatchedDriver::map(const std::vector<MapEntry>& batch) {
  if (batch.empty()) return;
  context_->require_parent("map");
  sound_.require("map", {batch.front().address, batch.front().length});
  Entries entries = page_entries(batch);
  const std::size_t pages = entries.size();
  const std::vector<Address> regions = regions_to_refine(batch);
  std::vector<Range> sorted;
  if (!regions.empty()) sorted = ranges_of(batch);
  std::sort(sorted.begin(), sorted.end(),
            [](const Range& a, const Range& b) { return a.address < b.address; });
  for (const Address region : regions) add_zeros_between(sorted, region, &entries);
  const Failure taken = take_away(regions);
  if (!taken.answer.ok()) fail(taken, "map (UVM_VATTN_UNMAP of zeros)");
  std::size_t done = 0;
  const Failure failure = send(entries, &done);
  if (failure.answer.ok()) {
    for (const Address region : regions) fine_regions_.set({region, kHugePage}, true);
    return;
  }
  undo_map(regions, entries, pages, done);
  fail(failure, "map (UVM_VATTN_MAP)");
}

// Calls before the one that failed were carried out: `done` entries, of which the first
// `pages` map pages and the others zeros.
void PatchedDriver::undo_map(const std::vector<Address>& regions, const Entries& entries,
                             std::size_t pages, std::size_t done) noexcept {
  Entries zeros;
  const Zeros& small = fine() ? fine_zeros_ : coarse_zeros_;
  for (std::size_t i = 0; i < std::min(done, pages); ++i) {
    add_zeros(small, {entries[i].address, bytes_of(entries[i])}, &zeros);
  }
  std::size_t undone = 0;
  if (!zeros.empty() && !send(zeros, &undone).answer.ok() && !is_lost()) sound_.lose();
  // What was carried out in the new regions has small entries: make room for the large.
  for (std::size_t i = 0; i < done; ++i) {
    const Address start = entries[i].address;
    const std::size_t bytes = bytes_of(entries[i]);
    for (Address region = region_of(start); region < start + bytes; region += kHugePage) {
      if (!std::binary_search(regions.begin(), regions.end(), region)) continue;
      const Address end = std::min<Address>(start + bytes, region + kHugePage);
      const Address from = std::max<Address>(start, region);
      uvm_.unmap({from, static_cast<std::size_t>(end - from)});
    }
  }
  put_back(regions);
}

void PatchedDriver::unmap(const std::vector<MapEntry>& batch) {
  if (batch.empty()) return;
  context_->require_parent("unmap");
  // With the context, the address space lost the mappings: they are gone, as asked.
  if (is_lost()) return;
  sound_.require("unmap", {batch.front().address, batch.front().length});
  Entries entries;
  for (const Range& run : addresses_.runs_of(ranges_of(batch))) {
    add_zeros(fine() ? fine_zeros_ : coarse_zeros_, run, &entries);
  }
  std::size_t done = 0;
  const Failure failure = send(entries, &done);
  if (failure.answer.ok()) return;
  if (done > 0) {
    std::size_t redone = 0;
    if (!send(page_entries(batch), &redone).answer.ok() && !is_lost()) sound_.lose();
  }
  fail(failure, "unmap (UVM_VATTN_MAP of zeros)");
}

std::size_t PatchedDriver::bytes_of(const uvm_vattn_map_entry& entry) const {
  return entry.page_count * (entry.handle == coarse_zeros_.handle ? kHugePage : page_size_);
}

PatchedDriver::Failure PatchedDriver::send(const Entries& entries,
                                           std::size_t* done) const noexcept {
  *done = 0;
  while (*done < entries.size()) {
    const uvm_vattn_map_entry* first = entries.data() + *done;
    std::size_t count = 0;
    // An upper bound: large entries are counted as if they were small.
    std::size_t table_entries = 0;
    while (*done + count < entries.size() && count < limits_.max_batch) {
      table_entries += bytes_of(first[count]) / UVM_VATTN_MIN_PAGE;
      if (count > 0 && table_entries > limits_.max_batch_ptes) break;
      ++count;
    }
    std::uint32_t failed = UVM_VATTN_NO_ENTRY;
    const Answer answer = vattn_.map(first, count, &failed);
    if (!answer.ok()) {
      const uvm_vattn_map_entry& fault = first[failed < count ? failed : 0];
      return {answer, {fault.address, bytes_of(fault)}};
    }
    *done += count;
  }
  return {};
}

FencePtr PatchedDriver::zero(const std::vector<Range>& batch, const FencePtr& after) {
  context_->require_parent("zero");
  return bytes_.erase(addresses_.runs_of(batch), after);
}

}  // namespace pyvattn
