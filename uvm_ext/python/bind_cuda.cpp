// Fences of CUDA streams and events, and the controls of the emulated libcuda.
#include <pybind11/stl.h>

#include "drivers/registry.hpp"
#include "emulation/libcuda.hpp"
#include "python/bindings.hpp"
#include "python/gil.hpp"

namespace pyvattn::python {
namespace {

using Release = py::call_guard<WithoutGil>;
namespace control = emulation::control;

void bind_fences(py::module_& module) {
  module.def("has_streams", &has_streams, py::arg("driver"),
             "Whether work on CUDA streams uses the driver's memory.");
  module.def("stream_fence", &make_stream_fence, py::arg("driver"), py::arg("device"),
             py::arg("stream"), Release(), "All work submitted to a CUstream so far.");
  module.def("event_fence", &make_event_fence, py::arg("driver"), py::arg("device"),
             py::arg("event"), Release(), "All work that a CUevent captured.");
}

std::uint64_t number(const void* handle) { return reinterpret_cast<std::uint64_t>(handle); }

void bind_emulation(py::module_& parent) {
  py::module_ module = parent.def_submodule(
      "emulated_cuda", "Controls of the emulated libcuda behind the driver cumem-emulated.");
  using emulation::Holdings;
  py::class_<Holdings>(module, "Holdings", "What the emulated devices hold now.")
      .def_readonly("reservations", &Holdings::reservations)
      .def_readonly("allocations", &Holdings::allocations)
      .def_readonly("mappings", &Holdings::mappings)
      .def_readonly("streams", &Holdings::streams)
      .def_readonly("events", &Holdings::events)
      .def_readonly("contexts", &Holdings::contexts);
  module.def("reset", &control::reset, Release(), "Starts from new; every handle is void.");
  module.def("fail", &control::fail, py::arg("function"), py::arg("nth"), py::arg("status"),
             "The nth call (1: the next) of a function returns a CUresult.", Release());
  module.def("clear_failures", &control::clear_failures, Release());
  module.def("calls", &control::calls, py::arg("function"), "Calls of a function since reset().",
             Release());
  module.def("holdings", &control::holdings, Release());
  module.def("violations", &control::violations,
             "Uses of void handles and the like, which CUDA leaves undefined.", Release());
  module.def("occupy", &control::occupy, py::arg("device"), py::arg("bytes"),
             "Bytes that another process takes.", Release());
  module.def("connect", &control::connect, py::arg("connected"),
             "Whether the devices can reach each other's memory; they can at first.", Release());
  module.def("reset_context", &control::reset_context, py::arg("device"),
             "cuDevicePrimaryCtxReset, as if called by other code.", Release());
  module.def("set_capturing", &control::set_capturing, py::arg("capturing"),
             "While another thread captures a CUDA graph.", Release());
  module.def("capture_mode", &control::capture_mode, "The calling thread's CUstreamCaptureMode.",
             Release());
  module.def(
      "make_stream", [](int device) { return number(control::make_stream(device)); },
      py::arg("device"), Release());
  module.def(
      "make_event", [](int device) { return number(control::make_event(device)); },
      py::arg("device"), Release());
  module.def(
      "record_event",
      [](int device, std::uint64_t event, std::uint64_t stream) {
        control::record_event(device, reinterpret_cast<cuda::Event>(event),
                              reinterpret_cast<cuda::Stream>(stream));
      },
      py::arg("device"), py::arg("event"), py::arg("stream"), Release());
  module.def(
      "destroy_event",
      [](std::uint64_t event) { control::destroy_event(reinterpret_cast<cuda::Event>(event)); },
      py::arg("event"), Release());
  module.def(
      "launch_kernel",
      [](int device, std::uint64_t stream, Address address, std::size_t size) {
        return control::launch_kernel(device, reinterpret_cast<cuda::Stream>(stream), address,
                                      size);
      },
      py::arg("device"), py::arg("stream"), py::arg("address") = 0, py::arg("size") = 0,
      "A kernel that runs until release_kernel() and then reads the range.", Release());
  module.def("release_kernel", &control::release_kernel, py::arg("kernel"), Release());
}

}  // namespace

void bind_cuda(py::module_& module) {
  bind_fences(module);
  bind_emulation(module);
}

}  // namespace pyvattn::python
