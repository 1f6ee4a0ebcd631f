// SPDX-License-Identifier: MIT OR GPL-2.0
/* Limits of a process, and what it has of each. */
#include <linux/bits.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "uvm_vattn_account.h"

static ulong uvm_vattn_max_mbytes;
module_param(uvm_vattn_max_mbytes, ulong, 0444);
MODULE_PARM_DESC(uvm_vattn_max_mbytes,
		 "Most MiB that one process may take through the pyvattn ioctls: of all GPUs together, and of the kernel for its mappings; 0 is no limit but the GPUs' memory. (ulong)");

static ulong uvm_vattn_max_mappings = 4UL << 20;
module_param(uvm_vattn_max_mappings, ulong, 0444);
MODULE_PARM_DESC(uvm_vattn_max_mappings,
		 "Most mappings that one process may have through the pyvattn ioctls, each of which costs the kernel half a KiB; at most 2^30. (ulong)");

/*
 * References on pages are counted in an int (nv_kref_t), one for each mapping:
 * they cannot come near its end, whatever the administrator asks for.
 */
#define MOST_MAPPINGS BIT(30)

/* Taken inside of a VA space's lock; nothing is taken inside of it. */
static DEFINE_MUTEX(accounts_lock);
static LIST_HEAD(accounts);

u64 uvm_vattn_limit_bytes(void)
{
	u64 mbytes = uvm_vattn_max_mbytes;

	if (!mbytes || mbytes > U64_MAX >> 20)
		return U64_MAX;
	return mbytes << 20;
}

u64 uvm_vattn_limit_mappings(void)
{
	return min(uvm_vattn_max_mappings, MOST_MAPPINGS);
}

static struct uvm_vattn_account *find_or_create(struct mm_struct *mm)
{
	struct uvm_vattn_account *account;

	list_for_each_entry(account, &accounts, node) {
		if (account->mm == mm)
			return account;
	}

	account = uvm_vattn_zalloc(sizeof(*account));
	if (!account)
		return NULL;

	/* Not its memory, only its name: no other process gets it meanwhile. */
	mmgrab(mm);
	account->mm = mm;
	list_add(&account->node, &accounts);
	return account;
}

struct uvm_vattn_account *uvm_vattn_account_get(void)
{
	struct uvm_vattn_account *account;

	mutex_lock(&accounts_lock);
	account = find_or_create(current->mm);
	if (account)
		account->users++;
	mutex_unlock(&accounts_lock);
	return account;
}

void uvm_vattn_account_put(struct uvm_vattn_account *account)
{
	bool last;

	mutex_lock(&accounts_lock);
	last = --account->users == 0;
	if (last)
		list_del(&account->node);
	mutex_unlock(&accounts_lock);

	if (last) {
		mmdrop(account->mm);
		kvfree(account);
	}
}

bool uvm_vattn_account_is_callers(const struct uvm_vattn_account *account)
{
	return account->mm == current->mm;
}

NV_STATUS uvm_vattn_take_bytes(struct uvm_vattn_account *account, u64 bytes)
{
	/* Neither term exceeds 2^48: a GPU's memory, at most. */
	if ((u64)atomic64_add_return(bytes, &account->bytes) <=
	    uvm_vattn_limit_bytes())
		return NV_OK;

	atomic64_sub(bytes, &account->bytes);
	return NV_ERR_INSUFFICIENT_RESOURCES;
}

void uvm_vattn_return_bytes(struct uvm_vattn_account *account, u64 bytes)
{
	atomic64_sub(bytes, &account->bytes);
}

static u64 mapping_bytes(u64 size)
{
	return UVM_VATTN_MAPPING_BYTES + UVM_VATTN_MAPPED_TABLE_BYTES *
	       DIV_ROUND_UP_ULL(size, UVM_VATTN_MAX_PAGE);
}

NV_STATUS uvm_vattn_take_mapping(struct uvm_vattn_account *account, u64 size)
{
	NV_STATUS status = NV_ERR_INSUFFICIENT_RESOURCES;

	if ((u64)atomic64_inc_return(&account->mappings) <=
	    uvm_vattn_limit_mappings())
		status = uvm_vattn_take_bytes(account, mapping_bytes(size));
	if (status != NV_OK)
		atomic64_dec(&account->mappings);
	return status;
}

void uvm_vattn_return_mapping(struct uvm_vattn_account *account, u64 size)
{
	uvm_vattn_return_bytes(account, mapping_bytes(size));
	atomic64_dec(&account->mappings);
}

/*
 * By number alone: at its limit of memory a process can still unmap what it
 * likes. Threads that ask at the same time may each go one past the limit.
 */
bool uvm_vattn_may_split_mapping(struct uvm_vattn_account *account)
{
	return (u64)atomic64_read(&account->mappings) < uvm_vattn_limit_mappings();
}

void uvm_vattn_split_mapping(struct uvm_vattn_account *account, u64 size,
			     u64 size_off)
{
	atomic64_inc(&account->mappings);
	atomic64_add(mapping_bytes(size) + mapping_bytes(size_off) -
		     mapping_bytes(size + size_off), &account->bytes);
}

void *uvm_vattn_zalloc(size_t size)
{
	return kvzalloc(size, GFP_KERNEL_ACCOUNT);
}
