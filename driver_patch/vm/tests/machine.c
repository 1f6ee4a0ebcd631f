// SPDX-License-Identifier: MIT OR GPL-2.0
#define _GNU_SOURCE	/* pipe2 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "gpu.h"
#include "harness.h"
#include "machine.h"
#include "uvm_vattn_ioctl.h"

#define RESULTS "/dev/ttyS1"
#define KMEMLEAK "/sys/kernel/debug/kmemleak"

static int results = -1, coverage = -1;

static void emit(const char *format, va_list arguments, int also)
{
	char line[512];
	int length = vsnprintf(line, sizeof(line) - 1, format, arguments);

	if (length > (int)sizeof(line) - 2)
		length = sizeof(line) - 2;
	line[length++] = '\n';
	(void)!write(STDOUT_FILENO, line, (size_t)length);
	if (also >= 0)
		(void)!write(also, line, (size_t)length);
}

void say(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	emit(format, arguments, -1);
	va_end(arguments);
}

void report(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	emit(format, arguments, results);
	va_end(arguments);
}

static void give_up(const char *what)
{
	report("FAIL machine %s: %s", what, strerror(errno));
	sync();
	reboot(RB_POWER_OFF);
}

void fail_at(const char *file, int line, const char *format, ...)
{
	char text[400];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	report("  %s:%d: %s", file, line, text);
	exit(1);
}

void note(const char *format, ...)
{
	char text[400];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	report("  %s", text);
}

int in_child(void (*function)(void *), void *argument)
{
	pid_t child = fork();
	int status;

	CHECK(child >= 0);
	if (child == 0) {
		function(argument);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

void read_file(const char *path, char *text, size_t size)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t length = file < 0 ? 0 : read(file, text, size - 1);

	text[length > 0 ? length : 0] = 0;
	if (file >= 0)
		close(file);
}

static char state_of(pid_t thread)
{
	char path[64], text[256], *end;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", thread);
	read_file(path, text, sizeof(text));
	end = strrchr(text, ')');
	return end ? end[2] : 0;
}

/* Often enough that it is no short wait on the way. */
bool waits_for_a_lock(pid_t thread)
{
	unsigned int looks = 1000;

	while (thread && looks && state_of(thread) == 'D')
		looks--;
	return thread && !looks;
}

/* A setting NAME is given to the kernel as vm.NAME=VALUE. */
const char *setting(const char *name, const char *fallback)
{
	static char line[2048];
	static char value[512];
	char key[64];
	char *at;

	read_file("/proc/cmdline", line, sizeof(line));
	snprintf(key, sizeof(key), " vm.%s=", name);
	at = strstr(line, key);
	if (!at)
		return fallback;
	snprintf(value, sizeof(value), "%s", at + strlen(key));
	value[strcspn(value, " \n")] = 0;
	return value;
}

bool module_is_patched(void)
{
	struct uvm_vattn_query query = { .version = 0 };
	int file = open("/dev/nvidia-uvm", O_RDWR | O_CLOEXEC);
	bool answered = file >= 0 && !ioctl(file, UVM_VATTN_QUERY, &query) && query.rm_status == NV_OK;

	close(file);
	return answered;
}

/* UVM_BUILD_TYPE=debug; the parameter's default says so. */
bool module_is_debug(void)
{
	char text[16];

	read_file("/sys/module/nvidia_uvm/parameters/uvm_debug_enable_push_desc", text, sizeof(text));
	return atoi(text) == 1;
}

static int try_load(const char *path, const char *parameters)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);
	int error = file < 0 || syscall(SYS_finit_module, file, parameters, 0) ? errno : 0;

	close(file);
	return error;
}

static void load(const char *path, const char *parameters)
{
	errno = try_load(path, parameters);
	if (errno)
		give_up(path);
}

static unsigned int major_of(const char *name)
{
	char text[8192], pattern[64];
	char *at;

	read_file("/proc/devices", text, sizeof(text));
	snprintf(pattern, sizeof(pattern), " %s\n", name);
	at = strstr(text, pattern);
	if (!at) {
		errno = ENOENT;
		give_up(name);
		return 0;
	}
	while (at > text && at[-1] != '\n')
		at--;
	return (unsigned int)strtoul(at, NULL, 10);
}

