// SPDX-License-Identifier: Apache-2.0
// A strided view of an arena that any array library can take over through DLPack.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "python/dlpack.hpp"
#include "rows/arena.hpp"

namespace pyvattn::python {

struct TensorView {
  ArenaPtr arena;
  std::uint64_t offset = 0;  // bytes
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;  // elements
  dlpack::DataType dtype{};

  // Throws ConfigError for an unknown name, and where a part of the view lies
  // outside the arena.
  static TensorView make(ArenaPtr arena, std::uint64_t offset, std::vector<std::int64_t> shape,
                         std::vector<std::int64_t> strides, const std::string& dtype);
};

}  // namespace pyvattn::python
