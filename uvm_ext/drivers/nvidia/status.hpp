// SPDX-License-Identifier: Apache-2.0
// What an ioctl of NVIDIA's driver answered: the return code of ioctl(2), then, only
// where that is success, the status field of its parameters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace pyvattn {
namespace nvidia {

using Status = std::uint32_t;

constexpr Status kOk = 0x00;
constexpr Status kIllegalAction = 0x16;
constexpr Status kInUse = 0x17;
constexpr Status kInsufficientResources = 0x1a;
constexpr Status kInvalidAddress = 0x1e;
constexpr Status kInvalidArgument = 0x1f;
constexpr Status kInvalidClass = 0x22;
constexpr Status kInvalidClient = 0x23;
constexpr Status kInvalidDevice = 0x26;
constexpr Status kInvalidLimit = 0x2e;
constexpr Status kInvalidObjectHandle = 0x33;
constexpr Status kInvalidObjectParent = 0x36;
constexpr Status kInvalidOffset = 0x37;
constexpr Status kInvalidParamStruct = 0x3a;
constexpr Status kNoMemory = 0x51;
constexpr Status kNotSupported = 0x56;
constexpr Status kUvmAddressInUse = 0x68;

// Put where the status is expected before a call. Where it is still there afterwards, the
// driver wrote its status somewhere else, and whatever it did was not what was asked.
constexpr Status kUnwritten = 0xfeedface;

// NVIDIA's name, or the number in hexadecimal where the code is unknown.
std::string status_name(Status status);

struct Answer {
  // Zero, or the errno of ioctl(2).
  int error = 0;
  Status status = kOk;

  bool ok() const { return error == 0 && status == kOk; }
  bool out_of_memory() const {
    return error == 0 && (status == kNoMemory || status == kInsufficientResources);
  }
  // By the system's name (EINVAL) or NVIDIA's (NV_ERR_NO_MEMORY).
  std::string name() const;
};

// Throws DriverOutOfMemory or DriverError unless the answer is success.
void check(const Answer& answer, const std::string& operation, std::uint64_t address,
           std::size_t size);

}  // namespace nvidia
}  // namespace pyvattn