static void node(const char *path, unsigned int major, unsigned int minor)
{
	if (mknod(path, S_IFCHR | 0666, makedev(major, minor)) && errno != EEXIST)
		give_up(path);
}

/* The constructors that gcov's counters need, which this kernel does not call. */
void start_coverage(void)
{
	struct gpusim_constructors request = { 0 };
	char text[64];

	read_file("/sys/module/nvidia_uvm/sections/.gcov_constructors", text, sizeof(text));
	request.address = strtoull(text, NULL, 16);
	request.size = strtoull(setting("constructors", "0"), NULL, 0);
	if (!request.address || !request.size)
		return;
	if (ioctl(sim(), GPUSIM_CONSTRUCT, &request))
		give_up("coverage");
	coverage = open("/dev/ttyS2", O_WRONLY | O_CLOEXEC);
}

static void make_raw(int file)
{
	struct termios settings;

	if (!tcgetattr(file, &settings)) {
		cfmakeraw(&settings);
		tcsetattr(file, TCSANOW, &settings);
	}
}

/* Whether this kernel has it; a scan takes what is older than five seconds. */
static bool tell_kmemleak(const char *command)
{
	int file = open(KMEMLEAK, O_WRONLY | O_CLOEXEC);
	bool told = file >= 0 && write(file, command, strlen(command)) > 0;

	close(file);
	return told;
}

/* What the kernel's memory leak detector has found since the machine started, or NULL. */
const char *find_kernel_leaks(void)
{
	static char found[4096];
	char *line, *rest = found;

	if (access(KMEMLEAK, R_OK))
		return NULL;
	sleep(6);
	tell_kmemleak("scan");
	tell_kmemleak("scan");
	read_file(KMEMLEAK, found, sizeof(found));
	if (!found[0])
		return NULL;
	while ((line = strsep(&rest, "\n")))
		say("kmemleak: %s", line);
	return "kmemleak found memory that nobody refers to, see the console";
}

/*
 * The limit of a process lies below the 62 MB that the GPU has by default: both can be reached.
 * So can that of mappings, with more than a decode step makes.
 */
#define UVM_PARAMETERS "uvm_enable_builtin_tests=1 uvm_leak_checker=2"
#define UVM_LIMITS "uvm_vattn_max_mbytes=40 uvm_vattn_max_mappings="

static char uvm_path[64];

static void make_nodes(void)
{
	unsigned int major = major_of("nvidia-uvm");

	unlink("/dev/nvidia-uvm");
	unlink("/dev/nvidia-uvm-tools");
	node("/dev/nvidia-uvm", major, 0);
	node("/dev/nvidia-uvm-tools", major, 1);
}

void load_modules(const char *flavour, const char *chip, const char *gpu, const char *uvm)
{
	char path[64], parameters[160];

	snprintf(path, sizeof(path), "/modules/%s/nvidia.ko", flavour);
	snprintf(parameters, sizeof(parameters), "%s chip=%s", gpu ? gpu : "fb_mb=64", chip);
	load(path, parameters);
	snprintf(uvm_path, sizeof(uvm_path), "/modules/%s/nvidia-uvm.ko", flavour);
	snprintf(parameters, sizeof(parameters), "%s %s%s", UVM_PARAMETERS, uvm ? uvm : gpu ? "" : UVM_LIMITS,
		 uvm || gpu ? "" : setting("mappings", MOST_MAPPINGS));
	load(uvm_path, parameters);
	make_nodes();
}

/* Where the kernel was told to start on one, see "Two CPUs" in ../README.md. */
static void start_second_cpu(void)
{
	int file = open("/sys/devices/system/cpu/cpu1/online", O_WRONLY | O_CLOEXEC);

	if (file >= 0)
		(void)!write(file, "1", 1);
	close(file);
	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		give_up("the second CPU");
}

void set_up_machine(void)
{
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/dev", 0755);
	mkdir("/tmp", 01777);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	mkdir("/dev/shm", 01777);
	mount("tmpfs", "/dev/shm", "tmpfs", 0, NULL);
	results = open(RESULTS, O_WRONLY | O_CLOEXEC);
	make_raw(results);
	node("/dev/nvidiactl", 195, 255);
	node("/dev/nvidia0", 195, 0);
	node("/dev/nvidia1", 195, 1);
	tell_kmemleak("clear");
	start_second_cpu();
}

