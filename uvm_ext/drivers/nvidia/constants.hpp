// SPDX-License-Identifier: Apache-2.0
// Numbers of NVIDIA's interface that are the same in every release of the table; the
// names are NVIDIA's (nv_escape.h, nvos.h, cl*.h, ctrl0000gpu.h, uvm_types.h).
#pragma once

#include <sys/ioctl.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace pyvattn {
namespace nvidia {

constexpr const char* kControlNode = "/dev/nvidiactl";
constexpr const char* kUvmNode = "/dev/nvidia-uvm";
constexpr const char* kGpuNodePrefix = "/dev/nvidia";

// The largest page-table entries that pages are mapped with; regions of this size are
// where smaller ones begin and end.
constexpr std::size_t kHugePage = 2u << 20;

using Handle = std::uint32_t;
using Uuid = std::array<std::uint8_t, 16>;

constexpr unsigned kEscRegisterFd = 200 + 1;
constexpr unsigned kEscRmFree = 0x29;
constexpr unsigned kEscRmControl = 0x2a;
constexpr unsigned kEscRmAlloc = 0x2b;

constexpr unsigned long rm_request(unsigned number, unsigned long bytes) {
  return _IOC(_IOC_READ | _IOC_WRITE, 'F', number, bytes);
}

constexpr std::uint32_t kMemoryLocalUser = 0x40;  // NV01_MEMORY_LOCAL_USER
constexpr std::uint32_t kRootClient = 0x41;       // NV01_ROOT_CLIENT
constexpr std::uint32_t kDevice = 0x80;           // NV01_DEVICE_0
constexpr std::uint32_t kSubdevice = 0x2080;      // NV20_SUBDEVICE_0

// Fields of NV0080_ALLOC_PARAMETERS and NV_MEMORY_ALLOCATION_PARAMS that never moved.
constexpr unsigned kDeviceId = 0;
constexpr unsigned kDeviceClientShare = 4;
constexpr unsigned kMemoryOwner = 0;
constexpr unsigned kMemoryFlags = 8;
constexpr unsigned kMemoryFormat = 32;

constexpr std::uint32_t kPageSizeBig = 2u << 23;   // NVOS32_ATTR_PAGE_SIZE_BIG
constexpr std::uint32_t kPageSizeHuge = 3u << 23;  // NVOS32_ATTR_PAGE_SIZE_HUGE
constexpr std::uint32_t kPageSizeMask = 3u << 23;
constexpr std::uint32_t kAllowNoncontiguous = 3u << 27;  // NVOS32_ATTR_PHYSICALITY_…
constexpr std::uint32_t kHuge2M = 1u << 20;              // NVOS32_ATTR2_PAGE_SIZE_HUGE_2MB
// ALIGNMENT_FORCE | MAP_NOT_REQUIRED | PERSISTENT_VIDMEM | IGNORE_BANK_PLACEMENT
constexpr std::uint32_t kMemoryAllocFlags = 0x18101;
constexpr std::uint32_t kMemoryAllocFormat = 6;

constexpr std::uint32_t kGetAttachedIds = 0x201;      // NV0000_CTRL_CMD_GPU_GET_ATTACHED_IDS
constexpr std::uint32_t kGetIdInfo = 0x205;           // NV0000_CTRL_CMD_GPU_GET_ID_INFO_V2
constexpr std::uint32_t kGetUuidFromGpuId = 0x275;    // NV0000_CTRL_CMD_GPU_GET_UUID_FROM_GPU_ID
constexpr std::uint32_t kInvalidGpuId = 0xffffffffu;  // NV0000_CTRL_GPU_INVALID_ID
constexpr std::uint32_t kUuidBinarySha1 = 2;

struct AttachedIds {
  std::uint32_t gpu_ids[32];
};

struct GpuIdInfo {
  std::uint32_t gpu_id, gpu_flags, device_instance, subdevice_instance, sli_status, board_id,
      gpu_instance;
  std::int32_t numa_id;
};

struct GpuUuid {
  std::uint32_t gpu_id, flags;
  std::uint8_t uuid[256];
  std::uint32_t uuid_bytes;
};

constexpr std::uint32_t kReadWriteAtomic = 1;  // UvmGpuMappingTypeReadWriteAtomic
constexpr std::uint32_t kReadOnly = 3;         // UvmGpuMappingTypeReadOnly

}  // namespace nvidia
}  // namespace pyvattn
