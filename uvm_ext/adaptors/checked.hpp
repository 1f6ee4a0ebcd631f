// SPDX-License-Identifier: Apache-2.0
// Verifies every precondition of driver.hpp before a call goes on, and keeps a
// ledger of what is mapped. For tests and for authors of drivers.
#pragma once

#include <map>
#include <mutex>

#include "adaptors/adaptor.hpp"

namespace pyvattn {

class CheckedAdaptor final : public Adaptor {
 public:
  using Adaptor::Adaptor;

  Address reserve(std::size_t bytes, std::size_t alignment) override;
  void release_reservation(Address address) override;
  SlabId allocate_slab(std::size_t bytes) override;
  void free_slab(SlabId slab) override;
  void map(const std::vector<MapEntry>& batch) override;
  void unmap(const std::vector<MapEntry>& batch) override;
  FencePtr zero(const std::vector<Range>& batch, const FencePtr& after) override;

  std::uint64_t mapped_bytes() const;
  std::size_t live_slabs() const;
  std::size_t live_reservations() const;

 private:
  struct Mapping {
    std::size_t length;
    SlabId slab;
    std::size_t offset;
  };
  using Ledger = std::map<Address, Mapping>;

  void check_aligned(const char* operation, Address address, std::size_t length) const;
  void check_map_entry(const MapEntry& entry) const;
  void check_reserved(const MapEntry& entry) const;
  static void insert(Ledger& ledger, const MapEntry& entry);
  static void remove(Ledger& ledger, const MapEntry& entry);
  bool is_mapped(const Range& range) const;

  mutable std::mutex mutex_;
  std::map<Address, std::size_t> reservations_;
  std::map<SlabId, std::size_t> slabs_;
  Ledger ledger_;
};

}  // namespace pyvattn
