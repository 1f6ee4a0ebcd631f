// Who can spare pages, and who gets more of them than it needs now.
#include "cache/cache.hpp"

#include <algorithm>

namespace pyvattn {

// Of a live slot, what its longest length needs: kernels on the way may still read
// there. Of a free one, nothing.
std::uint32_t Cache::row_pages_kept(std::uint32_t slot) const {
  const SlotHead& head = slots_.head(slot);
  const std::uint32_t rows = slots_.row_pages(slot);
  if (head.state == SlotState::free) return 0;
  if (head.state != SlotState::live) return rows;
  return std::min(rows, math_.pages_for(std::max(head.written, head.claimed)));
}

// What a live slot of `length` tokens will probably come to need, as far as is read ahead;
// in whole steps of read-ahead, so that runs of pages are handed on whole as well.
std::uint32_t Cache::row_pages_expected(std::uint32_t slot, std::uint32_t length) const {
  const std::uint32_t growth = forecast_.growth();
  const std::uint32_t end = std::max(slots_.pages(slot).asked + growth, length + growth / 4);
  const std::uint32_t most = std::max<std::uint32_t>(read_ahead_, eager_ ? 1 : 0);
  const std::uint32_t ahead = std::min(end - length, most);
  const std::uint32_t pages = math_.pages_for(std::min(geometry_.max_tokens, length + ahead));
  const auto step = static_cast<std::uint32_t>(
      std::max<std::uint64_t>(1, read_ahead_ * geometry_.token_bytes / geometry_.page_size));
  return std::min((pages + step - 1) / step * step, math_.pages_for(geometry_.max_tokens));
}

std::vector<GrowthTarget> Cache::with_read_ahead(const std::vector<GrowthTarget>& targets) const {
  std::vector<GrowthTarget> ahead = targets;
  if (read_ahead_ == 0) return ahead;
  for (GrowthTarget& target : ahead) {
    const SlotHead& head = slots_.head(target.slot);
    if (head.state != SlotState::live) continue;
    // What is asked for in the background is not claimed: it is one token more.
    const std::uint32_t length =
        std::min(math_.capacity(target.row_pages), std::max(head.written, head.claimed) + 1);
    target.row_pages = std::max(target.row_pages, row_pages_expected(target.slot, length));
  }
  return ahead;
}

std::uint64_t Cache::pages_of(const std::vector<SpareTail>& tails) const {
  std::uint64_t pages = 0;
  for (const auto& [slot, kept] : tails) {
    pages += std::uint64_t{slots_.row_pages(slot) - kept} * geometry_.arenas;
  }
  return pages;
}

std::vector<SpareTail> Cache::free_tails() const {
  std::vector<SpareTail> tails;
  for (std::uint32_t slot : slots_.free_with_pages()) {
    if (!slots_.head(slot).in_flight) tails.push_back({slot, 0});
  }
  return tails;
}

// The longest first: one call takes a tail, however long it is.
std::vector<SpareTail> Cache::live_tails(Keep keep) const {
  std::vector<SpareTail> tails;
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
    const SlotHead& head = slots_.head(slot);
    if (head.state != SlotState::live || head.in_flight) continue;
    std::uint32_t kept = row_pages_kept(slot);
    if (keep == Keep::expected) {
      kept = std::max(kept, row_pages_expected(slot, std::max(head.written, head.claimed)));
    }
    if (kept < slots_.row_pages(slot)) tails.push_back({slot, kept});
  }
  const auto length = [this](const SpareTail& tail) {
    return slots_.row_pages(tail.slot) - tail.row_pages_kept;
  };
  std::sort(tails.begin(), tails.end(),
            [&](const SpareTail& a, const SpareTail& b) { return length(a) > length(b); });
  return tails;
}

// Tails of at least so many pages where there are any, in the order in which they may be
// taken: what live slots inherited and will probably not use, then free slots, the longest
// released first. Only where that is too little, all that live slots do not use now.
std::vector<SpareTail> Cache::spare_tails(std::uint64_t pages) const {
  std::vector<SpareTail> free = free_tails();
  std::vector<SpareTail> tails = live_tails(Keep::expected);
  if (pages_of(tails) + pages_of(free) < pages) {
    const std::vector<SpareTail> live = live_tails(Keep::needed);
    free.insert(free.end(), live.begin(), live.end());
    return free;
  }
  tails.insert(tails.end(), free.begin(), free.end());
  return tails;
}

std::uint64_t Cache::spare_pages() const {
  std::uint64_t pages = slots_.pages_in(SlotState::free);
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
    if (slots_.head(slot).state != SlotState::live) continue;
    pages += std::uint64_t{slots_.row_pages(slot) - row_pages_kept(slot)} * geometry_.arenas;
  }
  return pages;
}

}  // namespace pyvattn
