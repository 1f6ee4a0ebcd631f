// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The copy engine: copies, memory sets and semaphores, by physical or virtual address.
 *
 * A transfer that is launched as pipelined may be carried out before those that were launched
 * before it, and here it is: they run in reverse order, once something waits for them. What UVM
 * wants in order must therefore wait.
 */
#include "gpusim.h"
#include "clc0b5.h"
#include "clc8b5.h"

#define FIELD(data, high, low) (((data) >> (low)) & ((1U << ((high) - (low) + 1)) - 1))

static struct sim_translation locate(struct sim_channel *channel, u64 address, bool physical, u32 target, bool write)
{
	struct sim_translation at = {};

	if (!physical)
		return sim_translate(channel->tsg->vas, address, write);
	if (target == NVC8B5_SET_SRC_PHYS_MODE_TARGET_PEERMEM)
		sim_model_error("peer memory of the copy engine is not modelled");
	at.cpu = sim_physical(channel->tsg->vas->gpu, target ? SIM_SYS : SIM_VID, address, &at.run);
	if (!at.cpu)
		at.fault = GPUSIM_FAULT_PHYSICAL;
	return at;
}

/* A copy by the CPU between a buffer and virtual addresses of the GPU. */
enum gpusim_fault sim_copy_virtual(struct sim_vaspace *vas, u64 va, void *buffer, u64 length,
				   bool write, u64 *fault_va)
{
	while (length) {
		struct sim_translation at = sim_translate(vas, va, write);
		u64 part = min(at.run, length);

		if (at.fault) {
			*fault_va = va;
			return at.fault;
		}
		if (write)
			memcpy(at.cpu, buffer, part);
		else
			memcpy(buffer, at.cpu, part);
		va += part;
		buffer += part;
		length -= part;
	}
	return GPUSIM_FAULT_NONE;
}

static enum sim_step copy(struct sim_channel *channel, const struct sim_ce *ce, u32 launch)
{
	u64 in = ce->in, out = ce->out, left = ce->line_length;

	while (left) {
		struct sim_translation from = locate(channel, in, FIELD(launch, 12, 12), ce->src_target, false);
		struct sim_translation to = locate(channel, out, FIELD(launch, 13, 13), ce->dst_target, true);
		u64 part = min3(from.run, to.run, left);

		if (from.fault || to.fault) {
			sim_model_error("a copy from 0x%llx to 0x%llx faults (%d, %d)", in, out, from.fault, to.fault);
			return SIM_ERROR;
		}
		memmove(to.cpu, from.cpu, part);
		in += part;
		out += part;
		left -= part;
	}
	channel->tsg->vas->gpu->counters.bytes_copied += ce->line_length;
	return SIM_DONE;
}

/* The bytes of one element of a memory set; their number, or 0 where it is not modelled. */
static unsigned int build_element(const struct sim_ce *ce, u8 *element)
{
	unsigned int size = FIELD(ce->remap_components, 17, 16) + 1;
	unsigned int count = FIELD(ce->remap_components, 25, 24) + 1;
	unsigned int i;

	for (i = 0; i < count; i++) {
		u32 select = (ce->remap_components >> (4 * i)) & 7;

		if (select != NVC0B5_SET_REMAP_COMPONENTS_DST_X_CONST_A &&
		    select != NVC0B5_SET_REMAP_COMPONENTS_DST_X_CONST_B)
			return 0;
		memcpy(element + i * size,
		       select == NVC0B5_SET_REMAP_COMPONENTS_DST_X_CONST_A ? &ce->remap_a : &ce->remap_b, size);
	}
	return size * count;
}

/* Hopper's scrubber takes the length in bytes, and both constants in turn. */
static bool is_scrub(struct sim_channel *channel, u32 launch)
{
	return channel->tsg->vas->gpu->class->memory_scrub && FIELD(launch, 23, 23);
}

static enum sim_step set(struct sim_channel *channel, const struct sim_ce *ce, u32 launch)
{
	u8 element[16];
	unsigned int size = build_element(ce, element);
	u64 out = ce->out, left = (u64)ce->line_length * (is_scrub(channel, launch) ? 1 : size), done = 0;

