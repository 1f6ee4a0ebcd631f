// SPDX-License-Identifier: Apache-2.0
#include "blocks/block_pool.hpp"

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "base/errors.hpp"
#include "base/text.hpp"

namespace pyvattn {
namespace {

unsigned floor_log2(std::uint64_t value) {
  unsigned order = 0;
  while (value >>= 1) ++order;
  return order;
}

}  // namespace

// A sixteenth of the limit lets a long prompt have one run of blocks, and a shrinking
// limit find slabs that are empty. Where that is less than a few blocks, runs are worth more
// than empty slabs. Where each page is a call of its own, they save nothing.
std::uint32_t slab_blocks(const Driver& driver, std::uint32_t arenas, std::uint64_t memory_limit,
                          std::size_t slab_bytes) {
  const std::uint64_t page = driver.page_size();
  const std::uint64_t block = arenas * page;
  if (memory_limit < block) {
    throw ConfigError("a memory limit of " + bytes_text(memory_limit) + " holds not one page of " +
                      bytes_text(page) + " in each of " + std::to_string(arenas) +
                      " arenas: raise it to " + bytes_text(block) + " at least");
  }
  if (driver.capabilities().call_per_page) return 1;
  constexpr std::uint64_t kMost = 1 << 30;
  const std::uint64_t few = std::min(16 * block, memory_limit / 4);
  const std::uint64_t wanted =
      slab_bytes != 0 ? slab_bytes : std::min(std::max(memory_limit / 16, few), kMost);
  return 1u << floor_log2(std::max<std::uint64_t>(wanted / block, 1));
}

BlockPool::BlockPool(Driver& driver, const Budget& budget, std::uint32_t arenas,
                     std::uint32_t slab_blocks)
    : driver_(driver),
      budget_(budget),
      arenas_(arenas),
      page_size_(driver.page_size()),
      slab_order_(floor_log2(slab_blocks)),
      lists_(list_of(1u << slab_order_) + 1, kNone) {}

BlockPool::~BlockPool() {
  for (Slab& slab : slabs_) {
    if (slab.blocks == 0) continue;
    try {
      driver_.free_slab(slab.id);
    } catch (const std::exception&) {
      // A destructor cannot report it; the driver closes what is left when it goes.
    }
  }
}

// --- free runs ---
//
// Neighbouring free blocks are always one run. The first and the last block of a run know
// its length, so that neighbours are found without a search; the first block of each is in
// the list of its length.

// One list for each length while runs are short, then eight for each power of two.
unsigned BlockPool::list_of(std::uint32_t count) {
  constexpr unsigned kExact = 64;
  constexpr unsigned kExactOrder = 6;
  if (count < kExact) return count;
  const unsigned order = floor_log2(count);
  return kExact + (order - kExactOrder) * 8 + ((count >> (order - 3)) & 7);
}

void BlockPool::set_count(BlockId block, std::uint32_t flags, std::uint32_t count) {
  std::uint32_t& word = blocks_[block].word;
  word = (word & kDirty) | flags | count;
}

void BlockPool::push(const BlockRun& run) {
  Block& first = blocks_[run.first];
  std::uint32_t& list = lists_[list_of(run.count)];
  first.previous = kNone;
  first.next = list;
  if (first.next != kNone) blocks_[first.next].previous = run.first;
  list = run.first;
  set_count(run.first, 0, run.count);
  set_count(run.first + run.count - 1, 0, run.count);
}

BlockRun BlockPool::unlink(BlockId head) {
  const Block& first = blocks_[head];
  const std::uint32_t count = count_of(head);
  if (first.previous != kNone) {
    blocks_[first.previous].next = first.next;
  } else {
    lists_[list_of(count)] = first.next;
  }
  if (first.next != kNone) blocks_[first.next].previous = first.previous;
  return {head, count};
}

// Makes a run of blocks without a holder free, joined with its free neighbours.
void BlockPool::join(BlockRun run) {
  const std::uint32_t slab = slab_index(run.first);
  const BlockId base = first_block(slab);
  const BlockId after = run.first + run.count;
  slabs_[slab].blocks_free += run.count;
  blocks_free_ += run.count;
  if (after < base + slabs_[slab].blocks && is_free(after)) run.count += unlink(after).count;
  if (run.first > base && is_free(run.first - 1)) {
    const std::uint32_t count = count_of(run.first - 1);
    unlink(run.first - count);
    run.first -= count;
    run.count += count;
  }
  push(run);
}

// --- taking blocks ---

// Takes `wanted`, which lies in the free run that starts at `head`.
void BlockPool::carve(BlockId head, const BlockRun& wanted) {
  const BlockRun run = unlink(head);
  const BlockId end = wanted.first + wanted.count;
  if (wanted.first > run.first) push({run.first, wanted.first - run.first});
  if (end < run.first + run.count) push({end, run.first + run.count - end});
  for (std::uint32_t i = 0; i < wanted.count; ++i) set_count(wanted.first + i, kHeld, 1);
  slabs_[slab_index(wanted.first)].blocks_free -= wanted.count;
  blocks_free_ -= wanted.count;
}

// Takes up to `count` blocks right behind `after`, if the first of them is free.
bool BlockPool::take_behind(BlockId after, std::uint32_t count, BlockRun& out) {
  if (after == kAnywhere) return false;
  const BlockId wanted = after + 1;
  const std::uint32_t slab = slab_index(after);
  if (wanted - first_block(slab) >= slabs_[slab].blocks || !is_free(wanted)) return false;
  out = {wanted, std::min(count, count_of(wanted))};
  carve(wanted, out);
  return true;
}

// Takes `count` blocks in one run, from about the shortest that has them, or nothing.
bool BlockPool::take_run(std::uint32_t count, BlockRun& out) {
  // In the first list some may be too short; there, a long search is not worth its time.
  constexpr int kMostLooks = 64;
  int looks = 0;
  for (std::size_t list = list_of(count); list < lists_.size(); ++list) {
    for (BlockId head = lists_[list]; head != kNone && looks < kMostLooks; ++looks) {
      if (count_of(head) >= count) {
        out = {head, count};
        carve(head, out);
        return true;
      }
      head = blocks_[head].next;
    }
    looks = 0;
  }
  return false;
}

// Takes one of the longest runs, or as much of it as is wanted.
bool BlockPool::take_longest(std::uint32_t count, BlockRun& out) {
  for (std::size_t list = lists_.size(); list-- > 0;) {
    const BlockId head = lists_[list];
    if (head == kNone) continue;
    out = {head, std::min(count, count_of(head))};
    carve(head, out);
    return true;
  }
  return false;
}

void BlockPool::retake(const BlockRun& run, std::vector<BlockRun>& out) {
  for (BlockRun left = run; left.count > 0;) {
    BlockRun& part = out.emplace_back();
    part = retake_first(left);
    if (part.count == 0) out.pop_back();
  }
}

void BlockPool::retake(const BlockRun& run) noexcept {
  for (BlockRun left = run; left.count > 0;) retake_first(left);
}

// Takes the first free blocks of the run that lie in one free run, and cuts `run` behind
// them.
BlockRun BlockPool::retake_first(BlockRun& run) {
  const BlockId end = run.first + run.count;
  BlockId first = run.first;
  while (first < end && !is_free(first)) ++first;
  BlockRun taken = {first, 0};
  if (first < end) {
    BlockId head = first;
    const BlockId base = first_block(slab_index(first));
    while (head > base && is_free(head - 1)) --head;
    taken.count = std::min(end, head + count_of(head)) - first;
    carve(head, taken);
  }
  run = {first + taken.count, end - (first + taken.count)};
  return taken;
}

// An index without a slab. A vector that doubles would cost as much again as the books
// themselves: these grow by an eighth.
std::uint32_t BlockPool::unused_slab() {
  if (!unused_slabs_.empty()) return unused_slabs_.back();
  const auto index = static_cast<std::uint32_t>(slabs_.size());
  const std::size_t blocks = std::size_t{index + 1} << slab_order_;
  if (blocks > blocks_.capacity()) blocks_.reserve(blocks + blocks / 8);
  blocks_.resize(blocks);
  slabs_.emplace_back();
  // Room for every slab: giving one back must not fail.
  unused_slabs_.reserve(slabs_.capacity());
  unused_slabs_.push_back(index);
  return index;
}

// Allocates one more slab. False where there is no room for one, or where the
// device has none left and `needed` blocks can be had in pieces instead.
bool BlockPool::grow(std::uint32_t needed, std::vector<std::uint32_t>& grown) {
  const std::uint64_t room = budget_.headroom() / block_bytes();
  if (room == 0) return false;
  if (unused_slabs_.empty() && (slabs_.size() + 1) << slab_order_ > kCount) return false;
  grown.reserve(grown.size() + 1);
  const std::uint32_t index = unused_slab();
  const std::uint32_t blocks = 1u << std::min(slab_order_, floor_log2(room));
  SlabId id = 0;
  try {
    id = driver_.allocate_slab(blocks * block_bytes());
  } catch (const DriverOutOfMemory&) {
    if (blocks_free_ >= needed) return false;
    throw;
  }
  unused_slabs_.pop_back();
  slabs_[index] = {id, blocks, blocks};
  ++live_slabs_;
  blocks_allocated_ += blocks;
  blocks_free_ += blocks;
  push({first_block(index), blocks});
  grown.push_back(index);
  return true;
}

void BlockPool::allocate(std::uint32_t count, BlockId after, std::vector<BlockRun>& out) {
  const std::size_t before = out.size();
  std::vector<std::uint32_t> grown;
  try {
    bool behind = true;
    while (count > 0) {
      // A place for the run first: blocks that were taken must not be lost.
      BlockRun& run = out.emplace_back();
      const std::uint32_t wanted = std::min(count, 1u << slab_order_);
      const bool taken = (std::exchange(behind, false) && take_behind(after, count, run)) ||
                         take_run(wanted, run) || (grow(count, grown) && take_run(wanted, run)) ||
                         take_longest(count, run);
      if (!taken) {
        throw DriverOutOfMemory("allocate blocks", 0, count * block_bytes(),
                                "the block pool is empty");
      }
      count -= run.count;
    }
  } catch (...) {
    for (std::size_t i = before; i < out.size(); ++i) release(out[i]);
    out.resize(before);
    for (std::uint32_t slab : grown) give_back(slab);
    throw;
  }
}

// --- holders ---

std::uint32_t BlockPool::holders(BlockId block) const {
  return block >= blocks_.size() || is_free(block) ? 0 : count_of(block);
}

void BlockPool::retain(const BlockRun& run) {
  for (std::uint32_t i = 0; i < run.count; ++i) ++blocks_[run.first + i].word;
  further_holders_ += run.count;
}

void BlockPool::release(const BlockRun& run) {
  std::uint32_t freed = 0;
  const std::uint32_t end = run.first + run.count;
  for (BlockId block = run.first; block <= end; ++block) {
    if (block < end && count_of(block) == 1) {
      set_count(block, 0, 0);
      ++freed;
      continue;
    }
    if (block < end) {
      --blocks_[block].word;
      --further_holders_;
    }
    if (freed > 0) join({block - freed, freed});
    freed = 0;
  }
}

void BlockPool::mark_dirty(const BlockRun& run) {
  for (std::uint32_t i = 0; i < run.count; ++i) blocks_[run.first + i].word |= kDirty;
}

void BlockPool::mark_clean(const BlockRun& run) {
  for (std::uint32_t i = 0; i < run.count; ++i) blocks_[run.first + i].word &= ~kDirty;
}

// --- giving slabs back ---

// Gives a slab back that holds nothing.
void BlockPool::give_back(std::uint32_t slab) {
  Slab& gone = slabs_[slab];
  driver_.free_slab(gone.id);
  unlink(first_block(slab));
  mark_clean({first_block(slab), gone.blocks});
  blocks_allocated_ -= gone.blocks;
  blocks_free_ -= gone.blocks;
  gone = Slab{};
  unused_slabs_.push_back(slab);
  --live_slabs_;
}

std::size_t BlockPool::trim(std::uint64_t target) {
  std::size_t returned = 0;
  // The newest first: what was allocated last is what a failed call took.
  for (auto i = static_cast<std::uint32_t>(slabs_.size()); i-- > 0;) {
    if (bytes_allocated() <= target) break;
    const Slab& slab = slabs_[i];
    if (slab.blocks == 0 || slab.blocks_free != slab.blocks) continue;
    give_back(i);
    ++returned;
  }
  return returned;
}

std::size_t BlockPool::trim_to_limit(std::uint64_t limit) {
  const std::uint64_t held = budget_.held();
  const std::uint64_t over = held - std::min(held, limit);
  const std::uint64_t own = bytes_allocated();
  return trim(own - std::min(own, over));
}

// --- reading the books ---

BlockPool::Place BlockPool::place_of(BlockId block) const {
  const std::uint32_t slab = slab_index(block);
  return {slabs_[slab].id, (block - first_block(slab)) * page_size_,
          slabs_[slab].blocks * page_size_};
}

std::uint64_t BlockPool::blocks_available() const {
  return blocks_free_ + budget_.headroom() / block_bytes();
}

std::size_t BlockPool::bookkeeping_bytes() const {
  return blocks_.capacity() * sizeof(Block) + slabs_.capacity() * sizeof(Slab) +
         unused_slabs_.capacity() * sizeof(std::uint32_t);
}

}  // namespace pyvattn
