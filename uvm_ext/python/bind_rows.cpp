// SPDX-License-Identifier: Apache-2.0
// BlockPool and RowMap in Python. Their classes in pyvattn/rows.py are what users see.
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/errors.hpp"
#include "python/arguments.hpp"
#include "python/bindings.hpp"
#include "python/gil.hpp"
#include "python/tensor_view.hpp"
#include "rows/row_map.hpp"

namespace pyvattn::python {
namespace {

using MapHolder = std::unique_ptr<RowMap, DeleteWithoutGil<RowMap>>;

constexpr std::uint32_t kMostId = 0xfffffffe;

// A number of rows, positions or blocks.
std::uint32_t number_of(py::handle value, const char* what) {
  std::int64_t number = -1;
  if (!read_plain_length(value.ptr(), number)) {
    throw ArgumentError(std::string(what) + "=" + shown(value) + ": use a whole number");
  }
  if (number >= 0 && number <= kMostId) return static_cast<std::uint32_t>(number);
  throw RowError(std::string(what) + "=" + std::to_string(number) + " is outside 0.." +
                 std::to_string(kMostId));
}

// Ids as any sequence of ints has them. What can be no id is refused by name.
std::vector<BlockId> blocks_of(const py::object& ids) {
  if (!py::isinstance<py::iterable>(ids)) {
    throw ArgumentError("blocks=" + shown(ids) + ": use a list of what allocate() returned");
  }
  std::vector<BlockId> blocks;
  for (const py::handle id : py::iter(ids)) {
    std::int64_t number = -1;
    if (!read_plain_length(id.ptr(), number) || number < 0 || number > kMostId) {
      throw BlockError("block " + shown(id) + " is no block: name blocks that allocate() returned");
    }
    blocks.push_back(static_cast<BlockId>(number));
  }
  return blocks;
}

std::vector<BlockId> allocate(BlockStore& self, const py::object& count, const py::object& after) {
  const std::uint32_t blocks = number_of(count, "count");
  const BlockId behind =
      after.is_none() ? BlockPool::kAnywhere : blocks_of(py::make_tuple(after)).front();
  const WithoutGil unlocked;
  return self.allocate(blocks, behind);
}

template <auto Method>
auto with_blocks(BlockStore& self, const py::object& ids) {
  const std::vector<BlockId> blocks = blocks_of(ids);
  const WithoutGil unlocked;
  return (self.*Method)(blocks);
}

std::uint32_t open(RowMap& self, const py::object& ids) {
  const std::vector<BlockId> blocks = blocks_of(ids);
  const WithoutGil unlocked;
  return self.open(blocks);
}

void extend(RowMap& self, const py::object& row, const py::object& ids) {
  const std::vector<BlockId> blocks = blocks_of(ids);
  const std::uint32_t index = number_of(row, "row");
  const WithoutGil unlocked;
  self.extend(index, blocks);
}

void trim(RowMap& self, const py::object& row, const py::object& front, const py::object& tail,
          const FencePtr& after) {
  const std::uint32_t index = number_of(row, "row");
  const std::uint32_t from_front = number_of(front, "front");
  const std::uint32_t from_tail = number_of(tail, "tail");
  const WithoutGil unlocked;
  self.trim(index, from_front, from_tail, after);
}

void close_row(RowMap& self, const py::object& row, const FencePtr& after) {
  const std::uint32_t index = number_of(row, "row");
  const WithoutGil unlocked;
  self.close(index, after);
}

void zero(RowMap& self, const py::object& row, const py::object& first, const py::object& count,
          const FencePtr& after) {
  const std::uint32_t index = number_of(row, "row");
  const std::uint32_t from = number_of(first, "first");
  const std::uint32_t positions = number_of(count, "count");
  const WithoutGil unlocked;
  self.zero(index, from, positions, after);
}

// None where a row's front was trimmed.
std::vector<std::optional<BlockId>> blocks(RowMap& self, const py::object& row) {
  std::vector<BlockId> found;
  {
    const std::uint32_t index = number_of(row, "row");
    const WithoutGil unlocked;
    found = self.blocks(index);
  }
  std::vector<std::optional<BlockId>> shown;
  shown.reserve(found.size());
  for (BlockId block : found) {
    shown.push_back(block == RowTable::kHole ? std::nullopt : std::optional<BlockId>(block));
  }
  return shown;
}

TensorView view(RowMap& self, std::uint32_t arena, std::uint64_t offset,
                std::vector<std::int64_t> shape, std::vector<std::int64_t> strides,
                const std::string& dtype) {
  ArenaPtr found;
  {
    const WithoutGil unlocked;
    found = self.arena(arena);
  }
  return TensorView::make(std::move(found), offset, std::move(shape), std::move(strides), dtype);
}

// The memory stays as it is, and pool and maps in the core as long as the process: threads
// that compute may still use their tensors.
void retire(const BlockStorePtr& self) {
  py::cast(self).inc_ref();
  std::vector<RowMap*> maps;
  {
    const WithoutGil unlocked;
    self->retire();
    maps = self->maps();
  }
  for (RowMap* map : maps) py::cast(map, py::return_value_policy::reference).inc_ref();
}

MapHolder make_map(const BlockStorePtr& pool, std::uint32_t rows, std::uint32_t max_tokens,
                   std::uint32_t guard_tokens, std::uint64_t token_bytes,
                   std::uint32_t ring_tokens) {
  const Geometry geometry{pool->arenas(),    rows,       max_tokens, guard_tokens, token_bytes,
                          pool->page_size(), ring_tokens};
  const WithoutGil unlocked;
  return MapHolder(new RowMap(pool, geometry));
}

void bind_pool(py::module_& module) {
  using Release = py::call_guard<WithoutGil>;
  py::class_<StoreStats> stats(module, "BlockPoolStats", "See pyvattn.rows.PoolStats.");
#define PYVATTN_BIND(name) stats.def_readonly(#name, &StoreStats::name);
  PYVATTN_STORE_STATS(PYVATTN_BIND)
  PYVATTN_STORE_SECONDS(PYVATTN_BIND)
#undef PYVATTN_BIND
  py::class_<BlockStore, BlockStorePtr>(module, "BlockPool", "The core of pyvattn.BlockPool.")
      .def(py::init<const DriverPtr&, std::uint32_t, BudgetPtr, std::size_t>(), py::kw_only(),
           py::arg("driver"), py::arg("arenas"), py::arg("budget").none(false),
           py::arg("slab_bytes") = 0)
      .def("allocate", &allocate, py::arg("count"), py::arg("after") = py::none())
      .def("retain", &with_blocks<&BlockStore::retain>, py::arg("blocks"))
      .def("release", &with_blocks<&BlockStore::release>, py::arg("blocks"))
      .def("dirty", &with_blocks<&BlockStore::dirty>, py::arg("blocks"))
      .def("resize", &BlockStore::resize, py::arg("memory_limit"), Release())
      .def("give_back", &BlockStore::give_back, Release())
      .def("close", &BlockStore::close, Release())
      .def("retire", &retire, "For the end of the process: refuses calls.")
      .def("stats", &BlockStore::stats, Release())
      .def_property_readonly("closed", &BlockStore::closed)
      .def_property_readonly("inherited", &BlockStore::inherited);
}

}  // namespace

void bind_rows(py::module_& module) {
  using Release = py::call_guard<WithoutGil>;
  bind_pool(module);
  py::class_<RowMap, MapHolder>(module, "RowMap", "The core of pyvattn.RowMap.")
      .def(py::init(&make_map), py::kw_only(), py::arg("pool"), py::arg("rows"),
           py::arg("max_tokens"), py::arg("guard_tokens"), py::arg("token_bytes"),
           py::arg("ring_tokens") = 0)
      .def("open", &open, py::arg("blocks"))
      .def("extend", &extend, py::arg("row"), py::arg("blocks"))
      .def("trim", &trim, py::arg("row"), py::arg("front"), py::arg("tail"),
           py::arg("after") = py::none())
      .def("close", &close_row, py::arg("row"), py::arg("after") = py::none())
      .def("flush", &RowMap::flush, Release())
      // Waits for nothing that wants the GIL: to give it up would cost more than the call.
      .def("flush_async", &RowMap::flush_async)
      .def("join", &RowMap::join, Release())
      .def("discard", &RowMap::discard, Release())
      .def("reclaim", &RowMap::reclaim, py::arg("blocks"), Release())
      .def("zero", &zero, py::arg("row"), py::arg("first"), py::arg("count"),
           py::arg("after") = py::none())
      .def("blocks", &blocks, py::arg("row"))
      .def("open_rows", &RowMap::open_rows, Release())
      .def_property_readonly("inherited", &RowMap::inherited)
      .def_property_readonly("positions",
                             [](const RowMap& self) { return self.geometry().row_pages(); })
      .def("view", &view, py::arg("arena"), py::arg("offset"), py::arg("shape"), py::arg("strides"),
           py::arg("dtype"));
}

}  // namespace pyvattn::python
