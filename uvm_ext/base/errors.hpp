// SPDX-License-Identifier: Apache-2.0
// Every error that the core reports. uvm_ext/python/errors.cpp gives each its
// class in pyvattn.errors; messages name the value and the remedy.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace pyvattn {

class Error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// An impossible driver, page size or geometry.
class ConfigError : public Error {
  using Error::Error;
};

// A slot that is not live: never acquired, released, of another cache, twice in one call.
class SlotError : public Error {
  using Error::Error;
};

// A length that does not fit a slot's row.
class LengthError : public SlotError {
  using SlotError::SlotError;
};

// A row of a row map that is not open, or positions that it does not have.
class RowError : public Error {
  using Error::Error;
};

// A block that the caller does not hold.
class BlockError : public Error {
  using Error::Error;
};

class OutOfSlots : public Error {
  using Error::Error;
};

// A memory limit below what live slots hold.
class LimitError : public Error {
  using Error::Error;
};

class ClosedError : public Error {
  using Error::Error;
};

// Two threads in step() at once, or a lease that is still in use.
class BusyError : public Error {
  using Error::Error;
};

// A cache used in a child process that inherited it through fork().
class ForkError : public Error {
  using Error::Error;
};

// A ledger of shared memory that cannot be used; the message names its file.
class LedgerError : public Error {
  using Error::Error;
};

// Its file holds something else than a ledger.
class LedgerCorrupt : public LedgerError {
  using LedgerError::LedgerError;
};

// It was made by another release, which this one does not understand.
class LedgerVersion : public LedgerError {
  using LedgerError::LedgerError;
};

// It was truncated or replaced, or the member's place in it went to another.
class LedgerLost : public LedgerError {
  using LedgerError::LedgerError;
};

// No slot is left, or the guarantees would be more than the budget.
class LedgerFull : public LedgerError {
  using LedgerError::LedgerError;
};

// Somebody else is joining, or is there.
class LedgerBusy : public LedgerError {
  using LedgerError::LedgerError;
};

// The page pool cannot serve a request. Sizes are in bytes.
class OutOfMemory : public Error {
 public:
  OutOfMemory(const std::string& message, std::uint64_t requested, std::uint64_t free,
              std::uint64_t reclaimable)
      : Error(message), requested(requested), free(free), reclaimable(reclaimable) {}

  std::uint64_t requested;
  std::uint64_t free;
  std::uint64_t reclaimable;
};

// A driver call that failed.
class DriverError : public Error {
 public:
  DriverError(std::string operation, std::uint64_t address, std::uint64_t size, std::string status,
              const std::string& detail = "");

  std::string operation;
  std::uint64_t address;
  std::uint64_t size;
  // The status code by the name that the system or vendor gives it.
  std::string status;
};

class DriverOutOfMemory : public DriverError {
  using DriverError::DriverError;
};

// A driver that this machine cannot offer, with the reason.
class DriverUnavailable : public Error {
  using Error::Error;
};

}  // namespace pyvattn
