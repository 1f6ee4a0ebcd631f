// SPDX-License-Identifier: Apache-2.0
// Making, opening and removing a ledger's file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "ledger/layout.hpp"
#include "ledger/mapping.hpp"

namespace pyvattn::ledger {

struct FileOptions {
  std::string path;
  // Which memory it is about, such as the UUID of a GPU.
  std::string device;
  // Bytes to share: of who makes the file. Zero: it must be there.
  std::uint64_t budget = 0;
  std::uint64_t chunk_bytes = 32 << 20;
};

struct OpenFile {
  Header header{};
  std::unique_ptr<Mapping> mapping;
};

// Opens the ledger, or makes it. Throws LedgerError where there is none and no budget is given,
// where the folder or the file is not the user's alone, and where the kernel's locks do not
// work there; LedgerCorrupt; LedgerVersion; ConfigError for another budget or another device
// than the ledger's.
OpenFile open_file(const FileOptions& options);

// Removes the file, whatever it holds. Throws LedgerBusy while anybody holds a lock on it.
void remove_file(const std::string& path);

}  // namespace pyvattn::ledger
