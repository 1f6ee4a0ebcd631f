// SPDX-License-Identifier: Apache-2.0
// Fences of CUDA streams and events.
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "drivers/libcuda.hpp"
#include "drivers/registry.hpp"
#include "python/bindings.hpp"
#include "python/gil.hpp"

namespace pyvattn::python {

using Release = py::call_guard<WithoutGil>;

namespace {

std::vector<std::string> libcuda_symbols() {
  return {
#define PYVATTN_SYMBOL(name, symbol, parameters) #symbol,
      PYVATTN_LIBCUDA_FUNCTIONS(PYVATTN_SYMBOL)
#undef PYVATTN_SYMBOL
  };
}

}  // namespace

void bind_cuda(py::module_& module) {
  module.def("libcuda_symbols", &libcuda_symbols,
             "What libcuda.so.1 must export: a library without one of them is refused.");
  module.def("has_streams", &has_streams, py::arg("driver"),
             "Whether work on CUDA streams uses the driver's memory.");
  module.def("stream_fence", &make_stream_fence, py::arg("driver"), py::arg("device"),
             py::arg("stream"), Release(), "All work submitted to a CUstream so far.");
  module.def("event_fence", &make_event_fence, py::arg("driver"), py::arg("device"),
             py::arg("event"), Release(), "All work that a CUevent captured.");
}

}  // namespace pyvattn::python
