/* A small VMM that knows nothing of msrgate: each word of its command line is an access that its guest makes, or a
 * call of its own, and each answers with one line.
 *
 *   r:INDEX         the guest reads an MSR: `r INDEX = VALUE` or `r INDEX #GP`
 *   w:INDEX:VALUE   the guest writes one: `w INDEX ok` or `w INDEX #GP`
 *   mask:N          KVM_ENABLE_CAP(KVM_CAP_X86_USER_SPACE_MSR, N)
 *   deny:A,B,...    KVM_X86_SET_MSR_FILTER that denies these; `deny:` denies none
 *   scatter:N       the same for N MSRs that lie far apart
 *   bad:filter, bad:cap   the same two calls with what KVM refuses
 *   kicks:N:INDEX   N times: the guest reads an MSR for ever, and a timer's signal ends that
 *   masked:N:INDEX  the same with the signal blocked but by KVM_SET_SIGNAL_MASK
 *   immediate:INDEX KVM_RUN with immediate_exit while the guest reads an MSR; what kvm_run says then
 *   many:VMS:VCPUS:N:INDEX  VMs at once, a thread for each vCPU, N reads each; the sum of what they read
 *   time:N:INDEX    N reads, and how many nanoseconds they took
 *   fork            the VM's ioctls in a child
 *   closeall        closes what is open but 0, 1 and 2, one by one and at once, before the VM is made
 *   lock:NR         a seccomp filter under which ioctl NR kills the process
 *
 * An MSR exit that is the VMM's is a line too (`exit rdmsr INDEX reason N`); reads are answered with 0x35000000 plus
 * the index, writes of an odd value with #GP. Numbers are hexadecimal, but for counts.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <fcntl.h>

#define CODE 0x1000
#define HANDLER 0x2000
#define STACK 0x3000
#define KICK SIGUSR1

struct machine {
	int system, vm, vcpu;
	uint8_t *memory;
	struct kvm_run *run;
};

static void die(const char *what)
{
	perror(what);
	exit(3);
}

static void must(const char *what, long result)
{
	if (result < 0)
		die(what);
}

/* --- the guest: one access in real mode; its #GP handler steps over it --- */

/* add word [esp], 2 behind the saved IP; out 0x12, al; iret: the handler of vector 13 */
static const uint8_t handler[] = { 0x55, 0x89, 0xe5, 0x83, 0x46, 0x02, 0x02, 0x5d, 0xe6, 0x12, 0xcf };

static int make_vcpu(struct machine *m, unsigned id)
{
	struct kvm_sregs sregs;

	m->vcpu = ioctl(m->vm, KVM_CREATE_VCPU, id);
	if (m->vcpu < 0)
		return -1;
	m->run = mmap(NULL, ioctl(m->system, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE,
		      MAP_SHARED, m->vcpu, 0);
	if (m->run == MAP_FAILED)
		die("mmap");
	must("KVM_GET_SREGS", ioctl(m->vcpu, KVM_GET_SREGS, &sregs));
	sregs.cs.base = sregs.cs.selector = 0;
	must("KVM_SET_SREGS", ioctl(m->vcpu, KVM_SET_SREGS, &sregs));
	return 0;
}

static int make_machine(struct machine *m)
{
	m->system = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	must("/dev/kvm", m->system);
	m->vm = ioctl(m->system, KVM_CREATE_VM, 0);
	if (m->vm < 0)
		return -1;
	m->memory = mmap(NULL, 0x4000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = {
		.memory_size = 0x4000,
		.userspace_addr = (uintptr_t)m->memory,
	};
	must("memory", ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &region));
	memcpy(m->memory + HANDLER, handler, sizeof(handler));
	m->memory[13 * 4] = HANDLER & 0xff;
	m->memory[13 * 4 + 1] = HANDLER >> 8;
	return 0;
}

static uint8_t *put32(uint8_t *code, uint8_t opcode, uint32_t value)
{
	*code++ = 0x66; /* a 32-bit operand */
	*code++ = opcode;
	memcpy(code, &value, 4);
	return code + 4;
}

/* mov ecx, INDEX; mov eax, LOW; mov edx, HIGH; rdmsr or wrmsr; out 0x10, eax; mov eax, edx; out 0x11, eax; hlt */
static void load(struct machine *m, int write, uint32_t index, uint64_t value, int endless)
{
	struct kvm_regs regs = { .rip = CODE, .rflags = 2, .rsp = STACK };
	uint8_t *code = m->memory + CODE;

	code = put32(code, 0xb9, index);
	code = put32(code, 0xb8, value);
	code = put32(code, 0xba, value >> 32);
	*code++ = 0x0f;
	*code++ = write ? 0x30 : 0x32;
	if (endless) {
		*code++ = 0xeb;
		*code++ = 0xfc; /* back to the access */
	}
	memcpy(code, "\x66\xe7\x10\x66\x89\xd0\x66\xe7\x11\xf4", 10);
	must("KVM_SET_REGS", ioctl(m->vcpu, KVM_SET_REGS, &regs));
}

/* --- the VMM --- */

static void serve(struct kvm_run *run, int quiet)
{
	int is_read = run->exit_reason == KVM_EXIT_X86_RDMSR;

	if (!quiet)
		printf("exit %s %x reason %x\n", is_read ? "rdmsr" : "wrmsr", run->msr.index, run->msr.reason);
	if (is_read)
		run->msr.data = 0x35000000 + run->msr.index;
	else
		run->msr.error = run->msr.data & 1;
}

/* Runs the guest to its end; whether it got #GP, and what it read. */
static int run_guest(struct machine *m, uint64_t *value, int quiet)
{
	int fault = 0;

	for (;;) {
		struct kvm_run *run = m->run;
		uint32_t data;

		must("KVM_RUN", ioctl(m->vcpu, KVM_RUN, 0));
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			memcpy(&data, (char *)run + run->io.data_offset, 4);
			if (run->io.port == 0x10)
				*value = data;
			else if (run->io.port == 0x11)
				*value |= (uint64_t)data << 32;
			else
				fault = 1;
			break;
		case KVM_EXIT_X86_RDMSR:
		case KVM_EXIT_X86_WRMSR:
			serve(run, quiet);
			break;
		case KVM_EXIT_HLT:
			return fault;
		default:
			printf("stopped with %u\n", run->exit_reason);
			exit(3);
		}
	}
}

