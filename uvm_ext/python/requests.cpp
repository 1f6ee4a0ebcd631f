// SPDX-License-Identifier: Apache-2.0
#include "python/requests.hpp"

#include <string>
#include <utility>

#include "base/errors.hpp"
#include "python/arguments.hpp"
#include "python/slot_object.hpp"

namespace pyvattn::python {
namespace {

std::vector<SlotLength>& spare() {
  static thread_local std::vector<SlotLength> memory;
  return memory;
}

}  // namespace

// What the last call left there is overwritten: to clear it would mean writing all of it twice.
Requests::Requests() { list_.swap(spare()); }

Requests::~Requests() {
  if (list_.capacity() > spare().capacity()) list_.swap(spare());
}

Requests::Requests(const py::dict& lengths, std::uint64_t cache) : Requests() {
  if (!read_plain(lengths, cache)) read_any(lengths, cache);
}

// Reads lengths that are ints; false at the first that is not. No Python code runs between
// the first look at the dict and the last, so that it stays as it is.
bool Requests::read_plain(const py::dict& lengths, std::uint64_t cache) {
  list_.resize(lengths.size());
  SlotLength* next = list_.data();
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  Py_ssize_t position = 0;
  while (PyDict_Next(lengths.ptr(), &position, &key, &value) != 0) {
    next->slot = slot_ref(key, cache);
    if (!is_one_digit(value, next->length) && !read_plain_length(value, next->length)) return false;
    ++next;
  }
  return true;
}

// Python code may run at every length, and change the dict: its items are taken first.
void Requests::read_any(const py::dict& lengths, std::uint64_t cache) {
  std::vector<std::pair<py::object, py::object>> items;
  items.reserve(lengths.size());
  for (const auto& [key, value] : lengths) {
    items.emplace_back(py::reinterpret_borrow<py::object>(key),
                       py::reinterpret_borrow<py::object>(value));
  }
  list_.clear();
  for (const auto& [key, value] : items) {
    const SlotRef slot = slot_ref(key.ptr(), cache);
    const std::int64_t length = length_of(value);
    list_.push_back({slot, length});
  }
}

Requests::Requests(py::handle rows, py::handle lengths, std::uint32_t slots) : Requests() {
  const Int64Buffer row_numbers(rows, "rows");
  const Int64Buffer row_lengths(lengths, "lengths");
  if (row_numbers.size() != row_lengths.size()) {
    throw ConfigError(std::to_string(row_numbers.size()) + " rows, but " +
                      std::to_string(row_lengths.size()) + " lengths");
  }
  list_.resize(row_numbers.size());
  for (std::size_t i = 0; i < list_.size(); ++i) {
    const std::int64_t row = row_numbers.data()[i];
    if (row < 0 || row >= slots) {
      throw SlotError("row " + std::to_string(row) + " is not one of this cache's " +
                      std::to_string(slots) + ": use the index of what acquire() returned");
    }
    list_[i] = {{static_cast<std::uint32_t>(row)}, row_lengths.data()[i]};
  }
}

}  // namespace pyvattn::python
