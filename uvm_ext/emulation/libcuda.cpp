// SPDX-License-Identifier: Apache-2.0
#include "emulation/libcuda.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "base/errors.hpp"
#include "emulation/cuda_state.hpp"

namespace pyvattn::emulation {
namespace {

using cuda::Result;

State& state() { return State::instance(); }

struct Status {
  Result code;
  const char* name;
  const char* text;
};

constexpr Status kStatuses[] = {
    {cuda::kSuccess, "CUDA_SUCCESS", "no error"},
    {cuda::kInvalidValue, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {cuda::kOutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {cuda::kNotInitialized, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {cuda::kDeinitialized, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {cuda::kNoDevice, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {cuda::kInvalidDevice, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {cuda::kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {cuda::kInvalidHandle, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {cuda::kNotReady, "CUDA_ERROR_NOT_READY", "device not ready"},
    {cuda::kIllegalAddress, "CUDA_ERROR_ILLEGAL_ADDRESS",
     "an illegal memory access was encountered"},
    {cuda::kLaunchTimeout, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {cuda::kContextIsDestroyed, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {cuda::kLaunchFailed, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {cuda::kStreamCaptureUnsupported, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
};

const Status* find_status(Result code) {
  for (const Status& status : kStatuses) {
    if (status.code == code) return &status;
  }
  return nullptr;
}

// CUDA leaves the use of a destroyed stream or event undefined.
Result undefined_if_invalid(Result result, const char* what) {
  if (result == cuda::kInvalidHandle) state().undefined(std::string(what) + " of a void handle");
  return result;
}

Result init(unsigned) {
  return state().call("cuInit", Needs::nothing, [] { return state().start(); });
}

Result driver_version(int* version) {
  *version = 13000;
  return cuda::kSuccess;
}

Result error_name(Result code, const char** text) {
  const Status* status = find_status(code);
  *text = status != nullptr ? status->name : nullptr;
  return status != nullptr ? cuda::kSuccess : cuda::kInvalidValue;
}

Result error_string(Result code, const char** text) {
  const Status* status = find_status(code);
  *text = status != nullptr ? status->text : nullptr;
  return status != nullptr ? cuda::kSuccess : cuda::kInvalidValue;
}

Result device_count(int* count) {
  return state().call("cuDeviceGetCount", Needs::started, [=] {
    *count = kDevices;
    return cuda::kSuccess;
  });
}

Result device_get(cuda::Device* device, int ordinal) {
  return state().call("cuDeviceGet", Needs::started, [=] {
    if (ordinal < 0 || ordinal >= kDevices) return cuda::kInvalidDevice;
    *device = ordinal;
    return cuda::kSuccess;
  });
}

Result device_attribute(int* value, int attribute, cuda::Device device) {
  return state().call("cuDeviceGetAttribute", Needs::started, [=] {
    if (device < 0 || device >= kDevices) return cuda::kInvalidDevice;
    if (attribute != cuda::kAttributeVirtualMemoryManagement) return cuda::kInvalidValue;
    *value = 1;
    return cuda::kSuccess;
  });
}

Result device_uuid(unsigned char* uuid, cuda::Device device) {
  return state().call("cuDeviceGetUuid_v2", Needs::started, [=] {
    if (device < 0 || device >= kDevices) return cuda::kInvalidDevice;
    write_device_uuid(device, uuid);
    return cuda::kSuccess;
  });
}

Result device_bus_id(char* text, int size, cuda::Device device) {
  return state().call("cuDeviceGetPCIBusId", Needs::started, [=] {
    if (device < 0 || device >= kDevices) return cuda::kInvalidDevice;
    std::snprintf(text, static_cast<std::size_t>(size), "0000:%02X:00.0", 0x1A + device);
    return cuda::kSuccess;
  });
}

Result device_can_access_peer(int* reachable, cuda::Device device, cuda::Device memory_of) {
  return state().call("cuDeviceCanAccessPeer", Needs::started, [=] {
    if (device < 0 || device >= kDevices || memory_of < 0 || memory_of >= kDevices) {
      return cuda::kInvalidDevice;
    }
    const bool others = device != memory_of;
    *reachable = others && state().memory.can_reach(device, memory_of) ? 1 : 0;
    return cuda::kSuccess;
  });
}

Result context_retain(cuda::Context* context, cuda::Device device) {
  return state().call("cuDevicePrimaryCtxRetain", Needs::started,
                      [=] { return state().retain(context, device); });
}

Result context_release(cuda::Device device) {
  return state().call("cuDevicePrimaryCtxRelease", Needs::started,
                      [=] { return state().release(device); });
}

Result context_state(cuda::Device device, unsigned* flags, int* active) {
  return state().call("cuDevicePrimaryCtxGetState", Needs::started, [=] {
    if (device < 0 || device >= kDevices) return cuda::kInvalidDevice;
    *flags = 0;
    *active = state().contexts.at(static_cast<std::size_t>(device)).active ? 1 : 0;
    return cuda::kSuccess;
  });
}

Result context_id(cuda::Context context, unsigned long long* id) {
  return state().call("cuCtxGetId", Needs::started, [=] {
    const PrimaryContext* primary = state().find(context);
    if (primary == nullptr) return cuda::kInvalidContext;
    if (!primary->active) return cuda::kContextIsDestroyed;
    *id = primary->id;
    return cuda::kSuccess;
  });
}

Result context_push(cuda::Context context) {
  return state().call("cuCtxPushCurrent", Needs::started, [=] { return state().push(context); });
}

Result context_pop(cuda::Context* context) {
  return state().call("cuCtxPopCurrent", Needs::started, [=] { return state().pop(context); });
}

Result exchange_capture_mode(int* mode) {
  return state().call("cuThreadExchangeStreamCaptureMode", Needs::started, [=] {
    std::swap(*mode, capture_mode());
    return cuda::kSuccess;
  });
}

Result memory_info(std::size_t* free, std::size_t* total) {
  return state().call("cuMemGetInfo", Needs::context, [=] {
    const DeviceMemory& device = state().memory.device(state().current_device());
    *free = device.free();
    *total = device.total();
    return cuda::kSuccess;
  });
}

Result granularity(std::size_t* value, const cuda::AllocationProperties* properties, int) {
  return state().call("cuMemGetAllocationGranularity", Needs::started, [=] {
    if (properties->type != cuda::kAllocationPinned) return cuda::kInvalidValue;
    *value = kGranularity;
    return cuda::kSuccess;
  });
}

Result address_reserve(cuda::Pointer* address, std::size_t size, std::size_t alignment,
                       cuda::Pointer, unsigned long long flags) {
  return state().call("cuMemAddressReserve", Needs::healthy, [=] {
    return flags != 0 ? cuda::kInvalidValue : state().memory.reserve(address, size, alignment);
  });
}

Result address_free(cuda::Pointer address, std::size_t size) {
  return state().call("cuMemAddressFree", Needs::healthy,
                      [=] { return state().memory.free_reservation(address, size); });
}

Result memory_create(cuda::Handle* handle, std::size_t size,
                     const cuda::AllocationProperties* properties, unsigned long long flags) {
  return state().call("cuMemCreate", Needs::healthy, [=] {
    return flags != 0 ? cuda::kInvalidValue : state().memory.create(handle, size, *properties);
  });
}

Result memory_release(cuda::Handle handle) {
  return state().call("cuMemRelease", Needs::healthy,
                      [=] { return state().memory.release(handle); });
}

Result memory_map(cuda::Pointer address, std::size_t size, std::size_t offset, cuda::Handle handle,
                  unsigned long long flags) {
  return state().call("cuMemMap", Needs::healthy, [=] {
    return flags != 0 ? cuda::kInvalidValue : state().memory.map(address, size, offset, handle);
  });
}

Result memory_unmap(cuda::Pointer address, std::size_t size) {
  return state().call("cuMemUnmap", Needs::healthy,
                      [=] { return state().memory.unmap(address, size); });
}

Result memory_set_access(cuda::Pointer address, std::size_t size,
                         const cuda::AccessDescriptor* access, std::size_t count) {
  return state().call("cuMemSetAccess", Needs::healthy, [=] {
    return state().memory.set_access(address, size, {access, access + count});
  });
}

Result memory_set(cuda::Pointer address, unsigned char value, std::size_t size,
                  cuda::Stream stream) {
  return state().call("cuMemsetD8Async", Needs::context, [=] {
    if (!state().memory.inside_reservation(address, size)) return cuda::kInvalidValue;
    const int device = state().current_device();
    const Result result = state().streams.submit(stream, device, [=] {
      state().touch(device, address, size,
                    [=] { std::memset(reinterpret_cast<void*>(address), value, size); });
    });
    return undefined_if_invalid(result, "cuMemsetD8Async on a stream");
  });
}

Result copy_to_device(cuda::Pointer target, const void* source, std::size_t size,
                      cuda::Stream stream) {
  return state().call("cuMemcpyHtoDAsync", Needs::context, [=] {
    const int device = state().current_device();
    const Result result = state().streams.submit(stream, device, [=] {
      state().touch(device, target, size,
                    [=] { std::memcpy(reinterpret_cast<void*>(target), source, size); });
    });
    return undefined_if_invalid(result, "cuMemcpyHtoDAsync on a stream");
  });
}

Result copy_to_host(void* target, cuda::Pointer source, std::size_t size, cuda::Stream stream) {
  return state().call("cuMemcpyDtoHAsync", Needs::context, [=] {
    const int device = state().current_device();
    const Result result = state().streams.submit(stream, device, [=] {
      state().touch(device, source, size,
                    [=] { std::memcpy(target, reinterpret_cast<const void*>(source), size); });
    });
    return undefined_if_invalid(result, "cuMemcpyDtoHAsync on a stream");
  });
}

Result stream_create(cuda::Stream* stream, unsigned) {
  return state().call("cuStreamCreate", Needs::context, [=] {
    *stream = state().streams.create_stream(state().current_device());
    return cuda::kSuccess;
  });
}

Result stream_destroy(cuda::Stream stream) {
  return state().call("cuStreamDestroy", Needs::healthy, [=] {
    return undefined_if_invalid(state().streams.destroy_stream(stream), "cuStreamDestroy");
  });
}

Result stream_wait(cuda::Stream stream, cuda::Event event, unsigned) {
  return state().call("cuStreamWaitEvent", Needs::context, [=] {
    const Result result = state().streams.wait(stream, state().current_device(), event);
    return undefined_if_invalid(result, "cuStreamWaitEvent");
  });
}

Result event_create(cuda::Event* event, unsigned flags) {
  return state().call("cuEventCreate", Needs::context, [=] {
    if ((flags & cuda::kEventBlockingSync) == 0) state().undefined("an event whose wait spins");
    *event = state().streams.create_event(state().current_device());
    return cuda::kSuccess;
  });
}

Result event_destroy(cuda::Event event) {
  return state().call("cuEventDestroy", Needs::healthy, [=] {
    return undefined_if_invalid(state().streams.destroy_event(event), "cuEventDestroy");
  });
}

Result event_record(cuda::Event event, cuda::Stream stream) {
  return state().call("cuEventRecord", Needs::context, [=] {
    const Result result = state().streams.record(event, stream, state().current_device());
    return undefined_if_invalid(result, "cuEventRecord");
  });
}

Result event_query(cuda::Event event) {
  return state().call("cuEventQuery", Needs::healthy, [=] {
    state().streams.advance();
    return undefined_if_invalid(state().streams.query(event), "cuEventQuery");
  });
}

Result event_synchronize(cuda::Event event) {
  return state().call("cuEventSynchronize", Needs::healthy, [=] {
    return undefined_if_invalid(state().synchronize(event), "cuEventSynchronize");
  });
}

LibCuda make_table() {
  LibCuda table;
  table.cuInit = init;
  table.cuDriverGetVersion = driver_version;
  table.cuGetErrorName = error_name;
  table.cuGetErrorString = error_string;
  table.cuDeviceGetCount = device_count;
  table.cuDeviceGet = device_get;
  table.cuDeviceGetAttribute = device_attribute;
  table.cuDeviceGetUuid_v2 = device_uuid;
  table.cuDeviceGetPCIBusId = device_bus_id;
  table.cuDeviceCanAccessPeer = device_can_access_peer;
  table.cuDevicePrimaryCtxRetain = context_retain;
  table.cuDevicePrimaryCtxRelease = context_release;
  table.cuDevicePrimaryCtxGetState = context_state;
  table.cuCtxGetId = context_id;
  table.cuCtxPushCurrent = context_push;
  table.cuCtxPopCurrent = context_pop;
  table.cuThreadExchangeStreamCaptureMode = exchange_capture_mode;
  table.cuMemGetInfo = memory_info;
  table.cuMemGetAllocationGranularity = granularity;
  table.cuMemAddressReserve = address_reserve;
  table.cuMemAddressFree = address_free;
  table.cuMemCreate = memory_create;
  table.cuMemRelease = memory_release;
  table.cuMemMap = memory_map;
  table.cuMemUnmap = memory_unmap;
  table.cuMemSetAccess = memory_set_access;
  table.cuMemsetD8Async = memory_set;
  table.cuMemcpyHtoDAsync = copy_to_device;
  table.cuMemcpyDtoHAsync = copy_to_host;
  table.cuStreamCreate = stream_create;
  table.cuStreamDestroy = stream_destroy;
  table.cuStreamWaitEvent = stream_wait;
  table.cuEventCreate = event_create;
  table.cuEventDestroy = event_destroy;
  table.cuEventRecord = event_record;
  table.cuEventQuery = event_query;
  table.cuEventSynchronize = event_synchronize;
  return table;
}

}  // namespace

const LibCuda& libcuda() {
  static const LibCuda table = make_table();
  return table;
}

}  // namespace pyvattn::emulation
