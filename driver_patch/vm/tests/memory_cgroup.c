// SPDX-License-Identifier: MIT OR GPL-2.0
/* What a process takes of the kernel's memory is charged to its memory cgroup. */
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "harness.h"
#include "machine.h"
#include "vattn.h"

/* What is freed later, by RCU or by UVM, gets a moment; what the statistics say later than this they never will. */
#define PATIENCE_SECONDS 20

static struct uvm_vattn_map_entry entries[65536];

/* What a mapping costs the kernel at least: uvm_ext_gpu_map_t (uvm_va_range.h), without its list of page tables. */
#define MAPPING_CHARGE 192

static void write_text(const char *path, const char *text)
{
	int file = open(path, O_WRONLY | O_CLOEXEC);

	CHECK(file >= 0);
	CHECK(write(file, text, strlen(text)) == (ssize_t)strlen(text));
	close(file);
}

/*
 * memory.stat is summed up every two seconds, or after many changes, and until then says what was: a
 * call's own entries, on their way, have been taken for the mappings that it left. Who reads cpu.stat
 * has all of them summed up, in Linux 6.1 and 6.12.
 */
static void sum_up_statistics(void)
{
	char text[256];

	read_file("/tmp/cgroup/pages/cpu.stat", text, sizeof(text));
	CHECK(text[0]);
}

/* A field of the statistics of the test's memory cgroup, or a file's only number. */
static uint64_t cgroup_value(const char *name, const char *field)
{
	char path[64], line[128];
	uint64_t value = 0;
	bool found = false;
	FILE *file;

	sum_up_statistics();
	snprintf(path, sizeof(path), "/tmp/cgroup/pages/%s", name);
	file = fopen(path, "r");
	CHECK(file);
	while (!found && fgets(line, sizeof(line), file))
		found = !field || !strncmp(line, field, strlen(field));
	fclose(file);
	CHECK(found);
	value = strtoull(line + (field ? strlen(field) : 0), NULL, 10);
	return value;
}

/* Waits until a field of the statistics lies within bounds. */
static void await(const char *field, uint64_t at_least, uint64_t at_most)
{
	time_t end = time(NULL) + PATIENCE_SECONDS;
	uint64_t value;

	do {
		value = cgroup_value("memory.stat", field);
		if (value >= at_least && value <= at_most)
			return;
		sched_yield();
	} while (time(NULL) <= end);
	FAIL("%sis %llu, not from %llu to %llu", field, (unsigned long long)value,
	     (unsigned long long)at_least, (unsigned long long)at_most);
}

/* Mappings, for as long as they live, whether we make them or UVM does where it cuts one of ours. */
static void use_mappings(struct gpu *gpu)
{
	enum { MAPPINGS = 300, STRIDE = 4 * PAGE_64K };
	uint64_t base = external_range(gpu, MAPPINGS * STRIDE), handle = vattn_alloc(gpu, PAGE_64K, 3);
	uint64_t before = cgroup_value("memory.stat", "slab ");
	unsigned int i;

	for (i = 0; i < MAPPINGS; i++)
		entries[i] = (struct uvm_vattn_map_entry){
			.address = base + i * STRIDE, .handle = handle, .page_count = 3,
		};
	CHECK_EQ(try_map(gpu, entries, MAPPINGS), NV_OK);
	await("slab ", before + MAPPINGS * MAPPING_CHARGE, UINT64_MAX);
	for (i = 0; i < MAPPINGS; i++)
		CHECK_EQ(try_unmap_external(gpu, base + i * STRIDE + PAGE_64K, PAGE_64K), NV_OK);
	await("slab ", before + 2 * MAPPINGS * MAPPING_CHARGE, UINT64_MAX);
	free_range(gpu, base, MAPPINGS * STRIDE);
	await("slab ", 0, before + MAPPINGS * MAPPING_CHARGE / 2);
	memset(entries, 0, sizeof(entries));
}

