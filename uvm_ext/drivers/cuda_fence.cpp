// SPDX-License-Identifier: Apache-2.0
#include "drivers/cuda_fence.hpp"

#include <utility>

namespace pyvattn {
namespace {

bool is_gone(cuda::Result state) {
  return state == cuda::kContextIsDestroyed || state == cuda::kInvalidContext ||
         state == cuda::kDeinitialized;
}

}  // namespace

CudaFence::CudaFence(CudaContextPtr context) : context_(std::move(context)) {
  const CurrentContext current(*context_, "make fence", 0, 0);
  const LibCuda& library = context_->library();
  check_cuda(library, "make fence (cuEventCreate)", 0, 0,
             library.cuEventCreate(&event_, cuda::kEventBlockingSync | cuda::kEventDisableTiming));
}

CudaFence::~CudaFence() {
  const CurrentContext current(*context_);
  if (current.status() == cuda::kSuccess) context_->library().cuEventDestroy(event_);
}

std::shared_ptr<CudaFence> CudaFence::after_stream(CudaContextPtr context, cuda::Stream stream) {
  const std::shared_ptr<CudaFence> fence(new CudaFence(std::move(context)));
  const CurrentContext current(*fence->context_, "make fence", 0, 0);
  const LibCuda& library = fence->context_->library();
  check_cuda(library, "make fence (cuEventRecord)", 0, 0,
             library.cuEventRecord(fence->event_, stream));
  return fence;
}

std::shared_ptr<CudaFence> CudaFence::after_event(CudaContextPtr context, cuda::Event event) {
  // One stream for each: on a shared one, fences would wait for those made before them.
  const CudaStream relay(context);
  const CurrentContext current(*context, "make fence", 0, 0);
  const LibCuda& library = context->library();
  check_cuda(library, "make fence (cuStreamWaitEvent)", 0, 0,
             library.cuStreamWaitEvent(relay.get(), event, 0));
  return after_stream(std::move(context), relay.get());
}

bool CudaFence::passed() {
  const CurrentContext current(*context_);
  if (is_gone(current.status())) return true;
  const LibCuda& library = context_->library();
  check_cuda(library, "query fence", 0, 0, current.status());
  const cuda::Result result = library.cuEventQuery(event_);
  if (result == cuda::kNotReady) return false;
  check_cuda(library, "query fence (cuEventQuery)", 0, 0, result);
  return true;
}

void CudaFence::wait() {
  const CurrentContext current(*context_);
  if (is_gone(current.status())) return;
  const LibCuda& library = context_->library();
  check_cuda(library, "wait for fence", 0, 0, current.status());
  check_cuda(library, "wait for fence (cuEventSynchronize)", 0, 0,
             library.cuEventSynchronize(event_));
}

void CudaFence::hold(cuda::Stream stream) const {
  const CurrentContext current(*context_, "hold stream", 0, 0);
  const LibCuda& library = context_->library();
  check_cuda(library, "hold stream (cuStreamWaitEvent)", 0, 0,
             library.cuStreamWaitEvent(stream, event_, 0));
}

CudaStream::CudaStream(CudaContextPtr context) : context_(std::move(context)) {
  const CurrentContext current(*context_, "make stream", 0, 0);
  const LibCuda& library = context_->library();
  check_cuda(library, "make stream (cuStreamCreate)", 0, 0,
             library.cuStreamCreate(&stream_, cuda::kStreamNonBlocking));
}

CudaStream::~CudaStream() {
  const CurrentContext current(*context_);
  if (current.status() == cuda::kSuccess) context_->library().cuStreamDestroy(stream_);
}

}  // namespace pyvattn
