// SPDX-License-Identifier: Apache-2.0
// Lets one call at a time through to the driver, so that a foreground step and
// the mapper thread can share it. zero() goes beside the others, as driver.hpp
// allows: it can take long.
#pragma once

#include <mutex>

#include "adaptors/adaptor.hpp"

namespace pyvattn {

class SerializedAdaptor final : public Adaptor {
 public:
  using Adaptor::Adaptor;

  Address reserve(std::size_t bytes, std::size_t alignment) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return inner().reserve(bytes, alignment);
  }
  void release_reservation(Address address) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    inner().release_reservation(address);
  }
  SlabId allocate_slab(std::size_t bytes) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return inner().allocate_slab(bytes);
  }
  void free_slab(SlabId slab) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    inner().free_slab(slab);
  }
  void map(const std::vector<MapEntry>& batch) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    inner().map(batch);
  }
  void unmap(const std::vector<MapEntry>& batch) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    inner().unmap(batch);
  }

 private:
  std::mutex mutex_;
};

}  // namespace pyvattn
