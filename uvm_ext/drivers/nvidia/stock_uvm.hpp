// SPDX-License-Identifier: Apache-2.0
// The `stock-uvm` driver: pages from 64 KiB on NVIDIA's driver as it is, through the
// ioctls that its own libraries use. docs/stock-uvm.md explains what it relies on.
//
// A slab is memory of a resource-manager client of ours; an extent is mapped into the
// addresses that CUDA reserved with one UVM call, whatever its length.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "drivers/driver.hpp"
#include "drivers/nvidia/cuda_bytes.hpp"
#include "drivers/nvidia/cuda_reservation.hpp"
#include "drivers/nvidia/platform.hpp"
#include "drivers/nvidia/rm_client.hpp"
#include "drivers/nvidia/uvm_space.hpp"
#include "drivers/nvidia/zero_backing.hpp"
#include "drivers/soundness.hpp"

namespace pyvattn {

class StockUvmDriver final : public Driver {
 public:
  // Addresses become known to CUDA in chunks of this size; it is also what the shared
  // zeros and CUDA's own books cost in memory, each once for every driver.
  static constexpr std::size_t kChunk = 64u << 20;

  // Runs the self-test. `capabilities` are describe()'s, perhaps changed. Throws
  // DriverUnavailable with the reason.
  StockUvmDriver(const nvidia::Platform& platform, int device, std::size_t page_size,
                 Capabilities capabilities, std::size_t chunk = kChunk);
  ~StockUvmDriver() override;
  StockUvmDriver(const StockUvmDriver&) = delete;
  StockUvmDriver& operator=(const StockUvmDriver&) = delete;

  // Starts CUDA but makes no context and allocates nothing. Throws DriverUnavailable with
  // the reason, and with what works instead.
  static Capabilities describe(const nvidia::Platform& platform, int device);

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
  friend class StockUvmSelfTest;
  struct Slab {
    nvidia::Handle memory = 0;
    std::size_t bytes = 0;
  };

  void drop_mappings() noexcept;
  // Whether the context is gone, and what was mapped with it.
  bool is_lost() const { return context_->state() != cuda::kSuccess; }
  [[noreturn]] void fail(const nvidia::Answer& answer, const char* operation,
                         const Range& range) const;
  nvidia::MemoryRef reference(nvidia::Handle memory) const;
  nvidia::Handle allocate_zeroed(std::size_t bytes, nvidia::Granule granule);
  void erase_memory(nvidia::Handle memory, std::size_t bytes);
  void map_one(const MapEntry& entry);
  void undo_map(const MapEntry& entry) noexcept;
  void redo_map(const MapEntry& entry) noexcept;

  const nvidia::Layout& layout_;
  const Capabilities capabilities_;
  const std::size_t page_size_;
  const std::size_t chunk_;
  const CudaContextPtr context_;
  nvidia::CudaReservations addresses_;
  // Addresses through which memory is zeroed before anybody sees it.
  const Range staging_;
  const nvidia::GpuIdentity gpu_;
  nvidia::UvmSpace uvm_;
  nvidia::RmClient rm_;
  nvidia::CudaBytes bytes_;
  nvidia::CudaBytes fresh_bytes_;
  std::unique_ptr<nvidia::ZeroBacking> zeros_;
  Soundness sound_;
  SlabId next_slab_ = 1;
  std::unordered_map<SlabId, Slab> slabs_;
};

}  // namespace pyvattn
