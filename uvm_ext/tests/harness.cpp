// SPDX-License-Identifier: Apache-2.0
#include "tests/harness.hpp"

#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "emulation/drivers.hpp"

namespace pyvattn::test {
namespace {

struct Test {
  const char* name;
  std::function<void()> body;
};

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

// Long enough for the slowest under a sanitizer on a busy machine.
constexpr unsigned kSecondsPerTest = 600;
const char* running = "";

void write_all(const char* text) {
  static_cast<void>(!::write(STDOUT_FILENO, text, std::strlen(text)));
}

// A thread that waits for ever cannot be ended, so the process is.
extern "C" void end_hanging_test(int) {
  write_all("FAIL hangs: ");
  write_all(running);
  write_all("\n");
  ::_exit(1);
}

bool run(const Test& test) {
  const auto start = std::chrono::steady_clock::now();
  running = test.name;
  ::alarm(kSecondsPerTest);
  std::string failure;
  try {
    test.body();
  } catch (const std::exception& error) {
    failure = error.what();
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%-4s %6.2f s  %s\n", failure.empty() ? "ok" : "FAIL", seconds, test.name);
  if (!failure.empty()) std::printf("     %s\n", failure.c_str());
  std::fflush(stdout);
  return failure.empty();
}

}  // namespace

Registration::Registration(const char* name, std::function<void()> body) {
  tests().push_back({name, std::move(body)});
}

void fail(const char* file, int line, const std::string& what) {
  const char* slash = std::strrchr(file, '/');
  throw Failure(std::string(slash != nullptr ? slash + 1 : file) + ":" + std::to_string(line) +
                ": " + what);
}

void with_seeds(unsigned count, const std::function<void(std::uint64_t)>& body) {
  for (std::uint64_t seed = 1; seed <= count; ++seed) {
    try {
      body(seed);
    } catch (const std::exception& error) {
      throw Failure("seed " + std::to_string(seed) + ": " + error.what());
    }
  }
}

}  // namespace pyvattn::test

// core_tests [PART]: runs every test, or those whose name contains PART.
int main(int argc, char** argv) {
  pyvattn::emulation::register_drivers();
  std::signal(SIGALRM, pyvattn::test::end_hanging_test);
  int passed = 0;
  int failed = 0;
  for (const auto& test : pyvattn::test::tests()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    (pyvattn::test::run(test) ? passed : failed) += 1;
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return passed > 0 && failed == 0 ? 0 : 1;
}
