// SPDX-License-Identifier: MIT OR GPL-2.0
/* /dev/gpusim: what tests may do to the GPU, see gpusim_uapi.h. */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "gpusim.h"

#define BOUNCE (64U << 10)

static long fill_bounce(void *bounce, const u8 __user *byte)
{
	u8 value;

	if (get_user(value, byte))
		return -EFAULT;
	memset(bounce, value, BOUNCE);
	return 0;
}

static long do_access(void __user *argument)
{
	struct gpusim_access request;
	struct sim_vaspace *vas;
	void *bounce;
	long result = 0;
	u64 done;

	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	vas = sim_user_vaspace_get(request.vas.client, request.vas.object);
	if (!vas)
		return -ENOENT;
	bounce = kmalloc(BOUNCE, GFP_KERNEL);
	if (!bounce)
		result = -ENOMEM;
	else if (request.operation == GPUSIM_FILL)
		result = fill_bounce(bounce, u64_to_user_ptr(request.buffer));
	request.fault = GPUSIM_FAULT_NONE;
	for (done = 0; !result && !request.fault && done < request.length; done += BOUNCE) {
		u64 part = min_t(u64, BOUNCE, request.length - done);
		void __user *buffer = u64_to_user_ptr(request.buffer + done);

		if (request.operation == GPUSIM_WRITE && copy_from_user(bounce, buffer, part)) {
			result = -EFAULT;
			break;
		}
		mutex_lock(&vas->gpu->lock);
		request.fault = sim_copy_virtual(vas, request.va + done, bounce, part, request.operation != GPUSIM_READ,
						 &request.fault_va);
		mutex_unlock(&vas->gpu->lock);
		if (request.operation == GPUSIM_READ && !request.fault && copy_to_user(buffer, bounce, part))
			result = -EFAULT;
	}
	kfree(bounce);
	sim_vaspace_put(vas);
	if (!result && copy_to_user(argument, &request, sizeof(request)))
		result = -EFAULT;
	return result;
}

static long do_fb_access(void __user *argument)
{
	struct gpusim_fb_access request;
	struct sim_gpu *gpu;
	long left;

	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	if (request.gpu >= sim_gpu_count)
		return -ENODEV;
	gpu = sim_gpus[request.gpu];
	if (request.physical > gpu->fb_size || request.length > gpu->fb_size - request.physical)
		return -EINVAL;
	if (request.write)
		left = copy_from_user(sim_fb(gpu, request.physical), u64_to_user_ptr(request.buffer), request.length);
	else
		left = copy_to_user(u64_to_user_ptr(request.buffer), sim_fb(gpu, request.physical), request.length);
	return left ? -EFAULT : 0;
}

struct dump {
	struct gpusim_pte *out;
	u32 capacity, count;
};

static bool keep_pte(const struct gpusim_pte *pte, void *data)
{
	struct dump *dump = data;

	if (dump->count < dump->capacity)
		dump->out[dump->count] = *pte;
	dump->count++;
	return true;
}

static long do_dump(void __user *argument)
{
	struct gpusim_dump request;
	struct dump dump = {};
	struct sim_vaspace *vas;
	long result = 0;
	u32 kept;

	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	if (request.capacity > 1U << 20)
		return -EINVAL;
	vas = sim_user_vaspace_get(request.vas.client, request.vas.object);
	if (!vas)
		return -ENOENT;
	dump.capacity = request.capacity;
	dump.out = kvcalloc(max(dump.capacity, 1U), sizeof(*dump.out), GFP_KERNEL);
	if (!dump.out) {
		sim_vaspace_put(vas);
		return -ENOMEM;
	}
	mutex_lock(&vas->gpu->lock);
	sim_for_each_pte(vas, request.va, request.va + request.length, keep_pte, &dump);
	mutex_unlock(&vas->gpu->lock);
	request.count = dump.count;
	kept = min(dump.count, dump.capacity);
	if (copy_to_user(u64_to_user_ptr(request.ptes), dump.out, kept * sizeof(*dump.out)) ||
	    copy_to_user(argument, &request, sizeof(request)))
		result = -EFAULT;
	kvfree(dump.out);
	sim_vaspace_put(vas);
	return result;
}

