// SPDX-License-Identifier: Apache-2.0
#include "adaptors/trace.hpp"

#include <exception>

namespace pyvattn {
namespace {

TraceRecord record(Operation operation, Address address, std::uint64_t length, SlabId slab = 0,
                   std::uint64_t offset = 0) {
  return TraceRecord{0, 0, operation, address, length, slab, offset, {}};
}

std::vector<TraceRecord> records_of(Operation operation, const std::vector<MapEntry>& batch) {
  std::vector<TraceRecord> records;
  records.reserve(batch.size());
  for (const MapEntry& e : batch) {
    records.push_back(record(operation, e.address, e.length, e.slab, e.offset));
  }
  return records;
}

}  // namespace

TraceAdaptor::TraceAdaptor(DriverPtr inner, std::size_t capacity)
    : Adaptor(std::move(inner)), capacity_(capacity) {}

template <typename Call>
void TraceAdaptor::traced(std::vector<TraceRecord> records, Call call) {
  try {
    call(records);
  } catch (const std::exception& error) {
    add(std::move(records), error.what());
    throw;
  }
  add(std::move(records), "");
}

void TraceAdaptor::add(std::vector<TraceRecord> records, const std::string& failure) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (TraceRecord& each : records) {
    each.sequence = next_sequence_++;
    each.call = next_call_;
    each.failure = failure;
    records_.push_back(std::move(each));
    if (records_.size() > capacity_) records_.pop_front();
  }
  ++next_call_;
}

Address TraceAdaptor::reserve(std::size_t bytes, std::size_t alignment) {
  Address address = 0;
  traced({record(Operation::reserve, 0, bytes, 0, alignment)},
         [&](std::vector<TraceRecord>& records) {
           address = inner().reserve(bytes, alignment);
           records[0].address = address;
         });
  return address;
}

void TraceAdaptor::release_reservation(Address address) {
  traced({record(Operation::release_reservation, address, 0)},
         [&](std::vector<TraceRecord>&) { inner().release_reservation(address); });
}

SlabId TraceAdaptor::allocate_slab(std::size_t bytes) {
  SlabId slab = 0;
  traced({record(Operation::allocate_slab, 0, bytes)}, [&](std::vector<TraceRecord>& records) {
    slab = inner().allocate_slab(bytes);
    records[0].slab = slab;
  });
  return slab;
}

void TraceAdaptor::free_slab(SlabId slab) {
  traced({record(Operation::free_slab, 0, 0, slab)},
         [&](std::vector<TraceRecord>&) { inner().free_slab(slab); });
}

void TraceAdaptor::map(const std::vector<MapEntry>& batch) {
  traced(records_of(Operation::map, batch), [&](std::vector<TraceRecord>&) { inner().map(batch); });
}

void TraceAdaptor::unmap(const std::vector<MapEntry>& batch) {
  traced(records_of(Operation::unmap, batch),
         [&](std::vector<TraceRecord>&) { inner().unmap(batch); });
}

FencePtr TraceAdaptor::zero(const std::vector<Range>& batch, const FencePtr& after) {
  std::vector<TraceRecord> records;
  for (const Range& range : batch) {
    records.push_back(record(Operation::zero, range.address, range.length));
  }
  FencePtr done;
  traced(std::move(records), [&](std::vector<TraceRecord>&) { done = inner().zero(batch, after); });
  return done;
}

std::vector<TraceRecord> TraceAdaptor::records() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return {records_.begin(), records_.end()};
}

}  // namespace pyvattn
