// SPDX-License-Identifier: Apache-2.0
// What NVIDIA's driver offers here.
#include <pybind11/stl.h>

#include "drivers/nvidia/abi.hpp"
#include "drivers/nvidia/patch_query.hpp"
#include "python/bindings.hpp"
#include "python/gil.hpp"

namespace pyvattn::python {
namespace {

using Release = py::call_guard<WithoutGil>;

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
      "query_patch", [] { return nvidia::query_patch(nvidia::real_system()); }, Release(),
      "Asks /dev/nvidia-uvm whether it is patched. Needs no CUDA, changes nothing and raises "
      "nothing, also where there is no driver, no node or no permission.");
}

}  // namespace

void bind_nvidia(py::module_& module) {
  bind_layouts(module);
  bind_patch_query(module);
}

}  // namespace pyvattn::python
