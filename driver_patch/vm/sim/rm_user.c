// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * /dev/nvidiactl and /dev/nvidia0: as much of RM's user interface as it takes to make
 * memory and an address space that UVM can use.
 */
#include <linux/fs.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "gpusim.h"

#define RM_MAJOR 195

#define ESC_FREE 0x29
#define ESC_CONTROL 0x2a
#define ESC_ALLOC 0x2b
#define ESC_REGISTER_FD 201

#define CLASS_ROOT 0x0
#define CLASS_ROOT_CLIENT 0x41
#define CLASS_DEVICE 0x80
#define CLASS_SUBDEVICE 0x2080
#define CLASS_MEMORY_LOCAL_USER 0x40
#define CLASS_VASPACE 0x90f1

struct rm_alloc {	/* NVOS21_PARAMETERS */
	u32 root, parent, handle, class;
	u64 params;
	u32 params_size, status;
};

struct rm_alloc_rights {	/* NVOS64_PARAMETERS */
	u32 root, parent, handle, class;
	u64 params, rights;
	u32 params_size, flags, status, pad;
};

struct rm_free {	/* NVOS00_PARAMETERS */
	u32 root, parent, handle, status;
};

struct rm_control {	/* NVOS54_PARAMETERS */
	u32 root, object, command, flags;
	u64 params;
	u32 params_size, status;
};

struct rm_memory_params {	/* the head of NV_MEMORY_ALLOCATION_PARAMS */
	u32 owner, type, flags, width, height, pitch, attr, attr2, format, compression, zcull, pad;
	u64 range_low, range_high, size, alignment, offset, limit;
};

union rm_params {
	struct rm_memory_params memory;
	u32 device;
};

struct rm_object {
	struct list_head node;
	u32 handle, parent, class;
	struct sim_gpu *gpu;
	struct sim_vaspace *vas;
	struct sim_memory *memory;
};

struct rm_client {
	struct list_head node;
	u32 handle;
	struct file *owner;
	struct list_head objects;
};

static DEFINE_MUTEX(rm_lock);
static LIST_HEAD(rm_clients);
static u32 rm_next_handle = 0xc1d00000;

static struct rm_client *find_client(u32 handle)
{
	struct rm_client *client;

	list_for_each_entry(client, &rm_clients, node)
		if (client->handle == handle)
			return client;
	return NULL;
}

static struct rm_object *find_object(struct rm_client *client, u32 handle)
{
	struct rm_object *object;

	if (client)
		list_for_each_entry(object, &client->objects, node)
			if (object->handle == handle)
				return object;
	return NULL;
}

static void destroy_object(struct rm_object *object)
{
	list_del(&object->node);
	if (object->vas)
		sim_vaspace_put(object->vas);
	if (object->memory)
		sim_memory_put(object->memory);
	kfree(object);
}

static void destroy_children(struct rm_client *client, u32 parent)
{
	struct rm_object *object;

again:
	list_for_each_entry(object, &client->objects, node) {
		u32 handle = object->handle;

		if (object->parent != parent)
			continue;
		destroy_object(object);
		destroy_children(client, handle);
		goto again;
	}
}

static void destroy_client(struct rm_client *client)
{
	while (!list_empty(&client->objects))
		destroy_object(list_first_entry(&client->objects, struct rm_object, node));
	list_del(&client->node);
	kfree(client);
	sim_died(SIM_OBJ_CLIENT);
}

static NV_STATUS alloc_client(struct file *file, struct rm_alloc_rights *request)
{
	struct rm_client *client;

	if (request->handle && find_client(request->handle))
		return NV_ERR_INSERT_DUPLICATE_NAME;
	client = kzalloc(sizeof(*client), GFP_KERNEL);
	if (!client)
		return NV_ERR_NO_MEMORY;
	client->handle = request->handle ?: ++rm_next_handle;
	client->owner = file;
	INIT_LIST_HEAD(&client->objects);
	list_add(&client->node, &rm_clients);
	request->handle = client->handle;
	sim_born(SIM_OBJ_CLIENT);
	return NV_OK;
}

static NV_STATUS alloc_memory(struct rm_object *object, struct rm_memory_params *params)
{
	u64 page_size = ((params->attr >> 23) & 3) == 3 ? UVM_PAGE_SIZE_2M : UVM_PAGE_SIZE_64K;

	if (!params->size || params->size > object->gpu->fb_size)
		return NV_ERR_INVALID_ARGUMENT;
	object->memory = sim_memory_alloc(object->gpu, params->size, page_size);
	if (!object->memory)
		return NV_ERR_NO_MEMORY;
	params->size = object->memory->size;
	params->alignment = page_size;
	params->limit = params->size - 1;
	return NV_OK;
}