static void access_msr(struct machine *m, int write, uint32_t index, uint64_t value)
{
	uint64_t result = 0;
	int fault;

	load(m, write, index, value, 0);
	fault = run_guest(m, &result, 0);
	if (fault)
		printf("%c %x #GP\n", write ? 'w' : 'r', index);
	else if (write)
		printf("w %x ok\n", index);
	else
		printf("r %x = %llx\n", index, (unsigned long long)result);
}

static void say_result(const char *what, int result)
{
	if (result < 0)
		printf("%s %s\n", what, strerrorname_np(errno));
	else
		printf("%s %d\n", what, result);
}

static void set_mask(struct machine *m, uint64_t mask)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { mask } };

	say_result("mask", ioctl(m->vm, KVM_ENABLE_CAP, &cap));
}

static uint64_t nothing[16]; /* bitmaps that deny */

static void add(struct kvm_msr_filter *filter, int n, uint32_t index)
{
	filter->ranges[n].flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE;
	filter->ranges[n].nmsrs = 1;
	filter->ranges[n].base = index;
	filter->ranges[n].bitmap = (uint8_t *)&nothing[n];
}

static void deny(struct machine *m, char *list)
{
	struct kvm_msr_filter filter = { 0 };
	int n = 0;

	for (char *word = strtok(list, ","); word; word = strtok(NULL, ","))
		add(&filter, n++, strtoul(word, NULL, 16));
	say_result("deny", ioctl(m->vm, KVM_X86_SET_MSR_FILTER, &filter));
}

static void scatter(struct machine *m, int count)
{
	struct kvm_msr_filter filter = { 0 };

	for (int n = 0; n < count; n++)
		add(&filter, n, 0x10000000 + 0x100000 * n);
	say_result("scatter", ioctl(m->vm, KVM_X86_SET_MSR_FILTER, &filter));
}

static void bad(struct machine *m, const char *what)
{
	struct kvm_msr_filter filter = { .flags = 2 };

	if (!strcmp(what, "cap")) {
		set_mask(m, 8);
		say_result("bad cap", ioctl(m->vm, KVM_ENABLE_CAP, (void *)0x10));
		return;
	}
	say_result("bad flags", ioctl(m->vm, KVM_X86_SET_MSR_FILTER, &filter));
	say_result("bad filter", ioctl(m->vm, KVM_X86_SET_MSR_FILTER, (void *)0x10));
	filter.flags = 0;
	add(&filter, 0, 0x8b);
	filter.ranges[0].bitmap = (uint8_t *)0x10;
	say_result("bad bitmap", ioctl(m->vm, KVM_X86_SET_MSR_FILTER, &filter));
}

