// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The first process of the emulated machine: loads the modules of one flavour after the other, for
 * one chip after the other, runs the tests, looks for leaks, and only then writes the verdict to
 * the second serial port.
 */
#define _GNU_SOURCE	/* FNM_EXTMATCH */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "gpu.h"
#include "harness.h"
#include "machine.h"

#define DEFAULT_SECONDS 120	/* generous: CI may be busy, and only a hang costs it */

extern const struct test __start_tests[], __stop_tests[];

static unsigned int passed, failed, skipped;
static unsigned int failed_before;	/* by modules that are no longer loaded */
static const char *flavour, *chip_name;	/* of the modules that are loaded */
static bool on_last_chip;
static const char *used_gpu, *used_uvm;	/* parameters of the modules that are loaded */
static bool modules_are_spent;
static bool patched;		/* as they are without parameters */

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Waits for a child; its exit status, 128 + signal, or -1 where it did not end in time. */
static int wait_for(pid_t child, unsigned int seconds)
{
	int handle = (int)syscall(SYS_pidfd_open, child, 0);
	struct pollfd ended = { .fd = handle, .events = POLLIN };
	int ready = poll(&ended, 1, (int)seconds * 1000), status = 0;

	close(handle);
	if (ready != 1) {
		kill(child, SIGKILL);
		return -1;
	}
	waitpid(child, &status, 0);
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* Objects alive must be as before the test; what the driver frees later gets a moment. */
static const char *leaked(const struct gpusim_live *before)
{
	static char what[96];
	int attempt;
	unsigned int i;

	for (attempt = 0; attempt < 500; attempt++) {
		struct gpusim_live after = live_objects();

		what[0] = 0;
		if (after.model_errors != before->model_errors)
			return "the simulator saw something that it does not allow";
		for (i = 0; i < after.count; i++)
			if (after.objects[i].live != before->objects[i].live)
				snprintf(what, sizeof(what), "leaks: %s %lld", after.objects[i].kind,
					 (long long)(after.objects[i].live - before->objects[i].live));
		if (!what[0])
			return NULL;
		usleep(10000);
	}
	return what;
}

/* Everything must have been given back when they go. */
static void end_modules(void)
{
	const char *problem;

	save_coverage();
	problem = unload_modules();
	if (modules_are_spent) {
		scan_kernel_log("");	/* not for those that come next */
		return;
	}
	if (!problem)
		problem = scan_kernel_log(NULL);
	if (!problem)
		problem = find_kernel_leaks();
	if (problem) {
		report("FAIL machine %s", problem);
		failed++;
	}
}

/* The modules start anew where a test wants another GPU, and around one that leaves them unusable. */
static void prepare_modules(const struct test *test)
{
	if (test->gpu == used_gpu && test->uvm == used_uvm && !modules_are_spent && !test->ends_module)
		return;
	end_modules();
	load_modules(flavour, chip_name, test->gpu, test->uvm);
	start_coverage();
	used_gpu = test->gpu;
	used_uvm = test->uvm;
	modules_are_spent = false;
}

static void run_test(const struct test *test)
{
	unsigned int patience = (unsigned int)atoi(setting("patience", "1"));
	struct gpusim_live before;
	double start = now();
	const char *problem, *said;
	int status;
	pid_t child;

	say("running %s", test->name);
	prepare_modules(test);
	before = live_objects();
	if (test->ends_module)
		expect_the_worst(true);
	child = fork();
	if (child == 0) {
		setpgid(0, 0);
		test->run();
		exit(0);
	}
	status = wait_for(child, (test->seconds ? test->seconds : DEFAULT_SECONDS) * patience);
	kill(-child, SIGKILL);
	inject_off();
	let_go();
	limit_pages(0, 0);
	sim_parameter("slow_ms", "0");
	resume_system();
	problem = status == -1 ? "hangs" : test->ends_module ? NULL : leaked(&before);
	said = test->ends_module ? NULL : scan_kernel_log(test->logs);
	problem = said ? said : problem;
	if (!problem && status)
		problem = status > 128 ? strsignal(status - 128) : "";
	modules_are_spent |= test->ends_module;
	if (problem || status) {
		report("FAIL %s %.2fs %s", test->name, now() - start, problem);
		failed++;
	} else {
		report("ok %s %.2fs", test->name, now() - start);
		passed++;
	}
}

/* By the modules' own pattern, where they come with one, else by the run's. */
static bool is_chosen(const struct test *test)
{
	static char pattern[512];
	char path[64];

	snprintf(path, sizeof(path), "/modules/%s/only", flavour);
	if (!access(path, R_OK))
		read_file(path, pattern, sizeof(pattern));
	else
		snprintf(pattern, sizeof(pattern), "%s", setting("only", "*"));
	return !fnmatch(pattern, test->name, FNM_EXTMATCH);
}

static bool is_over(void)
{
	return failed > failed_before && !strcmp(setting("fail_fast", "0"), "1");
}

/* Those that leave the modules as they were, or those that do not. */
static void run_tests(bool ends_module)
{
	bool slow = !strcmp(setting("slow", "0"), "1");
	const struct test *test;

	for (test = __start_tests; test < __stop_tests; test++) {
		if (is_over())
			return;
		if (test->ends_module != ends_module || !is_chosen(test))
			continue;
		if ((test->needs_patch && !patched) || (test->needs_stock && patched) || (test->slow && !slow)) {
			skipped++;
			continue;
		}
		run_test(test);
	}
}

/* Tests on the modules of a flavour and on one chip, and then no modules any more. */
static void run_modules(void)
{
	report("== %s module on %s", flavour, chip_name);
	failed_before = failed;
	expect_the_worst(false);
	load_modules(flavour, chip_name, NULL, NULL);
	used_gpu = used_uvm = NULL;
	modules_are_spent = false;
	patched = module_is_patched();
	start_coverage();
	run_tests(false);
	/* What UVM leaves in the kernel's slabs would fail those that load it again (Linux 6.1). */
	if (on_last_chip)
		run_tests(true);
	end_modules();
}

static void run_chips(void)
{
	char chips[64], *rest = chips;

	snprintf(chips, sizeof(chips), "%s", setting("chips", "gh100"));
	while ((chip_name = strsep(&rest, ","))) {
		on_last_chip = !rest;
		run_modules();
	}
}

static int is_other(const struct dirent *entry)
{
	static const char *const known[] = { ".", "..", "stock", "patched", "checked" };
	size_t i;

	for (i = 0; i < sizeof(known) / sizeof(*known); i++)
		if (!strcmp(entry->d_name, known[i]))
			return 0;
	return 1;
}

/* What else there is (test-mutants), and then the three kinds in this order. */
static void run_flavours(void)
{
	static const char *const all[] = { "stock", "patched", "checked" };
	struct dirent **found;
	int count = scandir("/modules", &found, is_other, alphasort), at;
	char path[64];
	size_t i;

	for (at = 0; at < count; at++) {
		flavour = found[at]->d_name;
		run_chips();
	}
	for (i = 0; i < sizeof(all) / sizeof(*all); i++) {
		snprintf(path, sizeof(path), "/modules/%s", all[i]);
		if (access(path, R_OK))
			continue;
		flavour = all[i];
		run_chips();
	}
}

static void finish(void)
{
	report("verdict %s passed=%u failed=%u skipped=%u seconds=%.1f",
	       !failed && passed ? "PASS" : "FAIL", passed, failed, skipped, now());
	sync();
	reboot(RB_POWER_OFF);
}

static void load_shell_modules(void)
{
	char shell[16], chips[64];

	snprintf(shell, sizeof(shell), "%s", setting("shell", "patched"));
	snprintf(chips, sizeof(chips), "%s", setting("chips", "gh100"));
	chips[strcspn(chips, ",")] = 0;
	load_modules(shell, chips, NULL, NULL);
}

int main(void)
{
	set_up_machine();
	scan_kernel_log("");
	if (!strcmp(setting("mode", "test"), "shell")) {
		load_shell_modules();
		run_shell();
		reboot(RB_POWER_OFF);
	}
	start_python();
	run_flavours();
	finish();
	return 1;
}