	if (!size) {
		sim_model_error("remapping 0x%x is not modelled", ce->remap_components);
		return SIM_ERROR;
	}
	while (done < left) {
		struct sim_translation to = locate(channel, out + done, FIELD(launch, 13, 13), ce->dst_target, true);
		u64 part = min(to.run, left - done), i;
		u8 *bytes = to.cpu;

		if (to.fault) {
			sim_model_error("a memory set at 0x%llx faults (%d)", out + done, to.fault);
			return SIM_ERROR;
		}
		if (part == SIM_PAGE_SIZE && sim_fb_repeats(channel->tsg->vas->gpu, bytes))
			;	/* no test looks at what lies there, and there may be GiB of it */
		else if (size == 8 && !(((uintptr_t)bytes | part | done) & 7))
			memset64((u64 *)bytes, *(u64 *)element, part / 8);
		else if (size == 4 && !(((uintptr_t)bytes | part | done) & 3))
			memset32((u32 *)bytes, *(u32 *)element, part / 4);
		else if (size == 1)
			memset(bytes, element[0], part);
		else
			for (i = 0; i < part; i++)
				bytes[i] = element[(done + i) % size];
		done += part;
	}
	channel->tsg->vas->gpu->counters.bytes_set += left;
	return SIM_DONE;
}

static enum sim_step increment(struct sim_channel *channel)
{
	struct sim_translation at = sim_translate(channel->tsg->vas, channel->ce.semaphore, true);
	u32 old;

	if (at.fault || at.run < 4) {
		sim_model_error("the semaphore at 0x%llx cannot be reached", channel->ce.semaphore);
		return SIM_ERROR;
	}
	old = READ_ONCE(*(u32 *)at.cpu);
	smp_store_release((u32 *)at.cpu, old >= channel->ce.payload ? 0 : old + 1);
	channel->tsg->vas->gpu->counters.semaphores++;
	return SIM_DONE;
}

static enum sim_step launch_semaphore(struct sim_channel *channel, u32 launch)
{
	u32 type = FIELD(launch, 4, 3);

	if (FIELD(launch, 19, 19)) {
		if (FIELD(launch, 17, 14) == NVC0B5_LAUNCH_DMA_SEMAPHORE_REDUCTION_INC)
			return increment(channel);
		sim_model_error("semaphore reduction %u is not modelled", FIELD(launch, 17, 14));
		return SIM_ERROR;
	}
	return sim_write_semaphore(channel, channel->ce.semaphore, channel->ce.payload,
				   type == NVC0B5_LAUNCH_DMA_SEMAPHORE_TYPE_RELEASE_FOUR_WORD_SEMAPHORE);
}

static enum sim_step transfer(struct sim_channel *channel, const struct sim_transfer *it)
{
	channel->tsg->vas->gpu->counters.transfers++;
	if (FIELD(it->launch, 10, 10) || is_scrub(channel, it->launch))
		return set(channel, &it->ce, it->launch);
	return copy(channel, &it->ce, it->launch);
}

/* Wait for all that was launched. */
enum sim_step sim_ce_finish(struct sim_channel *channel)
{
	enum sim_step step = SIM_DONE;

	while (channel->transfer_count && step == SIM_DONE)
		step = transfer(channel, &channel->transfers[--channel->transfer_count]);
	return step;
}

static enum sim_step launch_transfer(struct sim_channel *channel, u32 launch)
{
	bool waits = FIELD(launch, 1, 0) == NVC0B5_LAUNCH_DMA_DATA_TRANSFER_TYPE_NON_PIPELINED;
	enum sim_step step = SIM_DONE;

	if (FIELD(launch, 9, 9) || !FIELD(launch, 7, 7) || !FIELD(launch, 8, 8)) {
		sim_model_error("launch 0x%x asks for a layout that is not modelled", launch);
		return SIM_ERROR;
	}
	if (waits || channel->transfer_count == SIM_TRANSFERS)
		step = sim_ce_finish(channel);
	channel->transfers[channel->transfer_count++] = (struct sim_transfer){ channel->ce, launch };
	if (FIELD(launch, 13, 13))
		sim_order_wrote(channel, channel->ce.dst_target ? SIM_SYS : SIM_VID);
	return step;
}

