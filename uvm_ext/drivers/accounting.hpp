// SPDX-License-Identifier: Apache-2.0
// Counts instead of mapping: the `host` driver's accounting mode, in which a
// replay runs the real allocator over a trace without touching memory.
#pragma once

#include "drivers/driver.hpp"

namespace pyvattn {

class AccountingDriver final : public Driver {
 public:
  explicit AccountingDriver(std::size_t page_size);

  const Capabilities& capabilities() const override { return capabilities_; }
  std::size_t page_size() const override { return page_size_; }
  Address reserve(std::size_t bytes, std::size_t alignment) override;
  void release_reservation(Address) override {}
  SlabId allocate_slab(std::size_t) override { return next_slab_++; }
  void free_slab(SlabId) override {}
  void map(const std::vector<MapEntry>&) override {}
  void unmap(const std::vector<MapEntry>&) override {}
  FencePtr zero(const std::vector<Range>&, const FencePtr& after) override;

 private:
  Capabilities capabilities_;
  const std::size_t page_size_;
  Address next_address_ = Address{1} << 40;
  SlabId next_slab_ = 1;
};

}  // namespace pyvattn
