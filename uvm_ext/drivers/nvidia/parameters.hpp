// SPDX-License-Identifier: Apache-2.0
// A zeroed parameter block whose fields lie where a Layout says.
//
// UVM's ioctl numbers carry no size: the module reads and writes as much as its own
// structure has. The block is larger than any structure of any release, so that a layout
// that is wrong after all ends in a refusal and not in a heap written over.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace pyvattn {
namespace nvidia {

class Parameters {
 public:
  static constexpr std::size_t kBytes = 16u << 10;

  Parameters() : words_(kBytes / sizeof(std::uint64_t)) {}

  template <typename Field>
  void set(std::size_t offset, Field value) {
    std::memcpy(data() + offset, &value, sizeof value);
  }
  template <typename Field>
  Field get(std::size_t offset) const {
    Field value;
    std::memcpy(&value, reinterpret_cast<const char*>(words_.data()) + offset, sizeof value);
    return value;
  }
  void set_bytes(std::size_t offset, const void* source, std::size_t bytes) {
    std::memcpy(data() + offset, source, bytes);
  }

  char* data() { return reinterpret_cast<char*>(words_.data()); }
  std::uint64_t address() { return reinterpret_cast<std::uint64_t>(data()); }

 private:
  std::vector<std::uint64_t> words_;
};

}  // namespace nvidia
}  // namespace pyvattn
