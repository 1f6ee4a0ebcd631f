// SPDX-License-Identifier: Apache-2.0
// Base of the adaptors: drivers that wrap another driver and pass every call on.
// Each adaptor overrides only what it is about; they compose in any order.
#pragma once

#include <utility>

#include "drivers/driver.hpp"

namespace pyvattn {

class Adaptor : public Driver {
 public:
  explicit Adaptor(DriverPtr inner) : inner_(std::move(inner)) {}

  const Capabilities& capabilities() const override { return inner_->capabilities(); }
  std::size_t page_size() const override { return inner_->page_size(); }
  Address reserve(std::size_t bytes, std::size_t alignment) override {
    return inner_->reserve(bytes, alignment);
  }
  void release_reservation(Address address) override { inner_->release_reservation(address); }
  SlabId allocate_slab(std::size_t bytes) override { return inner_->allocate_slab(bytes); }
  void free_slab(SlabId slab) override { inner_->free_slab(slab); }
  void map(const std::vector<MapEntry>& batch) override { inner_->map(batch); }
  void unmap(const std::vector<MapEntry>& batch) override { inner_->unmap(batch); }
  FencePtr zero(const std::vector<Range>& batch, const FencePtr& after) override {
    return inner_->zero(batch, after);
  }

 protected:
  Driver& inner() { return *inner_; }

 private:
  const DriverPtr inner_;
};

}  // namespace pyvattn
