// Fences of CUDA streams and events.
#include "drivers/registry.hpp"
#include "python/bindings.hpp"
#include "python/gil.hpp"

namespace pyvattn::python {

using Release = py::call_guard<WithoutGil>;

void bind_cuda(py::module_& module) {
  module.def("has_streams", &has_streams, py::arg("driver"),
             "Whether work on CUDA streams uses the driver's memory.");
  module.def("stream_fence", &make_stream_fence, py::arg("driver"), py::arg("device"),
             py::arg("stream"), Release(), "All work submitted to a CUstream so far.");
  module.def("event_fence", &make_event_fence, py::arg("driver"), py::arg("device"),
             py::arg("event"), Release(), "All work that a CUevent captured.");
}

}  // namespace pyvattn::python
