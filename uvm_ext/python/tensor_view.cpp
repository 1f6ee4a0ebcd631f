// SPDX-License-Identifier: Apache-2.0
#include "python/tensor_view.hpp"

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>

#include "base/errors.hpp"
#include "python/arguments.hpp"
#include "python/bindings.hpp"

namespace pyvattn::python {
namespace {

// The float8 types have no code that every consumer knows: they go out as bytes.
dlpack::DataType parse_dtype(const std::string& name) {
  if (name == "float32") return {dlpack::kFloat, 32, 1};
  if (name == "float16") return {dlpack::kFloat, 16, 1};
  if (name == "bfloat16") return {dlpack::kBfloat, 16, 1};
  if (name == "uint8") return {dlpack::kUInt, 8, 1};
  throw ConfigError("dtype '" + name + "' is unknown: use float32, float16, bfloat16 or uint8");
}

// What a consumer holds: the view, and with it the arena's addresses.
template <typename Managed>
struct Exported {
  TensorView view;
  Managed managed{};
};

template <typename Managed>
void delete_exported(Managed* managed) {
  delete static_cast<Exported<Managed>*>(managed->manager);
}

dlpack::Device device_of(const TensorView& view) {
  const Capabilities& c = view.arena->driver().capabilities();
  return {c.dlpack_device_type, c.dlpack_device_id};
}

template <typename Managed>
Managed* export_view(const TensorView& view) {
  auto exported = std::make_unique<Exported<Managed>>();
  exported->view = view;
  TensorView& own = exported->view;
  Managed& managed = exported->managed;
  managed.tensor.data = reinterpret_cast<void*>(own.arena->address());
  managed.tensor.device = device_of(own);
  managed.tensor.ndim = static_cast<std::int32_t>(own.shape.size());
  managed.tensor.dtype = own.dtype;
  managed.tensor.shape = own.shape.data();
  managed.tensor.strides = own.strides.data();
  managed.tensor.byte_offset = own.offset;
  managed.manager = exported.get();
  managed.deleter = delete_exported<Managed>;
  return &exported.release()->managed;
}

// Frees a tensor that no consumer has taken: consumers rename the capsule.
template <typename Managed>
void destroy_capsule(PyObject* capsule, const char* name) {
  if (PyCapsule_IsValid(capsule, name) == 0) return;
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule, name));
  managed->deleter(managed);
}

constexpr const char* kName = "dltensor";
constexpr const char* kVersionedName = "dltensor_versioned";

py::object capsule(const TensorView& view) {
  return py::reinterpret_steal<py::object>(
      PyCapsule_New(export_view<dlpack::ManagedTensor>(view), kName,
                    [](PyObject* self) { destroy_capsule<dlpack::ManagedTensor>(self, kName); }));
}

py::object versioned_capsule(const TensorView& view) {
  auto* managed = export_view<dlpack::ManagedTensorVersioned>(view);
  managed->version = {1, 0};
  return py::reinterpret_steal<py::object>(
      PyCapsule_New(managed, kVersionedName, [](PyObject* self) {
        destroy_capsule<dlpack::ManagedTensorVersioned>(self, kVersionedName);
      }));
}

[[noreturn]] void refuse_export(const std::string& message) {
  const py::object type = py::module_::import("pyvattn.errors").attr("ExportError");
  PyErr_SetString(type.ptr(), message.c_str());
  throw py::error_already_set();
}

// Two numbers, as `max_version` and `dl_device` are.
std::pair<long, long> pair_of(const py::object& object, const char* name) {
  const py::tuple numbers = py::reinterpret_steal<py::tuple>(PySequence_Tuple(object.ptr()));
  if (!numbers || numbers.size() != 2) {
    if (PyErr_Occurred() != nullptr && PyErr_ExceptionMatches(PyExc_TypeError) == 0) {
      throw py::error_already_set();
    }
    PyErr_Clear();
    refuse_export(std::string(name) + "=" + shown(object) + ": pass two numbers");
  }
  long values[2];
  for (std::size_t i = 0; i < 2; ++i) {
    values[i] = PyLong_AsLong(numbers[i].ptr());
    if (values[i] == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
  }
  return {values[0], values[1]};
}

// __dlpack__ of the array API standard. Work is ordered by the cache's contract, not
// by streams: what step() returned for is there.
py::object to_dlpack(const TensorView& view, const py::object&, const py::object& max_version,
                     const py::object& dl_device, const py::object& copy) {
  const dlpack::Device device = device_of(view);
  const int copies = copy.is_none() ? 0 : PyObject_IsTrue(copy.ptr());
  if (copies < 0) throw py::error_already_set();
  if (copies > 0) refuse_export("an arena is exported without a copy: copy the result");
  if (!dl_device.is_none() &&
      pair_of(dl_device, "dl_device") != std::pair<long, long>(device.type, device.id)) {
    refuse_export("an arena is exported on its own device only");
  }
  const bool versioned = !max_version.is_none() && pair_of(max_version, "max_version").first >= 1;
  return versioned ? versioned_capsule(view) : capsule(view);
}

}  // namespace

namespace {

// The bytes from the start of the view to the end of its last element, in `end`; false
// where shape and strides do not fit each other, or where that is no number.
bool span_of(const TensorView& view, std::uint64_t& end) {
  if (view.shape.size() != view.strides.size() || view.shape.empty()) return false;
  std::uint64_t elements = 1;
  for (std::size_t i = 0; i < view.shape.size(); ++i) {
    if (view.shape[i] <= 0 || view.strides[i] < 0) return false;
    std::uint64_t reach = 0;
    if (__builtin_mul_overflow(view.shape[i] - 1, view.strides[i], &reach) ||
        __builtin_add_overflow(elements, reach, &elements)) {
      return false;
    }
  }
  return !__builtin_mul_overflow(elements, view.dtype.bits / 8u, &end);
}

}  // namespace

TensorView TensorView::make(ArenaPtr arena, std::uint64_t offset, std::vector<std::int64_t> shape,
                            std::vector<std::int64_t> strides, const std::string& dtype) {
  TensorView view{std::move(arena), offset, std::move(shape), std::move(strides),
                  parse_dtype(dtype)};
  const std::uint64_t bytes = view.arena->bytes();
  std::uint64_t span = 0;
  if (!span_of(view, span) || offset > bytes || span > bytes - offset) {
    throw ConfigError("a view from byte " + std::to_string(offset) +
                      " reaches past the end of an arena of " + std::to_string(bytes) +
                      " bytes, or its shape and strides do not fit each other");
  }
  return view;
}

void bind_tensor_view(py::module_& module) {
  py::class_<TensorView>(module, "TensorView",
                         "A strided view of one arena; hand it to any from_dlpack().")
      .def("__dlpack__", &to_dlpack, py::kw_only(), py::arg("stream") = py::none(),
           py::arg("max_version") = py::none(), py::arg("dl_device") = py::none(),
           py::arg("copy") = py::none())
      .def("__dlpack_device__",
           [](const TensorView& view) {
             const dlpack::Device device = device_of(view);
             return std::make_pair(device.type, device.id);
           })
      .def_property_readonly(
          "address", [](const TensorView& view) { return view.arena->address() + view.offset; },
          "Address of the first element.")
      .def_property_readonly("shape",
                             [](const TensorView& v) { return py::tuple(py::cast(v.shape)); })
      .def_property_readonly(
          "strides", [](const TensorView& v) { return py::tuple(py::cast(v.strides)); },
          "In elements.");
}

}  // namespace pyvattn::python