/* Python is started and its packages are imported once; each test is a fork of it. */
void start_python(void)
{
	int ready[2];
	char byte, *variables[] = { "HOME=/tmp", "PYTHONDONTWRITEBYTECODE=1", "LD_LIBRARY_PATH=/usr/lib/machine", NULL };

	if (access("/user/server.py", R_OK))
		return;
	if (pipe2(ready, O_CLOEXEC))
		give_up("pipe");
	if (!fork()) {
		dup2(ready[1], STDOUT_FILENO);
		execle("/usr/bin/python3", "/usr/bin/python3", "/user/server.py", PYTHON_SOCKET, (char *)NULL, variables);
		_exit(127);
	}
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1)
		give_up("Python");
	close(ready[0]);
}

void run_shell(void)
{
	pid_t child = fork();

	if (child == 0) {
		setsid();
		ioctl(STDIN_FILENO, TIOCSCTTY, 1);
		execl("/bin/busybox", "sh", (char *)NULL);
		_exit(127);
	}
	waitpid(child, NULL, 0);
}

static void remove_module(const char *name)
{
	int attempt;

	for (attempt = 0; attempt < 300; attempt++) {
		if (!syscall(SYS_delete_module, name, O_NONBLOCK))
			return;
		usleep(10000);
	}
	give_up(name);
}

int reload_uvm(void)
{
	int error;

	if (!access("/sys/module/nvidia_uvm", F_OK))
		remove_module("nvidia_uvm");
	error = try_load(uvm_path, UVM_PARAMETERS);
	if (!error)
		make_nodes();
	return error;
}

/* What UVM says of each chunk of a lost GPU takes minutes to print on a serial port. */
void expect_the_worst(bool expected)
{
	int file = open("/proc/sys/kernel/panic_on_warn", O_WRONLY | O_CLOEXEC);

	(void)!write(file, expected ? "0" : "1", 1);
	close(file);
	klogctl(8, NULL, expected ? 1 : 7);
}

const char *unload_modules(void)
{
	static char what[96];
	struct gpusim_live live;
	unsigned int i;

	remove_module("nvidia_uvm");
	live = live_objects();
	what[0] = 0;
	for (i = 0; i < live.count; i++)
		if (live.objects[i].live)
			snprintf(what, sizeof(what), "after unload: %s %lld", live.objects[i].kind,
				 (long long)live.objects[i].live);
	if (live.model_errors)
		snprintf(what, sizeof(what), "the simulator saw %llu errors", (unsigned long long)live.model_errors);
	close_sim();
	remove_module("nvidia");
	return what[0] ? what : NULL;
}

/* What the kernel must not have said since the last call; what matches allowed is excused. */
const char *scan_kernel_log(const char *allowed)
{
	static const char *const bad[] = {
		"MODEL ERROR", "WARNING:", "BUG:", "Oops", "Assert", "Memory leak", "Leaked",
		"sleeping function", "possible recursive",
	};
	static char record[8192], what[160];
	static int log = -1;
	ssize_t length;
	size_t i;

	if (log < 0)
		log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	what[0] = 0;
	while ((length = read(log, record, sizeof(record) - 1)) > 0 || errno == EPIPE) {
		errno = 0;
		record[length > 0 ? length : 0] = 0;
		for (i = 0; !what[0] && i < sizeof(bad) / sizeof(*bad); i++) {
			const char *text = strchr(record, ';');

			if (!strstr(record, bad[i]) || (allowed && strstr(record, allowed)))
				continue;
			snprintf(what, sizeof(what), "the kernel says: %.120s", text ? text + 1 : record);
			what[strcspn(what, "\n")] = 0;
		}
	}
	return what[0] ? what : NULL;
}

void save_coverage(void)
{
	static char block[4096];
	int source = open("/proc/gpusim_coverage", O_RDONLY | O_CLOEXEC);
	ssize_t length;

	/* Modules that are loaded next begin from zero, and are saved for themselves. */
	if (coverage < 0 || source < 0)
		return;
	make_raw(coverage);
	while ((length = read(source, block, sizeof(block))) > 0)
		(void)!write(coverage, block, (size_t)length);
	close(source);
	close(coverage);
	coverage = -1;
}
