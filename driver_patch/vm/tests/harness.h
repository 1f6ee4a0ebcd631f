/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* A test is a function; each runs in a process of its own. See ../README.md. */
#ifndef HARNESS_H
#define HARNESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>

/* The limit of mappings of most tests, unless the run sets another (vm.mappings=): a decode step makes fewer. */
#define MOST_MAPPINGS "20000"

/* Where user/server.py listens. */
#define PYTHON_SOCKET "/tmp/python"

struct test {
	const char *name;
	void (*run)(void);
	unsigned int seconds;	/* it has hung after that long; 0: the default */
	bool needs_patch, needs_stock;
	bool slow;	/* only where the run asks for it (vm.slow=1) */
	const char *gpu;	/* parameters of the simulator; NULL: those of most tests */
	const char *uvm;	/* parameters of nvidia-uvm; NULL: those of most tests */
	bool ends_module;	/* UVM gives up in it, and is not asked what it leaves behind */
	const char *logs;	/* what the kernel may say although it sounds bad */
};

#define TEST_WITH(function, ...)						\
	static void function(void);						\
	static const struct test function##_test				\
		__attribute__((used, section("tests"), aligned(8))) =		\
		{ .name = #function, .run = function, __VA_ARGS__ };		\
	static void function(void)

#define TEST(function) TEST_WITH(function, .needs_patch = false)
#define PATCH_TEST(function) TEST_WITH(function, .needs_patch = true)

/* Ends the test, naming the place and the values. */
__attribute__((noreturn, format(printf, 3, 4)))
void fail_at(const char *file, int line, const char *format, ...);

#define FAIL(...) fail_at(__FILE__, __LINE__, __VA_ARGS__)
#define CHECK(condition) do { if (!(condition)) FAIL("not true: %s", #condition); } while (0)
#define CHECK_EQ(actual, expected) do {						\
	uint64_t actual_ = (uint64_t)(actual), expected_ = (uint64_t)(expected);	\
	if (actual_ != expected_)						\
		FAIL("%s is 0x%llx, not 0x%llx (%s)", #actual,			\
		     (unsigned long long)actual_, (unsigned long long)expected_, #expected); \
} while (0)

/* Says something in the log of a test that passes. */
__attribute__((format(printf, 1, 2))) void note(const char *format, ...);

/* Runs in a child of the test; returns its exit status, or 128 + the signal that ended it. */
int in_child(void (*function)(void *), void *argument);

/* Whether a thread of this process, 0 for none yet, waits in the kernel for what does not come: a lock. */
bool waits_for_a_lock(pid_t thread);

/* Whether the loaded module has our ioctls, UVM's own checks; a setting given on the kernel's command line. */
bool module_is_patched(void);
bool module_is_debug(void);
const char *setting(const char *name, const char *fallback);

#endif
