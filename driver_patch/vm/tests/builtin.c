// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * UVM's own built-in tests, each on a file of its own. The same list runs on the stock
 * module and on the patched one.
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "gpu.h"
#include "harness.h"

/* What follows the name prepares the parameters. */
#define BUILTIN_WITH(name, options, ...)						\
	TEST_WITH(builtin_##name, options)						\
	{										\
		struct gpu gpu = open_gpu(0);						\
		UVM_TEST_##name##_PARAMS params = { 0 };				\
											\
		__VA_ARGS__;								\
		if (ioctl(gpu.uvm, UVM_TEST_##name, &params))				\
			FAIL("UVM_TEST_" #name ": %s", strerror(errno));		\
		CHECK_EQ(params.rmStatus, NV_OK);					\
	}

#define BUILTIN(name, ...) BUILTIN_WITH(name, .needs_patch = false, __VA_ARGS__)

static uint64_t range_group(struct gpu *gpu)
{
	UVM_CREATE_RANGE_GROUP_PARAMS params = { 0 };

	CHECK(!ioctl(gpu->uvm, UVM_CREATE_RANGE_GROUP, &params));
	CHECK_EQ(params.rmStatus, NV_OK);
	return params.rangeGroupId;
}

BUILTIN(RNG_SANITY)
BUILTIN(RANGE_TREE_DIRECTED)
BUILTIN(RANGE_ALLOCATOR_SANITY)
BUILTIN(RANGE_GROUP_TREE, params.rangeGroupIds[0] = range_group(&gpu);
	params.rangeGroupIds[1] = range_group(&gpu); params.rangeGroupIds[2] = range_group(&gpu);
	params.rangeGroupIds[3] = range_group(&gpu))
BUILTIN(RB_TREE_DIRECTED)
BUILTIN(LOCK_SANITY)
BUILTIN(KVMALLOC)
BUILTIN(NV_KTHREAD_Q)
BUILTIN(PERF_UTILS_SANITY)
BUILTIN(PERF_EVENTS_SANITY)
BUILTIN(CE_SANITY)
BUILTIN(PUSH_SANITY)
BUILTIN_WITH(CHANNEL_SANITY, .logs = "Assert failed")
BUILTIN(HOST_SANITY)
BUILTIN(TRACKER_SANITY)
BUILTIN(RM_MEM_SANITY)
BUILTIN_WITH(GPU_SEMAPHORE_SANITY, .logs = "Assert failed")
BUILTIN(MEM_SANITY)
/* Asserts of 550 in UVM's debug build: the page tables of older GPUs that it tries have no 2M pages. */
BUILTIN_WITH(PAGE_TREE, .logs = "max_vidmem_page_size")
/* UVM's own entries of memory that RM made are those that RM makes: here, that the simulator agrees with UVM. */
BUILTIN(GET_RM_PTES, params.test_mode = UVM_TEST_GET_RM_PTES_SINGLE_GPU; params.gpu_uuid = gpu.uuid;
	params.hClient = gpu.client; params.size = MB; params.hMemory = rm_memory(&gpu, params.size))
BUILTIN(VA_BLOCK)
BUILTIN_WITH(PMM_SANITY, .slow = true, params.mode = UvmTestPmmSanityModeBasic)
BUILTIN(PMM_CHECK_LEAK, params.gpu_uuid = gpu.uuid; params.chunk_size = PAGE_64K; params.alloc_limit = 100)
BUILTIN(FLUSH_DEFERRED_WORK, params.work_type = UvmTestDeferredWorkTypeAcessedByMappings)