static long do_counters(void __user *argument)
{
	struct gpusim_get_counters request;
	struct sim_gpu *gpu;

	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	if (request.gpu >= sim_gpu_count)
		return -ENODEV;
	gpu = sim_gpus[request.gpu];
	mutex_lock(&gpu->lock);
	request.counters = gpu->counters;
	request.counters.pages_free = gpu->pma.free;
	request.busy = !sim_channels_are_idle(gpu);
	mutex_unlock(&gpu->lock);
	return copy_to_user(argument, &request, sizeof(request)) ? -EFAULT : 0;
}

static long do_limit(void __user *argument)
{
	struct gpusim_limit request;

	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	if (request.gpu >= sim_gpu_count)
		return -ENODEV;
	mutex_lock(&sim_gpus[request.gpu]->pma.lock);
	sim_gpus[request.gpu]->pma.limit = request.pages ?: sim_gpus[request.gpu]->pma.pages;
	mutex_unlock(&sim_gpus[request.gpu]->pma.lock);
	return 0;
}

static long do_lose(void __user *argument)
{
	struct gpusim_lose request;
	struct sim_gpu *gpu;

	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	if (request.gpu >= sim_gpu_count)
		return -ENODEV;
	gpu = sim_gpus[request.gpu];
	mutex_lock(&gpu->lock);
	gpu->lost_after = max(gpu->counters.pushes + request.pushes, 1ULL);
	mutex_unlock(&gpu->lock);
	return 0;
}

static long do_chip(void __user *argument)
{
	const struct sim_class *class = sim_gpus[0]->class;
	struct gpusim_chip chip = {
		.va_bits = class->mmu->va_bits,
		.page_tables = class->mmu->version,
		.invalidates_ranges = class->range_invalidate,
	};

	strscpy(chip.name, class->chip, sizeof(chip.name));
	return copy_to_user(argument, &chip, sizeof(chip)) ? -EFAULT : 0;
}

/* What reads or writes the GPU's memory. */
static long do_work(unsigned int command, void __user *user)
{
	long result;

	if (down_read_killable(&sim_user_work))
		return -EINTR;
	result = command == GPUSIM_ACCESS ? do_access(user) :
		 command == GPUSIM_FB_ACCESS ? do_fb_access(user) : do_dump(user);
	up_read(&sim_user_work);
	return result;
}

static long test_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	void __user *user = (void __user *)argument;
	struct gpusim_constructors constructors;
	struct gpusim_inject inject;
	struct gpusim_pause pause = {};
	struct gpusim_live live = {};

	switch (command) {
	case GPUSIM_ACCESS:
	case GPUSIM_FB_ACCESS:
	case GPUSIM_DUMP:
		return do_work(command, user);
	case GPUSIM_COUNTERS:
		return do_counters(user);
	case GPUSIM_CHIP:
		return do_chip(user);
	case GPUSIM_LIMIT:
		return do_limit(user);
	case GPUSIM_LOSE:
		return do_lose(user);
	case GPUSIM_SUSPEND:
		return sim_suspend();
	case GPUSIM_RESUME:
		return sim_resume();
	case GPUSIM_INJECT:
		return copy_from_user(&inject, user, sizeof(inject)) ? -EFAULT : sim_inject_arm(&inject);
	case GPUSIM_INJECTED:
		sim_inject_query(&inject);
		return copy_to_user(user, &inject, sizeof(inject)) ? -EFAULT : 0;
	case GPUSIM_PAUSE:
		return copy_from_user(&pause, user, sizeof(pause)) ? -EFAULT : sim_pause_arm(&pause);
	case GPUSIM_PAUSED:
		pause.paused = sim_is_paused();
		return copy_to_user(user, &pause, sizeof(pause)) ? -EFAULT : 0;
	case GPUSIM_LIVE:
		sim_fill_live(&live);
		return copy_to_user(user, &live, sizeof(live)) ? -EFAULT : 0;
	case GPUSIM_CONSTRUCT:
		return copy_from_user(&constructors, user, sizeof(constructors)) ?
		       -EFAULT : sim_coverage_construct(&constructors);
	}
	return -ENOTTY;
}

static const struct file_operations test_operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = test_ioctl,
};

static struct miscdevice test_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "gpusim",
	.fops = &test_operations,
};

int sim_test_device_init(void)
{
	return misc_register(&test_device);
}

void sim_test_device_exit(void)
{
	misc_deregister(&test_device);
}
