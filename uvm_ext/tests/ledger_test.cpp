// SPDX-License-Identifier: Apache-2.0
// The ledger's protocol, one member after the other: joining, words, death, garbage.
#include <fcntl.h>
#include <sys/stat.h>

#include <cstring>
#include <vector>

#include "base/errors.hpp"
#include "ledger/crc.hpp"
#include "ledger/locks.hpp"
#include "tests/ledger_support.hpp"

namespace pyvattn {
namespace {

using ledger::Member;
using test::check_sum;
using test::LedgerFolder;
using test::Random;
using MemberPtr = std::unique_ptr<Member>;

// Writes into the file behind everybody's back.
void scribble(const std::string& path, std::size_t offset, const void* data, std::size_t bytes) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  CHECK_EQUAL(::pwrite(file, data, bytes, static_cast<off_t>(offset)), static_cast<ssize_t>(bytes));
  ::close(file);
}

void scribble(const std::string& path, std::size_t offset, std::uint64_t word) {
  scribble(path, offset, &word, sizeof word);
}

std::size_t table_offset(std::uint32_t chunk) { return ledger::kTableOffset + chunk * 8; }

void care(const std::vector<Member*>& members, int rounds = 4) {
  for (int i = 0; i < rounds; ++i) {
    for (Member* member : members) member->show_life();
    for (Member* member : members) member->sweep();
  }
}

TEST(a_member_of_a_ledger_leases_its_guarantee_and_takes_what_is_free) {
  const LedgerFolder t(8);
  const MemberPtr one = t.join("one", 3);
  const MemberPtr two = t.join("two", 2);
  CHECK_EQUAL(one->lease(), 3u);
  CHECK_EQUAL(one->table().snapshot().free, 3u);
  CHECK_EQUAL(two->take(5), 3u);
  CHECK_EQUAL(two->lease(), 5u);
  CHECK_EQUAL(one->take(1), 0u);
  CHECK_EQUAL(two->give(4), 4u);
  CHECK_EQUAL(one->take(9), 4u);
  const ledger::Snapshot all = two->table().snapshot();
  check_sum(all);
  CHECK_EQUAL(all.find(one->slot())->lease, 7u);
  CHECK_EQUAL(all.find(one->slot())->name, std::string("one"));
}

TEST(guarantees_in_a_ledger_never_sum_to_more_than_its_budget) {
  const LedgerFolder t(8);
  MemberPtr one = t.join("one", 5);
  CHECK_THROWS(LedgerFull, t.join("two", 4));
  CHECK_EQUAL(one->table().snapshot().parties.size(), 1u);
  const MemberPtr two = t.join("two", 3);
  one.reset();
  CHECK_EQUAL(two->take(8), 5u);
}

TEST(a_member_that_joins_late_lacks_its_guarantee_until_it_is_handed_chunks) {
  const LedgerFolder t(4);
  const MemberPtr one = t.join("one");
  one->take(4);
  const MemberPtr two = t.join("two", 2);
  CHECK_EQUAL(two->lease(), 0u);
  const ledger::Snapshot all = one->table().snapshot();
  CHECK_EQUAL(all.find(two->slot())->lacks(), 2u);
  CHECK_EQUAL(one->give_to(*all.find(two->slot()), 2), 2u);
  two->show_life();
  CHECK_EQUAL(two->lease(), 2u);
  check_sum(two->table().snapshot());
}

TEST(a_ledger_has_room_for_so_many_members) {
  const LedgerFolder t(64);
  std::vector<MemberPtr> members;
  for (std::uint32_t i = 0; i < ledger::kSlots; ++i) members.push_back(t.join("m", 1));
  CHECK_THROWS(LedgerFull, t.join("one more"));
  members.pop_back();
  members.push_back(t.join("another", 1));
  CHECK_EQUAL(members.back()->lease(), 1u);
}

TEST(what_a_dead_member_leased_becomes_free_again) {
  const LedgerFolder t(8);
  const MemberPtr one = t.join("one");
  MemberPtr two = t.join_mortal("two", 2);
  two->take(4);
  one->sweep();
  CHECK_EQUAL(one->table().snapshot().find(two->slot())->lease, 6u);
  test::kill(two);
  CHECK_EQUAL(one->table().snapshot().unknown, 6u);
  CHECK_EQUAL(one->take(8), 2u);
  care({one.get()});
  CHECK_EQUAL(one->take(8), 6u);
  check_sum(one->table().snapshot());
}

TEST(the_next_process_of_a_slot_does_not_own_what_the_last_one_did) {
  const LedgerFolder t(8);
  MemberPtr one = t.join_mortal("one");
  one->take(5);
  const std::uint32_t slot = one->slot();
  test::kill(one);
  const MemberPtr two = t.join("two");
  CHECK_EQUAL(two->slot(), slot);
  CHECK_EQUAL(two->lease(), 0u);
  CHECK_EQUAL(two->table().snapshot().cooling, 5u);
  care({two.get()});
  CHECK_EQUAL(two->take(8), 8u);
}

TEST(a_chunk_that_is_handed_to_one_who_has_died_is_not_lost) {
  const LedgerFolder t(4);
  const MemberPtr one = t.join("one");
  one->take(4);
  MemberPtr two = t.join_mortal("two", 1);
  const ledger::Party party = *one->table().snapshot().find(two->slot());
  test::kill(two);
  const MemberPtr three = t.join("three");
  CHECK_EQUAL(three->slot(), party.slot);
  one->give_to(party, 2);
  care({one.get(), three.get()});
  CHECK_EQUAL(three->lease(), 0u);
  CHECK_EQUAL(one->table().snapshot().free, 2u);
}

TEST(what_a_dead_member_held_is_not_free_before_it_has_cooled) {
  const LedgerFolder t(8);
  ledger::MemberOptions options = t.options("one");
  options.cooling = std::chrono::hours(1);
  Member one(t.file, options);
  one.take(2);
  MemberPtr two = t.join_mortal("two");
  two->take(3);
  test::kill(two);
  care({&one});
  CHECK_EQUAL(one.table().snapshot().cooling, 3u);
  CHECK_EQUAL(one.take(8), 3u);
  // By the clock of one for whom it has cooled.
  const MemberPtr three = t.join("three");
  care({three.get()});
  CHECK_EQUAL(three->take(8), 3u);
}

TEST(no_two_chunks_that_cool_in_a_ledger_have_the_same_word_at_one_place) {
  const LedgerFolder t(2);
  ledger::MemberOptions options = t.options("one");
  options.cooling = std::chrono::hours(1);
  Member one(t.file, options);
  const MemberPtr quick = t.join("quick");
  std::vector<std::uint64_t> seen;
  for (int i = 0; i < 4; ++i) {
    MemberPtr dies = t.join_mortal("dies");
    CHECK_EQUAL(dies->take(2), 2u);
    test::kill(dies);
    one.sweep();
    const std::uint64_t word = one.table().word(0);
    CHECK(one.table().owner(0)->owner == ledger::kCooling);
    for (const std::uint64_t other : seen) CHECK(other != word);
    seen.push_back(word);
    care({quick.get()});
  }
}

TEST(a_member_whose_descriptor_was_closed_keeps_its_lock_and_its_words) {
  const LedgerFolder t(8);
  MemberPtr one = t.join_mortal("one", 3);
  const MemberPtr two = t.join("two");
  ::close(one->table().mapping().descriptor());
  care({two.get()});
  CHECK_EQUAL(two->table().snapshot().find(one->slot())->lease, 3u);
  one->check_lock();
  CHECK(!one->table().mapping().lost());
  care({one.get(), two.get()});
  CHECK_EQUAL(one->take(1), 1u);
  test::kill(one);
  care({two.get()});
  CHECK_EQUAL(two->table().snapshot().free, 8u);
}

TEST(a_living_process_without_a_lock_keeps_its_words_and_its_slot) {
  const LedgerFolder t(8);
  MemberPtr one = t.join("one", 3);
  const std::uint32_t slot = one->slot();
  const MemberPtr two = t.join("two");
  test::kill(one);
  care({two.get()});
  CHECK_EQUAL(two->table().snapshot().find(slot)->lease, 3u);
  CHECK(t.join("three")->slot() != slot);
}

TEST(a_container_that_was_killed_leaves_room_for_the_one_that_replaces_it) {
  const LedgerFolder t(8);
  MemberPtr killed = t.join_from_elsewhere("killed", 8);
  test::kill(killed);
  const MemberPtr next = t.join("next", 8);
  care({next.get()});
  next->take(8);
  CHECK_EQUAL(next->lease(), 8u);
}

TEST(what_died_in_another_container_is_gone_for_those_who_look_once) {
  const LedgerFolder t(8);
  const MemberPtr one = t.join("one");
  MemberPtr killed = t.join_from_elsewhere("killed", 3);
  const std::uint32_t slot = killed->slot();
  test::kill(killed);
  one->table().settle_doubts();
  care({one.get()});
  ledger::Table fresh(t.file);
  CHECK(fresh.snapshot().find(slot) == nullptr);
  CHECK_EQUAL(fresh.snapshot().free, 8u);
}

TEST(a_member_whose_place_went_to_another_says_so_and_takes_no_more) {
  const LedgerFolder t(8);
  const MemberPtr one = t.join("one", 3);
  const MemberPtr two = t.join("two");
  two->table().set_process(one->slot(), *two->table().generation(one->slot()) + 1, true);
  one->check_lock();
  CHECK_THROWS(LedgerLost, one->table().check_usable());
}

TEST(a_ledger_that_was_replaced_or_cut_off_is_lost_and_nobody_crashes) {
  const LedgerFolder t(4096);
  MemberPtr one = t.join("one", 3);
  one->check_lock();
  CHECK(!one->table().mapping().lost());
  CHECK_EQUAL(::truncate(t.file.path.c_str(), 4096), 0);
  one->show_life();
  CHECK_THROWS(LedgerLost, one->table().check_usable());
  CHECK_EQUAL(one->take(1), 0u);
  CHECK_THROWS(LedgerCorrupt, t.join("two"));
  CHECK_THROWS(LedgerBusy, ledger::remove_file(t.file.path));
  one.reset();
  ledger::remove_file(t.file.path);
  MemberPtr two = t.join("two", 3);
  ::unlink(t.file.path.c_str());
  two->check_lock();
  CHECK_THROWS(LedgerLost, two->table().check_usable());
}

TEST(words_without_meaning_are_taken_until_every_member_has_looked_twice) {
  const LedgerFolder t(8);
  const MemberPtr one = t.join("one", 2);
  const MemberPtr two = t.join("two");
  for (std::uint32_t chunk = 0; chunk < 8; ++chunk) scribble(t.file.path, table_offset(chunk), 0);
  CHECK_EQUAL(two->table().snapshot().unknown, 8u);
  CHECK_EQUAL(two->take(8), 0u);
  two->sweep();
  care({two.get()});
  CHECK_EQUAL(two->table().snapshot().unknown, 8u);
  one->show_life();
  CHECK_EQUAL(two->table().snapshot().unknown, 6u);
  care({two.get()});
  CHECK_EQUAL(two->table().snapshot().free, 0u);
  one->show_life();
  care({two.get()});
  CHECK_EQUAL(two->take(8), 6u);
  CHECK_EQUAL(one->lease(), 2u);
  check_sum(two->table().snapshot());
}

// Behind the words of the file as a whole: slots and table.
TEST(garbage_in_any_word_of_a_ledger_is_repaired_or_not_counted_as_free) {
  test::with_seeds(4, [](std::uint64_t seed) {
    const LedgerFolder t(8);
    const MemberPtr one = t.join("one", 3);
    const MemberPtr two = t.join("two", 2);
    Random random(seed);
    const std::size_t end = ledger::file_bytes(8);
    for (std::size_t offset = ledger::kFileWordsOffset; offset < end; offset += 8) {
      // Of words and slots that nobody uses, one.
      if (offset == ledger::kFileWordsOffset + 16) offset = ledger::kSlotsOffset;
      if (offset == ledger::kSlotsOffset + 2 * sizeof(ledger::Slot)) {
        offset = ledger::kTableOffset - 8;
      }
      const std::uint64_t garbage[] = {random.next(), 0, ~std::uint64_t{0}};
      scribble(t.file.path, offset, garbage[random.below(3)]);
      two->sweep();
      one->sweep();
      CHECK(one->table().snapshot().free <= 3);
      CHECK_EQUAL(one->lease() + two->lease(), 5u);
      care({one.get(), two.get()});
      const ledger::Snapshot all = two->table().snapshot();
      check_sum(all);
      CHECK_EQUAL(all.free, 3u);
      CHECK_EQUAL(all.find(one->slot())->guarantee, 3u);
      CHECK_EQUAL(all.find(two->slot())->lease, 2u);
    }
    one->table().check_usable();
  });
}

TEST(a_damaged_header_of_a_ledger_is_refused_and_does_not_disturb_its_members) {
  const LedgerFolder t(8);
  const MemberPtr one = t.join("one", 3);
  std::vector<char> header(sizeof(ledger::Header));
  const int file = ::open(t.file.path.c_str(), O_RDONLY | O_CLOEXEC);
  CHECK_EQUAL(::pread(file, header.data(), header.size(), 0), static_cast<ssize_t>(header.size()));
  ::close(file);
  for (std::size_t at = 0; at < header.size(); ++at) {
    const char wrong = static_cast<char>(header[at] ^ 0x55);
    scribble(t.file.path, at, &wrong, 1);
    CHECK_THROWS(LedgerError, t.join("two"));
    scribble(t.file.path, at, &header[at], 1);
  }
  care({one.get()});
  CHECK_EQUAL(one->lease(), 3u);
  CHECK_EQUAL(t.join("two", 5)->lease(), 5u);
}

void write_header(const LedgerFolder& t, void (*change)(ledger::Header&)) {
  ledger::Header header = ledger::open_file(t.file).header;
  change(header);
  header.crc = ledger::crc32c(&header, offsetof(ledger::Header, crc));
  scribble(t.file.path, 0, &header, sizeof header);
}

TEST(a_ledger_of_another_release_or_kernel_is_refused_by_name) {
  const LedgerFolder t(8);
  write_header(t, [](ledger::Header& header) { header.minor = 9; });
  CHECK_EQUAL(t.join("one")->lease(), 0u);
  write_header(t, [](ledger::Header& header) { header.compatible = 9; });
  CHECK_EQUAL(t.join("one")->lease(), 0u);
  write_header(t, [](ledger::Header& header) { header.incompatible = 1; });
  CHECK_THROWS(LedgerVersion, t.join("one"));
  ledger::remove_file(t.file.path);
  write_header(t, [](ledger::Header& header) { header.major = 2; });
  CHECK_THROWS(LedgerVersion, t.join("one"));
  ledger::remove_file(t.file.path);
  write_header(t, [](ledger::Header& header) { header.boot_id[0] ^= 1; });
  CHECK_THROWS(LedgerError, t.join("one"));
}

TEST(a_ledger_is_about_one_device_and_one_budget) {
  LedgerFolder t(8);
  const MemberPtr one = t.join("one");
  ledger::FileOptions other = t.file;
  other.budget *= 2;
  CHECK_THROWS(ConfigError, Member(other, {}));
  other = t.file;
  other.device = "another";
  CHECK_THROWS(ConfigError, Member(other, {}));
  other.device = "";
  other.budget = 0;
  CHECK_EQUAL(Member(other, {}).table().chunks(), 8u);
  ::chmod(t.file.path.c_str(), 0644);
  CHECK_THROWS(LedgerError, t.join("two"));
}

TEST(who_is_stopped_while_joining_holds_up_others_who_join_for_a_second_and_nobody_else) {
  const LedgerFolder t(8);
  const MemberPtr one = t.join("one");
  const MemberPtr two = t.join("two");
  const ledger::JoinLock stopped(two->table().mapping().descriptor(), "");
  CHECK_THROWS(LedgerBusy, t.join("three"));
  CHECK_EQUAL(one->take(3), 3u);
  care({one.get(), two.get()});
}

}  // namespace
}  // namespace pyvattn
