// SPDX-License-Identifier: Apache-2.0
#include "drivers/registry.hpp"

#include <algorithm>
#include <functional>
#include <utility>

#include "base/errors.hpp"
#include "drivers/accounting.hpp"
#include "drivers/cumem.hpp"
#include "drivers/host.hpp"
#include "drivers/nvidia/patched.hpp"
#include "drivers/nvidia/stock_uvm.hpp"

namespace pyvattn {
namespace {

Capabilities describe_patched(int device) {
  return PatchedDriver::describe(nvidia::real_platform(), device);
}

Capabilities describe_stock_uvm(int device) {
  return StockUvmDriver::describe(nvidia::real_platform(), device);
}

template <typename NvidiaDriver>
DriverPtr make_nvidia(const DriverRequest& request, Capabilities offered) {
  return std::make_shared<NvidiaDriver>(nvidia::real_platform(), request.device, request.page_size,
                                        std::move(offered));
}

std::vector<DriverRow>& table() {
  static std::vector<DriverRow> rows = {
      {"host", [](int) { return HostDriver::describe(); },
       [](const DriverRequest& r, Capabilities) {
         return std::make_shared<HostDriver>(r.page_size);
       },
       nullptr, ""},
      {"host-accounting", [](int) { return HostDriver::describe(); },
       [](const DriverRequest& r, Capabilities) {
         return std::make_shared<AccountingDriver>(r.page_size);
       },
       nullptr, ""},
      {"cumem", [](int device) { return CuMemDriver::describe(real_libcuda(), device); },
       [](const DriverRequest& r, Capabilities offered) {
         return std::make_shared<CuMemDriver>(real_libcuda(), r.device, r.page_size,
                                              std::move(offered));
       },
       real_libcuda, ""},
      {"stock-uvm", describe_stock_uvm, make_nvidia<StockUvmDriver>, real_libcuda, ""},
      {"patched", describe_patched, make_nvidia<PatchedDriver>, real_libcuda, ""},
  };
  return rows;
}

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

const DriverRow& find(const std::string& name) {
  for (const DriverRow& row : table()) {
    if (name == row.name) return row;
  }
  throw ConfigError("unknown driver '" + name + "': choose one of " + join(driver_names()));
}

CudaContextPtr open_context(const std::string& name, int device) {
  const DriverRow& row = find(name);
  if (row.streams == nullptr) {
    throw ConfigError("driver '" + name + "' has no CUDA streams to wait for: leave `after` out");
  }
  return std::make_shared<CudaContext>(row.streams(), device);
}

}  // namespace

void register_driver(DriverRow row) {
  const std::vector<std::string> names = driver_names();
  if (std::find(names.begin(), names.end(), row.name) != names.end()) {
    throw ConfigError("there is a driver called '" + row.name + "' already");
  }
  table().push_back(std::move(row));
}

std::vector<std::string> driver_names() {
  std::vector<std::string> names;
  for (const DriverRow& row : table()) names.push_back(row.name);
  return names;
}

Capabilities driver_capabilities(const std::string& name, int device) {
  return find(name).describe(device);
}

DriverPtr make_driver(const DriverRequest& request) {
  const DriverRow& row = find(request.name);
  Capabilities offered = row.describe(request.device);
  const std::vector<std::size_t>& sizes = offered.page_sizes;
  if (std::find(sizes.begin(), sizes.end(), request.page_size) == sizes.end()) {
    std::vector<std::string> names;
    for (std::size_t size : sizes) names.push_back(std::to_string(size >> 10) + "K");
    throw ConfigError("driver '" + request.name + "' has no pages of " +
                      std::to_string(request.page_size) + " bytes: choose one of " + join(names));
  }
  if (!request.peer_access) {
    offered.peers.clear();
  } else if (offered.peers.empty()) {
    throw ConfigError("peer_access=True: no other device can reach the memory of driver '" +
                      request.name + "' on device " + std::to_string(request.device) +
                      ": leave it out, or use driver='cumem' where GPUs reach each other");
  }
  return row.make(request, std::move(offered));
}

bool has_streams(const std::string& name) { return find(name).streams != nullptr; }

std::string emulated_driver(const std::string& name) { return find(name).emulates; }

FencePtr make_stream_fence(const std::string& name, int device, std::uint64_t stream) {
  return CudaFence::after_stream(open_context(name, device),
                                 reinterpret_cast<cuda::Stream>(stream));
}

FencePtr make_event_fence(const std::string& name, int device, std::uint64_t event) {
  return CudaFence::after_event(open_context(name, device), reinterpret_cast<cuda::Event>(event));
}

}  // namespace pyvattn
