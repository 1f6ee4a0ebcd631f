// What NVIDIA's driver offers here, and the controls of the emulated NVIDIA machine.
#include <pybind11/stl.h>

#include <algorithm>

#include "drivers/nvidia/abi.hpp"
#include "drivers/nvidia/patch_query.hpp"
#include "emulation/nvidia_machine.hpp"
#include "python/bindings.hpp"
#include "python/gil.hpp"

namespace pyvattn::python {
namespace {

using Release = py::call_guard<WithoutGil>;
namespace control = emulation::nvidia_control;

struct LayoutField {
  const char* name;
  std::uint16_t nvidia::Layout::* field;
};

constexpr LayoutField kLayoutFields[] = {
    {"rm_alloc_status", &nvidia::Layout::rm_alloc_status},
    {"rm_alloc_bytes", &nvidia::Layout::rm_alloc_bytes},
    {"rm_alloc_access_bytes", &nvidia::Layout::rm_alloc_access_bytes},
    {"rm_free_bytes", &nvidia::Layout::rm_free_bytes},
    {"rm_control_bytes", &nvidia::Layout::rm_control_bytes},
    {"memory_bytes", &nvidia::Layout::memory_bytes},
    {"memory_attr", &nvidia::Layout::memory_attr},
    {"memory_attr2", &nvidia::Layout::memory_attr2},
    {"memory_size", &nvidia::Layout::memory_size},
    {"memory_alignment", &nvidia::Layout::memory_alignment},
    {"memory_limit", &nvidia::Layout::memory_limit},
    {"device_bytes", &nvidia::Layout::device_bytes},
    {"subdevice_bytes", &nvidia::Layout::subdevice_bytes},
    {"gpu_attributes_bytes", &nvidia::Layout::gpu_attributes_bytes},
    {"max_gpus", &nvidia::Layout::max_gpus},
    {"map_bytes", &nvidia::Layout::map_bytes},
    {"map_per_gpu", &nvidia::Layout::map_per_gpu},
    {"map_gpu_count", &nvidia::Layout::map_gpu_count},
    {"map_rm_control_fd", &nvidia::Layout::map_rm_control_fd},
    {"map_client", &nvidia::Layout::map_client},
    {"map_memory", &nvidia::Layout::map_memory},
    {"map_status", &nvidia::Layout::map_status},
    {"map_number", &nvidia::Layout::map_number},
    {"unmap_number", &nvidia::Layout::unmap_number},
    {"range_number", &nvidia::Layout::range_number},
    {"free_number", &nvidia::Layout::free_number},
    {"unmap_bytes", &nvidia::Layout::unmap_bytes},
    {"unmap_uuid", &nvidia::Layout::unmap_uuid},
    {"unmap_status", &nvidia::Layout::unmap_status},
    {"range_bytes", &nvidia::Layout::range_bytes},
};

py::dict layout_of(const nvidia::Layout& layout) {
  py::dict fields;
  for (const LayoutField& field : kLayoutFields) fields[field.name] = layout.*field.field;
  return fields;
}

void bind_layouts(py::module_& module) {
  module.def(
      "driver_layouts",
      [] {
        py::list rows;
        for (const nvidia::LayoutRow& row : nvidia::layout_rows()) {
          rows.append(py::make_tuple(layout_of(row.layout), py::cast(row.releases)));
        }
        return rows;
      },
      "The layouts of NVIDIA's ioctls that are known, each with the driver releases that "
      "have it, ascending.");
}

void bind_patch_query(py::module_& module) {
  using nvidia::PatchQuery;
  py::class_<PatchQuery>(module, "PatchQuery", "What the loaded nvidia-uvm says of our patch.")
      .def_readonly("usable", &PatchQuery::usable)
      .def_readonly("reason", &PatchQuery::reason, "Why it is not usable; empty where it is.")
      .def_readonly("version", &PatchQuery::version, "Of the interface; 0 where there is none.")
      .def_readonly("page_sizes", &PatchQuery::page_sizes, "Bytes, ascending.")
      .def_readonly("max_batch", &PatchQuery::max_batch, "Entries in one call.")
      .def_readonly("max_alloc_bytes", &PatchQuery::max_alloc_bytes)
      .def_readonly("limit_bytes", &PatchQuery::limit_bytes, "Most that one process may hold.");
  module.def(
      "query_patch",
      [](bool emulated) {
        return nvidia::query_patch(emulated ? *emulation::nvidia_platform().system
                                            : nvidia::real_system());
      },
      py::arg("emulated") = false, Release(),
      "Asks /dev/nvidia-uvm whether it is patched. Needs no CUDA, changes nothing and raises "
      "nothing, also where there is no driver, no node or no permission.");
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
      .def_readwrite("loses_memory", &NvidiaSettings::loses_memory)
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
  module.def("reset", &control::reset, py::arg_v("settings", NvidiaSettings{}, "Settings()"),
             Release(), "Starts the machine, and the emulated CUDA with it, from new.");
  module.def("fail", &control::fail, py::arg("ioctl"), py::arg("nth"), py::arg("status"), Release(),
             "The nth call (1: the next) of an ioctl, by NVIDIA's name, answers an NV_STATUS.");
  module.def("fail_call", &control::fail_call, py::arg("ioctl"), py::arg("nth"), py::arg("error"),
             Release(), "The same with an errno.");
  module.def("calls", &control::calls, py::arg("ioctl"), Release(),
             "Calls of an ioctl since reset().");
  module.def("holdings", &control::holdings, Release());
  module.def("mappings", &control::mappings, Release(),
             "A line for each mapping: address, length, entries, access, who made it.");
  module.def("ioctl", &raw_ioctl, py::arg("path"), py::arg("request"), py::arg("block"),
             "Opens a node, makes one ioctl, closes it: (errno or 0, the block afterwards).");
}

}  // namespace

void bind_nvidia(py::module_& module) {
  bind_layouts(module);
  bind_patch_query(module);
  bind_machine(module);
}

}  // namespace pyvattn::python
