// SPDX-License-Identifier: Apache-2.0
// The emulated drivers, and the controls of the emulated libcuda and NVIDIA machine.
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <utility>

#include "drivers/nvidia/patch_query.hpp"
#include "emulation/drivers.hpp"
#include "emulation/libcuda.hpp"
#include "emulation/nvidia_machine.hpp"
#include "ledger/lease.hpp"
#include "python/bindings.hpp"
#include "python/gil.hpp"

namespace pyvattn::python {
namespace {

using Release = py::call_guard<WithoutGil>;
namespace control = emulation::control;
namespace nvidia_control = emulation::nvidia_control;

std::uint64_t number(const void* handle) { return reinterpret_cast<std::uint64_t>(handle); }

void bind_libcuda(py::module_& parent) {
  py::module_ module = parent.def_submodule(
      "emulated_cuda", "Controls of the emulated libcuda behind the driver cumem-emulated.");
  using emulation::Holdings;
  py::class_<Holdings>(module, "Holdings", "What the emulated devices hold now.")
      .def_readonly("reservations", &Holdings::reservations)
      .def_readonly("allocations", &Holdings::allocations)
      .def_readonly("mappings", &Holdings::mappings)
      .def_readonly("streams", &Holdings::streams)
      .def_readonly("events", &Holdings::events)
      .def_readonly("contexts", &Holdings::contexts);
  module.def("reset", &control::reset, Release(), "Starts from new; every handle is void.");
  module.def("fail", &control::fail, py::arg("function"), py::arg("nth"), py::arg("status"),
             "The nth call (1: the next) of a function returns a CUresult.", Release());
  module.def("clear_failures", &control::clear_failures, Release());
  module.def("calls", &control::calls, py::arg("function"), "Calls of a function since reset().",
             Release());
  module.def("holdings", &control::holdings, Release());
  module.def("violations", &control::violations,
             "Uses of void handles and the like, which CUDA leaves undefined.", Release());
  module.def("occupy", &control::occupy, py::arg("device"), py::arg("bytes"),
             "Bytes that another process takes.", Release());
  module.def("connect", &control::connect, py::arg("connected"),
             "Whether the devices can reach each other's memory; they can at first.", Release());
  module.def("reset_context", &control::reset_context, py::arg("device"),
             "cuDevicePrimaryCtxReset, as if called by other code.", Release());
  module.def("set_capturing", &control::set_capturing, py::arg("capturing"),
             "While another thread captures a CUDA graph.", Release());
  module.def("capture_mode", &control::capture_mode, "The calling thread's CUstreamCaptureMode.",
             Release());
  module.def(
      "make_stream", [](int device) { return number(control::make_stream(device)); },
      py::arg("device"), Release());
  module.def(
      "make_event", [](int device) { return number(control::make_event(device)); },
      py::arg("device"), Release());
  module.def(
      "record_event",
      [](int device, std::uint64_t event, std::uint64_t stream) {
        control::record_event(device, reinterpret_cast<cuda::Event>(event),
                              reinterpret_cast<cuda::Stream>(stream));
      },
      py::arg("device"), py::arg("event"), py::arg("stream"), Release());
  module.def(
      "destroy_event",
      [](std::uint64_t event) { control::destroy_event(reinterpret_cast<cuda::Event>(event)); },
      py::arg("event"), Release());
  module.def(
      "launch_kernel",
      [](int device, std::uint64_t stream, Address address, std::size_t size) {
        return control::launch_kernel(device, reinterpret_cast<cuda::Stream>(stream), address,
                                      size);
      },
      py::arg("device"), py::arg("stream"), py::arg("address") = 0, py::arg("size") = 0,
      "A kernel that runs until release_kernel() and then reads the range.", Release());
  module.def("release_kernel", &control::release_kernel, py::arg("kernel"), Release());
}

using emulation::NvidiaHoldings;
using emulation::NvidiaSettings;

void bind_settings(py::module_& module) {
  py::class_<NvidiaSettings>(module, "Settings", "What the emulated machine is.")
      .def(py::init<>())
      .def_readwrite("release", &NvidiaSettings::release, "What /proc says.")
      .def_readwrite("layout_of", &NvidiaSettings::layout_of,
                     "The release whose structures the ioctls really take.")
      .def_readwrite("patched", &NvidiaSettings::patched)
      .def_readwrite("patch_version", &NvidiaSettings::patch_version)
      .def_readwrite("sysfs", &NvidiaSettings::sysfs)
      .def_readwrite("mig", &NvidiaSettings::mig)
      .def_readwrite("vgpu", &NvidiaSettings::vgpu)
      .def_readwrite("confidential", &NvidiaSettings::confidential)
      .def_readwrite("wsl", &NvidiaSettings::wsl)
      .def_readwrite("nvml", &NvidiaSettings::nvml)
      .def_readwrite("frees_lost", &NvidiaSettings::frees_lost)
      .def_readwrite("missing_nodes", &NvidiaSettings::missing_nodes)
      .def_readwrite("forbidden_nodes", &NvidiaSettings::forbidden_nodes);
  py::class_<NvidiaHoldings>(module, "Holdings", "What our clients hold now.")
      .def_readonly("clients", &NvidiaHoldings::clients)
      .def_readonly("objects", &NvidiaHoldings::objects)
      .def_readonly("descriptors", &NvidiaHoldings::descriptors)
      .def_readonly("vattn_handles", &NvidiaHoldings::vattn_handles);
}

// Larger than the structure of any ioctl, so that none reaches past a block that is too short.
constexpr std::size_t kLargestBlock = 64u << 10;

// An ioctl as the driver would make it, for tests of the emulator itself.
std::pair<int, py::bytes> raw_ioctl(const std::string& path, std::uint64_t request,
                                    std::string block) {
  nvidia::System& system = *emulation::nvidia_platform().system;
  const int fd = system.open(path);
  if (fd < 0) return {-fd, py::bytes(block)};
  const nvidia::File file(system, fd);
  const std::size_t given = block.size();
  block.resize(std::max(given, kLargestBlock));
  const int error = system.ioctl(fd, request, &block[0]);
  return {error, py::bytes(block.data(), given)};
}

void bind_machine(py::module_& parent) {
  py::module_ module = parent.def_submodule(
      "emulated_nvidia",
      "Controls of the emulated NVIDIA machine behind the drivers stock-uvm-emulated and "
      "patched-emulated.");
  bind_settings(module);
  module.def("reset", &nvidia_control::reset, py::arg_v("settings", NvidiaSettings{}, "Settings()"),
             Release(), "Starts the machine, and the emulated CUDA with it, from new.");
  module.def("fail", &nvidia_control::fail, py::arg("ioctl"), py::arg("nth"), py::arg("status"),
             Release(),
             "The nth call (1: the next) of an ioctl, by NVIDIA's name, answers an NV_STATUS.");
  module.def("fail_call", &nvidia_control::fail_call, py::arg("ioctl"), py::arg("nth"),
             py::arg("error"), Release(), "The same with an errno.");
  module.def("calls", &nvidia_control::calls, py::arg("ioctl"), Release(),
             "Calls of an ioctl since reset().");
  module.def("holdings", &nvidia_control::holdings, Release());
  module.def(
      "query_patch", [] { return nvidia::query_patch(*emulation::nvidia_platform().system); },
      Release(), "As _native.query_patch(), of the emulated machine's nvidia-uvm.");
  module.def("mappings", &nvidia_control::mappings, Release(),
             "A line for each mapping: address, length, entries, access, who made it.");
  module.def("ioctl", &raw_ioctl, py::arg("path"), py::arg("request"), py::arg("block"),
             "Opens a node, makes one ioctl, closes it: (errno or 0, the block afterwards).");
}

void bind_mortal_leases(py::module_& parent) {
  using ledger::Lease;
  py::module_ module = parent.def_submodule(
      "emulated_members", "Members of a ledger that can be killed without ending a process.");
  module.def(
      "join",
      [](std::string path, std::uint64_t budget, std::uint64_t chunk_bytes, std::string name,
         std::uint64_t guarantee, std::uint32_t weight) {
        ledger::MemberOptions options;
        options.name = std::move(name);
        options.guarantee = guarantee;
        options.weight = weight;
        // A process that is not there.
        options.process = ledger::Process::self();
        options.process->start_time += 1;
        const ledger::FileOptions file{std::move(path), "emulated", budget, chunk_bytes};
        return std::make_shared<Lease>(file, options, false);
      },
      py::arg("path"), py::arg("budget"), py::arg("chunk_bytes"), py::arg("name"),
      py::arg("guarantee"), py::arg("weight"), Release(),
      "A lease that does nothing by itself: call attend().");
  module.def("kill", [](Lease& lease) { lease.abandon(); }, py::arg("lease"), Release());
}

}  // namespace

void bind_emulation(py::module_& module) {
  bind_mortal_leases(module);
  emulation::register_drivers();
  bind_libcuda(module);
  bind_machine(module);
}

}  // namespace pyvattn::python
