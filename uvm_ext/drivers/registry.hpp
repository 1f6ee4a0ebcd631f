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

}  // namespace pyvattn
