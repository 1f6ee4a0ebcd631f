// SPDX-License-Identifier: Apache-2.0
#include "drivers/cuda_context.hpp"

#include <unistd.h>

#include <string>

#include "base/errors.hpp"

namespace pyvattn {
namespace {

cuda::Result push(const LibCuda& library, const CudaContext& context, cuda::Context handle) {
  const cuda::Result state = context.state();
  return state != cuda::kSuccess ? state : library.cuCtxPushCurrent(handle);
}

}  // namespace

cuda::Device find_cuda_device(const LibCuda& library, int ordinal) {
  start_cuda(library);
  int count = 0;
  check_cuda(library, "count devices (cuDeviceGetCount)", 0, 0, library.cuDeviceGetCount(&count));
  if (ordinal < 0 || ordinal >= count) {
    throw ConfigError("there is no device cuda:" + std::to_string(ordinal) + ": CUDA sees " +
                      std::to_string(count) +
                      " here, numbered from 0 (CUDA_VISIBLE_DEVICES can hide some)");
  }
  cuda::Device device = 0;
  check_cuda(library, "open device (cuDeviceGet)", 0, 0, library.cuDeviceGet(&device, ordinal));
  return device;
}

std::vector<int> find_cuda_peers(const LibCuda& library, cuda::Device device) {
  std::vector<int> peers;
  int count = 0;
  check_cuda(library, "count devices (cuDeviceGetCount)", 0, 0, library.cuDeviceGetCount(&count));
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    const cuda::Device peer = find_cuda_device(library, ordinal);
    if (peer == device) continue;
    int reachable = 0;
    check_cuda(library, "query peer (cuDeviceCanAccessPeer)", 0, 0,
               library.cuDeviceCanAccessPeer(&reachable, peer, device));
    if (reachable != 0) peers.push_back(ordinal);
  }
  return peers;
}

CudaContext::CudaContext(const LibCuda& library, int ordinal)
    : library_(library),
      ordinal_(ordinal),
      process_(::getpid()),
      device_(find_cuda_device(library, ordinal)) {
  check_cuda(library_, "open context (cuDevicePrimaryCtxRetain)", 0, 0,
             library_.cuDevicePrimaryCtxRetain(&context_, device_));
  const cuda::Result result = library_.cuCtxGetId(context_, &id_);
  if (result != cuda::kSuccess) {
    library_.cuDevicePrimaryCtxRelease(device_);
    throw_cuda(library_, "open context (cuCtxGetId)", 0, 0, result);
  }
}

CudaContext::~CudaContext() {
  // A reset does not undo a retain: the release is due even where the context is lost.
  if (!forked()) library_.cuDevicePrimaryCtxRelease(device_);
}

bool CudaContext::forked() const noexcept { return process_ != ::getpid(); }

void CudaContext::require_parent(const char* operation) const {
  if (!forked()) return;
  throw ForkError(std::string(operation) +
                  " in a child process made by fork(): the memory is the parent's; start worker "
                  "processes with the method 'spawn'");
}

cuda::Result CudaContext::state() const noexcept {
  if (forked()) return cuda::kNotInitialized;
  unsigned flags = 0;
  int active = 0;
  cuda::Result result = library_.cuDevicePrimaryCtxGetState(device_, &flags, &active);
  if (result != cuda::kSuccess) return result;
  if (active == 0) return cuda::kContextIsDestroyed;
  // The device may have been used again since a reset: same handle, another id.
  unsigned long long id = 0;
  result = library_.cuCtxGetId(context_, &id);
  if (result != cuda::kSuccess) return result;
  return id == id_ ? cuda::kSuccess : cuda::kContextIsDestroyed;
}

CurrentContext::CurrentContext(const CudaContext& context) noexcept
    : library_(context.library_), status_(push(library_, context, context.context_)) {
  if (status_ == cuda::kSuccess) library_.cuThreadExchangeStreamCaptureMode(&capture_mode_);
}

CurrentContext::CurrentContext(const CudaContext& context, const char* operation,
                               std::uint64_t address, std::size_t size)
    : CurrentContext(context) {
  // The delegated constructor has finished, so a throw here runs the destructor.
  check_cuda(library_, operation, address, size, status_);
}

CurrentContext::~CurrentContext() {
  if (status_ != cuda::kSuccess) return;
  library_.cuThreadExchangeStreamCaptureMode(&capture_mode_);
  cuda::Context popped = nullptr;
  library_.cuCtxPopCurrent(&popped);
}

}  // namespace pyvattn