/* How much of its parameters a class has read; all of them zero where there are none. */
static size_t params_size(u32 class)
{
	return class == CLASS_MEMORY_LOCAL_USER ? sizeof(struct rm_memory_params) :
	       class == CLASS_DEVICE ? sizeof(u32) : 0;
}

/* UVM asks for objects while it holds locks of memory management: none of ours is held here. */
static NV_STATUS read_params(const struct rm_alloc_rights *request, union rm_params *params)
{
	size_t size = params_size(request->class);

	memset(params, 0, sizeof(*params));
	if (!request->params)
		return NV_OK;
	if (request->params_size && request->params_size < size)
		return NV_ERR_INVALID_PARAM_STRUCT;
	return copy_from_user(params, u64_to_user_ptr(request->params), size) ? NV_ERR_INVALID_POINTER : NV_OK;
}

static NV_STATUS write_params(const struct rm_alloc_rights *request, const union rm_params *params)
{
	if (request->class != CLASS_MEMORY_LOCAL_USER)
		return NV_OK;
	return copy_to_user(u64_to_user_ptr(request->params), params, sizeof(params->memory)) ?
	       NV_ERR_INVALID_POINTER : NV_OK;
}

static NV_STATUS fill_object(struct rm_client *client, struct rm_object *object, struct rm_alloc_rights *request,
			     union rm_params *params)
{
	struct rm_object *parent = find_object(client, request->parent);

	switch (request->class) {
	case CLASS_DEVICE:
		if (request->parent != client->handle)
			return NV_ERR_INVALID_OBJECT_PARENT;
		if (params->device >= sim_gpu_count)
			return NV_ERR_INVALID_DEVICE;
		object->gpu = sim_gpus[params->device];
		return NV_OK;
	case CLASS_SUBDEVICE:
	case CLASS_MEMORY_LOCAL_USER:
	case CLASS_VASPACE:
		if (!parent || !parent->gpu)
			return NV_ERR_INVALID_OBJECT_PARENT;
		object->gpu = parent->gpu;
		if (request->class == CLASS_MEMORY_LOCAL_USER)
			return alloc_memory(object, &params->memory);
		if (request->class == CLASS_VASPACE) {
			object->vas = sim_vaspace_create(object->gpu);
			return object->vas ? NV_OK : NV_ERR_NO_MEMORY;
		}
		return NV_OK;
	}
	sim_model_error("RM class 0x%x is not modelled", request->class);
	return NV_ERR_INVALID_CLASS;
}

static NV_STATUS alloc_object(struct rm_alloc_rights *request, union rm_params *params)
{
	struct rm_client *client = find_client(request->root);
	struct rm_object *object;
	NV_STATUS status;

	if (!client)
		return NV_ERR_INVALID_CLIENT;
	if (request->handle && find_object(client, request->handle))
		return NV_ERR_INSERT_DUPLICATE_NAME;
	object = kzalloc(sizeof(*object), GFP_KERNEL);
	if (!object)
		return NV_ERR_NO_MEMORY;
	object->class = request->class;
	object->parent = request->parent;
	status = fill_object(client, object, request, params);
	if (status != NV_OK) {
		kfree(object);
		return status;
	}
	object->handle = request->handle ?: ++rm_next_handle;
	request->handle = object->handle;
	list_add(&object->node, &client->objects);
	return NV_OK;
}

static NV_STATUS free_object(u32 root, u32 handle)
{
	struct rm_client *client = find_client(root);
	struct rm_object *object = find_object(client, handle);

	if (!client)
		return NV_ERR_INVALID_CLIENT;
	if (handle == client->handle) {
		destroy_client(client);
		return NV_OK;
	}
	if (!object)
		return NV_ERR_INVALID_OBJECT_HANDLE;
	destroy_object(object);
	destroy_children(client, handle);
	return NV_OK;
}

