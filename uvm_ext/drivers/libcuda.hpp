// SPDX-License-Identifier: Apache-2.0
// The part of NVIDIA's driver library that pyvattn calls, as a table of functions.
//
// Nothing is linked and no CUDA header is needed: real_libcuda() opens libcuda.so.1
// when it is first asked for. The table is the seam: emulation/libcuda.hpp fills it
// with functions of its own. tests/drivers/test_cumem_abi.py compares every
// constant, structure and prototype below with cuda.h where that is installed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace pyvattn {
namespace cuda {

using Result = int;
using Device = int;
using Pointer = unsigned long long;
using Handle = unsigned long long;
using Context = struct ContextObject*;
using Stream = struct StreamObject*;
using Event = struct EventObject*;

constexpr Result kSuccess = 0;
constexpr Result kInvalidValue = 1;
constexpr Result kOutOfMemory = 2;
constexpr Result kNotInitialized = 3;
constexpr Result kDeinitialized = 4;
constexpr Result kNoDevice = 100;
constexpr Result kInvalidDevice = 101;
constexpr Result kInvalidContext = 201;
constexpr Result kEccUncorrectable = 214;
constexpr Result kNvlinkUncorrectable = 220;
constexpr Result kInvalidHandle = 400;
constexpr Result kNotReady = 600;
constexpr Result kIllegalAddress = 700;
constexpr Result kLaunchTimeout = 702;
constexpr Result kContextIsDestroyed = 709;
constexpr Result kAssert = 710;
constexpr Result kHardwareStackError = 714;
constexpr Result kLaunchFailed = 719;
constexpr Result kStreamCaptureUnsupported = 900;

constexpr int kAttributeVirtualMemoryManagement = 102;
constexpr int kAllocationPinned = 1;
constexpr int kLocationDevice = 1;
constexpr int kAccessReadWrite = 3;
constexpr int kGranularityMinimum = 0;
constexpr unsigned kStreamNonBlocking = 1;
constexpr unsigned kEventBlockingSync = 1;
constexpr unsigned kEventDisableTiming = 2;
constexpr int kCaptureModeRelaxed = 2;

struct Location {
  int type = 0;
  int id = 0;
};

struct AllocationProperties {
  int type = 0;
  int requested_handle_types = 0;
  Location location;
  void* win32_handle_meta_data = nullptr;
  struct {
    unsigned char compression_type = 0;
    unsigned char gpu_direct_rdma_capable = 0;
    unsigned short usage = 0;
    unsigned char reserved[4] = {};
  } flags;
};

struct AccessDescriptor {
  Location location;
  int flags = 0;
};

}  // namespace cuda

