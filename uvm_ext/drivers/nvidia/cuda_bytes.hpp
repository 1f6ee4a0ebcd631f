// SPDX-License-Identifier: Apache-2.0
// Writing and reading device memory through libcuda, on a stream of our own.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "drivers/cuda_fence.hpp"
#include "drivers/driver.hpp"

namespace pyvattn {
namespace nvidia {

class CudaBytes {
 public:
  explicit CudaBytes(CudaContextPtr context);

  // Zeros over the ranges, each inside one reservation, once `after` has passed; the fence
  // says when they are there.
  FencePtr erase(const std::vector<Range>& ranges, const FencePtr& after);
  // Both return when the bytes are there.
  void write(Address address, const std::string& bytes);
  std::string read(Address address, std::size_t count);
  // Free memory of the device, as CUDA counts it.
  std::size_t free_memory() const;

 private:
  void wait() const;

  const CudaContextPtr context_;
  const LibCuda& cuda_;
  const CudaStream stream_;
};

}  // namespace nvidia
}  // namespace pyvattn
