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
#include "emulation/libcuda.hpp"
#include "emulation/nvidia_machine.hpp"

namespace pyvattn {
namespace {

struct Row {
  const char* name;
  std::function<Capabilities(int device)> describe;
  std::function<DriverPtr(const DriverRequest&)> make;
  // Whose streams use the memory; null: none.
  const LibCuda& (*streams)() = nullptr;
};

// The emulated device's memory is ordinary memory: its tensors are CPU tensors.
Capabilities describe_emulated_cumem(int device) {
  Capabilities capabilities = CuMemDriver::describe(emulation::libcuda(), device);
  capabilities.name = "cumem-emulated";
  capabilities.dlpack_device_type = 1;
  capabilities.dlpack_device_id = 0;
  return capabilities;
}

DriverPtr make_cumem(const LibCuda& library, const DriverRequest& request,
                     Capabilities capabilities) {
  return std::make_shared<CuMemDriver>(library, request.device, request.page_size,
                                       std::move(capabilities));
}

// Smaller than on a GPU: the emulated memory is the machine's own.
constexpr std::size_t kEmulatedChunk = 4u << 20;

Capabilities describe_emulated_stock_uvm(int device) {
  Capabilities capabilities = StockUvmDriver::describe(emulation::nvidia_platform(), device);
  capabilities.name = "stock-uvm-emulated";
  capabilities.dlpack_device_type = 1;
  capabilities.dlpack_device_id = 0;
  return capabilities;
}

Capabilities describe_patched(int device) {
  return PatchedDriver::describe(nvidia::real_platform(), device);
}

Capabilities describe_emulated_patched(int device) {
  Capabilities capabilities = PatchedDriver::describe(emulation::nvidia_platform(), device);
  capabilities.name = "patched-emulated";
  capabilities.dlpack_device_type = 1;
  capabilities.dlpack_device_id = 0;
  return capabilities;
}

Capabilities describe_stock_uvm(int device) {
  return StockUvmDriver::describe(nvidia::real_platform(), device);
}

const std::vector<Row>& table() {
  static const std::vector<Row> rows = {
      {"host", [](int) { return HostDriver::describe(); },
       [](const DriverRequest& r) { return std::make_shared<HostDriver>(r.page_size); }},
      {"host-accounting", [](int) { return HostDriver::describe(); },
       [](const DriverRequest& r) { return std::make_shared<AccountingDriver>(r.page_size); }},
      {"cumem", [](int device) { return CuMemDriver::describe(real_libcuda(), device); },
       [](const DriverRequest& r) {
         return make_cumem(real_libcuda(), r, CuMemDriver::describe(real_libcuda(), r.device));
       },
       real_libcuda},
      {"cumem-emulated", describe_emulated_cumem,
       [](const DriverRequest& r) {
         return make_cumem(emulation::libcuda(), r, describe_emulated_cumem(r.device));
       },
       emulation::libcuda},
      {"stock-uvm", describe_stock_uvm,
       [](const DriverRequest& r) {
         return std::make_shared<StockUvmDriver>(nvidia::real_platform(), r.device, r.page_size,
                                                 describe_stock_uvm(r.device));
       },
       real_libcuda},
      {"stock-uvm-emulated", describe_emulated_stock_uvm,
       [](const DriverRequest& r) {
         return std::make_shared<StockUvmDriver>(emulation::nvidia_platform(), r.device,
                                                 r.page_size, describe_emulated_stock_uvm(r.device),
                                                 kEmulatedChunk);
       },
       emulation::nvidia_libcuda},
      {"patched", describe_patched,
       [](const DriverRequest& r) {
         return std::make_shared<PatchedDriver>(nvidia::real_platform(), r.device, r.page_size,
                                                describe_patched(r.device));
       },
       real_libcuda},
      {"patched-emulated", describe_emulated_patched,
       [](const DriverRequest& r) {
         return std::make_shared<PatchedDriver>(emulation::nvidia_platform(), r.device, r.page_size,
                                                describe_emulated_patched(r.device),
                                                kEmulatedChunk);
       },
       emulation::nvidia_libcuda},
  };
  return rows;
}

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

const Row& find(const std::string& name) {
  for (const Row& row : table()) {
    if (name == row.name) return row;
  }
  throw ConfigError("unknown driver '" + name + "': choose one of " + join(driver_names()));
}

CudaContextPtr open_context(const std::string& name, int device) {
  const Row& row = find(name);
  if (row.streams == nullptr) {
    throw ConfigError("driver '" + name + "' has no CUDA streams to wait for: leave `after` out");
  }
  return std::make_shared<CudaContext>(row.streams(), device);
}

}  // namespace

std::vector<std::string> driver_names() {
  std::vector<std::string> names;
  for (const Row& row : table()) names.emplace_back(row.name);
  return names;
}

Capabilities driver_capabilities(const std::string& name, int device) {
  return find(name).describe(device);
}

DriverPtr make_driver(const DriverRequest& request) {
  const Row& row = find(request.name);
  const std::vector<std::size_t> sizes = row.describe(request.device).page_sizes;
  if (std::find(sizes.begin(), sizes.end(), request.page_size) == sizes.end()) {
    std::vector<std::string> offered;
    for (std::size_t size : sizes) offered.push_back(std::to_string(size >> 10) + "K");
    throw ConfigError("driver '" + request.name + "' has no pages of " +
                      std::to_string(request.page_size) + " bytes: choose one of " + join(offered));
  }
  return row.make(request);
}

bool has_streams(const std::string& name) { return find(name).streams != nullptr; }

FencePtr make_stream_fence(const std::string& name, int device, std::uint64_t stream) {
  return CudaFence::after_stream(open_context(name, device),
                                 reinterpret_cast<cuda::Stream>(stream));
}

FencePtr make_event_fence(const std::string& name, int device, std::uint64_t event) {
  return CudaFence::after_event(open_context(name, device), reinterpret_cast<cuda::Event>(event));
}

}  // namespace pyvattn
