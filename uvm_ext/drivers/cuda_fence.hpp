// SPDX-License-Identifier: Apache-2.0
// Points in the work of a CUDA device, and streams of our own.
#pragma once

#include <memory>

#include "drivers/cuda_context.hpp"
#include "drivers/driver.hpp"

namespace pyvattn {

// An event of our own that waits without spinning. It survives what it was made from:
// the caller may destroy the stream or event that it named.
class CudaFence final : public Fence {
 public:
  // All work submitted to `stream` so far. Null is the default stream; the stream must
  // belong to the context's device and not be capturing.
  static std::shared_ptr<CudaFence> after_stream(CudaContextPtr context, cuda::Stream stream);
  // All work that `event` captured when it was last recorded.
  static std::shared_ptr<CudaFence> after_event(CudaContextPtr context, cuda::Event event);
  ~CudaFence() override;
  CudaFence(const CudaFence&) = delete;
  CudaFence& operator=(const CudaFence&) = delete;

  // Where the context is gone no kernel runs any more: the fence has passed.
  bool passed() override;
  // Sleeps until passed() is true.
  void wait() override;

  // Makes all later work of `stream` wait, and returns at once.
  void hold(cuda::Stream stream) const;

  const CudaContext& context() const { return *context_; }

 private:
  explicit CudaFence(CudaContextPtr context);

  const CudaContextPtr context_;
  cuda::Event event_ = nullptr;
};

// A stream that does not synchronise with the default stream.
class CudaStream {
 public:
  explicit CudaStream(CudaContextPtr context);
  ~CudaStream();
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  cuda::Stream get() const { return stream_; }

 private:
  const CudaContextPtr context_;
  cuda::Stream stream_ = nullptr;
};

}  // namespace pyvattn
