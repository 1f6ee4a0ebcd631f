#include <pybind11/stl.h>
#if PY_VERSION_HEX < 0x030B0000
#include <longintrepr.h>
#endif

#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "base/errors.hpp"
#include "cache/cache.hpp"
#include "python/bindings.hpp"
#include "python/slot_object.hpp"
#include "python/tensor_view.hpp"

namespace pyvattn::python {
namespace {

// The core's cache with a number, so that its slots are known from another's.
class NumberedCache {
 public:
  NumberedCache(const DriverPtr& driver, const Geometry& geometry, const CacheOptions& options)
      : cache(driver, geometry, options) {}

  Cache cache;
  const std::uint64_t number = ++count();

 private:
  static std::atomic<std::uint64_t>& count() {
    static std::atomic<std::uint64_t> caches{0};
    return caches;
  }
};

// Whether `value` is an int of one digit, and what it is: lengths nearly always are,
// and reading them through PyLong_AsLongLong is half the cost of a steady step.
bool is_one_digit(PyObject* value, std::int64_t& number) {
  if (!PyLong_CheckExact(value)) return false;
  auto* digits = reinterpret_cast<PyLongObject*>(value);
#if PY_VERSION_HEX >= 0x030C0000
  if (PyUnstable_Long_IsCompact(digits) == 0) return false;
  number = PyUnstable_Long_CompactValue(digits);
#else
  if (Py_SIZE(value) != 1) return false;
  number = static_cast<std::int64_t>(digits->ob_digit[0]);
#endif
  return true;
}

std::int64_t length_of(PyObject* value) {
  std::int64_t number = 0;
  if (is_one_digit(value, number)) return number;
  const long long length = PyLong_AsLongLong(value);
  if (length == -1 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    const std::string shown = py::repr(py::handle(value));
    throw LengthError("length " + shown + " is not a whole number of tokens");
  }
  return length;
}

// Memory for one call's requests, kept from call to call: thousands of slots are
// named at every step.
std::vector<SlotLength>& scratch() {
  static thread_local std::vector<SlotLength> requests;
  requests.clear();
  return requests;
}

const std::vector<SlotLength>& requests_of(const NumberedCache& self, const py::dict& lengths) {
  std::vector<SlotLength>& requests = scratch();
  requests.resize(lengths.size());
  SlotLength* next = requests.data();
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  Py_ssize_t position = 0;
  while (PyDict_Next(lengths.ptr(), &position, &key, &value) != 0) {
    *next++ = {slot_ref(key, self.number), length_of(value)};
  }
  return requests;
}

// One-dimensional int64 memory, as numpy and array.array offer it.
const std::int64_t* as_int64(const py::buffer_info& info, const char* what) {
  const bool fits = info.ndim == 1 && info.itemsize == 8 &&
                    (info.format == "l" || info.format == "q") &&
                    (info.size == 0 || info.strides[0] == 8);
  if (!fits) {
    throw ConfigError(std::string(what) +
                      " must be one-dimensional, contiguous int64 (such as numpy.int64)");
  }
  return static_cast<const std::int64_t*>(info.ptr);
}

const std::vector<SlotLength>& requests_of(const py::buffer& rows, const py::buffer& lengths) {
  const py::buffer_info row_info = rows.request();
  const py::buffer_info length_info = lengths.request();
  const std::int64_t* row = as_int64(row_info, "rows");
  const std::int64_t* length = as_int64(length_info, "lengths");
  if (row_info.size != length_info.size) {
    throw ConfigError(std::to_string(row_info.size) + " rows, but " +
                      std::to_string(length_info.size) + " lengths");
  }
  std::vector<SlotLength>& requests = scratch();
  requests.resize(static_cast<std::size_t>(row_info.size));
  for (std::size_t i = 0; i < requests.size(); ++i) {
    // What is no row becomes the largest number, which is none either.
    const bool possible = row[i] >= 0 && row[i] < 0xffffffff;
    requests[i] = {{possible ? static_cast<std::uint32_t>(row[i]) : 0xffffffff}, length[i]};
  }
  return requests;
}

void step(NumberedCache& self, const py::dict& lengths) {
  const std::vector<SlotLength>& requests = requests_of(self, lengths);
  const py::gil_scoped_release release;
  self.cache.step(requests.data(), requests.size());
}

void step_rows(NumberedCache& self, const py::buffer& rows, const py::buffer& lengths) {
  const std::vector<SlotLength>& requests = requests_of(rows, lengths);
  const py::gil_scoped_release release;
  self.cache.step(requests.data(), requests.size());
}

void prefetch(NumberedCache& self, const py::dict& lengths) {
  const std::vector<SlotLength>& requests = requests_of(self, lengths);
  const py::gil_scoped_release release;
  self.cache.prefetch(requests.data(), requests.size());
}

py::object acquire(NumberedCache& self, std::int64_t tokens) {
  SlotRef ref;
  {
    const py::gil_scoped_release release;
    ref = self.cache.acquire(tokens);
  }
  return make_slot(self.number, ref);
}

void release(NumberedCache& self, const py::object& slot, const FencePtr& after) {
  const SlotRef ref = slot_ref(slot.ptr(), self.number);
  const py::gil_scoped_release unlocked;
  self.cache.release(ref, after);
}

std::int64_t length(NumberedCache& self, const py::object& slot) {
  return self.cache.length(slot_ref(slot.ptr(), self.number));
}

TensorView view(NumberedCache& self, std::uint32_t arena, std::uint64_t offset,
                std::vector<std::int64_t> shape, std::vector<std::int64_t> strides,
                const std::string& dtype) {
  return TensorView::make(self.cache.arena(arena), offset, std::move(shape), std::move(strides),
                          dtype);
}

void bind_stats(py::module_& module) {
  py::class_<CacheStats>(module, "CacheStats", "See pyvattn.cache.Stats.")
      .def_readonly("pages_allocated", &CacheStats::pages_allocated)
      .def_readonly("pages_free", &CacheStats::pages_free)
      .def_readonly("pages_mapped", &CacheStats::pages_mapped)
      .def_readonly("pages_quarantined", &CacheStats::pages_quarantined)
      .def_readonly("pages_live", &CacheStats::pages_live)
      .def_readonly("pages_retained", &CacheStats::pages_retained)
      .def_readonly("pages_ahead", &CacheStats::pages_ahead)
      .def_readonly("page_size", &CacheStats::page_size)
      .def_readonly("slabs", &CacheStats::slabs)
      .def_readonly("slots_live", &CacheStats::slots_live)
      .def_readonly("memory_limit", &CacheStats::memory_limit)
      .def_readonly("bytes_used", &CacheStats::bytes_used)
      .def_readonly("bytes_reserved", &CacheStats::bytes_reserved)
      .def_readonly("map_calls", &CacheStats::map_calls)
      .def_readonly("map_batches", &CacheStats::map_batches)
      .def_readonly("map_bytes", &CacheStats::map_bytes)
      .def_readonly("unmap_calls", &CacheStats::unmap_calls)
      .def_readonly("driver_failures", &CacheStats::driver_failures)
      .def_readonly("prefetch_failures", &CacheStats::prefetch_failures)
      .def_readonly("reclaimed_pages", &CacheStats::reclaimed_pages)
      .def_readonly("zeroed_bytes", &CacheStats::zeroed_bytes)
      .def_readonly("zero_seconds", &CacheStats::zero_seconds)
      .def_readonly("map_seconds_blocking", &CacheStats::map_seconds_blocking)
      .def_readonly("map_seconds_hidden", &CacheStats::map_seconds_hidden)
      .def_readonly("bookkeeping_bytes", &CacheStats::bookkeeping_bytes);
}

}  // namespace

void bind_cache(py::module_& module) {
  using Release = py::call_guard<py::gil_scoped_release>;
  bind_stats(module);
  py::class_<NumberedCache>(module, "Cache", "The core of pyvattn.KVCache.")
      .def(py::init([](const DriverPtr& driver, std::uint32_t arenas, std::uint32_t slots,
                       std::uint32_t max_tokens, std::uint32_t guard_tokens,
                       std::uint64_t token_bytes, std::uint64_t memory_limit,
                       std::size_t slab_bytes, bool eager, std::uint32_t read_ahead) {
             const Geometry geometry{arenas,       slots,       max_tokens,
                                     guard_tokens, token_bytes, driver->page_size()};
             return std::make_unique<NumberedCache>(
                 driver, geometry, CacheOptions{memory_limit, slab_bytes, eager, read_ahead});
           }),
           py::kw_only(), py::arg("driver"), py::arg("arenas"), py::arg("slots"),
           py::arg("max_tokens"), py::arg("guard_tokens"), py::arg("token_bytes"),
           py::arg("memory_limit"), py::arg("slab_bytes") = 0, py::arg("eager") = true,
           py::arg("read_ahead") = 0)
      .def("acquire", &acquire, py::arg("tokens"))
      .def("release", &release, py::arg("slot"), py::arg("after") = py::none())
      .def("step", &step, py::arg("lengths"))
      .def("step_rows", &step_rows, py::arg("rows"), py::arg("lengths"))
      .def("prefetch", &prefetch, py::arg("lengths"))
      .def("length", &length, py::arg("slot"))
      .def(
          "can_admit",
          [](NumberedCache& self, std::int64_t tokens) { return self.cache.can_admit(tokens); },
          py::arg("tokens"), Release())
      .def(
          "drain", [](NumberedCache& self) { self.cache.drain(); }, Release())
      .def(
          "resize",
          [](NumberedCache& self, std::uint64_t limit) { return self.cache.resize(limit); },
          py::arg("memory_limit"), Release())
      .def(
          "close", [](NumberedCache& self) { self.cache.close(); }, Release())
      .def(
          "stats", [](NumberedCache& self) { return self.cache.stats(); }, Release())
      .def_property_readonly("inherited",
                             [](NumberedCache& self) { return self.cache.inherited(); })
      .def_property_readonly("closed", [](NumberedCache& self) { return self.cache.closed(); })
      .def_property_readonly("row_bytes",
                             [](NumberedCache& self) { return self.cache.geometry().row_bytes(); })
      .def("view", &view, py::arg("arena"), py::arg("offset"), py::arg("shape"), py::arg("strides"),
           py::arg("dtype"));
}

}  // namespace pyvattn::python
