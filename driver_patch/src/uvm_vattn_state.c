// SPDX-License-Identifier: MIT OR GPL-2.0
/* What a VA space owns: handles, what it was asked for and what it may take. */
#include <linux/mm.h>
#include <linux/random.h>

#include "uvm_va_space.h"

#include "uvm_vattn.h"
#include "uvm_vattn_state.h"

/* Before Linux 5.2 the nodes of an XArray are on no memory cgroup. */
#ifndef XA_FLAGS_ACCOUNT
#define XA_FLAGS_ACCOUNT 0
#endif

struct uvm_vattn_va_space *uvm_vattn_state(uvm_va_space_t *va_space)
{
	uvm_assert_rwsem_locked(&va_space->lock);
	return va_space->vattn;
}

NV_STATUS uvm_vattn_state_own(uvm_va_space_t *va_space,
			      struct uvm_vattn_va_space **state_out)
{
	struct uvm_vattn_va_space *state = va_space->vattn;

	uvm_assert_rwsem_locked_write(&va_space->lock);

	if (state && !uvm_vattn_account_is_callers(state->account))
		return NV_ERR_INSUFFICIENT_PERMISSIONS;
	*state_out = state;
	return NV_OK;
}

NV_STATUS uvm_vattn_state_create(uvm_va_space_t *va_space,
				 struct uvm_vattn_va_space **state_out)
{
	struct uvm_vattn_va_space *state;
	NV_STATUS status;

	status = uvm_vattn_state_own(va_space, &state);
	if (status != NV_OK)
		return status;

	if (!state) {
		state = uvm_vattn_zalloc(sizeof(*state));
		if (!state)
			return NV_ERR_NO_MEMORY;
		state->account = uvm_vattn_account_get();
		if (!state->account) {
			kvfree(state);
			return NV_ERR_NO_MEMORY;
		}
		xa_init_flags(&state->pages, XA_FLAGS_ALLOC1 | XA_FLAGS_ACCOUNT);
		get_random_bytes(&state->cookie, sizeof(state->cookie));
		va_space->vattn = state;
	}
	*state_out = state;
	return NV_OK;
}

void uvm_vattn_va_space_destroy(uvm_va_space_t *va_space)
{
	struct uvm_vattn_va_space *state = va_space->vattn;

	if (!state)
		return;

	/* Unregistering the GPUs dropped every handle and every mapping. */
	UVM_ASSERT(xa_empty(&state->pages));
	UVM_ASSERT(atomic64_read(&state->bytes_allocated) == 0);

	uvm_vattn_account_put(state->account);
	xa_destroy(&state->pages);
	va_space->vattn = NULL;
	kvfree(state);
}

void uvm_vattn_state_read(struct uvm_vattn_va_space *state,
			  struct uvm_vattn_stats *params)
{
	struct uvm_vattn_counters *counters = &state->counters;
	unsigned int i;

	for (i = 0; i < UVM_VATTN_PAGE_SIZE_SLOTS; i++) {
		params->pages_allocated[i] = atomic64_read(&counters->pages_allocated[i]);
		params->bytes_mapped[i] = atomic64_read(&counters->bytes_mapped[i]);
	}
	params->bytes_allocated = atomic64_read(&state->bytes_allocated);
	params->handles = atomic64_read(&state->handles);
	params->process_bytes = atomic64_read(&state->account->bytes);
	params->process_mappings = atomic64_read(&state->account->mappings);
	params->alloc_calls = atomic64_read(&counters->alloc_calls);
	params->free_calls = atomic64_read(&counters->free_calls);
	params->map_calls = atomic64_read(&counters->map_calls);
	params->unmap_calls = atomic64_read(&counters->unmap_calls);
	params->failed_calls = atomic64_read(&counters->failed_calls);
	params->map_entries = atomic64_read(&counters->map_entries);
	params->unmap_entries = atomic64_read(&counters->unmap_entries);
	params->ptes_written = atomic64_read(&counters->ptes_written);
	params->pte_pushes = atomic64_read(&counters->pte_pushes);
	params->tlb_invalidates = atomic64_read(&counters->tlb_invalidates);
	params->clear_pushes = atomic64_read(&counters->clear_pushes);
}

void uvm_vattn_state_count_call(struct uvm_vattn_va_space *state,
				unsigned int cmd, NV_STATUS status)
{
	struct uvm_vattn_counters *counters = &state->counters;

	if (status != NV_OK)
		atomic64_inc(&counters->failed_calls);
	else if (cmd == UVM_VATTN_ALLOC)
		atomic64_inc(&counters->alloc_calls);
	else if (cmd == UVM_VATTN_FREE)
		atomic64_inc(&counters->free_calls);
	else if (cmd == UVM_VATTN_MAP)
		atomic64_inc(&counters->map_calls);
	else if (cmd == UVM_VATTN_UNMAP)
		atomic64_inc(&counters->unmap_calls);
}
