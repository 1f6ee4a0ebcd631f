// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Linked into the nvidia-uvm under test, with --wrap: every allocation of UVM can be made to
 * fail by the test interface, under the name "kvmalloc".
 */
#include <linux/lockdep.h>
#include <linux/types.h>

bool gpusim_fails(const char *name);

/* For lockdep, by UVM's lock order, see name_lock_classes in ../build. */
struct lock_class_key gpusim_lock_classes[64];

#define WRAP(function)											\
	void *__real_##function(size_t size, const char *file, int line, const char *caller);		\
	void *__wrap_##function(size_t size, const char *file, int line, const char *caller);		\
	void *__wrap_##function(size_t size, const char *file, int line, const char *caller)		\
	{												\
		return gpusim_fails("kvmalloc") ? NULL : __real_##function(size, file, line, caller);	\
	}

WRAP(__uvm_kvmalloc)
WRAP(__uvm_kvmalloc_zero)
WRAP(__uvm_vattn_kvmalloc_zero)
