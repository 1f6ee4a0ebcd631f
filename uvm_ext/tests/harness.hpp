// SPDX-License-Identifier: Apache-2.0
// A small test harness: tests with names, checks that show their values, and random
// numbers that come out the same on every machine.
#pragma once

#include <cstdint>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>

namespace pyvattn::test {

class Failure : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] void fail(const char* file, int line, const std::string& what);

struct Registration {
  Registration(const char* name, std::function<void()> body);
};

template <typename Left, typename Right>
void check_equal(const Left& left, const Right& right, const char* text, const char* file,
                 int line) {
  if (left == right) return;
  std::ostringstream what;
  what << text << ": " << left << " != " << right;
  fail(file, line, what.str());
}

// Runs `body` with each of `count` seeds; a failure names the seed.
void with_seeds(unsigned count, const std::function<void(std::uint64_t seed)>& body);

// splitmix64: the distributions of <random> differ between standard libraries.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  // 0 … bound - 1.
  std::uint64_t below(std::uint64_t bound) { return next() % bound; }
  std::uint64_t between(std::uint64_t low, std::uint64_t high) {
    return low + below(high - low + 1);
  }
  bool one_in(std::uint64_t n) { return below(n) == 0; }

 private:
  std::uint64_t state_;
};

}  // namespace pyvattn::test

#define TEST(name)                                                              \
  static void name();                                                           \
  static const ::pyvattn::test::Registration name##_registration(#name, &name); \
  static void name()

#define CHECK(condition)                                               \
  do {                                                                 \
    if (!(condition)) {                                                \
      ::pyvattn::test::fail(__FILE__, __LINE__, #condition " is not"); \
    }                                                                  \
  } while (false)

#define CHECK_EQUAL(left, right) \
  ::pyvattn::test::check_equal((left), (right), #left " == " #right, __FILE__, __LINE__)

// Passes where the expression throws `type`.
#define CHECK_THROWS(type, expression)                                                \
  do {                                                                                \
    bool thrown_as_expected = false;                                                  \
    try {                                                                             \
      expression;                                                                     \
    } catch (const type&) {                                                           \
      thrown_as_expected = true;                                                      \
    }                                                                                 \
    if (!thrown_as_expected) {                                                        \
      ::pyvattn::test::fail(__FILE__, __LINE__, #expression " did not throw " #type); \
    }                                                                                 \
  } while (false)
