// SPDX-License-Identifier: Apache-2.0
// Who can spare blocks, and who gets more of them than it needs now.
#include "cache/cache.hpp"

#include <algorithm>

namespace pyvattn {

// Of a live slot, what its longest length needs: kernels on the way may still read
// there. Of a free one, nothing.
std::uint32_t Cache::blocks_kept(std::uint32_t slot) const {
  const SlotHead& head = slots_.head(slot);
  const std::uint32_t blocks = slots_.blocks(slot);
  if (head.state == SlotState::free) return 0;
  if (head.state != SlotState::live) return blocks;
  const std::uint32_t needed = math_.pages_for(std::max(head.written, head.claimed));
  return std::min(blocks, std::max(needed, slots_.moved(slot)));
}

// What a live slot of `length` tokens will probably come to need, as far as is read ahead;
// in whole steps of read-ahead, so that runs of blocks are handed on whole as well.
std::uint32_t Cache::blocks_expected(std::uint32_t slot, std::uint32_t length) const {
  const std::uint32_t growth = forecast_.growth();
  const std::uint32_t end = std::max(slots_.asked(slot) + growth, length + growth / 4);
  const std::uint32_t most = std::max<std::uint32_t>(read_ahead_, eager_ ? 1 : 0);
  const std::uint32_t ahead = std::min(end - length, most);
  const std::uint32_t blocks = math_.pages_for(std::min(geometry_.max_tokens, length + ahead));
  const auto step = static_cast<std::uint32_t>(
      std::max<std::uint64_t>(1, read_ahead_ * geometry_.token_bytes / geometry_.page_size));
  return std::min((blocks + step - 1) / step * step, math_.pages_for(geometry_.max_tokens));
}

std::vector<Cache::Target> Cache::with_read_ahead(const std::vector<Target>& targets) const {
  std::vector<Target> ahead = targets;
  if (read_ahead_ == 0) return ahead;
  for (Target& target : ahead) {
    const SlotHead& head = slots_.head(target.slot);
    if (head.state != SlotState::live) continue;
    // What is asked for in the background is not claimed: it is one token more.
    const std::uint32_t length =
        std::min(math_.capacity(target.blocks), std::max(head.written, head.claimed) + 1);
    target.blocks = std::max(target.blocks, blocks_expected(target.slot, length));
  }
  return ahead;
}

std::uint64_t Cache::blocks_of(const std::vector<Tail>& tails) const {
  std::uint64_t blocks = 0;
  for (const auto& [slot, kept] : tails) blocks += slots_.blocks(slot) - kept;
  return blocks;
}

// Free slots with at least so many blocks, or all there are: those whose fence has passed
// first, and of these the longest released. However many slots there are, no more are
// looked at than have a fence to wait for or are taken.
std::vector<Cache::Tail> Cache::free_tails(std::uint64_t blocks) {
  std::vector<Tail> tails;
  std::vector<Tail> fenced;
  std::uint64_t found = 0;
  for (std::uint32_t slot = slots_.first(SlotState::free);
       slot != SlotTable::kNone && found < blocks; slot = slots_.next(SlotState::free, slot)) {
    if (rows_.is_in_flight(slot)) continue;
    if (!rows_.is_ready(slot)) {
      fenced.push_back({slot, 0});
      continue;
    }
    tails.push_back({slot, 0});
    found += slots_.blocks(slot);
  }
  if (found < blocks) tails.insert(tails.end(), fenced.begin(), fenced.end());
  return tails;
}

// Of at most so many live slots, others at each call; the longest first: one call takes a
// tail, however long it is.
std::vector<Cache::Tail> Cache::live_tails(Keep keep, std::uint32_t most) {
  std::vector<Tail> tails;
  const std::uint32_t looks = std::min(most, slots_.slots_in(SlotState::live));
  for (std::uint32_t i = 0; i < looks; ++i) {
    const std::uint32_t slot = slots_.first(SlotState::live);
    slots_.rotate(SlotState::live);
    if (rows_.is_in_flight(slot)) continue;
    std::uint32_t kept = blocks_kept(slot);
    if (keep == Keep::expected) {
      const SlotHead& head = slots_.head(slot);
      kept = std::max(kept, blocks_expected(slot, std::max(head.written, head.claimed)));
    }
    if (kept < slots_.blocks(slot)) tails.push_back({slot, kept});
  }
  std::sort(tails.begin(), tails.end(), [this](const Tail& a, const Tail& b) REQUIRES(mutex_) {
    return slots_.blocks(a.slot) - a.kept > slots_.blocks(b.slot) - b.kept;
  });
  return tails;
}

// Tails of at least so many blocks, or all there are, in the order in which they may be
// taken: what live slots inherited and will probably not use, then free slots. Only where
// that is too little, all that live slots do not use now.
std::vector<Cache::Tail> Cache::spare_tails(std::uint64_t blocks) {
  // Of few slots the longest tail is short, and calls many; 256 take some microseconds.
  constexpr std::uint32_t kFewSlots = 256;
  std::vector<Tail> tails = live_tails(Keep::expected, kFewSlots);
  const std::uint64_t inherited = blocks_of(tails);
  const std::uint64_t lacking = blocks - std::min(blocks, inherited);
  std::vector<Tail> more = free_tails(lacking);
  if (blocks_of(more) < lacking) {
    tails = std::move(more);
    more = live_tails(Keep::needed, slots_.size());
  }
  tails.insert(tails.end(), more.begin(), more.end());
  // No more than are needed.
  std::uint64_t found = 0;
  std::size_t taken = 0;
  while (taken < tails.size() && found < blocks) {
    found += slots_.blocks(tails[taken].slot) - tails[taken].kept;
    ++taken;
  }
  tails.resize(taken);
  return tails;
}

std::uint64_t Cache::spare_blocks() const {
  std::uint64_t blocks = slots_.blocks_in(SlotState::free);
  for (std::uint32_t slot = slots_.first(SlotState::live); slot != SlotTable::kNone;
       slot = slots_.next(SlotState::live, slot)) {
    blocks += slots_.blocks(slot) - blocks_kept(slot);
  }
  return blocks;
}

}  // namespace pyvattn