/* --- signals --- */

static volatile sig_atomic_t kicked;

static void on_kick(int signal)
{
	(void)signal;
	kicked++;
}

static void on_lost(int signal)
{
	static const char text[] = "a kick was lost\n";

	(void)signal;
	if (write(1, text, sizeof(text) - 1) < 0)
		_exit(4);
	_exit(1);
}

static volatile int about_to_run;

static long long cpu_ns(pthread_t thread)
{
	clockid_t clock;
	struct timespec time;

	pthread_getcpuclockid(thread, &clock);
	clock_gettime(clock, &time);
	return time.tv_sec * 1000000000ll + time.tv_nsec;
}

static void *kicker(void *argument)
{
	pthread_t target = *(pthread_t *)argument;
	long long start;
	static unsigned seed = 1;
	int wait_ns = 5000000 + rand_r(&seed) % 5000000;

	while (!about_to_run)
		usleep(50);
	/* The thread has worked for so long: it is in KVM_RUN, however busy or slow the machine is. */
	start = cpu_ns(target);
	while (cpu_ns(target) - start < wait_ns)
		usleep(50);
	pthread_kill(target, KICK);
	return NULL;
}

static void kicks(struct machine *m, int count, uint32_t index, int by_mask)
{
	struct sigaction action = { .sa_handler = on_kick };
	struct sigaction lost = { .sa_handler = on_lost };
	uint64_t set = ~(1ull << (KICK - 1));
	struct {
		struct kvm_signal_mask mask;
		uint8_t set[8];
	} mask = { .mask = { .len = 8 } };
	sigset_t kick;
	int interrupted = 0;

	sigaction(KICK, &action, NULL);
	sigaction(SIGALRM, &lost, NULL);
	sigemptyset(&kick);
	sigaddset(&kick, KICK);
	if (by_mask) {
		pthread_sigmask(SIG_BLOCK, &kick, NULL);
		set &= ~(1ull << (SIGALRM - 1));
		memcpy((char *)&mask + offsetof(struct kvm_signal_mask, sigset), &set, 8);
		must("KVM_SET_SIGNAL_MASK", ioctl(m->vcpu, KVM_SET_SIGNAL_MASK, &mask));
	}
	for (int n = 0; n < count; n++) {
		pthread_t self = pthread_self(), thread;
		int result;

		load(m, 0, index, 0, 1);
		alarm(20);
		about_to_run = 0;
		pthread_create(&thread, NULL, kicker, &self);
		errno = 0;
		about_to_run = 1;
		result = ioctl(m->vcpu, KVM_RUN, 0);
		alarm(0);
		pthread_join(thread, NULL);
		interrupted += result == -1 && errno == EINTR && m->run->exit_reason == KVM_EXIT_INTR;
		if (by_mask) {
			int got;

			sigwait(&kick, &got);
			kicked++;
		}
	}
	printf("kicks %d, handled %d, interrupted %d\n", count, (int)kicked, interrupted);
}

static void immediate(struct machine *m, uint32_t index)
{
	int result;

	load(m, 0, index, 0, 1);
	memset(&m->run->msr, 0x5a, sizeof(m->run->msr));
	m->run->exit_reason = 0x5a5a;
	m->run->immediate_exit = 1;
	errno = 0;
	result = ioctl(m->vcpu, KVM_RUN, 0);
	printf("immediate %d %s reason %x data %llx\n", result, strerrorname_np(errno), m->run->exit_reason,
	       (unsigned long long)m->run->msr.data);
	m->run->immediate_exit = 0;
}

/* --- several --- */

struct worker {
	struct machine machine;
	pthread_t thread;
	int count;
	uint32_t index;
	uint64_t sum;
};

static void *work(void *argument)
{
	struct worker *w = argument;

	for (int n = 0; n < w->count; n++) {
		uint64_t value = 0;
		struct kvm_regs regs = { .rip = CODE, .rflags = 2, .rsp = STACK };

		must("KVM_SET_REGS", ioctl(w->machine.vcpu, KVM_SET_REGS, &regs));
		run_guest(&w->machine, &value, 1);
		w->sum += value;
	}
	return NULL;
}

