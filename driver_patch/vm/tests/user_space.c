// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * pyvattn itself on this module: user/test_drivers.py, run by Python, on a libcuda that speaks
 * to /dev/nvidia-uvm. The GPU is larger: the drivers take CUDA's memory in pieces of 64 MB.
 */
#include <errno.h>
#include <string.h>
#include <sys/wait.h>

#include "harness.h"

#define GPU "fb_mb=320 gpus=1"
#define PYTEST "cd /user && HOME=/tmp PYTHONDONTWRITEBYTECODE=1 LD_LIBRARY_PATH=/usr/lib/machine "	\
	       "/usr/bin/python3 -m pytest -q -p no:cacheprovider -W error --tb=short test_drivers.py -k "

/* One line of the results for each test of Python's; its other words only where one fails. */
static void run_pytest(const char *selection)
{
	static char line[4096], said[1 << 16];
	char command[512];
	size_t length = 0;
	unsigned int passed = 0;
	FILE *output;
	int status;

	snprintf(command, sizeof(command), PYTEST "'%s' 2>&1", selection);
	output = popen(command, "r");
	if (!output)
		FAIL("%s: %s", command, strerror(errno));
	while (fgets(line, sizeof(line), output)) {
		line[strcspn(line, "\n")] = 0;
		if (!strncmp(line, "ok ", 3)) {
			note("%s", line);
			passed++;
		} else if (line[0] && length < sizeof(said)) {
			length += (size_t)snprintf(said + length, sizeof(said) - length, "%s\n", line);
		}
	}
	status = pclose(output);
	if (!WIFEXITED(status) || WEXITSTATUS(status) || !passed) {
		char *rest = said, *part;

		while ((part = strsep(&rest, "\n")))
			note("%s", part);
		FAIL("pytest ended with status 0x%x, %u tests passed", status, passed);
	}
}

TEST_WITH(user_space_on_the_patched_module, .needs_patch = true, .gpu = GPU, .seconds = 400)
{
	run_pytest("TestPatched or (TestStockUvm and through_a_second_mapping)");
}

TEST_WITH(user_space_on_the_stock_module, .needs_stock = true, .gpu = GPU, .seconds = 400)
{
	run_pytest("TestStockUvm or TestStockModule");
}
