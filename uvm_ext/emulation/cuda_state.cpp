// SPDX-License-Identifier: Apache-2.0
#include "emulation/cuda_state.hpp"

#include <unistd.h>

#include <chrono>

namespace pyvattn::emulation {
namespace {

// Long enough for another thread of a test to release a kernel, short enough that a
// wait for what can never happen fails the test instead of hanging it.
constexpr std::chrono::seconds kPatience{20};

constexpr std::uintptr_t kFirstContext = 0xC0;

std::vector<cuda::Context>& context_stack() {
  thread_local std::vector<cuda::Context> stack;
  return stack;
}

int device_of(cuda::Context context) {
  const auto value = reinterpret_cast<std::uintptr_t>(context);
  const bool known = value >= kFirstContext && value < kFirstContext + kDevices;
  return known ? static_cast<int>(value - kFirstContext) : -1;
}

std::unique_ptr<State>& holder() {
  static std::unique_ptr<State> state = std::make_unique<State>();
  return state;
}

}  // namespace

void write_device_uuid(int device, unsigned char* uuid) {
  for (int i = 0; i < 16; ++i) uuid[i] = static_cast<unsigned char>(0xa0 + 0x20 * device + i);
}

int& capture_mode() {
  thread_local int mode = 0;
  return mode;
}

State& State::instance() { return *holder(); }

void State::replace() { holder() = std::make_unique<State>(); }

cuda::Result State::refuse(Needs needs) const {
  if (needs == Needs::nothing) return cuda::kSuccess;
  if (process_ != ::getpid()) return cuda::kNotInitialized;
  if (needs == Needs::started) return cuda::kSuccess;
  if (fault_ != cuda::kSuccess) return fault_;
  if (capturing && capture_mode() != cuda::kCaptureModeRelaxed) {
    return cuda::kStreamCaptureUnsupported;
  }
  if (needs == Needs::context && current_device() < 0) return cuda::kInvalidContext;
  return cuda::kSuccess;
}

cuda::Result State::call(const char* function, Needs needs,
                         const std::function<cuda::Result()>& run) {
  const auto locked = lock();
  const std::size_t number = ++calls[function];
  std::map<std::size_t, cuda::Result>& planned = failures[function];
  const auto failure = planned.find(number);
  if (failure != planned.end()) {
    const cuda::Result result = failure->second;
    planned.erase(failure);
    return result;
  }
  const cuda::Result refused = refuse(needs);
  return refused != cuda::kSuccess ? refused : run();
}

cuda::Result State::start() {
  if (process_ != 0 && process_ != ::getpid()) return cuda::kNotInitialized;
  process_ = ::getpid();
  return cuda::kSuccess;
}

PrimaryContext* State::find(cuda::Context context) {
  const int device = device_of(context);
  return device < 0 ? nullptr : &contexts.at(static_cast<std::size_t>(device));
}

cuda::Result State::retain(cuda::Context* context, int device) {
  if (device < 0 || device >= kDevices) return cuda::kInvalidDevice;
  PrimaryContext& primary = contexts.at(static_cast<std::size_t>(device));
  ++primary.retained;
  if (!primary.active) primary.id = next_context_id_++;
  primary.active = true;
  *context = reinterpret_cast<cuda::Context>(kFirstContext + static_cast<unsigned>(device));
  return cuda::kSuccess;
}

cuda::Result State::release(int device) {
  if (device < 0 || device >= kDevices) return cuda::kInvalidDevice;
  PrimaryContext& primary = contexts.at(static_cast<std::size_t>(device));
  if (primary.retained == 0) return cuda::kInvalidContext;
  if (--primary.retained == 0) {
    primary.active = false;
    streams.destroy(device);
  }
  return cuda::kSuccess;
}

void State::reset_context(int device) {
  contexts.at(static_cast<std::size_t>(device)).active = false;
  streams.destroy(device);
  memory.destroy(device);
}

cuda::Result State::push(cuda::Context context) {
  const PrimaryContext* primary = find(context);
  if (primary == nullptr) return cuda::kInvalidContext;
  if (!primary->active) return cuda::kContextIsDestroyed;
  context_stack().push_back(context);
  return cuda::kSuccess;
}

cuda::Result State::pop(cuda::Context* context) {
  if (context_stack().empty()) return cuda::kInvalidContext;
  *context = context_stack().back();
  context_stack().pop_back();
  return cuda::kSuccess;
}

int State::current_device() const {
  return context_stack().empty() ? -1 : device_of(context_stack().back());
}

cuda::Result State::synchronize(cuda::Event event) {
  // The caller holds the lock: it is taken over, waited with, and handed back.
  std::unique_lock<std::mutex> held(mutex_, std::adopt_lock);
  streams.advance();
  const bool reached = changed_.wait_for(held, kPatience, [&] {
    streams.advance();
    return streams.query(event) != cuda::kNotReady;
  });
  held.release();
  if (!reached) return cuda::kLaunchTimeout;
  return fault_ != cuda::kSuccess ? fault_ : streams.query(event);
}

void State::touch(int device, cuda::Pointer address, std::size_t size,
                  const std::function<void()>& act) {
  if (size == 0 || fault_ != cuda::kSuccess) return;
  if (!memory.is_accessible(address, size, device) || (is_mapped && !is_mapped(address, size))) {
    fault_ = cuda::kIllegalAddress;
    return;
  }
  act();
}

}  // namespace pyvattn::emulation
