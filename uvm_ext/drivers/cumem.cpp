// SPDX-License-Identifier: Apache-2.0
#include "drivers/cumem.hpp"

#include <string>
#include <utility>

#include "base/errors.hpp"
#include "drivers/batch.hpp"

namespace pyvattn {
namespace {

cuda::AllocationProperties page_properties(int device) {
  cuda::AllocationProperties properties;
  properties.type = cuda::kAllocationPinned;
  properties.location.type = cuda::kLocationDevice;
  properties.location.id = device;
  return properties;
}

std::vector<cuda::AccessDescriptor> access_for(int device, const std::vector<int>& peers) {
  std::vector<int> ordinals = {device};
  ordinals.insert(ordinals.end(), peers.begin(), peers.end());
  std::vector<cuda::AccessDescriptor> access;
  for (int ordinal : ordinals) {
    cuda::AccessDescriptor descriptor;
    descriptor.location.type = cuda::kLocationDevice;
    descriptor.location.id = ordinal;
    descriptor.flags = cuda::kAccessReadWrite;
    access.push_back(descriptor);
  }
  return access;
}

std::vector<Range> ranges_of(const std::vector<MapEntry>& batch) {
  std::vector<Range> ranges;
  ranges.reserve(batch.size());
  for (const MapEntry& entry : batch) ranges.push_back({entry.address, entry.length});
  return ranges;
}

Range extent_of(const std::vector<MapEntry>& batch) {
  Range extent;
  if (!batch.empty()) extent.address = batch.front().address;
  for (const MapEntry& entry : batch) extent.length += entry.length;
  return extent;
}

}  // namespace

Capabilities CuMemDriver::describe(const LibCuda& library, int ordinal) {
  const cuda::Device device = find_cuda_device(library, ordinal);
  int supported = 0;
  check_cuda(
      library, "query device (cuDeviceGetAttribute)", 0, 0,
      library.cuDeviceGetAttribute(&supported, cuda::kAttributeVirtualMemoryManagement, device));
  if (supported == 0) {
    throw DriverUnavailable("device cuda:" + std::to_string(ordinal) +
                            " has no virtual memory management (cuMemMap): vGPU profiles and "
                            "some integrated GPUs do not offer it; use another GPU");
  }
  std::size_t granularity = 0;
  const cuda::AllocationProperties properties = page_properties(device);
  check_cuda(
      library, "query device (cuMemGetAllocationGranularity)", 0, 0,
      library.cuMemGetAllocationGranularity(&granularity, &properties, cuda::kGranularityMinimum));
  Capabilities capabilities;
  capabilities.name = "cumem";
  capabilities.page_sizes = {granularity};
  capabilities.call_per_page = true;
  capabilities.dlpack_device_type = 2;
  capabilities.dlpack_device_id = ordinal;
  capabilities.peers = find_cuda_peers(library, device);
  return capabilities;
}

CuMemDriver::CuMemDriver(const LibCuda& library, int device, std::size_t page_size,
                         Capabilities capabilities)
    : library_(library),
      capabilities_(std::move(capabilities)),
      page_size_(page_size),
      context_(std::make_shared<CudaContext>(library, device)),
      access_(access_for(device, capabilities_.peers)),
      recycled_(context_),
      fresh_(context_) {}

CuMemDriver::~CuMemDriver() {
  if (context_->forked()) return;
  const CurrentContext current(*context_);
  if (!slabs_.empty()) unmap_everything();
  for (const auto& [id, slab] : slabs_) {
    for (const Page& page : slab) library_.cuMemRelease(page.handle);
  }
  for (const auto& [address, bytes] : reservations_) library_.cuMemAddressFree(address, bytes);
}

// A cache whose close() failed leaves mappings that are on no list.
void CuMemDriver::unmap_everything() noexcept {
  for (const auto& [address, bytes] : reservations_) {
    for (std::size_t done = 0; done < bytes; done += page_size_) {
      library_.cuMemUnmap(address + done, page_size_);
    }
  }
}

bool CuMemDriver::is_lost() const {
  return sound_.is_lost() || context_->state() != cuda::kSuccess;
}

Address CuMemDriver::reserve(std::size_t bytes, std::size_t alignment) {
  const CurrentContext current(*context_, "reserve", 0, bytes);
  cuda::Pointer address = 0;
  check_cuda(library_, "reserve (cuMemAddressReserve)", 0, bytes,
             library_.cuMemAddressReserve(&address, bytes, alignment, 0, 0));
  reservations_.emplace(address, bytes);
  return address;
}

void CuMemDriver::release_reservation(Address address) {
  const auto found = reservations_.find(address);
  if (found == reservations_.end()) {
    throw_cuda(library_, "release_reservation", address, 0, cuda::kInvalidValue);
  }
  const CurrentContext current(*context_);
  const cuda::Result result = library_.cuMemAddressFree(address, found->second);
  if (!is_lost()) {
    check_cuda(library_, "release_reservation (cuMemAddressFree)", address, found->second, result);
  }
  reservations_.erase(found);
}

SlabId CuMemDriver::allocate_slab(std::size_t bytes) {
  const CurrentContext current(*context_, "allocate_slab", 0, bytes);
  const cuda::AllocationProperties properties = page_properties(context_->ordinal());
  Slab& slab = slabs_[next_slab_];
  try {
    slab.reserve(bytes / page_size_);
    while (slab.size() < bytes / page_size_) {
      cuda::Handle handle = 0;
      check_cuda(library_, "allocate_slab (cuMemCreate)", 0, bytes,
                 library_.cuMemCreate(&handle, page_size_, &properties, 0));
      slab.push_back({handle});
    }
  } catch (...) {
    for (const Page& page : slab) library_.cuMemRelease(page.handle);
    slabs_.erase(next_slab_);
    throw;
  }
  return next_slab_++;
}

// What CUDA does not release stays in the slab, for another attempt.
void CuMemDriver::release_pages(Slab& slab) {
  while (!slab.empty()) {
    const cuda::Result result = library_.cuMemRelease(slab.back().handle);
    if (!is_lost()) check_cuda(library_, "free_slab (cuMemRelease)", 0, page_size_, result);
    slab.pop_back();
  }
}

void CuMemDriver::free_slab(SlabId id) {
  const auto found = slabs_.find(id);
  if (found == slabs_.end()) throw_cuda(library_, "free_slab", 0, 0, cuda::kInvalidValue);
  const CurrentContext current(*context_);
  release_pages(found->second);
  slabs_.erase(found);
}

// The pages of the slab that an entry maps; null where it has no such pages.
CuMemDriver::Page* CuMemDriver::pages_of(const MapEntry& entry) {
  const auto found = slabs_.find(entry.slab);
  if (found == slabs_.end()) return nullptr;
  const std::size_t end = (entry.offset + entry.length) / page_size_;
  return end > found->second.size() ? nullptr : &found->second[entry.offset / page_size_];
}

void CuMemDriver::map_one(const MapEntry& entry) {
  const Page* page = pages_of(entry);
  cuda::Result result = page == nullptr ? cuda::kInvalidValue : cuda::kSuccess;
  std::size_t mapped = 0;
  while (result == cuda::kSuccess && mapped < entry.length) {
    result = library_.cuMemMap(entry.address + mapped, page_size_, 0, page->handle, 0);
    if (result != cuda::kSuccess) break;
    mapped += page_size_;
    ++page;
  }
  if (result == cuda::kSuccess) return;
  if (mapped > 0 && library_.cuMemUnmap(entry.address, mapped) != cuda::kSuccess) sound_.lose();
  check_cuda(library_, "map (cuMemMap)", entry.address, entry.length, result);
}

void CuMemDriver::set_access(const Range& run) const {
  check_cuda(library_, "map (cuMemSetAccess)", run.address, run.length,
             library_.cuMemSetAccess(run.address, run.length, access_.data(), access_.size()));
}

void CuMemDriver::unmap_run(const Range& run) const {
  check_cuda(library_, "unmap (cuMemUnmap)", run.address, run.length,
             library_.cuMemUnmap(run.address, run.length));
}

// Reservations may follow each other without a gap, and CUDA does not say that a call
// may go from one into the next.
std::vector<Range> CuMemDriver::runs_of(const std::vector<Range>& ranges) const {
  std::vector<Range> runs;
  for (Range run : contiguous_runs(ranges)) {
    const Address end = run.address + run.length;
    for (auto next = reservations_.upper_bound(run.address);
         next != reservations_.end() && next->first < end; ++next) {
      runs.push_back({run.address, next->first - run.address});
      run = {next->first, end - next->first};
    }
    runs.push_back(run);
  }
  return runs;
}

void CuMemDriver::map(const std::vector<MapEntry>& batch) {
  const Range extent = extent_of(batch);
  const CurrentContext current(*context_, "map", extent.address, extent.length);
  sound_.require("map", extent);
  std::size_t mapped = 0;
  try {
    for (; mapped < batch.size(); ++mapped) map_one(batch[mapped]);
    for (const Range& run : runs_of(ranges_of(batch))) set_access(run);
    const std::vector<Range> fresh = fresh_ranges(batch);
    if (!fresh.empty()) write_zeros(runs_of(fresh), fresh_)->wait();
  } catch (...) {
    undo_map(batch, mapped);
    throw;
  }
  for (const MapEntry& entry : batch) {
    Page* const pages = pages_of(entry);
    for (std::size_t i = 0; i < entry.length / page_size_; ++i) pages[i].fresh = false;
  }
}

void CuMemDriver::undo_map(const std::vector<MapEntry>& batch, std::size_t count) noexcept {
  for (std::size_t i = count; i > 0; --i) {
    const MapEntry& entry = batch[i - 1];
    if (library_.cuMemUnmap(entry.address, entry.length) != cuda::kSuccess) sound_.lose();
  }
}

void CuMemDriver::unmap(const std::vector<MapEntry>& batch) {
  if (is_lost()) return forget(batch);
  const Range extent = extent_of(batch);
  const CurrentContext current(*context_, "unmap", extent.address, extent.length);
  std::size_t unmapped = 0;
  try {
    for (const Range& run : runs_of(ranges_of(batch))) {
      unmap_run(run);
      unmapped += run.length;
    }
  } catch (...) {
    for (std::size_t i = 0; unmapped > 0; ++i) {
      redo_map(batch[i]);
      unmapped -= batch[i].length;
    }
    throw;
  }
}

void CuMemDriver::redo_map(const MapEntry& entry) noexcept {
  try {
    map_one(entry);
    set_access({entry.address, entry.length});
  } catch (...) {
    sound_.lose();
  }
}

// The memory belongs to a context that is gone, or what is mapped is not known: what
// CUDA still lets go is given back, page by page, and the rest ends with the process.
void CuMemDriver::forget(const std::vector<MapEntry>& batch) const noexcept {
  const CurrentContext current(*context_);
  for (const MapEntry& entry : batch) {
    for (std::size_t at = 0; at < entry.length; at += page_size_) {
      library_.cuMemUnmap(entry.address + at, page_size_);
    }
  }
}

std::vector<Range> CuMemDriver::fresh_ranges(const std::vector<MapEntry>& batch) {
  std::vector<Range> ranges;
  for (const MapEntry& entry : batch) {
    const Page* const pages = pages_of(entry);
    for (std::size_t i = 0; i < entry.length / page_size_; ++i) {
      if (pages[i].fresh) ranges.push_back({entry.address + i * page_size_, page_size_});
    }
  }
  return ranges;
}

FencePtr CuMemDriver::write_zeros(const std::vector<Range>& runs, const CudaStream& stream) const {
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const cuda::Result result =
        library_.cuMemsetD8Async(runs[i].address, 0, runs[i].length, stream.get());
    if (result == cuda::kSuccess) continue;
    // The caller may unmap at once: let what was submitted finish first.
    if (i > 0) CudaFence::after_stream(context_, stream.get())->wait();
    throw_cuda(library_, "zero (cuMemsetD8Async)", runs[i].address, runs[i].length, result);
  }
  return CudaFence::after_stream(context_, stream.get());
}

FencePtr CuMemDriver::zero(const std::vector<Range>& batch, const FencePtr& after) {
  const Range first = batch.empty() ? Range{} : batch.front();
  const CurrentContext current(*context_, "zero", first.address, first.length);
  const auto fence = std::dynamic_pointer_cast<CudaFence>(after);
  if (fence && &fence->context().library() == &library_) {
    fence->hold(recycled_.get());
  } else if (after) {
    after->wait();
  }
  return write_zeros(runs_of(batch), recycled_);
}

}  // namespace pyvattn
