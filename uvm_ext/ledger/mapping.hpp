// SPDX-License-Identifier: Apache-2.0
// A ledger's file, open and mapped. Survives what other processes do to it: a file that is
// truncated turns into one that is lost, and a forked child has neither the descriptor nor the
// memory, each of which holds its parent's locks.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "ledger/layout.hpp"

namespace pyvattn::ledger {

class Mapping {
 public:
  // Keeps a copy of the descriptor. Throws LedgerError.
  Mapping(std::string path, int descriptor, std::size_t bytes);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  const std::string& path() const { return path_; }
  int descriptor() const;
  // Whether the file still has all of its bytes and is the one that its path names.
  bool is_in_place() const;
  // Opens the path again where somebody closed the descriptor; whether it is this file.
  bool reopen();

  // Whether there is nothing behind the memory any more: then what is read means nothing.
  bool lost() const;
  void lose();
  // In a process that got it through fork() nothing may be touched.
  bool inherited() const { return fork_generation_ != current_fork(); }

  FileWords& words() const { return *at<FileWords>(kFileWordsOffset); }
  Slot& slot(std::uint32_t index) const { return at<Slot>(kSlotsOffset)[index]; }
  SharedWord& chunk(std::uint32_t index) const { return at<SharedWord>(kTableOffset)[index]; }

 private:
  struct Entry;
  static Entry* entries();
  static Entry& unused_entry();
  static void install_handlers();
  static void close_in_child();
  static int current_fork();

  template <typename T>
  T* at(std::size_t offset) const {
    return reinterpret_cast<T*>(static_cast<char*>(memory_) + offset);
  }

  const std::string path_;
  const std::size_t bytes_;
  const int fork_generation_;
  std::uint64_t device_ = 0;
  std::uint64_t inode_ = 0;
  void* memory_ = nullptr;
  Entry& entry_;
};

}  // namespace pyvattn::ledger
