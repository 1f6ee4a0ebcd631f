// SPDX-License-Identifier: Apache-2.0
// The part of the DLPack ABI (versions 0 and 1) that a producer of strided tensors
// needs. Layouts and numbers are those of the DLPack specification.
#pragma once

#include <cstdint>

namespace pyvattn::python::dlpack {

struct Device {
  std::int32_t type;
  std::int32_t id;
};

enum TypeCode : std::uint8_t { kUInt = 1, kFloat = 2, kBfloat = 4 };

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* manager;
  void (*deleter)(ManagedTensor*);
};

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

struct ManagedTensorVersioned {
  Version version;
  void* manager;
  void (*deleter)(ManagedTensorVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};

static_assert(sizeof(Tensor) == 48 && sizeof(ManagedTensor) == 64 &&
                  sizeof(ManagedTensorVersioned) == 80,
              "layouts of the DLPack ABI on 64-bit machines");

}  // namespace pyvattn::python::dlpack
