// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "base/errors.hpp"
#include "emulation/cuda_state.hpp"

namespace pyvattn::emulation::control {
namespace {

State& state() { return State::instance(); }

void require_function(const std::string& function) {
#define PYVATTN_IS(name, symbol, parameters) \
  if (function == #name) return;
  PYVATTN_LIBCUDA_FUNCTIONS(PYVATTN_IS)
#undef PYVATTN_IS
  throw ConfigError("the emulated libcuda has no function '" + function + "'");
}

void check_handle(cuda::Result result) {
  if (result != cuda::kSuccess)
    throw ConfigError("no such stream or event in the emulated libcuda");
}

}  // namespace

void reset() { State::replace(); }

void fail(const std::string& function, std::size_t nth, cuda::Result status) {
  require_function(function);
  if (nth == 0) throw ConfigError("calls are counted from 1, got 0");
  const auto locked = state().lock();
  state().failures[function][state().calls[function] + nth] = status;
}

void clear_failures() {
  const auto locked = state().lock();
  state().failures.clear();
}

std::size_t calls(const std::string& function) {
  require_function(function);
  const auto locked = state().lock();
  return state().calls[function];
}

Holdings holdings() {
  const auto locked = state().lock();
  Holdings now;
  now.reservations = state().memory.reservations();
  now.allocations = state().memory.allocations();
  now.mappings = state().memory.mappings();
  now.streams = state().streams.streams();
  now.events = state().streams.events();
  for (const PrimaryContext& context : state().contexts) {
    now.contexts += static_cast<std::size_t>(context.retained);
  }
  return now;
}

std::vector<std::string> violations() {
  const auto locked = state().lock();
  return state().violations;
}

void occupy(int device, std::size_t bytes) {
  const auto locked = state().lock();
  state().memory.device(device).set_occupied(bytes);
}

void connect(bool connected) {
  const auto locked = state().lock();
  state().memory.connect(connected);
}

void reset_context(int device) {
  const auto locked = state().lock();
  state().reset_context(device);
}

void set_capturing(bool capturing) {
  const auto locked = state().lock();
  state().capturing = capturing;
}

int capture_mode() { return emulation::capture_mode(); }

cuda::Stream make_stream(int device) {
  const auto locked = state().lock();
  return state().streams.create_stream(device);
}

cuda::Event make_event(int device) {
  const auto locked = state().lock();
  return state().streams.create_event(device);
}

void record_event(int device, cuda::Event event, cuda::Stream stream) {
  const auto locked = state().lock();
  check_handle(state().streams.record(event, stream, device));
}

void destroy_event(cuda::Event event) {
  const auto locked = state().lock();
  check_handle(state().streams.destroy_event(event));
}

std::uint64_t launch_kernel(int device, cuda::Stream stream, cuda::Pointer address,
                            std::size_t size) {
  const auto locked = state().lock();
  std::uint64_t kernel = 0;
  check_handle(state().streams.close_gate(stream, device, &kernel));
  check_handle(state().streams.submit(
      stream, device, [device, address, size] { state().touch(device, address, size, [] {}); }));
  return kernel;
}

void release_kernel(std::uint64_t kernel) {
  const auto locked = state().lock();
  state().streams.open_gate(kernel);
  state().changed();
}

}  // namespace pyvattn::emulation::control
