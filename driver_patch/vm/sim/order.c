// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The order that UVM owes the GPU between what the copy engine writes to physical addresses, which
 * page tables are, and an invalidate: the copy engine is waited for, then a membar of the scope of
 * the memory, then the invalidate. uvm_pte_batch.c and block_gpu_write_pde() say so. The writes of
 * one push are looked at: UVM ends each with a membar of its own.
 */
#include "gpusim.h"

void sim_order_begin(struct sim_channel *channel)
{
	memset(channel->unseen, 0, sizeof(channel->unseen));
	channel->acknowledged = false;
}

void sim_order_wrote(struct sim_channel *channel, enum sim_aperture aperture)
{
	channel->unseen[aperture] = true;
}

/* It orders what was carried out, and not what the copy engine still has to do. */
void sim_order_membar(struct sim_channel *channel, bool system)
{
	if (channel->transfer_count)
		return;
	channel->tsg->vas->gpu->counters.membars_acknowledged += channel->acknowledged;
	channel->acknowledged = false;
	channel->unseen[SIM_VID] = false;
	if (system)
		channel->unseen[SIM_SYS] = false;
}

/* Where it acknowledges, accesses through old entries are behind the membar that follows. */
void sim_order_invalidate(struct sim_channel *channel, bool acknowledges)
{
	channel->acknowledged = acknowledges;
	if (channel->transfer_count)
		sim_model_error("an invalidate does not wait for the transfers before it");
	else if (channel->unseen[SIM_VID])
		sim_model_error("no membar between what was written to video memory and an invalidate");
	else if (channel->unseen[SIM_SYS])
		sim_model_error("no system membar between what was written to system memory and an invalidate");
}
