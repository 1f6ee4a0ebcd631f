// SPDX-License-Identifier: Apache-2.0
// The table of drivers by name. Those of this machine are in it from the start; others,
// such as emulated ones, register themselves.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "drivers/driver.hpp"
#include "drivers/libcuda.hpp"

namespace pyvattn {

struct DriverRequest {
  std::string name;
  std::size_t page_size = 0;
  // Ordinal of the CUDA device; the host drivers ignore it.
  int device = 0;
  // Whether the devices that can reach the memory are given access to it. A map then
  // writes page tables of theirs too, which took 40 times as long on two H200.
  bool peer_access = false;
};

struct DriverRow {
  std::string name;
  std::function<Capabilities(int device)> describe;
  std::function<DriverPtr(const DriverRequest&, Capabilities)> make;
  // Whose streams use the memory; null: none.
  const LibCuda& (*streams)() = nullptr;
  // The driver that it is with another machine beneath, whose memory is ordinary memory;
  // empty where the machine is this one.
  std::string emulates;
};

// Adds a driver behind those that are there. Not while other threads use the table.
void register_driver(DriverRow row);

// Names that make_driver() knows, in the order of this table.
std::vector<std::string> driver_names();

// What the named driver offers on this machine. Throws ConfigError for an unknown
// name and DriverUnavailable, with the reason, where the machine cannot offer it.
Capabilities driver_capabilities(const std::string& name, int device);

// Throws as driver_capabilities(), and ConfigError for a page size that it does not offer
// or for access of peers where there are none that can have it.
DriverPtr make_driver(const DriverRequest& request);

// Whether the named driver's memory is used by work on CUDA streams, so that it can
// take the fences below. Throws ConfigError for an unknown name.
bool has_streams(const std::string& name);

// The driver that the named one emulates, or nothing. Throws ConfigError for an unknown name.
std::string emulated_driver(const std::string& name);

// Points in the work of the named driver's device: all that was submitted to a stream
// (CUstream; null is the default stream), or all that an event (CUevent) captured.
// Throw ConfigError for a driver without streams, DriverError where CUDA refuses.
FencePtr make_stream_fence(const std::string& name, int device, std::uint64_t stream);
FencePtr make_event_fence(const std::string& name, int device, std::uint64_t event);

}  // namespace pyvattn
