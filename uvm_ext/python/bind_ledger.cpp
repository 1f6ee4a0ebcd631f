// SPDX-License-Identifier: Apache-2.0
// The ledger of shared memory: leases, and looking at one without joining.
#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "base/errors.hpp"
#include "ledger/doorbell.hpp"
#include "ledger/lease.hpp"
#include "ledger/locks.hpp"
#include "python/bindings.hpp"
#include "python/gil.hpp"

namespace pyvattn::python {
namespace {

using ledger::FileOptions;
using ledger::Lease;
using ledger::MemberOptions;
using ledger::Party;
using ledger::Snapshot;
using ledger::Table;
using Release = py::call_guard<WithoutGil>;
using LeasePtr = std::shared_ptr<Lease>;

// What an operator says: no more than so many chunks, or no limit.
void limit_member(Table& table, std::uint32_t slot, std::uint32_t generation,
                  std::optional<std::uint32_t> chunks) {
  table.check_usable();
  if (table.generation(slot) != generation || !table.has_process(slot)) {
    throw LedgerError("the member in slot " + std::to_string(slot) + " of " + table.path() +
                      " has left: look again with `pyvattn top`");
  }
  ledger::Slot& live = table.mapping().slot(slot);
  live.limit = chunks ? std::uint64_t{*chunks} + 1 : 0;
  ledger::ring(live.doorbell);
  table.announce();
}

Snapshot look(Table& table) {
  if (!table.mapping().is_in_place()) table.mapping().lose();
  table.check_usable();
  table.settle_doubts();
  return table.snapshot();
}

void bind_values(py::module_& module) {
  py::class_<Party>(module, "LedgerMember", "See pyvattn.shared.Member. Amounts are chunks.")
      .def_readonly("slot", &Party::slot)
      .def_readonly("generation", &Party::generation)
      .def_property_readonly("name", [](const Party& p) { return py::bytes(p.name); })
      .def_property_readonly("version", [](const Party& p) { return py::bytes(p.version); })
      .def_readonly("pid", &Party::pid)
      .def_readonly("guarantee", &Party::guarantee)
      .def_readonly("weight", &Party::weight, "Thousandths.")
      .def_readonly("lease", &Party::lease)
      .def_readonly("demand", &Party::demand)
      .def_readonly("wanted", &Party::wanted)
      .def_readonly("target", &Party::target)
      .def_readonly("limit", &Party::limit)
      .def_readonly("used_bytes", &Party::used_bytes)
      .def_readonly("readable", &Party::readable);
  py::class_<Snapshot>(module, "LedgerSnapshot", "See pyvattn.shared.Ledger. Chunks.")
      .def_readonly("chunks", &Snapshot::chunks)
      .def_readonly("free", &Snapshot::free)
      .def_readonly("cooling", &Snapshot::cooling)
      .def_readonly("not_ours", &Snapshot::not_ours)
      .def_readonly("unknown", &Snapshot::unknown)
      .def_readonly("members", &Snapshot::parties);
}

void bind_lease(py::module_& module) {
  py::class_<Lease, Budget, LeasePtr>(module, "Lease", "The core of pyvattn.SharedMemory.")
      .def(py::init([](std::string path, std::string device, std::uint64_t budget,
                       std::uint64_t chunk_bytes, std::string name, std::uint64_t guarantee,
                       std::uint32_t weight, std::string version, std::uint64_t cooling_ms,
                       bool attended) {
             MemberOptions options;
             options.name = std::move(name);
             options.guarantee = guarantee;
             options.weight = weight;
             options.version = std::move(version);
             options.cooling = std::chrono::milliseconds(cooling_ms);
             const FileOptions file{std::move(path), std::move(device), budget, chunk_bytes};
             const WithoutGil unlocked;
             return std::make_shared<Lease>(file, options, attended);
           }),
           py::kw_only(), py::arg("path"), py::arg("device"), py::arg("budget"),
           py::arg("chunk_bytes"), py::arg("name"), py::arg("guarantee"), py::arg("weight"),
           py::arg("version"), py::arg("cooling_ms") = 0, py::arg("attended") = true)
      .def("want", &Lease::want, py::arg("bytes"), Release())
      .def(
          "wait",
          [](Lease& self, std::uint64_t bytes, std::uint64_t milliseconds) {
            return self.wait(bytes, std::chrono::milliseconds(milliseconds));
          },
          py::arg("bytes"), py::arg("milliseconds"), Release())
      .def(
          "wait_asked",
          [](Lease& self, std::uint64_t milliseconds) {
            return self.wait_asked(std::chrono::milliseconds(milliseconds));
          },
          py::arg("milliseconds"), Release(),
          "Waits until neighbours ask for what its holders hold; says whether they do.")
      .def("take", &Lease::take, py::arg("bytes"), Release())
      .def("return_bytes", &Lease::give_back, py::arg("bytes"), Release())
      .def("attend", &Lease::attend, Release(), "One round of what the thread does.")
      .def("close", &Lease::close, Release())
      .def_property_readonly("owed", py::cpp_function(&Lease::owed, Release()),
                             "Bytes in use that members below their guarantees wait for.")
      .def_property_readonly("reach", py::cpp_function(&Lease::reach, Release()),
                             "Most bytes that it can come to hold.")
      .def_property_readonly("inherited", &Lease::inherited)
      .def_property_readonly("name", [](const Lease& self) { return self.status().name; })
      .def_property_readonly("path", [](const Lease& self) { return self.status().path; })
      .def_property_readonly("chunk_bytes",
                             [](const Lease& self) { return self.status().chunk_bytes; })
      .def_property_readonly("leased", [](const Lease& self) { return self.status().leased; })
      .def_property_readonly("target", [](const Lease& self) { return self.status().target; })
      .def_property_readonly("lost", [](const Lease& self) { return self.status().lost; })
      .def_property_readonly("closed", [](const Lease& self) { return self.status().closed; });
}

}  // namespace

void bind_ledger(py::module_& module) {
  bind_values(module);
  bind_lease(module);
  py::class_<Table>(module, "Ledger", "A ledger that is looked at, not joined.")
      .def(py::init([](std::string path) {
             return std::make_unique<Table>(FileOptions{std::move(path), "", 0, 0});
           }),
           py::arg("path"))
      .def_property_readonly("device", &Table::device)
      .def_property_readonly("chunk_bytes", &Table::chunk_bytes)
      .def("look", &look, Release())
      .def("limit", &limit_member, py::arg("slot"), py::arg("generation"), py::arg("chunks"));
  module.def(
      "create_ledger",
      [](std::string path, std::string device, std::uint64_t budget, std::uint64_t chunk_bytes) {
        const Table made(FileOptions{std::move(path), std::move(device), budget, chunk_bytes});
      },
      py::arg("path"), py::arg("device"), py::arg("budget"), py::arg("chunk_bytes"),
      "Makes the ledger, or finds that the same is there.");
  module.def("remove_ledger", &ledger::remove_file, py::arg("path"), Release(),
             "Removes the file; raises LedgerBusy while a member is alive.");
}

}  // namespace pyvattn::python
