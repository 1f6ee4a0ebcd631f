// SPDX-License-Identifier: Apache-2.0
// The `cumem` driver: CUDA's public virtual memory management on any recent GPU.
//
// One handle of cuMemCreate is one page, and a slab is as many handles as it has pages. A
// run of pages costs one cuMemMap for each (CUDA maps handles only whole) but one
// cuMemSetAccess and one cuMemUnmap in all.
// CUDA does not promise what new memory holds: map() writes zeros to pages that were
// never mapped before and waits for them, on a stream that waits for nothing else.
//
// Every device that can reach the memory may: torch copies straight from one GPU's
// memory into another's. CUDA_VISIBLE_DEVICES hides devices that never will.
#pragma once

#include <map>
#include <unordered_map>
#include <vector>

#include "drivers/cuda_fence.hpp"
#include "drivers/driver.hpp"
#include "drivers/soundness.hpp"

namespace pyvattn {

class CuMemDriver final : public Driver {
 public:
  // `library` must outlive the driver. `capabilities` are describe()'s, perhaps renamed.
  CuMemDriver(const LibCuda& library, int device, std::size_t page_size, Capabilities capabilities);
  ~CuMemDriver() override;
  CuMemDriver(const CuMemDriver&) = delete;
  CuMemDriver& operator=(const CuMemDriver&) = delete;

  // Starts CUDA but makes no context. Throws DriverUnavailable with the reason.
  static Capabilities describe(const LibCuda& library, int device);

  const Capabilities& capabilities() const override { return capabilities_; }
  std::size_t page_size() const override { return page_size_; }
  Address reserve(std::size_t bytes, std::size_t alignment) override;
  void release_reservation(Address address) override;
  SlabId allocate_slab(std::size_t bytes) override;
  void free_slab(SlabId slab) override;
  void map(const std::vector<MapEntry>& batch) override;
  void unmap(const std::vector<MapEntry>& batch) override;
  FencePtr zero(const std::vector<Range>& batch, const FencePtr& after) override;

  const CudaContextPtr& context() const { return context_; }

 private:
  struct Page {
    cuda::Handle handle = 0;
    // Never mapped: nobody knows what it holds.
    bool fresh = true;
  };
  using Slab = std::vector<Page>;

  // Whether what cannot be undone on the device has to be forgotten here.
  bool is_lost() const;
  void release_pages(Slab& slab);
  Page* pages_of(const MapEntry& entry);
  void map_one(const MapEntry& entry);
  std::vector<Range> runs_of(const std::vector<Range>& ranges) const;
  void set_access(const Range& run) const;
  void unmap_run(const Range& run) const;
  // Puts the first `count` entries back as they were; notes it where CUDA refuses.
  void undo_map(const std::vector<MapEntry>& batch, std::size_t count) noexcept;
  void redo_map(const MapEntry& entry) noexcept;
  void unmap_everything() noexcept;
  void forget(const std::vector<MapEntry>& batch) const noexcept;
  std::vector<Range> fresh_ranges(const std::vector<MapEntry>& batch);
  FencePtr write_zeros(const std::vector<Range>& runs, const CudaStream& stream) const;

  const LibCuda& library_;
  const Capabilities capabilities_;
  const std::size_t page_size_;
  const CudaContextPtr context_;
  // Read and write for the device and for the peers that were asked for.
  const std::vector<cuda::AccessDescriptor> access_;
  // Zeros of recycled pages wait for the caller's kernels, those of fresh pages must not.
  const CudaStream recycled_;
  const CudaStream fresh_;
  Soundness sound_;
  SlabId next_slab_ = 1;
  std::unordered_map<SlabId, Slab> slabs_;
  std::map<Address, std::size_t> reservations_;
};

}  // namespace pyvattn