// F(name in the table, symbol in the library, parameters). The symbol is the one of
// the binary interface: cuda.h renames cuMemGetInfo to cuMemGetInfo_v2, and so on.
#define PYVATTN_LIBCUDA_FUNCTIONS(F)                                                              \
  F(cuInit, cuInit, (unsigned flags))                                                             \
  F(cuDriverGetVersion, cuDriverGetVersion, (int* version))                                       \
  F(cuGetErrorName, cuGetErrorName, (cuda::Result result, const char** text))                     \
  F(cuGetErrorString, cuGetErrorString, (cuda::Result result, const char** text))                 \
  F(cuDeviceGetCount, cuDeviceGetCount, (int* count))                                             \
  F(cuDeviceGet, cuDeviceGet, (cuda::Device * device, int ordinal))                               \
  F(cuDeviceGetAttribute, cuDeviceGetAttribute, (int* value, int attribute, cuda::Device device)) \
  F(cuDeviceGetUuid_v2, cuDeviceGetUuid_v2, (unsigned char* uuid, cuda::Device device))           \
  F(cuDeviceGetPCIBusId, cuDeviceGetPCIBusId, (char* text, int size, cuda::Device device))        \
  F(cuDeviceCanAccessPeer, cuDeviceCanAccessPeer,                                                 \
    (int* reachable, cuda::Device device, cuda::Device memory_of))                                \
  F(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain,                                           \
    (cuda::Context * context, cuda::Device device))                                               \
  F(cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2, (cuda::Device device))               \
  F(cuDevicePrimaryCtxGetState, cuDevicePrimaryCtxGetState,                                       \
    (cuda::Device device, unsigned* flags, int* active))                                          \
  F(cuCtxGetId, cuCtxGetId, (cuda::Context context, unsigned long long* id))                      \
  F(cuCtxPushCurrent, cuCtxPushCurrent_v2, (cuda::Context context))                               \
  F(cuCtxPopCurrent, cuCtxPopCurrent_v2, (cuda::Context * context))                               \
  F(cuThreadExchangeStreamCaptureMode, cuThreadExchangeStreamCaptureMode, (int* mode))            \
  F(cuMemGetInfo, cuMemGetInfo_v2, (std::size_t* free, std::size_t* total))                       \
  F(cuMemGetAllocationGranularity, cuMemGetAllocationGranularity,                                 \
    (std::size_t* granularity, const cuda::AllocationProperties* properties, int option))         \
  F(cuMemAddressReserve, cuMemAddressReserve,                                                     \
    (cuda::Pointer * address, std::size_t size, std::size_t alignment, cuda::Pointer hint,        \
     unsigned long long flags))                                                                   \
  F(cuMemAddressFree, cuMemAddressFree, (cuda::Pointer address, std::size_t size))                \
  F(cuMemCreate, cuMemCreate,                                                                     \
    (cuda::Handle * handle, std::size_t size, const cuda::AllocationProperties* properties,       \
     unsigned long long flags))                                                                   \
  F(cuMemRelease, cuMemRelease, (cuda::Handle handle))                                            \
  F(cuMemMap, cuMemMap,                                                                           \
    (cuda::Pointer address, std::size_t size, std::size_t offset, cuda::Handle handle,            \
     unsigned long long flags))                                                                   \
  F(cuMemUnmap, cuMemUnmap, (cuda::Pointer address, std::size_t size))                            \
  F(cuMemSetAccess, cuMemSetAccess,                                                               \
    (cuda::Pointer address, std::size_t size, const cuda::AccessDescriptor* access,               \
     std::size_t count))                                                                          \
  F(cuMemsetD8Async, cuMemsetD8Async,                                                             \
    (cuda::Pointer address, unsigned char value, std::size_t size, cuda::Stream stream))          \
  F(cuMemcpyHtoDAsync, cuMemcpyHtoDAsync_v2,                                                      \
    (cuda::Pointer target, const void* source, std::size_t size, cuda::Stream stream))            \
  F(cuMemcpyDtoHAsync, cuMemcpyDtoHAsync_v2,                                                      \
    (void* target, cuda::Pointer source, std::size_t size, cuda::Stream stream))                  \
  F(cuStreamCreate, cuStreamCreate, (cuda::Stream * stream, unsigned flags))                      \
  F(cuStreamDestroy, cuStreamDestroy_v2, (cuda::Stream stream))                                   \
  F(cuStreamWaitEvent, cuStreamWaitEvent,                                                         \
    (cuda::Stream stream, cuda::Event event, unsigned flags))                                     \
  F(cuEventCreate, cuEventCreate, (cuda::Event * event, unsigned flags))                          \
  F(cuEventDestroy, cuEventDestroy_v2, (cuda::Event event))                                       \
  F(cuEventRecord, cuEventRecord, (cuda::Event event, cuda::Stream stream))                       \
  F(cuEventQuery, cuEventQuery, (cuda::Event event))                                              \
  F(cuEventSynchronize, cuEventSynchronize, (cuda::Event event))

struct LibCuda {
#define PYVATTN_FIELD(name, symbol, parameters) cuda::Result(*name) parameters = nullptr;
  PYVATTN_LIBCUDA_FUNCTIONS(PYVATTN_FIELD)
#undef PYVATTN_FIELD
};

// Opens libcuda.so.1 and starts CUDA in this process, once. Throws DriverUnavailable
// with the reason and the remedy; a later call tries again.
const LibCuda& real_libcuda();

// cuInit() of any table, with its failure as DriverUnavailable.
void start_cuda(const LibCuda& library);

// CUDA's own name of a status, and its own text for it.
std::string cuda_name(const LibCuda& library, cuda::Result result);
std::string cuda_text(const LibCuda& library, cuda::Result result);

// Throws DriverOutOfMemory or DriverError for `result`, with what can be done about it.
[[noreturn]] void throw_cuda(const LibCuda& library, const char* operation, std::uint64_t address,
                             std::size_t size, cuda::Result result);

// throw_cuda() unless `result` is success.
void check_cuda(const LibCuda& library, const char* operation, std::uint64_t address,
                std::size_t size, cuda::Result result);

}  // namespace pyvattn
