// SPDX-License-Identifier: Apache-2.0
// When a lease takes, asks and gives.
#include <algorithm>

#include "ledger/doorbell.hpp"
#include "ledger/lease.hpp"

namespace pyvattn::ledger {

bool Lease::is_hungry() const {
  return wanted_ > 0 || (missed_ > 0 && Clock::now() < missed_until_);
}

std::uint32_t Lease::demand() const {
  const std::uint64_t missed = Clock::now() < missed_until_ ? missed_ : 0;
  const std::uint64_t waiting = std::max(wanted_, missed);
  const std::uint32_t demand = chunks_for(held_ + waiting) + (waiting > 0 ? slack_ : 0);
  return std::min(demand, chunks_);
}

// What everybody wants, with so much for this member, and what each should have of it.
Lease::View Lease::look(std::uint32_t demand) const {
  View view;
  view.all = member_->table().snapshot();
  for (Party& party : view.all.parties) {
    if (party.slot != member_->slot()) continue;
    party.lease = member_->lease();
    party.demand = demand;
    view.limit = party.limit;
    view.floor = party.floor();
  }
  const std::vector<std::uint32_t> all = targets(view.all);
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (view.all.parties[i].slot == member_->slot()) view.target = all[i];
  }
  view.tight = is_tight(view.all);
  return view;
}

// Free chunks that the member may take: up to its part where more is wanted than there is, and
// what is free for all where not. What others lack of their guarantees is not free for all.
std::uint32_t Lease::takeable(const View& view, std::uint32_t demand) const {
  const std::uint32_t lease = member_->lease();
  const std::uint32_t wished =
      view.tight ? view.target : std::max(view.target, std::min(demand + slack_, chunks_));
  const std::uint32_t most = std::min(wished, view.limit);
  const std::uint32_t room = most > lease ? most - lease : 0;
  const std::uint32_t lacks = view.floor > lease ? view.floor - lease : 0;
  return std::min(room,
                  std::max(view.all.spare_for(member_->slot()), std::min(lacks, view.all.free)));
}

// Publishes what the member is short of, and rings for those who hold more than is guaranteed
// to them: only they know what they can spare.
void Lease::ask(const View& view) {
  const std::uint32_t wish = std::max(view.floor, std::min(demand(), view.limit));
  const std::uint32_t lease = member_->lease();
  const std::uint32_t wanted = wish > lease ? wish - lease : 0;
  Slot& own = member_->live();
  own.wanted = wanted;
  if (wanted == 0) return;
  for (const Party& party : view.all.parties) {
    if (party.slot != member_->slot() && party.lease > party.floor()) {
      ring(member_->table().mapping().slot(party.slot).doorbell);
    }
  }
}

void Lease::replenish() {
  const std::uint32_t wish = demand();
  member_->live().demand = wish;
  const View view = look(wish);
  member_->live().target = view.target;
  // Nothing is taken ahead of a demand.
  const std::uint32_t lease = member_->lease();
  const std::uint32_t due = std::max(wish, view.floor);
  const std::uint32_t room = takeable(view, wish);
  if (due > lease) member_->take(std::min(room, due - lease));
  ask(view);
  settle();
}

// By name to those below their guarantee: out of the pool others could take it before them.
void Lease::hand_out(const View& view, std::uint32_t chunks) {
  for (const Party& party : view.all.parties) {
    if (chunks == 0) return;
    const std::uint32_t lacks = party.slot == member_->slot() ? 0 : party.lacks();
    if (lacks > 0) chunks -= member_->give_to(party, std::min(chunks, lacks));
  }
  member_->give(chunks);
}

// Chunks to give of those that neighbours ask for: one that wants more itself keeps its part of
// the whole, one that does not only what is guaranteed to it and what it cannot spare, since
// what it holds may be prefixes of requests that are over.
std::uint32_t Lease::due(const View& view, bool hungry) const {
  const std::uint32_t lease = member_->lease();
  const std::uint32_t kept = hungry ? std::max(view.target, view.floor) : view.floor;
  const std::uint32_t part = std::min(kept, view.limit);
  const std::uint32_t asked = view.all.asked_of(member_->slot());
  const std::uint32_t above = lease > view.limit ? lease - view.limit : 0;
  return std::max(above, lease > part ? std::min(lease - part, asked) : 0);
}

// Gives what is asked for and not in use, and lets the limit fall by what is in use: holders
// then give back what they can spare, and come here again.
void Lease::settle() {
  const std::uint32_t wish = demand();
  member_->live().demand = wish;
  const View view = look(wish);
  member_->live().target = view.target;
  const std::uint32_t lease = member_->lease();
  const std::uint32_t used = chunks_for(held_);
  const std::uint32_t unused = lease > used ? lease - used : 0;
  const std::uint32_t given = std::min(due(view, is_hungry()), unused);
  if (given > 0) hand_out(view, given);
  move_limit();
}

void Lease::move_limit() const {
  epoch_ = member_->table().mapping().words().epoch.load();
  const std::uint32_t lease = member_->lease();
  const View as_hungry = look(chunks_);
  const std::uint32_t kept_from_it = due(as_hungry, true);
  const std::uint32_t granted =
      kept_from_it > 0 ? lease - kept_from_it : lease + takeable(as_hungry, chunks_);
  const std::uint32_t asked = due(look(demand()), is_hungry());
  granted_ = granted * chunk_bytes_;
  limit_ = (asked > 0 ? std::min(granted, lease - asked) : granted) * chunk_bytes_;
}

std::uint64_t Lease::owed() const {
  if (inherited() || lost_) return 0;
  const Lock lock(mutex_);
  if (!member_) return 0;
  const std::uint32_t owed = owed_by(member_->slot(), look(demand()).all);
  const std::uint64_t kept = (member_->lease() - owed) * chunk_bytes_;
  const std::uint64_t held = held_;
  return owed > 0 && held > kept ? held - kept : 0;
}

std::uint64_t Lease::reach() const {
  if (inherited() || lost_) return held_;
  const Lock lock(mutex_);
  return member_ ? look(demand()).all.reach_of(member_->slot()) * chunk_bytes_ : 0;
}

// A small part of the budget is kept free for all, so that who begins need not ask first.
void Lease::refill_pool(const View& view) {
  const std::uint32_t lease = member_->lease();
  const std::uint32_t needs = std::max(demand() + slack_, view.floor);
  const auto now = Clock::now();
  if (lease <= needs) needed_ = now;
  const std::uint32_t pool = std::max(1u, chunks_ / 100);
  if (view.all.free >= pool || now - needed_ < std::chrono::seconds(1)) return;
  hand_out(view, std::min(lease - needs, pool - view.all.free));
}

void Lease::care() {
  const auto now = Clock::now();
  if (!member_->table().mapping().is_in_place() || now - checked_ > std::chrono::seconds(1)) {
    member_->check_lock();
    checked_ = now;
  }
  lost_ = member_->table().mapping().lost();
  if (lost_) return;
  member_->show_life();
  member_->sweep();
  refill_pool(look(demand()));
  replenish();
  // The file may have been cut off meanwhile: then nothing of what was read is true.
  lost_ = member_->table().mapping().lost();
}

}  // namespace pyvattn::ledger
