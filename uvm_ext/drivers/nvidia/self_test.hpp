// SPDX-License-Identifier: Apache-2.0
// Proves on the machine itself, before the first real use, that memory mapped by
// stock-uvm is where it should be. A layout that is wrong in one field shows here.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

#include "drivers/nvidia/stock_uvm.hpp"

namespace pyvattn {

class StockUvmSelfTest {
 public:
  explicit StockUvmSelfTest(StockUvmDriver& driver) : driver_(driver) {}

  // Throws DriverUnavailable that names the step.
  void run();

 private:
  void check_mapping();
  void check_pages(Address base, SlabId slab);
  void check_accounting();
  bool memory_comes_back(std::chrono::milliseconds patience);
  bool settles(std::size_t below, std::size_t above, std::chrono::milliseconds patience) const;
  void expect(Address address, const std::string& bytes, const char* step);

  StockUvmDriver& driver_;
};

}  // namespace pyvattn
