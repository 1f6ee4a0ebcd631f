// SPDX-License-Identifier: MIT OR GPL-2.0
/* Methods of the host engine: semaphores, TLB invalidates, barriers. */
#include "gpusim.h"
#include "clc06f.h"

static u32 *semaphore_address(struct sim_channel *channel, u64 va, u64 size)
{
	struct sim_translation at = sim_translate(channel->tsg->vas, va, true);

	if (at.fault || at.run < size) {
		sim_model_error("the semaphore at 0x%llx cannot be reached (fault %d)", va, at.fault);
		return NULL;
	}
	return at.cpu;
}

enum sim_step sim_write_semaphore(struct sim_channel *channel, u64 va, u32 payload, bool timestamp)
{
	u32 *semaphore = semaphore_address(channel, va, timestamp ? 16 : 4);

	if (!semaphore)
		return SIM_ERROR;
	if (timestamp) {
		semaphore[1] = 0;
		*(u64 *)(semaphore + 2) = ktime_get_ns();
	}
	/* Whoever sees the semaphore must see what was done before it. */
	smp_store_release(semaphore, payload);
	channel->tsg->vas->gpu->counters.semaphores++;
	return SIM_DONE;
}

static enum sim_step acquire(struct sim_channel *channel, bool at_least)
{
	u32 *semaphore = semaphore_address(channel, channel->semaphore, 4);
	u32 value;

	if (!semaphore)
		return SIM_ERROR;
	value = smp_load_acquire(semaphore);
	if (at_least)
		return (s32)(value - channel->semaphore_payload) >= 0 ? SIM_DONE : SIM_STALL;
	return value == channel->semaphore_payload ? SIM_DONE : SIM_STALL;
}

static enum sim_step semaphore_d(struct sim_channel *channel, u32 data)
{
	switch (data & 0x1f) {
	case NVC06F_SEMAPHORED_OPERATION_RELEASE:
		return sim_write_semaphore(channel, channel->semaphore, channel->semaphore_payload,
					   !(data & BIT(24)));
	case NVC06F_SEMAPHORED_OPERATION_ACQUIRE:
		return acquire(channel, false);
	case NVC06F_SEMAPHORED_OPERATION_ACQ_GEQ:
		return acquire(channel, true);
	}
	sim_model_error("semaphore operation 0x%x is not modelled", data);
	return SIM_ERROR;
}

static void invalidate(struct sim_channel *channel, u32 d, bool targeted)
{
	struct sim_gpu *gpu = channel->tsg->vas->gpu;
	u32 a = channel->mem_op[0], b = channel->mem_op[1], c = channel->mem_op[2];
	u64 va = ((u64)b << 32) | (a & ~0xfffU);
	u64 pdb = (((u64)(d & 0x7ffffff) << 20) | (c >> 12)) << 12;
	enum sim_aperture aperture = (c >> 10) & 3 ? SIM_SYS : SIM_VID;
	bool all = c & BIT(0);
	struct sim_vaspace *vas;

	gpu->counters.invalidates++;
	gpu->counters.invalidates_targeted += targeted;
	if ((c >> 2) & 7 && !targeted)
		sim_model_error("a fault replay is not modelled");
	list_for_each_entry(vas, &gpu->vaspaces, node)
		if (all || (vas->has_pdb && vas->pdb == pdb && vas->pdb_aperture == aperture))
			sim_tlb_invalidate(&vas->tlb, targeted, va, (c >> 7) & 7);
}

static enum sim_step mem_op_d(struct sim_channel *channel, u32 data)
{
	switch (data >> 27) {
	case NVC06F_MEM_OP_D_OPERATION_MEMBAR:
		channel->tsg->vas->gpu->counters.membars++;
		return SIM_DONE;
	case NVC06F_MEM_OP_D_OPERATION_MMU_TLB_INVALIDATE:
		invalidate(channel, data, false);
		return SIM_DONE;
	case NVC06F_MEM_OP_D_OPERATION_MMU_TLB_INVALIDATE_TARGETED:
		invalidate(channel, data, true);
		return SIM_DONE;
	case NVC06F_MEM_OP_D_OPERATION_L2_SYSMEM_INVALIDATE:
		return SIM_DONE;	/* there is no L2 cache here */
	}
	sim_model_error("memory operation 0x%x is not modelled", data >> 27);
	return SIM_ERROR;
}

enum sim_step sim_host_method(struct sim_channel *channel, u32 method, u32 data)
{
	switch (method) {
	case NVC06F_SET_OBJECT:
		if ((data & 0xffff) == 0xc0b5)
			return SIM_DONE;
		sim_model_error("object class 0x%x is not modelled", data & 0xffff);
		return SIM_ERROR;
	case NVC06F_NOP:
	case NVC06F_NON_STALL_INTERRUPT:
	case NVC06F_WFI:	/* methods are executed one after another */
		return SIM_DONE;
	case NVC06F_SEMAPHOREA:
		channel->semaphore = ((u64)(data & 0xff) << 32) | lower_32_bits(channel->semaphore);
		return SIM_DONE;
	case NVC06F_SEMAPHOREB:
		channel->semaphore = (channel->semaphore & ~0xffffffffULL) | (data & ~3U);
		return SIM_DONE;
	case NVC06F_SEMAPHOREC:
		channel->semaphore_payload = data;
		return SIM_DONE;
	case NVC06F_SEMAPHORED:
		return semaphore_d(channel, data);
	case NVC06F_MEM_OP_A:
	case NVC06F_MEM_OP_B:
	case NVC06F_MEM_OP_C:
		channel->mem_op[(method - NVC06F_MEM_OP_A) / 4] = data;
		return SIM_DONE;
	case NVC06F_MEM_OP_D:
		return mem_op_d(channel, data);
	}
	sim_model_error("host method 0x%x is not modelled", method);
	return SIM_ERROR;
}
