// SPDX-License-Identifier: Apache-2.0
// A row map on a driver that is watched.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "drivers/registry.hpp"
#include "rows/row_map.hpp"
#include "tests/cache_support.hpp"

namespace pyvattn::test {

struct MapShape {
  std::string driver = "host";
  std::uint32_t arenas = 3;
  std::uint32_t rows = 6;
  std::uint32_t positions = 12;
  std::uint64_t limit_blocks = 40;
  std::uint64_t slab_blocks = 8;
  bool ring = false;
};

struct WatchedMap {
  explicit WatchedMap(const MapShape& wanted)
      : shape(wanted),
        page(driver_capabilities(wanted.driver, 0).page_sizes.front()),
        faults(std::make_shared<FaultAdaptor>(make_driver({wanted.driver, page, 0}))),
        checked(std::make_shared<CheckedAdaptor>(faults)),
        watch(std::make_shared<Watch>(checked)),
        store(std::make_shared<BlockStore>(
            watch, shape.arenas,
            std::make_shared<MemoryLimit>(shape.limit_blocks * shape.arenas * page),
            shape.slab_blocks * shape.arenas * page)),
        map(std::make_unique<RowMap>(
            store, Geometry{shape.arenas, shape.rows, shape.positions, 0, page, page,
                            shape.ring ? shape.positions : 0})) {}

  RowMap* operator->() { return map.get(); }

  // A page's slab and offset, in each arena, or nothing where none is mapped.
  std::vector<std::pair<SlabId, std::size_t>> under(std::uint32_t row, std::uint32_t position) {
    const Watch::Mappings mappings = watch->mappings();
    std::vector<std::pair<SlabId, std::size_t>> pages;
    for (std::uint32_t arena = 0; arena < shape.arenas; ++arena) {
      const auto found = mappings.find(address(arena, row, position));
      if (found != mappings.end()) pages.push_back(found->second);
    }
    return pages;
  }

  Address address(std::uint32_t arena, std::uint32_t row, std::uint32_t position) {
    return map->arena(arena)->address() + row * map->geometry().row_bytes() + position * page;
  }
  unsigned char& byte(std::uint32_t arena, std::uint32_t row, std::uint32_t position) {
    return *reinterpret_cast<unsigned char*>(address(arena, row, position));
  }

  // Every open row maps its blocks in order, a ring twice: a block is one page in each arena,
  // wherever it is mapped, and no page stands for two of them.
  void check_rows() {
    CHECK_EQUAL(watch->violation(), "");
    for (std::uint32_t row : map->open_rows()) {
      const std::vector<BlockId> blocks = map->blocks(row);
      for (std::uint32_t p = 0; p < blocks.size(); ++p) {
        const auto pages = under(row, p);
        if (shape.ring) CHECK(under(row, p + shape.positions) == pages);
        if (blocks[p] == RowTable::kHole) {
          CHECK(pages.empty());
          continue;
        }
        CHECK_EQUAL(pages.size(), shape.arenas);
        const auto known = pages_of_.emplace(blocks[p], pages).first;
        CHECK(known->second == pages);
      }
    }
    std::set<std::pair<SlabId, std::size_t>> apart;
    for (const auto& [block, pages] : pages_of_) apart.insert(pages.begin(), pages.end());
    CHECK_EQUAL(apart.size(), pages_of_.size() * shape.arenas);
  }
  void close() {
    faults->disarm();
    store->close();
    CHECK_EQUAL(watch->violation(), "");
    CHECK(watch->mappings().empty());
    CHECK_EQUAL(checked->live_slabs(), 0u);
    map.reset();
    CHECK_EQUAL(checked->live_reservations(), 0u);
  }

  const MapShape shape;
  const std::uint64_t page;
  const std::shared_ptr<FaultAdaptor> faults;
  const std::shared_ptr<CheckedAdaptor> checked;
  const std::shared_ptr<Watch> watch;
  const BlockStorePtr store;
  std::unique_ptr<RowMap> map;

 private:
  std::map<BlockId, std::vector<std::pair<SlabId, std::size_t>>> pages_of_;
};

}  // namespace pyvattn::test