static void use_memory(void *unused)
{
	struct gpu gpu;
	uint64_t handles[390], base, before, nodes, peak;
	unsigned int i;

	write_text("/tmp/cgroup/pages/cgroup.procs", "0");
	gpu = open_gpu(0);
	base = external_range(&gpu, PAGE_2M);
	vattn_alloc(&gpu, PAGE_64K, 1);
	memset(entries, 0, sizeof(entries));

	/* Handles, for as long as they live. */
	before = cgroup_value("memory.stat", "slab ");
	nodes = cgroup_value("memory.stat", "slab_reclaimable ");
	for (i = 0; i < 390; i++)
		handles[i] = vattn_alloc(&gpu, PAGE_64K, 1);
	await("slab ", before + 390 * 100, UINT64_MAX);
	/* Of the XArray, one for 64 of them. */
	await("slab_reclaimable ", nodes + 390 / 64 * 500, UINT64_MAX);
	for (i = 0; i < 390; i++)
		vattn_free(&gpu, handles[i]);
	await("slab ", 0, before + 390 * 50);

	use_mappings(&gpu);

	/* A batch, while it lasts: 32 bytes that are copied and 40 for its address, an entry. */
	before = cgroup_value("memory.current", NULL);
	for (i = 0; i < 30; i++) {
		CHECK_EQ(try_map(&gpu, entries, 65536), NV_ERR_INVALID_OBJECT_HANDLE);
		CHECK_EQ(try_map_one(&gpu, base, handles[0], 0, 1, 0), NV_ERR_INVALID_OBJECT_HANDLE);
	}
	peak = cgroup_value("memory.peak", NULL);
	CHECK(peak >= before + 65536 * 65);
	CHECK(cgroup_value("memory.current", NULL) <= before + 3 * MB);
}

/* Runs in a child that joins the cgroup. */
static void in_cgroup(void (*function)(void *))
{
	int status;

	mkdir("/tmp/cgroup", 0755);
	CHECK(!mount("cgroup2", "/tmp/cgroup", "cgroup2", 0, NULL));
	write_text("/tmp/cgroup/cgroup.subtree_control", "+memory");
	CHECK(!mkdir("/tmp/cgroup/pages", 0755));
	status = in_child(function, NULL);
	while (rmdir("/tmp/cgroup/pages"))
		usleep(1000);
	umount("/tmp/cgroup");
	CHECK_EQ(status, 0);
}

PATCH_TEST(memory_cgroup_pays)
{
	in_cgroup(use_memory);
}

/* A mapping's list of page tables that is too long for kmalloc() has pages of its own; UVM cuts it, and frees it. */
static void use_long_list(void *unused)
{
	enum { TABLES = 700, SMALL_PAGES = PAGE_2M / PAGE_64K };
	struct gpu gpu;
	uint64_t base, handle, before;

	write_text("/tmp/cgroup/pages/cgroup.procs", "0");
	gpu = open_gpu(0);
	base = external_range(&gpu, TABLES * PAGE_2M);
	handle = vattn_alloc(&gpu, PAGE_64K, TABLES * SMALL_PAGES);
	before = cgroup_value("memory.stat", "vmalloc ");
	/* Half of the list is empty then. */
	inject("kvmalloc", TABLES / 2);
	CHECK_EQ(try_map_one(&gpu, base, handle, 0, TABLES * SMALL_PAGES, 0), NV_ERR_NO_MEMORY);
	inject_off();
	await("vmalloc ", 0, before);
	map_one(&gpu, base, handle, 0, TABLES * SMALL_PAGES);
	await("vmalloc ", before + 4 * 4096, UINT64_MAX);
	/* What is left below the cut still needs a long list, which UVM copies. */
	CHECK_EQ(try_unmap_external(&gpu, base + (TABLES - 3) * PAGE_2M, PAGE_64K), NV_OK);
	unmap_one(&gpu, base, PAGE_2M);
	free_range(&gpu, base, TABLES * PAGE_2M);
	await("vmalloc ", 0, before);
}

TEST_WITH(memory_cgroup_pays_for_long_lists, .needs_patch = true, .gpu = "fb_mb=9216 gpus=1",
	  .uvm = "uvm_vattn_max_mbytes=8256")
{
	in_cgroup(use_long_list);
}
