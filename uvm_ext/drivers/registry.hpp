// The room where every driver is listed: add one here, and it has a name.
#pragma once

#include <string>
#include <vector>

#include "drivers/driver.hpp"

namespace pyvattn {

struct DriverRequest {
  std::string name;
  std::size_t page_size = 0;
  // Ordinal of the CUDA device; the host drivers ignore it.
  int device = 0;
};

// Names that make_driver() knows, in the order of this table.
std::vector<std::string> driver_names();

// What the named driver offers on this machine. Throws ConfigError for an unknown
// name and DriverUnavailable, with the reason, where the machine cannot offer it.
Capabilities driver_capabilities(const std::string& name, int device);

// Throws as driver_capabilities(), and ConfigError for a page size it does not offer.
DriverPtr make_driver(const DriverRequest& request);

// Whether the named driver's memory is used by work on CUDA streams, so that it can
// take the fences below. Throws ConfigError for an unknown name.
bool has_streams(const std::string& name);

// Points in the work of the named driver's device: all that was submitted to a stream
// (CUstream; null is the default stream), or all that an event (CUevent) captured.
// Throw ConfigError for a driver without streams, DriverError where CUDA refuses.
FencePtr make_stream_fence(const std::string& name, int device, std::uint64_t stream);
FencePtr make_event_fence(const std::string& name, int device, std::uint64_t event);

}  // namespace pyvattn