static long ioctl_alloc(struct file *file, void __user *argument, unsigned int size)
{
	struct rm_alloc_rights request = {};
	struct rm_alloc small;
	union rm_params params;

	if (size == sizeof(small)) {
		if (copy_from_user(&small, argument, sizeof(small)))
			return -EFAULT;
		memcpy(&request, &small, offsetof(struct rm_alloc, params_size));
		request.params_size = small.params_size;
	} else if (size == sizeof(request)) {
		if (copy_from_user(&request, argument, sizeof(request)))
			return -EFAULT;
	} else {
		return -EINVAL;
	}
	request.status = read_params(&request, &params);
	if (request.status == NV_OK) {
		mutex_lock(&rm_lock);
		if (request.class == CLASS_ROOT || request.class == CLASS_ROOT_CLIENT)
			request.status = alloc_client(file, &request);
		else
			request.status = alloc_object(&request, &params);
		mutex_unlock(&rm_lock);
	}
	if (request.status == NV_OK)
		request.status = write_params(&request, &params);
	if (size == sizeof(small)) {
		small.handle = request.handle;
		small.status = request.status;
		return copy_to_user(argument, &small, sizeof(small)) ? -EFAULT : 0;
	}
	return copy_to_user(argument, &request, sizeof(request)) ? -EFAULT : 0;
}

static long ioctl_control(void __user *argument)
{
	struct rm_control request;
	bool known;

	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	mutex_lock(&rm_lock);
	known = find_client(request.root) && request.object == request.root;
	mutex_unlock(&rm_lock);
	request.status = known ? sim_rm_control(request.command, u64_to_user_ptr(request.params), request.params_size) :
				 NV_ERR_INVALID_CLIENT;
	return copy_to_user(argument, &request, sizeof(request)) ? -EFAULT : 0;
}

static long do_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct rm_free request;

	switch (_IOC_NR(command)) {
	case ESC_REGISTER_FD:
		return 0;
	case ESC_ALLOC:
		return ioctl_alloc(file, (void __user *)argument, _IOC_SIZE(command));
	case ESC_CONTROL:
		return _IOC_SIZE(command) == sizeof(struct rm_control) ?
		       ioctl_control((void __user *)argument) : -EINVAL;
	case ESC_FREE:
		if (copy_from_user(&request, (void __user *)argument, sizeof(request)))
			return -EFAULT;
		mutex_lock(&rm_lock);
		request.status = free_object(request.root, request.handle);
		mutex_unlock(&rm_lock);
		return copy_to_user((void __user *)argument, &request, sizeof(request)) ? -EFAULT : 0;
	}
	sim_model_error("RM ioctl %u is not modelled", _IOC_NR(command));
	return -EINVAL;
}

static long user_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	long result;

	if (down_read_killable(&sim_user_work))
		return -EINTR;
	result = do_ioctl(file, command, argument);
	up_read(&sim_user_work);
	return result;
}

static void destroy_clients(const struct file *owner)
{
	struct rm_client *client, *next;

	mutex_lock(&rm_lock);
	list_for_each_entry_safe(client, next, &rm_clients, node)
		if (client->owner == owner)
			destroy_client(client);
	mutex_unlock(&rm_lock);
}

static int user_release(struct inode *inode, struct file *file)
{
	struct rm_client *client;

	if (down_read_trylock(&sim_user_work)) {
		destroy_clients(file);
		up_read(&sim_user_work);
		return 0;
	}
	mutex_lock(&rm_lock);
	list_for_each_entry(client, &rm_clients, node)
		if (client->owner == file)
			client->owner = NULL;
	mutex_unlock(&rm_lock);
	return 0;
}

/* What was closed while the system slept. */
void sim_rm_user_reap(void)
{
	destroy_clients(NULL);
}

static const struct file_operations user_operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = user_ioctl,
	.release = user_release,
};

struct sim_vaspace *sim_user_vaspace_get(u32 client, u32 handle)
{
	struct rm_object *object;
	struct sim_vaspace *vas = NULL;

	mutex_lock(&rm_lock);
	object = find_object(find_client(client), handle);
	if (object && object->vas) {
		vas = object->vas;
		kref_get(&vas->ref);
	}
	mutex_unlock(&rm_lock);
	return vas;
}

struct sim_memory *sim_user_memory_get(u32 client, u32 handle)
{
	struct rm_object *object;
	struct sim_memory *memory = NULL;

	mutex_lock(&rm_lock);
	object = find_object(find_client(client), handle);
	if (object && object->memory) {
		memory = object->memory;
		kref_get(&memory->ref);
	}
	mutex_unlock(&rm_lock);
	return memory;
}

int sim_rm_user_init(void)
{
	return register_chrdev(RM_MAJOR, "nvidia-frontend", &user_operations);
}

void sim_rm_user_exit(void)
{
	unregister_chrdev(RM_MAJOR, "nvidia-frontend");
}
