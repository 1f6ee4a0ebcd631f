// SPDX-License-Identifier: Apache-2.0
#include "drivers/nvidia/cuda_bytes.hpp"

#include <utility>

namespace pyvattn {
namespace nvidia {

CudaBytes::CudaBytes(CudaContextPtr context)
    : context_(std::move(context)), cuda_(context_->library()), stream_(context_) {}

FencePtr CudaBytes::erase(const std::vector<Range>& ranges, const FencePtr& after) {
  const Range first = ranges.empty() ? Range{} : ranges.front();
  const CurrentContext current(*context_, "zero", first.address, first.length);
  const auto fence = std::dynamic_pointer_cast<CudaFence>(after);
  if (fence && &fence->context().library() == &cuda_) {
    fence->hold(stream_.get());
  } else if (after) {
    after->wait();
  }
  for (const Range& run : ranges) {
    const cuda::Result result = cuda_.cuMemsetD8Async(run.address, 0, run.length, stream_.get());
    if (result == cuda::kSuccess) continue;
    // The caller may unmap at once: let what was submitted finish first.
    wait();
    throw_cuda(cuda_, "zero (cuMemsetD8Async)", run.address, run.length, result);
  }
  return CudaFence::after_stream(context_, stream_.get());
}

void CudaBytes::write(Address address, const std::string& bytes) {
  const CurrentContext current(*context_, "write", address, bytes.size());
  check_cuda(cuda_, "write (cuMemcpyHtoDAsync)", address, bytes.size(),
             cuda_.cuMemcpyHtoDAsync(address, bytes.data(), bytes.size(), stream_.get()));
  wait();
}

std::string CudaBytes::read(Address address, std::size_t count) {
  std::string bytes(count, '\xee');
  const CurrentContext current(*context_, "read", address, count);
  check_cuda(cuda_, "read (cuMemcpyDtoHAsync)", address, count,
             cuda_.cuMemcpyDtoHAsync(&bytes[0], address, count, stream_.get()));
  wait();
  return bytes;
}

std::size_t CudaBytes::free_memory() const {
  const CurrentContext current(*context_, "count memory", 0, 0);
  std::size_t free = 0;
  std::size_t total = 0;
  check_cuda(cuda_, "count memory (cuMemGetInfo)", 0, 0, cuda_.cuMemGetInfo(&free, &total));
  return free;
}

void CudaBytes::wait() const { CudaFence::after_stream(context_, stream_.get())->wait(); }

}  // namespace nvidia
}  // namespace pyvattn
