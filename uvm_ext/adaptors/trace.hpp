// SPDX-License-Identifier: Apache-2.0
// Keeps the last calls, failed ones too, so that a run can be looked at after
// the fact and made again: see pyvattn/calls.py.
#pragma once

#include <deque>
#include <mutex>
#include <string>

#include "adaptors/adaptor.hpp"
#include "adaptors/statistics.hpp"

namespace pyvattn {

struct TraceRecord {
  std::uint64_t sequence = 0;
  // Entries of one batch have one number.
  std::uint64_t call = 0;
  Operation operation = Operation::map;
  Address address = 0;
  std::uint64_t length = 0;
  SlabId slab = 0;
  // Within the slab; of a reservation its alignment.
  std::uint64_t offset = 0;
  // Empty where the call succeeded, else what it said.
  std::string failure;
};

class TraceAdaptor final : public Adaptor {
 public:
  // Keeps at most `capacity` records; the oldest go first.
  TraceAdaptor(DriverPtr inner, std::size_t capacity);

  Address reserve(std::size_t bytes, std::size_t alignment) override;
  void release_reservation(Address address) override;
  SlabId allocate_slab(std::size_t bytes) override;
  void free_slab(SlabId slab) override;
  void map(const std::vector<MapEntry>& batch) override;
  void unmap(const std::vector<MapEntry>& batch) override;
  FencePtr zero(const std::vector<Range>& batch, const FencePtr& after) override;

  std::vector<TraceRecord> records() const;

 private:
  // Runs `call`, then adds the records, with the failure if there was one.
  template <typename Call>
  void traced(std::vector<TraceRecord> records, Call call);
  void add(std::vector<TraceRecord> records, const std::string& failure);

  const std::size_t capacity_;
  mutable std::mutex mutex_;
  std::uint64_t next_sequence_ = 0;
  std::uint64_t next_call_ = 0;
  std::deque<TraceRecord> records_;
};

}  // namespace pyvattn
