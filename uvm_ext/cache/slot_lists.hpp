// Lists of slots in which each slot is in one at most. To enter at the back, to leave and
// to look at the front takes no search, and no memory after the start.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pyvattn {

class SlotLists {
 public:
  // What follows the last, and the front of an empty list.
  static constexpr std::uint32_t kEnd = 0xffffffff;

  SlotLists(std::uint32_t slots, std::uint32_t lists) : links_(slots), fronts_(lists, kEnd) {}

  void push_back(std::uint32_t list, std::uint32_t slot) {
    std::uint32_t& front = fronts_[list];
    if (front == kEnd) {
      links_[slot] = {slot, slot};
      front = slot;
      return;
    }
    const std::uint32_t back = links_[front].previous;
    links_[slot] = {back, front};
    links_[back].next = slot;
    links_[front].previous = slot;
  }

  void remove(std::uint32_t list, std::uint32_t slot) {
    const Link link = links_[slot];
    links_[link.previous].next = link.next;
    links_[link.next].previous = link.previous;
    if (fronts_[list] == slot) fronts_[list] = link.next == slot ? kEnd : link.next;
  }

  std::uint32_t front(std::uint32_t list) const { return fronts_[list]; }
  std::uint32_t next(std::uint32_t list, std::uint32_t slot) const {
    const std::uint32_t next = links_[slot].next;
    return next == fronts_[list] ? kEnd : next;
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
