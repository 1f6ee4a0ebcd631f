// SPDX-License-Identifier: MIT OR GPL-2.0
/* Methods of the host engine: TLB invalidates and barriers. */
#include "gpusim.h"
#include "clc06f.h"
#include "clc86f.h"

struct invalidate {
	u64 first, last;
	u32 level;
	bool targeted;
};

/* What a targeted one covers: one address, or, where the GPU knows ranges, 4K to the power that is asked for. */
static struct invalidate decode(const struct sim_class *class, const u32 *mem_op, bool targeted)
{
	struct invalidate it = { .last = U64_MAX, .level = mem_op[2] >> 7 & 7, .targeted = targeted };
	u32 log2_size = min(12 + (class->range_invalidate ? mem_op[0] & 0x3f : 0), 63U);
	u64 address = (u64)mem_op[1] << 32 | (mem_op[0] & ~0xfffU);

	if (targeted) {
		it.first = address & ~(BIT_ULL(log2_size) - 1) & (BIT_ULL(class->mmu->va_bits) - 1);
		it.last = it.first + (BIT_ULL(log2_size) - 1);
	}
	return it;
}

/*
 * UVM names no less than the whole of an entry whose level it wants to go (block_gpu_write_pde()
 * and map_remap()), so nothing is known of a GPU that is asked for directory entries by a part of
 * what they cover. Without ranges a targeted invalidate has one address, and no size to be wrong.
 */
static void check_extent(const struct sim_class *class, const struct invalidate *it)
{
	u64 entry = it->level >= SIM_LEVEL_PDE0 ? UVM_PAGE_SIZE_2M : 1;

	if (it->targeted && class->range_invalidate && it->last - it->first < entry - 1)
		sim_model_error("an invalidate of directories covers a part of an entry, 0x%llx to 0x%llx",
				it->first, it->last);
}

static void invalidate(struct sim_channel *channel, u32 d, bool targeted)
{
	struct sim_gpu *gpu = channel->tsg->vas->gpu;
	const struct sim_class *class = gpu->class;
	u32 a = channel->mem_op[0], c = channel->mem_op[2];
	struct invalidate it = decode(class, channel->mem_op, targeted);
	u64 pdb = ((u64)(d & 0x7ffffff) << 20 | c >> 12) << 12;
	enum sim_aperture aperture = (c >> 10) & 3 ? SIM_SYS : SIM_VID;
	bool all = c & BIT(0);
	struct sim_vaspace *vas;

	gpu->counters.invalidates++;
	gpu->counters.invalidates_targeted += targeted;
	gpu->counters.invalidates_ranges += targeted && it.last - it.first >= UVM_PAGE_SIZE_2M;
	if ((c >> 2) & 7 && !targeted)
		sim_model_error("a fault replay is not modelled");
	if (class->invalidate_scope && (a >> 6 & 3) == NVC86F_MEM_OP_A_TLB_INVALIDATE_INVAL_SCOPE_LINK_TLBS)
		sim_model_error("an invalidate of link TLBs only is not modelled");
	check_extent(class, &it);
	sim_order_invalidate(channel, (c >> 5 & 3) == NVC06F_MEM_OP_C_TLB_INVALIDATE_ACK_TYPE_GLOBALLY);
	list_for_each_entry(vas, &gpu->vaspaces, node)
		if (all || (vas->has_pdb && vas->pdb == pdb && vas->pdb_aperture == aperture))
			gpu->counters.tlb_dropped += sim_tlb_invalidate(class->mmu, &vas->tlb, it.first, it.last,
									it.level);
}

static enum sim_step mem_op_d(struct sim_channel *channel, u32 data)
{
	switch (data >> 27) {
	case NVC06F_MEM_OP_D_OPERATION_MEMBAR:
		channel->tsg->vas->gpu->counters.membars++;
		sim_order_membar(channel, (channel->mem_op[2] & 7) == NVC06F_MEM_OP_C_MEMBAR_TYPE_SYS_MEMBAR);
		return SIM_DONE;
	case NVC06F_MEM_OP_D_OPERATION_MMU_TLB_INVALIDATE:
		invalidate(channel, data, false);
		return SIM_DONE;
	case NVC06F_MEM_OP_D_OPERATION_MMU_TLB_INVALIDATE_TARGETED:
		invalidate(channel, data, true);
		return SIM_DONE;
	case NVC06F_MEM_OP_D_OPERATION_L2_SYSMEM_INVALIDATE:
		return SIM_DONE;	/* there is no L2 cache here */
	case NVC86F_MEM_OP_D_OPERATION_ACCESS_COUNTER_CLR:
		if (channel->tsg->vas->gpu->class->access_counters)
			return SIM_DONE;	/* they never count */
		break;
	}
	sim_model_error("memory operation 0x%x is not modelled", data >> 27);
	return SIM_ERROR;
}

enum sim_step sim_host_method(struct sim_channel *channel, u32 method, u32 data)
{
	const struct sim_class *class = channel->tsg->vas->gpu->class;

	if (sim_is_semaphore_method(class, method)) {
		enum sim_step step = sim_ce_finish(channel);

		return step == SIM_DONE ? sim_semaphore_method(channel, method, data) : step;
	}
	switch (method) {
	case NVC06F_SET_OBJECT:
		if ((data & 0xffff) == class->copy_engine)
			return SIM_DONE;
		sim_model_error("object class 0x%x is not modelled", data & 0xffff);
		return SIM_ERROR;
	case NVC06F_NOP:
	case NVC06F_NON_STALL_INTERRUPT:
		return SIM_DONE;
	case NVC06F_WFI:
		return sim_ce_finish(channel);
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
