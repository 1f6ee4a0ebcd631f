// SPDX-License-Identifier: Apache-2.0
#include "drivers/nvidia/stock_uvm.hpp"

#include <algorithm>
#include <utility>

#include "base/errors.hpp"
#include "drivers/batch.hpp"
#include "drivers/nvidia/self_test.hpp"

namespace pyvattn {
namespace {

using nvidia::Answer;
using nvidia::Granule;
using nvidia::Handle;
using nvidia::kHugePage;

// Throws what `act` throws, with the driver's name before it and the remedy behind.
template <typename Act>
auto or_refuse(Act act) -> decltype(act()) {
  try {
    return act();
  } catch (const DriverUnavailable& error) {
    throw DriverUnavailable(std::string("stock-uvm cannot be used here: ") + error.what() +
                            ". driver='cumem' works on any CUDA GPU, with 2M pages");
  }
}

const nvidia::Layout& require_layout(nvidia::System& system) {
  nvidia::require_native_driver(system);
  const std::string release = nvidia::driver_release(system);
  const nvidia::Layout* layout = nvidia::find_layout(release);
  if (layout != nullptr) return *layout;
  throw DriverUnavailable("the layout of the ioctls of driver release " + release +
                          " is not known (releases from 515.43.04 to 595.45.04 are)");
}

}  // namespace

Capabilities StockUvmDriver::describe(const nvidia::Platform& platform, int device) {
  return or_refuse([&] {
    require_layout(*platform.system);
    nvidia::require_whole_gpu(platform.nvml(), nvidia::identify_gpu(platform, device));
    Capabilities capabilities;
    capabilities.name = "stock-uvm";
    for (std::size_t size = 64u << 10; size <= kHugePage; size <<= 1) {
      capabilities.page_sizes.push_back(size);
    }
    // Unmapped addresses do read as zeros, but a page does not take their place in one
    // step: see zero_backing.hpp.
    capabilities.zero_backed = false;
    capabilities.dlpack_device_type = 2;
    capabilities.dlpack_device_id = device;
    return capabilities;
  });
}

StockUvmDriver::StockUvmDriver(const nvidia::Platform& platform, int device, std::size_t page_size,
                               Capabilities capabilities, std::size_t chunk)
    : layout_(
          or_refuse([&]() -> const nvidia::Layout& { return require_layout(*platform.system); })),
      capabilities_(std::move(capabilities)),
      page_size_(page_size),
      chunk_(chunk),
      context_(std::make_shared<CudaContext>(*platform.cuda, device)),
      addresses_(context_, chunk),
      staging_(addresses_.reserve(chunk, kHugePage)),
      gpu_(or_refuse([&] { return nvidia::identify_gpu(platform, device); })),
      uvm_(or_refuse(
          [&] { return nvidia::UvmSpace(*platform.system, layout_, gpu_.uuid, staging_, chunk); })),
      rm_(or_refuse(
          [&] { return nvidia::RmClient(*platform.system, layout_, gpu_.uuid, gpu_.minor); })),
      bytes_(context_),
      fresh_bytes_(context_) {
  try {
    const bool fine = page_size < kHugePage;
    const Handle fine_zeros = fine ? allocate_zeroed(kHugePage, Granule::k64K) : 0;
    const Handle coarse_zeros = allocate_zeroed(chunk, Granule::k2M);
    zeros_ = std::make_unique<nvidia::ZeroBacking>(uvm_, reference(fine_zeros),
                                                   reference(coarse_zeros), chunk);
    or_refuse([&] { StockUvmSelfTest(*this).run(); });
  } catch (...) {
    drop_mappings();
    throw;
  }
}

StockUvmDriver::~StockUvmDriver() { drop_mappings(); }

// Before CUDA's books are closed: what is mapped there is not what they say.
void StockUvmDriver::drop_mappings() noexcept {
  if (context_->forked()) return;
  for (const Range& range : addresses_.all()) uvm_.unmap(range);
}

void StockUvmDriver::fail(const Answer& answer, const char* operation, const Range& range) const {
  // UVM knows nothing of contexts: its address space just lost the range.
  if (!answer.out_of_memory()) {
    check_cuda(context_->library(), operation, range.address, range.length, context_->state());
  }
  nvidia::check(answer, operation, range.address, range.length);
  throw DriverError(operation, range.address, range.length, answer.name());
}

nvidia::MemoryRef StockUvmDriver::reference(Handle memory) const {
  return {rm_.control_fd(), rm_.root(), memory};
}

Address StockUvmDriver::reserve(std::size_t bytes, std::size_t alignment) {
  context_->require_parent("reserve");
  const Range range = addresses_.reserve(bytes, std::max(alignment, kHugePage));
  try {
    zeros_->cover(range);
  } catch (...) {
    uvm_.unmap(range);
    zeros_->forget(range.address);
    addresses_.release(range.address);
    throw;
  }
  return range.address;
}

void StockUvmDriver::release_reservation(Address address) {
  context_->require_parent("release_reservation");
  const Range range = addresses_.find(address);
  std::size_t unmapped = 0;
  const Answer answer = uvm_.unmap(range, &unmapped);
  if (!answer.ok() && !is_lost()) {
    if (!zeros_->restore({range.address, unmapped}).ok()) sound_.lose();
    fail(answer, "release_reservation (UVM_UNMAP_EXTERNAL)", range);
  }
  try {
    addresses_.release(range.address);
  } catch (...) {
    if (!zeros_->restore(range).ok()) sound_.lose();
    throw;
  }
  zeros_->forget(range.address);
}

SlabId StockUvmDriver::allocate_slab(std::size_t bytes) {
  context_->require_parent("allocate_slab");
  const Granule granule = page_size_ < kHugePage ? Granule::k64K : Granule::k2M;
  slabs_.emplace(next_slab_, Slab{allocate_zeroed(bytes, granule), bytes});
  return next_slab_++;
}

void StockUvmDriver::free_slab(SlabId id) {
  context_->require_parent("free_slab");
  const auto found = slabs_.find(id);
  if (found == slabs_.end()) {
    throw DriverError("free_slab", 0, 0, "unknown slab", "slab " + std::to_string(id));
  }
  rm_.free_memory(found->second.memory);
  slabs_.erase(found);
}

Handle StockUvmDriver::allocate_zeroed(std::size_t bytes, Granule granule) {
  const Handle memory = rm_.allocate_memory(bytes, granule);
  try {
    erase_memory(memory, bytes);
  } catch (...) {
    // Again, where it was this that failed: the window must not keep the memory.
    uvm_.unmap(staging_);
    rm_.free_memory(memory);
    throw;
  }
  return memory;
}

// The resource manager scrubs what it frees, but does not promise to.
void StockUvmDriver::erase_memory(Handle memory, std::size_t bytes) {
  for (std::size_t done = 0; done < bytes; done += staging_.length) {
    const Range window{staging_.address, std::min(staging_.length, bytes - done)};
    Answer answer = uvm_.map(window, reference(memory), done, nvidia::kReadWriteAtomic);
    if (!answer.ok()) fail(answer, "allocate_slab (UVM_MAP_EXTERNAL_ALLOCATION)", window);
    fresh_bytes_.erase({window}, nullptr)->wait();
    answer = uvm_.unmap(window);
    if (!answer.ok()) fail(answer, "allocate_slab (UVM_UNMAP_EXTERNAL)", window);
  }
}

void StockUvmDriver::map(const std::vector<MapEntry>& batch) {
  if (batch.empty()) return;
  context_->require_parent("map");
  sound_.require("map", {batch.front().address, batch.front().length});
  all_or_nothing(
      batch, [this](const MapEntry& entry) { map_one(entry); },
      [this](const MapEntry& entry) { undo_map(entry); });
}

void StockUvmDriver::map_one(const MapEntry& entry) {
  const Range range{entry.address, entry.length};
  const auto found = slabs_.find(entry.slab);
  if (found == slabs_.end()) {
    throw DriverError("map", entry.address, entry.length, "unknown slab",
                      "slab " + std::to_string(entry.slab));
  }
  zeros_->prepare(range);
  const Answer answer =
      uvm_.map(range, reference(found->second.memory), entry.offset, nvidia::kReadWriteAtomic);
  if (!answer.ok()) {
    // UVM took the zeros away before it failed.
    undo_map(entry);
    fail(answer, "map (UVM_MAP_EXTERNAL_ALLOCATION)", range);
  }
  if (page_size_ < kHugePage) zeros_->note_mapped(range);
}

void StockUvmDriver::undo_map(const MapEntry& entry) noexcept {
  if (!zeros_->restore({entry.address, entry.length}).ok() && !is_lost()) sound_.lose();
}

void StockUvmDriver::redo_map(const MapEntry& entry) noexcept {
  // What is there now may be zeros, the page itself or nothing.
  uvm_.unmap({entry.address, entry.length});
  try {
    map_one(entry);
  } catch (...) {
    sound_.lose();
  }
}

void StockUvmDriver::unmap(const std::vector<MapEntry>& batch) {
  if (batch.empty()) return;
  context_->require_parent("unmap");
  // With the context, the address space lost the mappings: they are gone, as asked.
  if (is_lost()) return;
  sound_.require("unmap", {batch.front().address, batch.front().length});
  std::vector<Range> ranges;
  for (const MapEntry& entry : batch) ranges.push_back({entry.address, entry.length});
  std::size_t touched = 0;
  for (const Range& run : addresses_.runs_of(ranges)) {
    const Answer answer = zeros_->restore(run);
    for (std::size_t bytes = 0; bytes < run.length; ++touched) bytes += batch[touched].length;
    if (answer.ok()) continue;
    while (touched > 0) redo_map(batch[--touched]);
    fail(answer, "unmap (UVM_MAP_EXTERNAL_ALLOCATION of zeros)", run);
  }
}

FencePtr StockUvmDriver::zero(const std::vector<Range>& batch, const FencePtr& after) {
  context_->require_parent("zero");
  return bytes_.erase(addresses_.runs_of(batch), after);
}

}  // namespace pyvattn
