// SPDX-License-Identifier: Apache-2.0
// The primary context of one device, the one that torch and the CUDA runtime use.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "drivers/libcuda.hpp"

namespace pyvattn {

// Keeps the primary context alive from construction to destruction, so that it does
// not matter whether torch starts before or ends after us. It is retained and not
// taken from the calling thread: the mapper thread has no current context, and memory
// mapped for a device is accessible from all of its contexts.
class CudaContext {
 public:
  // Throws ConfigError for an ordinal that CUDA does not see here.
  CudaContext(const LibCuda& library, int ordinal);
  ~CudaContext();
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  const LibCuda& library() const { return library_; }
  int ordinal() const { return ordinal_; }

  // True in a child made by fork(), which shares nothing of its parent's context.
  bool forked() const noexcept;
  // Throws ForkError there.
  void require_parent(const char* operation) const;

  // Success, or why streams, events and memory of this context must not be touched
  // any more: it was reset or destroyed, or this is a child made by fork().
  cuda::Result state() const noexcept;

 private:
  friend class CurrentContext;

  const LibCuda& library_;
  const int ordinal_;
  const pid_t process_;
  cuda::Device device_ = 0;
  cuda::Context context_ = nullptr;
  unsigned long long id_ = 0;
};
using CudaContextPtr = std::shared_ptr<const CudaContext>;

// Makes the context current in this thread for a scope. While another thread captures
// a CUDA graph, calls that allocate are refused and spoil the capture; ours never
// belong to a capture, so the scope is also exempt from that check.
class CurrentContext {
 public:
  explicit CurrentContext(const CudaContext& context) noexcept;
  // Throws where the context cannot be used.
  CurrentContext(const CudaContext& context, const char* operation, std::uint64_t address,
                 std::size_t size);
  ~CurrentContext();
  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;

  // Success, or why nothing was made current.
  cuda::Result status() const { return status_; }

 private:
  const LibCuda& library_;
  const cuda::Result status_;
  int capture_mode_ = cuda::kCaptureModeRelaxed;
};

// The device with this ordinal; starts CUDA. Throws ConfigError, DriverUnavailable.
cuda::Device find_cuda_device(const LibCuda& library, int ordinal);

// Ordinals of the other devices that can reach memory of `device` (NVLink, PCIe).
std::vector<int> find_cuda_peers(const LibCuda& library, cuda::Device device);

}  // namespace pyvattn
