#include "cache/slot_table.hpp"

#include <algorithm>
#include <iterator>

namespace pyvattn {

void SlotTable::forget_pages(std::uint32_t slot) {
  const SlotState state = heads_[slot].state;
  page_counts_[static_cast<std::size_t>(state)] -= pages_[slot].pages.size();
  if (state != SlotState::free) return;
  by_pages_.erase(
      std::lower_bound(by_pages_.begin(), by_pages_.end(), PagesAndSlot{row_pages(slot), slot}));
}

void SlotTable::count_pages(std::uint32_t slot) {
  const SlotState state = heads_[slot].state;
  page_counts_[static_cast<std::size_t>(state)] += pages_[slot].pages.size();
  if (state != SlotState::free) return;
  const PagesAndSlot entry = {row_pages(slot), slot};
  by_pages_.insert(std::lower_bound(by_pages_.begin(), by_pages_.end(), entry), entry);
}

void SlotTable::set_state(std::uint32_t slot, SlotState state) {
  forget_pages(slot);
  heads_[slot].state = state;
  count_pages(slot);
}

std::vector<SlotTable::PagesAndSlot>::const_iterator SlotTable::first_with(
    std::uint32_t row_pages) const {
  return std::lower_bound(by_pages_.begin(), by_pages_.end(), PagesAndSlot{row_pages, 0});
}

bool SlotTable::is_ready(std::uint32_t slot) const {
  const FencePtr& fence = pages_[slot].fence;
  return !fence || fence->passed();
}

std::optional<std::uint32_t> SlotTable::best_fit(std::uint32_t row_pages, Among among) const {
  const auto fits = [&](const PagesAndSlot& entry) {
    const std::uint32_t slot = entry.second;
    return !heads_[slot].in_flight && (among == Among::all || is_ready(slot));
  };
  constexpr std::uint32_t kFar = 3;
  const auto above = first_with(row_pages);
  const auto longer = std::find_if(above, by_pages_.end(), fits);
  if (longer != by_pages_.end() && longer->first <= kFar * row_pages) return longer->second;
  const auto shorter = std::find_if(std::make_reverse_iterator(above), by_pages_.rend(), fits);
  const bool any_shorter = shorter != by_pages_.rend();
  if (any_shorter && shorter->first * kFar >= row_pages) return shorter->second;
  const auto empty = std::find_if(by_pages_.begin(), first_with(1), fits);
  if (empty != first_with(1)) return empty->second;
  if (longer != by_pages_.end()) return longer->second;
  return any_shorter ? std::optional<std::uint32_t>(shorter->second) : std::nullopt;
}

std::vector<std::uint32_t> SlotTable::free_with_pages() const {
  std::vector<std::uint32_t> slots;
  for (auto i = first_with(1); i != by_pages_.end(); ++i) {
    slots.push_back(i->second);
  }
  std::sort(slots.begin(), slots.end(), [this](std::uint32_t a, std::uint32_t b) {
    return pages_[a].released_at < pages_[b].released_at;
  });
  std::stable_partition(slots.begin(), slots.end(),
                        [this](std::uint32_t slot) { return is_ready(slot); });
  return slots;
}

std::optional<std::uint32_t> SlotTable::find(SlotState state) const {
  for (std::uint32_t slot = 0; slot < size(); ++slot) {
    if (heads_[slot].state == state) return slot;
  }
  return std::nullopt;
}

std::uint32_t SlotTable::slots_in(SlotState state) const {
  return static_cast<std::uint32_t>(std::count_if(
      heads_.begin(), heads_.end(), [state](const SlotHead& head) { return head.state == state; }));
}

std::uint64_t SlotTable::pages_fenced() const {
  std::uint64_t pages = 0;
  for (const auto& [row_pages, slot] : by_pages_) {
    if (!is_ready(slot)) pages += pages_[slot].pages.size();
  }
  return pages;
}

std::size_t SlotTable::bookkeeping_bytes() const {
  std::size_t bytes = heads_.capacity() * sizeof(SlotHead) + pages_.capacity() * sizeof(SlotPages) +
                      by_pages_.capacity() * sizeof(PagesAndSlot);
  for (const SlotPages& each : pages_) bytes += each.pages.capacity() * sizeof(PageNumber);
  return bytes;
}

}  // namespace pyvattn
