// SPDX-License-Identifier: Apache-2.0
// A ledger in a folder of its own, and members that can be killed without ending a process.
#pragma once

#include <stdlib.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "ledger/member.hpp"
#include "tests/harness.hpp"

namespace pyvattn::test {

class LedgerFolder {
 public:
  explicit LedgerFolder(std::uint32_t chunks) {
    char name[] = "/tmp/pyvattn-ledger-XXXXXX";
    folder_ = ::mkdtemp(name);
    file.path = folder_ + "/ledger-test";
    file.device = "test";
    file.chunk_bytes = 1 << 20;
    file.budget = chunks * file.chunk_bytes;
  }
  ~LedgerFolder() {
    ::unlink(file.path.c_str());
    ::rmdir(folder_.c_str());
  }
  LedgerFolder(const LedgerFolder&) = delete;
  LedgerFolder& operator=(const LedgerFolder&) = delete;

  ledger::MemberOptions options(const std::string& name, std::uint64_t guarantee = 0) const {
    ledger::MemberOptions options;
    options.name = name;
    options.guarantee = guarantee * file.chunk_bytes;
    return options;
  }

  std::unique_ptr<ledger::Member> join(const std::string& name, std::uint64_t guarantee = 0) const {
    return std::make_unique<ledger::Member>(file, options(name, guarantee));
  }

  // A member of a process that is not there: what keeps it alive is its lock alone.
  std::unique_ptr<ledger::Member> join_mortal(const std::string& name,
                                              std::uint64_t guarantee = 0) const {
    ledger::MemberOptions mortal = options(name, guarantee);
    mortal.process = ledger::Process::self();
    mortal.process->start_time += 1;
    return std::make_unique<ledger::Member>(file, mortal);
  }

  // A member of another container: its process cannot be seen from here.
  std::unique_ptr<ledger::Member> join_from_elsewhere(const std::string& name,
                                                      std::uint64_t guarantee = 0) const {
    ledger::MemberOptions elsewhere = options(name, guarantee);
    elsewhere.process = ledger::Process::self();
    elsewhere.process->pid_namespace += 1;
    return std::make_unique<ledger::Member>(file, elsewhere);
  }

  ledger::FileOptions file;

 private:
  std::string folder_;
};

// As the kernel does it: the lock goes, the words stay.
inline void kill(std::unique_ptr<ledger::Member>& member) {
  member->table().mapping().lose();
  member.reset();
}

// Whether every chunk is counted once.
inline void check_sum(const ledger::Snapshot& all) {
  std::uint32_t sum = all.free + all.cooling + all.not_ours + all.unknown;
  for (const ledger::Party& party : all.parties) sum += party.lease;
  CHECK_EQUAL(sum, all.chunks);
}

}  // namespace pyvattn::test