static void many(int vms, int vcpus, int count, uint32_t index)
{
	struct worker *workers = calloc(vms * vcpus, sizeof(*workers));
	uint64_t sum = 0;

	for (int vm = 0; vm < vms; vm++) {
		struct machine m;

		must("KVM_CREATE_VM", make_machine(&m));
		for (int vcpu = 0; vcpu < vcpus; vcpu++) {
			struct worker *w = &workers[vm * vcpus + vcpu];

			w->machine = m;
			must("KVM_CREATE_VCPU", make_vcpu(&w->machine, vcpu));
			w->count = count;
			load(&w->machine, 0, index, 0, 0);
		}
	}
	for (int n = 0; n < vms * vcpus; n++)
		pthread_create(&workers[n].thread, NULL, work, &workers[n]);
	for (int n = 0; n < vms * vcpus; n++) {
		pthread_join(workers[n].thread, NULL);
		sum += workers[n].sum;
	}
	printf("many %llx\n", (unsigned long long)sum);
	for (int n = 0; n < vms * vcpus; n++) {
		close(workers[n].machine.vcpu);
		close(workers[n].machine.vm);
	}
}

static void timed(struct machine *m, int count, uint32_t index)
{
	struct worker w = { .machine = *m, .count = count, .index = index };
	struct timespec start, end;

	load(m, 0, index, 0, 0);
	clock_gettime(CLOCK_MONOTONIC, &start);
	work(&w);
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%lld\n", (end.tv_sec - start.tv_sec) * 1000000000ll + end.tv_nsec - start.tv_nsec);
}

static void in_child(struct machine *m)
{
	int status;

	fflush(stdout);
	if (fork() == 0) {
		say_result("child's run", ioctl(m->vcpu, KVM_RUN, 0));
		say_result("child's vcpu", ioctl(m->vm, KVM_CREATE_VCPU, 7));
		fflush(stdout);
		_exit(0);
	}
	wait(&status);
}

/* Forbids one ioctl, by its request, and nothing else. */
static void lock(uint32_t request)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, request, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = sizeof(code) / sizeof(*code), .filter = code };

	fflush(stdout);
	must("no_new_privs", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	must("seccomp", syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
	printf("locked\n");
}

int main(int argc, char **argv)
{
	struct machine m = { 0 };
	uint32_t words[4];
	int first = 1;

	if (argc > 1 && !strncmp(argv[1], "lock:", 5)) {
		lock(strtoul(argv[1] + 5, NULL, 16));
		first = 2;
	}
	if (argc > first && !strcmp(argv[first], "closeall")) {
		for (int fd = 3; fd < 64; fd++)
			close(fd);
		close_range(3, ~0u, 0);
		closefrom(3);
		first++;
	}
	if (make_machine(&m) < 0) {
		say_result("no VM", -1);
		return 0;
	}
	must("KVM_CREATE_VCPU", make_vcpu(&m, 0));
	for (int n = first; n < argc; n++) {
		char *colon = strchr(argv[n], ':'), *rest = colon ? colon + 1 : argv[n] + strlen(argv[n]);
		char *value = strchr(rest, ':');
		unsigned long number = strtoul(rest, NULL, 10);
		uint32_t index = strtoul(rest, NULL, 16);

		if (argv[n][0] == 'r' && colon == argv[n] + 1)
			access_msr(&m, 0, index, 0);
		else if (argv[n][0] == 'w' && colon == argv[n] + 1)
			access_msr(&m, 1, index, value ? strtoull(value + 1, NULL, 16) : 0);
		else if (!strncmp(argv[n], "mask:", 5))
			set_mask(&m, index);
		else if (!strncmp(argv[n], "deny:", 5))
			deny(&m, rest);
		else if (!strncmp(argv[n], "scatter:", 8))
			scatter(&m, number);
		else if (!strncmp(argv[n], "bad:", 4))
			bad(&m, rest);
		else if (!strncmp(argv[n], "kicks:", 6))
			kicks(&m, number, strtoul(value + 1, NULL, 16), 0);
		else if (!strncmp(argv[n], "masked:", 7))
			kicks(&m, number, strtoul(value + 1, NULL, 16), 1);
		else if (!strncmp(argv[n], "immediate:", 10))
			immediate(&m, index);
		else if (sscanf(argv[n], "many:%u:%u:%u:%x", &words[0], &words[1], &words[2], &words[3]) == 4)
			many(words[0], words[1], words[2], words[3]);
		else if (!strncmp(argv[n], "time:", 5))
			timed(&m, number, strtoul(value + 1, NULL, 16));
		else if (!strcmp(argv[n], "fork"))
			in_child(&m);
		else if (!strncmp(argv[n], "lock:", 5))
			lock(index);
		else
			die("no such word");
	}
	return 0;
}
