// SPDX-License-Identifier: Apache-2.0
// The `patched` driver: pages of 64K and more through the ioctls that driver_patch/ adds
// to nvidia-uvm. A whole step is one call, and a page takes the place of the zeros that
// were there in one write, so that the tail guard can be shared.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "drivers/driver.hpp"
#include "drivers/nvidia/cuda_bytes.hpp"
#include "drivers/nvidia/cuda_reservation.hpp"
#include "drivers/nvidia/fine_regions.hpp"
#include "drivers/nvidia/platform.hpp"
#include "drivers/nvidia/uvm_space.hpp"
#include "drivers/nvidia/vattn.hpp"
#include "drivers/soundness.hpp"

namespace pyvattn {

class PatchedDriver final : public Driver {
 public:
  static constexpr std::size_t kChunk = 64u << 20;
  // Zeros are given small page-table entries this far past the last page: no kernel may
  // read further than that past what is mapped.
  static constexpr std::size_t kLookAhead = 8u << 20;

  // `capabilities` are describe()'s, perhaps changed. Throws DriverUnavailable.
  PatchedDriver(const nvidia::Platform& platform, int device, std::size_t page_size,
                Capabilities capabilities, std::size_t chunk = kChunk);
  ~PatchedDriver() override;
  PatchedDriver(const PatchedDriver&) = delete;
  PatchedDriver& operator=(const PatchedDriver&) = delete;

  // Starts CUDA but makes no context. Throws DriverUnavailable with the reason.
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
  using Entries = std::vector<uvm_vattn_map_entry>;
  struct Zeros {
    std::uint64_t handle = 0;
    std::size_t page = 0;
    std::size_t bytes = 0;
  };
  struct Failure {
    nvidia::Answer answer;
    Range range;
  };

  nvidia::UvmSpace open_space(const nvidia::Platform& platform) const;
  nvidia::PatchQuery require_gpu() const;
  // Whether the context is gone, and what was mapped with it.
  bool is_lost() const { return context_->state() != cuda::kSuccess; }
  [[noreturn]] void fail(const Failure& failure, const char* operation) const;
  std::uint64_t allocate(std::size_t page, std::size_t bytes);
  void drop_everything() noexcept;

  bool fine() const { return page_size_ < nvidia::kHugePage; }
  // Read-only entries that put zeros over the range.
  void add_zeros(const Zeros& zeros, Range range, Entries* entries) const;
  Entries page_entries(const std::vector<MapEntry>& batch) const;
  // The coarse regions that the batch and what lies behind it need fine.
  std::vector<Address> regions_to_refine(const std::vector<MapEntry>& batch) const;
  void add_zeros_between(const std::vector<Range>& sorted, Address region, Entries* entries) const;
  std::size_t bytes_of(const uvm_vattn_map_entry& entry) const;
  Failure take_away(const std::vector<Address>& regions) noexcept;
  void put_back(const std::vector<Address>& regions) noexcept;
  void undo_map(const std::vector<Address>& regions, const Entries& entries, std::size_t pages,
                std::size_t done) noexcept;
  // In as few calls as the module allows; `done` counts the entries that are carried out.
  Failure send(const Entries& entries, std::size_t* done) const noexcept;

  const Capabilities capabilities_;
  const std::size_t page_size_;
  const std::size_t chunk_;
  const CudaContextPtr context_;
  nvidia::CudaReservations addresses_;
  const Range probe_;
  const nvidia::GpuIdentity gpu_;
  nvidia::UvmSpace uvm_;
  const nvidia::VattnSpace vattn_;
  const nvidia::PatchQuery limits_;
  nvidia::CudaBytes bytes_;
  Zeros fine_zeros_;
  Zeros coarse_zeros_;
  nvidia::FineRegions fine_regions_;
  Soundness sound_;
  SlabId next_slab_ = 1;
  struct Slab {
    std::uint64_t handle = 0;
    std::size_t bytes = 0;
  };
  std::unordered_map<SlabId, Slab> slabs_;
};

}  // namespace pyvattn
