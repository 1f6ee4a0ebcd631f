// SPDX-License-Identifier: Apache-2.0
// Layouts of the structures that NVIDIA's driver takes, by release. The driver offers
// them only to its own libraries and changes them at will, so a release that
// is not in the table is not spoken to.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pyvattn {
namespace nvidia {

// Sizes of structures and offsets of their fields, in bytes, and ioctl numbers.
struct Layout {
  // NVOS21_PARAMETERS (allocate an object), NVOS64 (the same with access rights),
  // NVOS00 (free it), NVOS54 (control it).
  std::uint16_t rm_alloc_status, rm_alloc_bytes, rm_alloc_access_bytes, rm_free_bytes,
      rm_control_bytes;
  // NV_MEMORY_ALLOCATION_PARAMS.
  std::uint16_t memory_bytes, memory_attr, memory_attr2, memory_size, memory_alignment,
      memory_limit;
  // NV0080_ALLOC_PARAMETERS, NV2080_ALLOC_PARAMETERS.
  std::uint16_t device_bytes, subdevice_bytes;
  // UvmGpuMappingAttributes.
  std::uint16_t gpu_attributes_bytes, max_gpus;
  // UVM_MAP_EXTERNAL_ALLOCATION_PARAMS.
  std::uint16_t map_bytes, map_per_gpu, map_gpu_count, map_rm_control_fd, map_client, map_memory,
      map_status;
  std::uint16_t map_number, unmap_number, range_number, free_number;
  // UVM_UNMAP_EXTERNAL_PARAMS, UVM_CREATE_EXTERNAL_RANGE_PARAMS.
  std::uint16_t unmap_bytes, unmap_uuid, unmap_status;
  std::uint16_t range_bytes;
};

struct LayoutRow {
  Layout layout;
  std::vector<const char*> releases;
};

// Ascending releases; every release is in one row.
const std::vector<LayoutRow>& layout_rows();

// Null where the release is unknown.
const Layout* find_layout(const std::string& release);

}  // namespace nvidia
}  // namespace pyvattn
