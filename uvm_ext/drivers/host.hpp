// SPDX-License-Identifier: Apache-2.0
// The `host` driver: memfd slabs mapped with mmap(MAP_FIXED) into ordinary
// memory. Real pages, really unmapped, on any Linux machine.
#pragma once

#include <unordered_map>

#include "drivers/driver.hpp"
#include "drivers/soundness.hpp"
#include "drivers/spare_mappings.hpp"

namespace pyvattn {

class HostDriver final : public Driver {
 public:
  explicit HostDriver(std::size_t page_size);
  ~HostDriver() override;
  HostDriver(const HostDriver&) = delete;
  HostDriver& operator=(const HostDriver&) = delete;

  static Capabilities describe();

  const Capabilities& capabilities() const override { return capabilities_; }
  std::size_t page_size() const override { return page_size_; }
  Address reserve(std::size_t bytes, std::size_t alignment) override;
  void release_reservation(Address address) override;
  SlabId allocate_slab(std::size_t bytes) override;
  void free_slab(SlabId slab) override;
  void map(const std::vector<MapEntry>& batch) override;
  void unmap(const std::vector<MapEntry>& batch) override;
  FencePtr zero(const std::vector<Range>& batch, const FencePtr& after) override;

 private:
  struct Slab {
    int fd = -1;
    std::size_t bytes = 0;
  };

  class Spares;

  // Zero, or the errno of the failure.
  int map_one(const MapEntry& entry) const noexcept;
  void undo_map(const MapEntry& entry) noexcept;
  void redo_map(const MapEntry& entry) noexcept;

  const Capabilities capabilities_ = describe();
  const std::size_t page_size_;
  SlabId next_slab_ = 1;
  // For calls that take mappings away, and for undoing what they did.
  SpareMappings spare_mappings_;
  SpareMappings spare_to_undo_;
  Soundness sound_;
  std::unordered_map<SlabId, Slab> slabs_;
  std::unordered_map<Address, std::size_t> reservations_;
};

}  // namespace pyvattn
