// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * pyvattn itself on this module: user/test_*.py, run by Python, on a libcuda that speaks
 * to /dev/nvidia-uvm. The GPU is larger: the drivers take CUDA's memory in pieces of 64 MB.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "gpu.h"
#include "harness.h"

#define GPU "fb_mb=320 gpus=1"
#define SECONDS 300	/* without a word of Python's, before it has hung */

/* A stream on which pytest says what it does with a selection of tests. */
static FILE *ask_python(const char *selection)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = PYTHON_SOCKET };
	struct timeval patience = { .tv_sec = SECONDS };
	int handle = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	CHECK(handle >= 0);
	CHECK(!setsockopt(handle, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)));
	if (connect(handle, (struct sockaddr *)&address, sizeof(address)))
		FAIL("no Python listens at %s: %s", PYTHON_SOCKET, strerror(errno));
	CHECK(write(handle, selection, strlen(selection)) == (ssize_t)strlen(selection));
	CHECK(!shutdown(handle, SHUT_WR));
	return fdopen(handle, "r");
}

/* One line of the results for each test of Python's; its other words only where one fails. */
static void run_pytest(const char *selection)
{
	static char line[4096], said[1 << 16];
	size_t length = 0;
	unsigned int passed = 0;
	/* As where another process uses the GPU: to set it up anew for each test takes longer than the test. */
	struct gpu user = open_gpu(0);
	FILE *output = ask_python(selection);
	int status = -1, process = 0;

	CHECK(output);
	while (fgets(line, sizeof(line), output)) {
		line[strcspn(line, "\n")] = 0;
		if (sscanf(line, "process %d", &process) == 1 || sscanf(line, "status %d", &status) == 1)
			continue;
		if (!strncmp(line, "ok ", 3)) {
			note("%s", line);
			passed++;
		} else if (line[0] && length < sizeof(said)) {
			length += (size_t)snprintf(said + length, sizeof(said) - length, "%s\n", line);
		}
	}
	close_gpu(&user);
	if (ferror(output) && process > 0)
		kill(process, SIGKILL);
	if (status || !passed) {
		char *rest = said, *part;

		while ((part = strsep(&rest, "\n")))
			note("%s", part);
		FAIL("pytest ended with status %d, %u tests passed", status, passed);
	}
}

TEST_WITH(user_space_on_the_patched_module, .needs_patch = true, .gpu = GPU, .seconds = 400)
{
	run_pytest("TestPatched or (TestStockUvm and through_a_second_mapping)");
}

TEST_WITH(user_space_rows_on_the_patched_module, .needs_patch = true, .gpu = GPU, .seconds = 400)
{
	run_pytest("TestRowsOnPatched");
}

TEST_WITH(user_space_on_the_stock_module, .needs_stock = true, .gpu = GPU, .seconds = 400)
{
	run_pytest("TestStockUvm or TestStockModule");
}

TEST_WITH(user_space_rows_on_the_stock_module, .needs_stock = true, .gpu = GPU, .seconds = 400)
{
	run_pytest("TestRowsOnStockUvm");
}