/* On Pascal a flush is one only where it comes with a semaphore (bug 1709888 in uvm_maxwell_ce.c). */
static enum sim_step launch_flush(struct sim_channel *channel, u32 launch, bool semaphore)
{
	bool typed = channel->tsg->vas->gpu->class->flush_type;
	enum sim_step step;

	if (!FIELD(launch, 2, 2) || !(semaphore || typed))
		return SIM_DONE;
	step = sim_ce_finish(channel);
	sim_order_membar(channel, !typed || FIELD(launch, 25, 25) == NVC8B5_LAUNCH_DMA_FLUSH_TYPE_SYS);
	return step;
}

static enum sim_step launch_dma(struct sim_channel *channel, u32 launch)
{
	bool semaphore = FIELD(launch, 4, 3) != NVC0B5_LAUNCH_DMA_SEMAPHORE_TYPE_NONE;
	enum sim_step step = SIM_DONE;

	if (FIELD(launch, 1, 0) != NVC0B5_LAUNCH_DMA_DATA_TRANSFER_TYPE_NONE)
		step = launch_transfer(channel, launch);
	if (step == SIM_DONE)
		step = launch_flush(channel, launch, semaphore);
	if (!semaphore || step != SIM_DONE)
		return step;
	step = sim_ce_finish(channel);
	return step == SIM_DONE ? launch_semaphore(channel, launch) : step;
}

static void set_high(struct sim_channel *channel, u64 *address, u32 data)
{
	u32 high = data & channel->tsg->vas->gpu->class->address_high;

	*address = ((u64)high << 32) | lower_32_bits(*address);
}

static void set_low(u64 *address, u32 data)
{
	*address = (*address & ~0xffffffffULL) | data;
}

enum sim_step sim_ce_method(struct sim_channel *channel, u32 method, u32 data)
{
	struct sim_ce *ce = &channel->ce;

	switch (method) {
	case NVC0B5_OFFSET_IN_UPPER:
		set_high(channel, &ce->in, data);
		return SIM_DONE;
	case NVC0B5_OFFSET_IN_LOWER:
		set_low(&ce->in, data);
		return SIM_DONE;
	case NVC0B5_OFFSET_OUT_UPPER:
		set_high(channel, &ce->out, data);
		return SIM_DONE;
	case NVC0B5_OFFSET_OUT_LOWER:
		set_low(&ce->out, data);
		return SIM_DONE;
	case NVC0B5_SET_SEMAPHORE_A:
		set_high(channel, &ce->semaphore, data);
		return SIM_DONE;
	case NVC0B5_SET_SEMAPHORE_B:
		set_low(&ce->semaphore, data);
		return SIM_DONE;
	case NVC0B5_SET_SEMAPHORE_PAYLOAD:
		ce->payload = data;
		return SIM_DONE;
	case NVC0B5_SET_SRC_PHYS_MODE:
		ce->src_target = data & 3;
		return SIM_DONE;
	case NVC0B5_SET_DST_PHYS_MODE:
		ce->dst_target = data & 3;
		return SIM_DONE;
	case NVC0B5_SET_REMAP_CONST_A:
		ce->remap_a = data;
		return SIM_DONE;
	case NVC0B5_SET_REMAP_CONST_B:
		ce->remap_b = data;
		return SIM_DONE;
	case NVC0B5_SET_REMAP_COMPONENTS:
		ce->remap_components = data;
		return SIM_DONE;
	case NVC0B5_LINE_LENGTH_IN:
		ce->line_length = data;
		return SIM_DONE;
	case NVC8B5_SET_MEMORY_SCRUB_PARAMETERS:
		if (channel->tsg->vas->gpu->class->memory_scrub)
			return SIM_DONE;
		break;
	case NVC0B5_LAUNCH_DMA:
		return launch_dma(channel, data);
	}
	sim_model_error("copy engine method 0x%x is not modelled", method);
	return SIM_ERROR;
}
