// SPDX-License-Identifier: Apache-2.0
// The slots and lengths that one call names.
#pragma once

#include <cstdint>
#include <vector>

#include "cache/cache.hpp"
#include "python/bindings.hpp"

namespace pyvattn::python {

// Thousands of slots are named at every step: each thread keeps the memory for them from
// call to call. A call that Python code makes inside another finds none and takes its own.
class Requests {
 public:
  // Of a dict of slots of the cache with this number.
  Requests(const py::dict& lengths, std::uint64_t cache);
  // Of rows and lengths side by side, for a cache of `slots` rows.
  Requests(py::handle rows, py::handle lengths, std::uint32_t slots);
  Requests(const Requests&) = delete;
  Requests& operator=(const Requests&) = delete;
  ~Requests();

  const SlotLength* data() const { return list_.data(); }
  std::size_t size() const { return list_.size(); }

 private:
  Requests();
  bool read_plain(const py::dict& lengths, std::uint64_t cache);
  void read_any(const py::dict& lengths, std::uint64_t cache);

  std::vector<SlotLength> list_;
};

}  // namespace pyvattn::python
