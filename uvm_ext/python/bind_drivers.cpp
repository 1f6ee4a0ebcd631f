// SPDX-License-Identifier: Apache-2.0
// Drivers and adaptors as Python sees them: for detection, and for the tests that
// hold every driver to the interface.
#include <pybind11/stl.h>

#include <cstring>
#include <optional>
#include <string>

#include "adaptors/checked.hpp"
#include "adaptors/faults.hpp"
#include "adaptors/limit.hpp"
#include "adaptors/memory_limit.hpp"
#include "adaptors/ranges.hpp"
#include "adaptors/statistics.hpp"
#include "adaptors/trace.hpp"
#include "base/errors.hpp"
#include "drivers/registry.hpp"
#include "python/bindings.hpp"
#include "python/gil.hpp"

namespace pyvattn::python {
namespace {

using Release = py::call_guard<WithoutGil>;

void bind_values(py::module_& module) {
  py::class_<Capabilities>(module, "Capabilities", "What a driver offers on this machine.")
      .def_readonly("name", &Capabilities::name)
      .def_readonly("page_sizes", &Capabilities::page_sizes, "Bytes, ascending.")
      .def_readonly("call_per_page", &Capabilities::call_per_page,
                    "Whether each page costs a call, however long the run that is mapped.")
      .def_readonly("zero_backed", &Capabilities::zero_backed)
      .def_readonly("batch_is_one_call", &Capabilities::batch_is_one_call)
      .def_readonly("peers", &Capabilities::peers,
                    "Ordinals of the other devices that can reach what is mapped: of an open\n"
                    "driver those with access, else those that can be given it.")
      .def_property_readonly("dlpack_device", [](const Capabilities& c) {
        return std::make_pair(c.dlpack_device_type, c.dlpack_device_id);
      });
  py::class_<MapEntry>(module, "MapEntry", "One mapping: bytes at an address, from a slab.")
      .def(py::init([](Address address, std::size_t length, SlabId slab, std::size_t offset) {
             return MapEntry{address, length, slab, offset};
           }),
           py::arg("address"), py::arg("length"), py::arg("slab"), py::arg("offset"));
  py::class_<OperationCount>(module, "OperationCount", "What passed of one operation.")
      .def_readonly("batches", &OperationCount::batches)
      .def_readonly("calls", &OperationCount::calls)
      .def_readonly("bytes", &OperationCount::bytes)
      .def_readonly("failures", &OperationCount::failures)
      .def_readonly("seconds", &OperationCount::seconds);
  py::class_<TraceRecord>(module, "TraceRecord", "One call that passed a TraceAdaptor.")
      .def_readonly("sequence", &TraceRecord::sequence)
      .def_readonly("call", &TraceRecord::call, "One number for all entries of a batch.")
      .def_property_readonly("operation",
                             [](const TraceRecord& r) { return operation_name(r.operation); })
      .def_readonly("address", &TraceRecord::address)
      .def_readonly("length", &TraceRecord::length)
      .def_readonly("slab", &TraceRecord::slab)
      .def_readonly("offset", &TraceRecord::offset,
                    "Within the slab; of a reservation its alignment.")
      .def_readonly("failure", &TraceRecord::failure, "Empty where the call succeeded.");
}

std::vector<Range> ranges_of(const std::vector<std::pair<Address, std::size_t>>& pairs) {
  std::vector<Range> ranges;
  for (const auto& [address, length] : pairs) ranges.push_back({address, length});
  return ranges;
}

void bind_driver(py::module_& module) {
  py::class_<Fence, FencePtr>(module, "Fence", "A point in the work of the device.")
      .def("passed", &Fence::passed, Release())
      .def("wait", &Fence::wait, Release());
  py::class_<Driver, DriverPtr>(module, "Driver",
                                "The driver interface; see uvm_ext/drivers/driver.hpp.")
      .def_property_readonly("capabilities", &Driver::capabilities,
                             py::return_value_policy::reference_internal)
      .def_property_readonly("page_size", &Driver::page_size, "Bytes.")
      .def("reserve", &Driver::reserve, py::arg("bytes"), py::arg("alignment"), Release())
      .def("release_reservation", &Driver::release_reservation, py::arg("address"), Release())
      .def("allocate_slab", &Driver::allocate_slab, py::arg("bytes"), Release())
      .def("free_slab", &Driver::free_slab, py::arg("slab"), Release())
      .def("map", &Driver::map, py::arg("batch"), Release())
      .def("unmap", &Driver::unmap, py::arg("batch"), Release())
      .def(
          "zero",
          [](Driver& driver, const std::vector<std::pair<Address, std::size_t>>& batch) {
            const FencePtr done = driver.zero(ranges_of(batch), nullptr);
            if (done) done->wait();
          },
          py::arg("batch"), Release(), "Zeroes (address, length) ranges and waits for it.")
      .def(
          "zero_after",
          [](Driver& driver, const std::vector<std::pair<Address, std::size_t>>& batch,
             const FencePtr& after) { return driver.zero(ranges_of(batch), after); },
          py::arg("batch"), py::arg("after"), Release(),
          "Zeroes (address, length) ranges once `after` has passed; returns when it is done.");
}

void bind_budgets(py::module_& module) {
  py::class_<Budget, BudgetPtr>(module, "Budget", "See pyvattn.budget.Budget.")
      .def("set_limit", &Budget::set_limit, py::arg("limit"))
      .def_property_readonly("limit", &Budget::limit)
      .def_property_readonly("held", &Budget::held)
      .def_property_readonly("headroom", &Budget::headroom);
  py::class_<MemoryLimit, Budget, std::shared_ptr<MemoryLimit>>(module, "MemoryLimit",
                                                                "A budget that is a number.")
      .def(py::init<std::uint64_t>(), py::arg("limit"));
}

void bind_adaptors(py::module_& module) {
  py::class_<CheckedAdaptor, Driver, std::shared_ptr<CheckedAdaptor>>(
      module, "CheckedAdaptor", "Refuses every call that breaks a precondition.")
      .def(py::init<DriverPtr>(), py::arg("inner"))
      .def_property_readonly("mapped_bytes", &CheckedAdaptor::mapped_bytes)
      .def_property_readonly("live_slabs", &CheckedAdaptor::live_slabs)
      .def_property_readonly("live_reservations", &CheckedAdaptor::live_reservations);
  py::class_<FaultAdaptor, Driver, std::shared_ptr<FaultAdaptor>>(module, "FaultAdaptor",
                                                                  "Makes one chosen call fail.")
      .def(py::init<DriverPtr>(), py::arg("inner"))
      .def("fail_nth", &FaultAdaptor::fail_nth, py::arg("nth"), py::arg("out_of_memory") = false,
           "Fails the nth call from now (0: the next), once.")
      .def("disarm", &FaultAdaptor::disarm)
      .def_property_readonly("armed", &FaultAdaptor::armed);
  py::class_<LimitAdaptor, Driver, std::shared_ptr<LimitAdaptor>>(
      module, "LimitAdaptor", "Holds the bytes of all slabs to a budget.")
      .def(py::init<DriverPtr, BudgetPtr>(), py::arg("inner"), py::arg("budget"));
  py::class_<RangesAdaptor, Driver, std::shared_ptr<RangesAdaptor>>(
      module, "RangesAdaptor", "Shows map, unmap and zero as NVTX ranges.")
      .def(py::init<DriverPtr, const std::string&>(), py::arg("inner"), py::arg("library"));
  py::class_<StatisticsAdaptor, Driver, std::shared_ptr<StatisticsAdaptor>>(
      module, "StatisticsAdaptor", "Counts calls, bytes, failures and seconds.")
      .def(py::init<DriverPtr>(), py::arg("inner"))
      .def("counts", [](const StatisticsAdaptor& adaptor) {
        const OperationCounts counts = adaptor.counts();
        std::map<std::string, OperationCount> named;
        for (std::size_t i = 0; i < kOperations; ++i) {
          named.emplace(operation_name(static_cast<Operation>(i)), counts[i]);
        }
        return named;
      });
  py::class_<TraceAdaptor, Driver, std::shared_ptr<TraceAdaptor>>(
      module, "TraceAdaptor", "Keeps the last calls, failed ones too.")
      .def(py::init<DriverPtr, std::size_t>(), py::arg("inner"), py::arg("capacity") = 65536)
      .def("records", &TraceAdaptor::records);
}

}  // namespace

void bind_drivers(py::module_& module) {
  bind_values(module);
  bind_driver(module);
  bind_budgets(module);
  bind_adaptors(module);
  module.def("driver_names", &driver_names, "Names that make_driver() knows.");
  module.def(
      "emulates",
      [](const std::string& driver) -> std::optional<std::string> {
        const std::string emulated = emulated_driver(driver);
        if (emulated.empty()) return std::nullopt;
        return emulated;
      },
      py::arg("driver"), "The driver that this one is on an emulated machine, or None.");
  module.def("driver_capabilities", &driver_capabilities, py::arg("name"), py::arg("device") = 0,
             Release(), "What a driver offers here; raises DriverUnavailable with the reason.");
  module.def(
      "make_driver",
      [](std::string name, std::size_t page_size, int device, bool peer_access) {
        return make_driver({std::move(name), page_size, device, peer_access});
      },
      py::arg("name"), py::arg("page_size"), py::arg("device") = 0, py::arg("peer_access") = false,
      Release(), "Opens a driver; raises ConfigError or DriverUnavailable.");
}

}  // namespace pyvattn::python
