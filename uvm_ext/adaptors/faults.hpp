// SPDX-License-Identifier: Apache-2.0
// Makes one chosen call fail, so that tests can ask of every call: and if that
// one failed?
#pragma once

#include <atomic>

#include "adaptors/adaptor.hpp"

namespace pyvattn {

class FaultAdaptor final : public Adaptor {
 public:
  using Adaptor::Adaptor;

  // The `nth` call from now (0: the next one) fails, once. `out_of_memory`
  // chooses DriverOutOfMemory over DriverError.
  void fail_nth(std::int64_t nth, bool out_of_memory);
  void disarm() { remaining_ = -1; }
  // True until the armed call has come.
  bool armed() const { return remaining_ >= 0; }

  Address reserve(std::size_t bytes, std::size_t alignment) override;
  void release_reservation(Address address) override;
  SlabId allocate_slab(std::size_t bytes) override;
  void free_slab(SlabId slab) override;
  void map(const std::vector<MapEntry>& batch) override;
  void unmap(const std::vector<MapEntry>& batch) override;
  FencePtr zero(const std::vector<Range>& batch, const FencePtr& after) override;

 private:
  void maybe_fail(const char* operation, Address address, std::uint64_t bytes);

  std::atomic<std::int64_t> remaining_{-1};
  std::atomic<bool> out_of_memory_{false};
};

}  // namespace pyvattn
