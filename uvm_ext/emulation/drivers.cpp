// SPDX-License-Identifier: Apache-2.0
#include "emulation/drivers.hpp"

#include <cstddef>
#include <memory>
#include <utility>

#include "drivers/cumem.hpp"
#include "drivers/nvidia/patched.hpp"
#include "drivers/nvidia/stock_uvm.hpp"
#include "drivers/registry.hpp"
#include "emulation/libcuda.hpp"
#include "emulation/nvidia_machine.hpp"

namespace pyvattn::emulation {
namespace {

// Smaller than on a GPU: the emulated memory is the machine's own.
constexpr std::size_t kChunk = 4u << 20;

// The emulated device's memory is ordinary memory: its tensors are CPU tensors.
Capabilities as_emulated(Capabilities capabilities) {
  capabilities.name += "-emulated";
  capabilities.dlpack_device_type = 1;
  capabilities.dlpack_device_id = 0;
  return capabilities;
}

Capabilities describe_cumem(int device) {
  return as_emulated(CuMemDriver::describe(libcuda(), device));
}

Capabilities describe_stock_uvm(int device) {
  return as_emulated(StockUvmDriver::describe(nvidia_platform(), device));
}

Capabilities describe_patched(int device) {
  return as_emulated(PatchedDriver::describe(nvidia_platform(), device));
}

DriverPtr make_cumem(const DriverRequest& request, Capabilities capabilities) {
  return std::make_shared<CuMemDriver>(libcuda(), request.device, request.page_size,
                                       std::move(capabilities));
}

template <typename NvidiaDriver>
DriverPtr make_nvidia(const DriverRequest& request, Capabilities capabilities) {
  return std::make_shared<NvidiaDriver>(nvidia_platform(), request.device, request.page_size,
                                        std::move(capabilities), kChunk);
}

}  // namespace

void register_drivers() {
  register_driver({"cumem-emulated", describe_cumem, make_cumem, libcuda, "cumem"});
  register_driver({"stock-uvm-emulated", describe_stock_uvm, make_nvidia<StockUvmDriver>,
                   nvidia_libcuda, "stock-uvm"});
  register_driver({"patched-emulated", describe_patched, make_nvidia<PatchedDriver>, nvidia_libcuda,
                   "patched"});
}

}  // namespace pyvattn::emulation
