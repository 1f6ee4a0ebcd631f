// SPDX-License-Identifier: Apache-2.0
// Addresses that belong to CUDA and to us.
//
// cudaMemcpy and its like look an address up in libcuda's own books before they touch
// it, and refuse what is not there. So the addresses are reserved through libcuda and,
// once, mapped to one small piece of memory again and again. libcuda never looks at the
// page tables afterwards: what lies behind the addresses is then ours to change.
#pragma once

#include <cstddef>
#include <map>
#include <vector>

#include "drivers/cuda_context.hpp"
#include "drivers/driver.hpp"

namespace pyvattn {
namespace nvidia {

class CudaReservations {
 public:
  // `chunk` is how much one call makes known to CUDA, and how much memory that costs: a
  // power of two from 2 MiB on. Chunks begin at multiples of it; see borders.hpp.
  CudaReservations(CudaContextPtr context, std::size_t chunk);
  // Gives everything back, as far as CUDA still answers.
  ~CudaReservations();
  CudaReservations(const CudaReservations&) = delete;
  CudaReservations& operator=(const CudaReservations&) = delete;

  // Returns at least `bytes`, rounded up to whole chunks.
  Range reserve(std::size_t bytes, std::size_t alignment);
  // Nothing of ours may be mapped there. After the context was lost it only forgets.
  void release(Address address);

  // The reservation that holds the address. Throws DriverError.
  Range find(Address address) const;
  std::vector<Range> all() const;
  // Joins ranges whose addresses follow each other, but not from one reservation into the
  // next: they may lie side by side, and no call may go from one into the other.
  std::vector<Range> runs_of(const std::vector<Range>& ranges) const;

 private:
  void create_decoy();
  void make_known(const Range& range, std::size_t* known);
  cuda::Result forget(const Range& range, std::size_t known) noexcept;

  const CudaContextPtr context_;
  const LibCuda& cuda_;
  const std::size_t chunk_;
  // The memory that CUDA believes to be everywhere; it is never seen.
  cuda::Handle decoy_ = 0;
  std::map<Address, std::size_t> reservations_;
};

}  // namespace nvidia
}  // namespace pyvattn
