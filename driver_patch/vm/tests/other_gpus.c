// SPDX-License-Identifier: MIT OR GPL-2.0
/* GPUs that the simulator cannot be: UVM is made to take this one for them, see ../instrument. */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "harness.h"
#include "machine.h"
#include "vattn.h"

#define SMALL_PAGES (PAGE_2M - PAGE_64K)	/* each power of two below 2M */

static void pretend(const char *what)
{
	int file = open("/sys/module/nvidia_uvm/parameters/gpusim_pretend", O_WRONLY | O_CLOEXEC);

	CHECK(file >= 0);
	CHECK(write(file, what, strlen(what) + 1) > 0);
	close(file);
}

static uint64_t page_sizes_of(struct gpu *gpu, const char *what)
{
	uint64_t sizes;

	pretend(what);
	sizes = vattn_query(gpu).page_sizes;
	pretend("");
	return sizes;
}

static NV_STATUS try_alloc_on(struct gpu *gpu, const char *what)
{
	NV_STATUS status;
	uint64_t handle;

	pretend(what);
	status = try_alloc(gpu, PAGE_64K, 1, &handle);
	pretend("");
	return status;
}

static int branch(void)
{
	char version[512], *at;

	read_file("/proc/driver/nvidia/version", version, sizeof(version));
	at = strstr(version, "x86_64  ");
	CHECK(at);
	return atoi(at + strlen("x86_64  "));
}

PATCH_TEST(gpus_on_which_it_does_not_work_have_no_page_sizes)
{
	struct gpu gpu = open_gpu(0);

	CHECK_EQ(vattn_query(&gpu).page_sizes, SMALL_PAGES | PAGE_2M);
	CHECK_EQ(page_sizes_of(&gpu, "conf_computing"), 0);
	CHECK_EQ(page_sizes_of(&gpu, "ats"), 0);
	CHECK_EQ(page_sizes_of(&gpu, "sriov_heavy"), 0);
	CHECK_EQ(page_sizes_of(&gpu, "no_memory"), 0);
	CHECK_EQ(try_alloc_on(&gpu, "conf_computing"), NV_ERR_NOT_SUPPORTED);
	CHECK_EQ(try_alloc_on(&gpu, "ats"), NV_ERR_NOT_SUPPORTED);
	CHECK_EQ(vattn_stats(&gpu).handles, 0);
	vattn_alloc(&gpu, PAGE_64K, 1);
}

/* Of a GPU that has pages of one kind only, those are reported. */
PATCH_TEST(page_sizes_are_those_of_the_gpu)
{
	struct gpu gpu = open_gpu(0);

	CHECK_EQ(page_sizes_of(&gpu, "no_64k_chunks"), PAGE_2M);
	CHECK_EQ(page_sizes_of(&gpu, "no_2m_chunks"), SMALL_PAGES);
	/* Virtual GPUs may have their memory in smaller pieces; 535 does not know of it. */
	if (branch() < 550)
		return;
	CHECK_EQ(page_sizes_of(&gpu, "no_2m_pages"), SMALL_PAGES);
	CHECK_EQ(page_sizes_of(&gpu, "no_64k_pages"), 0);
}
