// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "cache/grouped_cache.hpp"
#include "python/arguments.hpp"
#include "python/bindings.hpp"
#include "python/gil.hpp"
#include "python/requests.hpp"
#include "python/slot_object.hpp"
#include "python/tensor_view.hpp"

namespace pyvattn::python {
namespace {

// The core's cache with a number, so that its slots are known from another's, and with
// the objects that Python has of them.
class NumberedCache {
 public:
  NumberedCache(const DriverPtr& driver, const std::vector<LayerGroup>& groups, std::uint32_t rows,
                std::uint32_t max_tokens, const BudgetPtr& budget, const CacheOptions& options)
      : cache(driver, groups, rows, max_tokens, budget, options),
        slots(std::make_shared<SlotObjects>(rows)) {}

  GroupedCache cache;
  const std::shared_ptr<SlotObjects> slots;
  const std::uint64_t number = ++count();

 private:
  static std::atomic<std::uint64_t>& count() {
    static std::atomic<std::uint64_t> caches{0};
    return caches;
  }
};

void step(NumberedCache& self, const py::dict& lengths, const FencePtr& after,
          std::uint32_t rollback) {
  const Requests requests(lengths, self.number);
  const WithoutGil unlocked;
  self.cache.step(requests.data(), requests.size(), {after, rollback});
}

void step_rows(NumberedCache& self, const py::object& rows, const py::object& lengths,
               const FencePtr& after, std::uint32_t rollback) {
  const Requests requests(rows, lengths, self.cache.slots());
  const WithoutGil unlocked;
  self.cache.step(requests.data(), requests.size(), {after, rollback});
}

void prefetch(NumberedCache& self, const py::dict& lengths) {
  const Requests requests(lengths, self.number);
  const WithoutGil unlocked;
  self.cache.prefetch(requests.data(), requests.size());
}

py::object acquire(NumberedCache& self, const py::object& tokens) {
  const std::int64_t length = length_of(tokens);
  SlotRef ref;
  {
    const WithoutGil unlocked;
    ref = self.cache.acquire(length);
  }
  return slot_object(self.number, ref, self.slots);
}

py::object admit(NumberedCache& self, const py::object& tokens) {
  const std::int64_t length = length_of(tokens);
  SlotRef ref;
  {
    const WithoutGil unlocked;
    ref = self.cache.admit(length);
  }
  return slot_object(self.number, ref, self.slots);
}

void extend(NumberedCache& self, const py::object& slot, const py::object& tokens,
            std::uint32_t arenas, const py::object& mapped) {
  const SlotRef ref = slot_ref(slot.ptr(), self.number);
  const std::int64_t length = length_of(tokens);
  const WithoutGil unlocked;
  self.cache.extend(ref, length, arenas,
                    [&](std::size_t group, std::uint32_t first, std::uint32_t end) {
                      const WithGil locked;
                      return mapped(group, first, end).cast<FencePtr>();
                    });
}

py::tuple forked(NumberedCache& self, const std::vector<Fork>& made) {
  py::list copies;
  for (const Fork& each : made) copies.append(py::make_tuple(each.first, each.end));
  return py::make_tuple(slot_object(self.number, made.front().slot, self.slots), copies);
}

py::tuple fork(NumberedCache& self, const py::object& slot, const py::object& tokens) {
  const SlotRef ref = slot_ref(slot.ptr(), self.number);
  const std::int64_t length = length_of(tokens);
  std::vector<Fork> made;
  {
    const WithoutGil unlocked;
    made = self.cache.fork(ref, length);
  }
  return forked(self, made);
}

py::tuple snapshot(NumberedCache& self, const py::object& slot, std::int64_t tokens,
                   std::uint64_t written) {
  const SlotRef ref = slot_ref(slot.ptr(), self.number);
  std::vector<Fork> made;
  {
    const WithoutGil unlocked;
    made = self.cache.snapshot(ref, tokens, written);
  }
  return forked(self, made);
}

bool try_step(NumberedCache& self, const py::dict& lengths, const FencePtr& after,
              std::uint32_t rollback) {
  const Requests requests(lengths, self.number);
  const WithoutGil unlocked;
  return self.cache.try_step(requests.data(), requests.size(), {after, rollback});
}

void trim(NumberedCache& self, const py::object& slot, const py::object& tokens,
          const FencePtr& after) {
  const SlotRef ref = slot_ref(slot.ptr(), self.number);
  const std::int64_t length = length_of(tokens);
  const WithoutGil unlocked;
  self.cache.trim(ref, length, after);
}

void trim_front(NumberedCache& self, const py::object& slot, const py::object& tokens,
                const FencePtr& after) {
  const SlotRef ref = slot_ref(slot.ptr(), self.number);
  const std::int64_t front = length_of(tokens);
  const WithoutGil unlocked;
  self.cache.trim_front(ref, front, after);
}

void trim_fronts(NumberedCache& self, const py::object& slot,
                 const std::vector<std::int64_t>& tokens, const FencePtr& after) {
  const SlotRef ref = slot_ref(slot.ptr(), self.number);
  const WithoutGil unlocked;
  self.cache.trim_fronts(ref, tokens, after);
}

void release(NumberedCache& self, const py::object& slot, const FencePtr& after) {
  const SlotRef ref = slot_ref(slot.ptr(), self.number);
  {
    const WithoutGil unlocked;
    self.cache.release(ref, after);
  }
  mark_released(slot);
}

bool can_admit(NumberedCache& self, const py::object& tokens) {
  const std::int64_t length = length_of(tokens);
  const WithoutGil unlocked;
  return self.cache.can_admit(length);
}

std::int64_t length(NumberedCache& self, const py::object& slot) {
  const SlotRef ref = slot_ref(slot.ptr(), self.number);
  const WithoutGil unlocked;
  return self.cache.length(ref);
}

std::vector<std::int64_t> fronts(NumberedCache& self, const py::object& slot) {
  const SlotRef ref = slot_ref(slot.ptr(), self.number);
  const WithoutGil unlocked;
  return self.cache.fronts(ref);
}

std::int64_t least_length(NumberedCache& self, const py::object& slot) {
  const SlotRef ref = slot_ref(slot.ptr(), self.number);
  const WithoutGil unlocked;
  return self.cache.least_length(ref);
}

std::vector<LiveSlot> live(NumberedCache& self) {
  const WithoutGil unlocked;
  return self.cache.live_slots();
}

py::list live_slots(NumberedCache& self) {
  py::list found;
  for (const LiveSlot& each : live(self)) {
    found.append(py::make_tuple(slot_object(self.number, each.slot, self.slots), each.length));
  }
  return found;
}

py::list live_pages(NumberedCache& self) {
  std::vector<std::pair<LiveSlot, std::size_t>> live;
  {
    const WithoutGil unlocked;
    live = self.cache.live_pages();
  }
  py::list found;
  for (const auto& [slot, pages] : live) {
    found.append(py::make_tuple(slot_object(self.number, slot.slot, self.slots), pages));
  }
  return found;
}

bool was_dropped(const LiveSlot& slot, const std::vector<SlotRef>& dropped) {
  return std::any_of(dropped.begin(), dropped.end(), [&](const SlotRef& ref) {
    return ref.index == slot.slot.index && ref.generation == slot.slot.generation;
  });
}

// New objects for the live slots whose objects are gone.
py::list take_dropped(NumberedCache& self) {
  const std::vector<SlotRef> dropped = std::exchange(self.slots->dropped, {});
  py::list found;
  for (const LiveSlot& each : live(self)) {
    if (!was_dropped(each, dropped)) continue;
    found.append(py::make_tuple(slot_object(self.number, each.slot, self.slots), each.written));
  }
  return found;
}

// The memory stays as it is, and the core's cache as long as the process: threads that
// compute may still use its tensors.
void retire(NumberedCache& self) {
  py::cast(&self).inc_ref();
  const WithoutGil unlocked;
  self.cache.retire();
}

TensorView view(NumberedCache& self, std::uint32_t arena, std::uint64_t offset,
                std::vector<std::int64_t> shape, std::vector<std::int64_t> strides,
                const std::string& dtype) {
  return TensorView::make(self.cache.arena(arena), offset, std::move(shape), std::move(strides),
                          dtype);
}

void bind_stats(py::module_& module) {
  py::class_<CacheStats> stats(module, "CacheStats", "See pyvattn.stats.Stats.");
#define PYVATTN_BIND(type, name) stats.def_readonly(#name, &CacheStats::name);
  PYVATTN_CACHE_STATS(PYVATTN_BIND)
#undef PYVATTN_BIND
}

}  // namespace

void bind_cache(py::module_& module) {
  using Release = py::call_guard<WithoutGil>;
  using Holder = std::unique_ptr<NumberedCache, DeleteWithoutGil<NumberedCache>>;
  bind_stats(module);
  module.attr("MAX_VIRTUAL_BYTES") = kMaxVirtualBytes;
  module.def(
      "row_bytes",
      [](std::uint32_t max_tokens, std::uint32_t guard_tokens, std::uint64_t token_bytes,
         std::uint64_t page_size, std::uint32_t ring_tokens) {
        return Geometry{1, 1, max_tokens, guard_tokens, token_bytes, page_size, ring_tokens}
            .row_bytes();
      },
      py::arg("max_tokens"), py::arg("guard_tokens"), py::arg("token_bytes"), py::arg("page_size"),
      py::arg("ring_tokens") = 0, "Bytes of addresses that a row takes in an arena.");
  module.def("begin_exit", &begin_exit,
             "The process ends: other threads that use a retired cache end quietly.");
  py::class_<LayerGroup>(module, "LayerGroup", "What the core knows of a pyvattn.LayerGroup.")
      .def(py::init([](std::uint32_t arenas, std::uint64_t token_bytes, std::uint32_t guard_tokens,
                       std::uint32_t window, std::uint32_t ring_tokens, bool state) {
             return LayerGroup{arenas, token_bytes, guard_tokens, window, ring_tokens, state};
           }),
           py::kw_only(), py::arg("arenas"), py::arg("token_bytes"), py::arg("guard_tokens"),
           py::arg("window") = 0, py::arg("ring_tokens") = 0, py::arg("state") = false);
  py::class_<NumberedCache, Holder>(module, "Cache", "The core of pyvattn.KVCache.")
      .def(py::init([](const DriverPtr& driver, const std::vector<LayerGroup>& groups,
                       std::uint32_t slots, std::uint32_t max_tokens, const BudgetPtr& budget,
                       std::size_t slab_bytes, bool background, std::uint32_t read_ahead,
                       bool strict) {
             const WithoutGil unlocked;
             return Holder(
                 new NumberedCache(driver, groups, slots, max_tokens, budget,
                                   CacheOptions{slab_bytes, background, read_ahead, strict}));
           }),
           py::kw_only(), py::arg("driver"), py::arg("groups"), py::arg("slots"),
           py::arg("max_tokens"), py::arg("budget").none(false), py::arg("slab_bytes") = 0,
           py::arg("background") = true, py::arg("read_ahead") = 0, py::arg("strict") = false)
      .def("acquire", &acquire, py::arg("tokens"))
      .def("admit", &admit, py::arg("tokens"))
      .def("extend", &extend, py::arg("slot"), py::arg("tokens"), py::arg("arenas"),
           py::arg("mapped"),
           "Backs tokens so many arenas at a time; mapped(group, first, end) may write there.")
      .def("fork", &fork, py::arg("slot"), py::arg("tokens"),
           "A new Slot, and for each group the bytes [first, end) of each row yet to be copied.")
      .def("snapshot", &snapshot, py::arg("slot"), py::arg("tokens"), py::arg("written"),
           "fork() where states have seen so many tokens, and rings were written as far as that, "
           "whatever the slot's length.")
      .def("try_step", &try_step, py::arg("lengths"), py::arg("after") = py::none(),
           py::arg("rollback") = 0)
      .def("trim", &trim, py::arg("slot"), py::arg("tokens"), py::arg("after") = py::none())
      .def("trim_front", &trim_front, py::arg("slot"), py::arg("tokens"),
           py::arg("after") = py::none())
      .def("trim_fronts", &trim_fronts, py::arg("slot"), py::arg("tokens"),
           py::arg("after") = py::none(),
           "trim_front() with a number for each group that keeps tokens.")
      .def("release", &release, py::arg("slot"), py::arg("after") = py::none())
      .def("step", &step, py::arg("lengths"), py::arg("after") = py::none(),
           py::arg("rollback") = 0)
      .def("step_rows", &step_rows, py::arg("rows"), py::arg("lengths"),
           py::arg("after") = py::none(), py::arg("rollback") = 0)
      .def("prefetch", &prefetch, py::arg("lengths"))
      .def("length", &length, py::arg("slot"))
      .def("fronts", &fronts, py::arg("slot"),
           "Tokens that nobody reads any more, by groups that keep tokens.")
      .def("least_length", &least_length, py::arg("slot"),
           "The fewest tokens behind which every window is there.")
      .def("live_slots", &live_slots, "(Slot, tokens) of every live slot.")
      .def("live_pages", &live_pages, "(Slot, pages under its row) of every live slot.")
      .def("take_dropped", &take_dropped,
           "(Slot, tokens at most) of live slots whose Slot was dropped since the last call.")
      .def_property_readonly("any_dropped",
                             [](NumberedCache& self) { return !self.slots->dropped.empty(); })
      .def("can_admit", &can_admit, py::arg("tokens"))
      .def(
          "drain", [](NumberedCache& self) { self.cache.drain(); }, Release())
      .def(
          "resize",
          [](NumberedCache& self, std::uint64_t limit) { return self.cache.resize(limit); },
          py::arg("memory_limit"), Release())
      .def(
          "give_back", [](NumberedCache& self) { return self.cache.give_back(); }, Release())
      .def(
          "close", [](NumberedCache& self) { self.cache.close(); }, Release())
      .def("retire", &retire, "For the end of the process: ends the thread, refuses calls.")
      .def(
          "stats", [](NumberedCache& self) { return self.cache.stats(); }, Release())
      .def_property_readonly("inherited",
                             [](NumberedCache& self) { return self.cache.inherited(); })
      .def_property_readonly("closed", [](NumberedCache& self) { return self.cache.closed(); })
      .def("view", &view, py::arg("arena"), py::arg("offset"), py::arg("shape"), py::arg("strides"),
           py::arg("dtype"), Release());
}

}  // namespace pyvattn::python
