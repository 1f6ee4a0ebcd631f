// SPDX-License-Identifier: Apache-2.0
#include "adaptors/faults.hpp"

#include "base/errors.hpp"

namespace pyvattn {
namespace {

template <typename Entry>
Address first_address(const std::vector<Entry>& batch) {
  return batch.empty() ? 0 : batch.front().address;
}

}  // namespace

void FaultAdaptor::fail_nth(std::int64_t nth, bool out_of_memory) {
  out_of_memory_ = out_of_memory;
  remaining_ = nth;
}

void FaultAdaptor::maybe_fail(const char* operation, Address address, std::uint64_t bytes) {
  if (remaining_ < 0 || remaining_-- > 0) return;
  if (out_of_memory_) throw DriverOutOfMemory(operation, address, bytes, "injected");
  throw DriverError(operation, address, bytes, "injected");
}

Address FaultAdaptor::reserve(std::size_t bytes, std::size_t alignment) {
  maybe_fail("reserve", 0, bytes);
  return inner().reserve(bytes, alignment);
}

void FaultAdaptor::release_reservation(Address address) {
  maybe_fail("release_reservation", address, 0);
  inner().release_reservation(address);
}

SlabId FaultAdaptor::allocate_slab(std::size_t bytes) {
  maybe_fail("allocate_slab", 0, bytes);
  return inner().allocate_slab(bytes);
}

void FaultAdaptor::free_slab(SlabId slab) {
  maybe_fail("free_slab", 0, 0);
  inner().free_slab(slab);
}

void FaultAdaptor::map(const std::vector<MapEntry>& batch) {
  maybe_fail("map", first_address(batch), 0);
  inner().map(batch);
}

void FaultAdaptor::unmap(const std::vector<MapEntry>& batch) {
  maybe_fail("unmap", first_address(batch), 0);
  inner().unmap(batch);
}

FencePtr FaultAdaptor::zero(const std::vector<Range>& batch, const FencePtr& after) {
  maybe_fail("zero", first_address(batch), 0);
  return inner().zero(batch, after);
}

}  // namespace pyvattn
