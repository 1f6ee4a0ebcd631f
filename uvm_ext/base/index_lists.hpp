// SPDX-License-Identifier: Apache-2.0
// Lists of indexes, such as slots, in which each is in one at most. To enter at the back, to
// leave and to look at either end takes no search, and no memory after the start.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pyvattn {

class IndexLists {
 public:
  // What follows the last, and the front of an empty list.
  static constexpr std::uint32_t kEnd = 0xffffffff;

  IndexLists(std::uint32_t indexes, std::uint32_t lists) : links_(indexes), fronts_(lists, kEnd) {}

  void push_back(std::uint32_t list, std::uint32_t index) {
    std::uint32_t& front = fronts_[list];
    if (front == kEnd) {
      links_[index] = {index, index};
      front = index;
      return;
    }
    const std::uint32_t back = links_[front].previous;
    links_[index] = {back, front};
    links_[back].next = index;
    links_[front].previous = index;
  }

  void remove(std::uint32_t list, std::uint32_t index) {
    const Link link = links_[index];
    links_[link.previous].next = link.next;
    links_[link.next].previous = link.previous;
    if (fronts_[list] == index) fronts_[list] = link.next == index ? kEnd : link.next;
  }

  std::uint32_t front(std::uint32_t list) const { return fronts_[list]; }
  std::uint32_t next(std::uint32_t list, std::uint32_t index) const {
    const std::uint32_t next = links_[index].next;
    return next == fronts_[list] ? kEnd : next;
  }
  // From the back to the front, in the same way.
  std::uint32_t back(std::uint32_t list) const {
    return fronts_[list] == kEnd ? kEnd : links_[fronts_[list]].previous;
  }
  std::uint32_t previous(std::uint32_t list, std::uint32_t index) const {
    return index == fronts_[list] ? kEnd : links_[index].previous;
  }
  // The front becomes the back.
  void rotate(std::uint32_t list) {
    if (fronts_[list] != kEnd) fronts_[list] = links_[fronts_[list]].next;
  }

  std::size_t bookkeeping_bytes() const {
    return links_.capacity() * sizeof(Link) + fronts_.capacity() * sizeof(std::uint32_t);
  }

 private:
  // A ring: the front's previous is the back.
  struct Link {
    std::uint32_t previous = kEnd;
    std::uint32_t next = kEnd;
  };

  std::vector<Link> links_;
  std::vector<std::uint32_t> fronts_;
};

}  // namespace pyvattn
