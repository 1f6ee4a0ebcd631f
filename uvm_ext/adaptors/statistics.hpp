// SPDX-License-Identifier: Apache-2.0
// Counts what passes: calls, bytes, failures and seconds of every operation.
#pragma once

#include <array>
#include <mutex>

#include "adaptors/adaptor.hpp"

namespace pyvattn {

enum class Operation { reserve, release_reservation, allocate_slab, free_slab, map, unmap, zero };
constexpr std::size_t kOperations = 7;
const char* operation_name(Operation operation);

struct OperationCount {
  std::uint64_t batches = 0;  // calls of the driver interface
  std::uint64_t calls = 0;    // entries in them: one call to the system each, unless it batches
  std::uint64_t bytes = 0;
  std::uint64_t failures = 0;
  double seconds = 0;
};
using OperationCounts = std::array<OperationCount, kOperations>;

class StatisticsAdaptor final : public Adaptor {
 public:
  using Adaptor::Adaptor;

  Address reserve(std::size_t bytes, std::size_t alignment) override;
  void release_reservation(Address address) override;
  SlabId allocate_slab(std::size_t bytes) override;
  void free_slab(SlabId slab) override;
  void map(const std::vector<MapEntry>& batch) override;
  void unmap(const std::vector<MapEntry>& batch) override;
  FencePtr zero(const std::vector<Range>& batch, const FencePtr& after) override;

  OperationCounts counts() const;

 private:
  template <typename Call>
  auto timed(Operation operation, std::uint64_t calls, std::uint64_t bytes, Call call);

  mutable std::mutex mutex_;
  OperationCounts counts_;
};

}  // namespace pyvattn
