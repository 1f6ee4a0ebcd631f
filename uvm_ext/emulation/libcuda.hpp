// SPDX-License-Identifier: Apache-2.0
// An emulated libcuda with two devices, for tests on machines without a GPU. It is
// reached through the driver name "cumem-emulated" only.
//
// Like the real library it is one for the whole process. It refuses what CUDA's
// documentation forbids with the status that it names, notes in violations() what the
// documentation leaves undefined (a real driver may crash there), and can be told to
// fail.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "drivers/libcuda.hpp"

namespace pyvattn::emulation {

const LibCuda& libcuda();

// What one device holds now; all zeros after everything was given back.
struct Holdings {
  std::size_t reservations = 0;
  std::size_t allocations = 0;
  std::size_t mappings = 0;
  std::size_t streams = 0;
  std::size_t events = 0;
  std::size_t contexts = 0;
};

// Controls for tests. All but the gates forget nothing until reset().
namespace control {

// Starts from new: all handles and memory of the emulated devices are void.
void reset();

// The nth call of the function from now on (1: the next) returns `status` and does
// nothing. Throws ConfigError for a function that the table lacks.
void fail(const std::string& function, std::size_t nth, cuda::Result status);
// Takes back what fail() planned and did not happen yet.
void clear_failures();

// Calls of the function since reset(), failed ones included.
std::size_t calls(const std::string& function);

Holdings holdings();
std::vector<std::string> violations();

// Bytes of the device that another process takes.
void occupy(int device, std::size_t bytes);

// Whether the devices can reach each other's memory; they can at first.
void connect(bool connected);

// cuDevicePrimaryCtxReset: all memory, streams and events of the device are gone.
void reset_context(int device);

// While one thread captures a CUDA graph in the default mode.
void set_capturing(bool capturing);
// The calling thread's capture mode, a CUstreamCaptureMode.
int capture_mode();

cuda::Stream make_stream(int device);
cuda::Event make_event(int device);
void record_event(int device, cuda::Event event, cuda::Stream stream);
void destroy_event(cuda::Event event);

// A kernel that stops the stream until release_kernel(), then reads the range (an empty
// one reads nothing). Reading what is not mapped is the fault that a GPU reports: every
// later call fails with CUDA_ERROR_ILLEGAL_ADDRESS.
std::uint64_t launch_kernel(int device, cuda::Stream stream, cuda::Pointer address,
                            std::size_t size);
void release_kernel(std::uint64_t kernel);

}  // namespace control
}  // namespace pyvattn::emulation
