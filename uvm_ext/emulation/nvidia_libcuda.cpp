// SPDX-License-Identifier: Apache-2.0
// The emulated libcuda as the emulated nvidia-uvm sees it: each piece of memory that CUDA
// maps is an external range of the address space, with a mapping in it.
#include "emulation/cuda_state.hpp"
#include "emulation/nvidia_machine.hpp"

namespace pyvattn::emulation {
namespace {

using cuda::Result;

unsigned long long context_of_now() {
  const int device = State::instance().current_device();
  return device < 0 ? 0 : State::instance().contexts.at(static_cast<std::size_t>(device)).id;
}

Result memory_map(cuda::Pointer address, std::size_t size, std::size_t offset, cuda::Handle handle,
                  unsigned long long flags) {
  const Result result = libcuda().cuMemMap(address, size, offset, handle, flags);
  const auto locked = State::instance().lock();
  if (result == cuda::kSuccess) {
    nvidia_machine().va_space().add_range({address, size}, context_of_now());
  }
  return result;
}

Result memory_unmap(cuda::Pointer address, std::size_t size) {
  const Result result = libcuda().cuMemUnmap(address, size);
  const auto locked = State::instance().lock();
  if (result == cuda::kSuccess) nvidia_machine().va_space().remove_ranges({address, size});
  return result;
}

Result memory_set_access(cuda::Pointer address, std::size_t size,
                         const cuda::AccessDescriptor* access, std::size_t count) {
  const Result result = libcuda().cuMemSetAccess(address, size, access, count);
  const auto locked = State::instance().lock();
  if (result == cuda::kSuccess) nvidia_machine().va_space().note_cuda_mapping({address, size});
  return result;
}

LibCuda make_table() {
  LibCuda table = libcuda();
  table.cuMemMap = memory_map;
  table.cuMemUnmap = memory_unmap;
  table.cuMemSetAccess = memory_set_access;
  return table;
}

}  // namespace

const LibCuda& nvidia_libcuda() {
  static const LibCuda table = make_table();
  return table;
}

}  // namespace pyvattn::emulation
