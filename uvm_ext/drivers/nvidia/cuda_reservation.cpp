// SPDX-License-Identifier: Apache-2.0
#include "drivers/nvidia/cuda_reservation.hpp"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>
#include <utility>

#include "base/errors.hpp"
#include "drivers/batch.hpp"

namespace pyvattn {
namespace nvidia {

CudaReservations::CudaReservations(CudaContextPtr context, std::size_t chunk)
    : context_(std::move(context)), cuda_(context_->library()), chunk_(chunk) {}

CudaReservations::~CudaReservations() {
  const CurrentContext current(*context_);
  if (current.status() != cuda::kSuccess) return;
  for (const auto& [address, bytes] : reservations_) forget({address, bytes}, bytes);
  if (decoy_ != 0) cuda_.cuMemRelease(decoy_);
}

Range CudaReservations::reserve(std::size_t bytes, std::size_t alignment) {
  const CurrentContext current(*context_, "reserve", 0, bytes);
  const std::size_t chunks = bytes / chunk_ + (bytes % chunk_ != 0 ? 1 : 0);
  if (chunks > SIZE_MAX / chunk_) throw_cuda(cuda_, "reserve", 0, bytes, cuda::kOutOfMemory);
  if (decoy_ == 0) create_decoy();
  const std::size_t length = chunks * chunk_;
  cuda::Pointer address = 0;
  check_cuda(cuda_, "reserve (cuMemAddressReserve)", 0, length,
             cuda_.cuMemAddressReserve(&address, length, std::max(alignment, chunk_), 0, 0));
  const Range range{address, length};
  if (address % chunk_ != 0) {
    forget(range, 0);
    throw DriverError("reserve (cuMemAddressReserve)", address, length, "not aligned",
                      "CUDA was asked for addresses at a multiple of " + std::to_string(chunk_));
  }
  std::size_t known = 0;
  try {
    make_known(range, &known);
    reservations_.emplace(range.address, range.length);
  } catch (...) {
    forget(range, known);
    throw;
  }
  return range;
}

void CudaReservations::release(Address address) {
  const Range range = find(address);
  const CurrentContext current(*context_);
  if (context_->state() == cuda::kSuccess) {
    check_cuda(cuda_, "release_reservation (cuMemUnmap, cuMemAddressFree)", range.address,
               range.length, forget(range, range.length));
  }
  reservations_.erase(address);
}

Range CudaReservations::find(Address address) const {
  auto next = reservations_.upper_bound(address);
  if (next != reservations_.begin()) {
    const auto& [start, bytes] = *std::prev(next);
    if (address - start < bytes) return {start, bytes};
  }
  throw DriverError("find reservation", address, 0, "unknown address",
                    "no reservation of this driver holds it");
}

std::vector<Range> CudaReservations::all() const {
  std::vector<Range> ranges;
  for (const auto& [address, bytes] : reservations_) ranges.push_back({address, bytes});
  return ranges;
}

std::vector<Range> CudaReservations::runs_of(const std::vector<Range>& ranges) const {
  std::vector<Range> runs;
  for (Range run : contiguous_runs(ranges)) {
    const Address end = run.address + run.length;
    for (auto next = reservations_.upper_bound(run.address);
         next != reservations_.end() && next->first < end; ++next) {
      runs.push_back({run.address, static_cast<std::size_t>(next->first - run.address)});
      run = {next->first, static_cast<std::size_t>(end - next->first)};
    }
    runs.push_back(run);
  }
  return runs;
}

void CudaReservations::create_decoy() {
  cuda::AllocationProperties properties;
  properties.type = cuda::kAllocationPinned;
  properties.location.type = cuda::kLocationDevice;
  properties.location.id = context_->ordinal();
  check_cuda(cuda_, "reserve (cuMemCreate)", 0, chunk_,
             cuda_.cuMemCreate(&decoy_, chunk_, &properties, 0));
}

void CudaReservations::make_known(const Range& range, std::size_t* known) {
  for (; *known < range.length; *known += chunk_) {
    check_cuda(cuda_, "reserve (cuMemMap)", range.address + *known, chunk_,
               cuda_.cuMemMap(range.address + *known, chunk_, 0, decoy_, 0));
  }
  cuda::AccessDescriptor access;
  access.location.type = cuda::kLocationDevice;
  access.location.id = context_->ordinal();
  access.flags = cuda::kAccessReadWrite;
  check_cuda(cuda_, "reserve (cuMemSetAccess)", range.address, range.length,
             cuda_.cuMemSetAccess(range.address, range.length, &access, 1));
}

cuda::Result CudaReservations::forget(const Range& range, std::size_t known) noexcept {
  if (known > 0) {
    const cuda::Result result = cuda_.cuMemUnmap(range.address, known);
    if (result != cuda::kSuccess) return result;
  }
  return cuda_.cuMemAddressFree(range.address, range.length);
}

}  // namespace nvidia
}  // namespace pyvattn
