/* A small client of /dev/kvm: one chapter per command-line word, one TAP line per check.
 *
 * It knows nothing of msrgate. The same expectations hold on the real KVM, where the test runs it too,
 * except for the chapters "hostile" and "files", which are about the embedded one alone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define BAD_POINTER ((void *)0x10)
#define UNKNOWN_REQUEST _IO(KVMIO, 0xff)
#define UNKNOWN_MSR 0x474f4f00u

static int count, failures;

static void check_value(const char *what, long got, long want)
{
	count++;
	if (got == want) {
		printf("ok %d - %s\n", count, what);
	} else {
		failures++;
		printf("not ok %d - %s: got %ld, want %ld\n", count, what, got, want);
	}
}

/* A call that succeeds with `want`, or fails with the error number -want. */
static void check_call(const char *what, long result, long want)
{
	check_value(what, result < 0 ? -errno : result, want);
}

#define value(expression, want) check_value(#expression, (long)(expression), (want))
#define call(expression, want) (errno = 0, check_call(#expression, (expression), (want)))

/* --- a machine: one page of code at 0x1000, in real mode --- */

struct machine {
	int system, vm, vcpu;
	uint8_t *memory;
	struct kvm_run *run;
};

static void die(const char *what)
{
	perror(what);
	exit(2);
}

static struct machine machine(const void *code, size_t size)
{
	struct machine m;
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };

	m.system = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	m.vm = ioctl(m.system, KVM_CREATE_VM, 0);
	m.vcpu = ioctl(m.vm, KVM_CREATE_VCPU, 0);
	if (m.vcpu < 0)
		die("cannot make a vCPU");
	m.memory = mmap(NULL, 0x4000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	memcpy(m.memory + 0x1000, code, size);
	struct kvm_userspace_memory_region region = {
		.memory_size = 0x4000,
		.userspace_addr = (uintptr_t)m.memory,
	};
	if (ioctl(m.vm, KVM_SET_USER_MEMORY_REGION, &region))
		die("cannot set the memory");
	m.run = mmap(NULL, ioctl(m.system, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE,
		     MAP_SHARED, m.vcpu, 0);
	if (m.run == MAP_FAILED)
		die("cannot map kvm_run");
	ioctl(m.vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	if (ioctl(m.vcpu, KVM_SET_SREGS, &sregs) || ioctl(m.vcpu, KVM_SET_REGS, &regs))
		die("cannot set the registers");
	return m;
}

/* mov dx, 0x3f8; mov al, 'A'; out dx, al; in al, dx; out dx, al; hlt */
static const uint8_t port_code[] = { 0xba, 0xf8, 0x03, 0xb0, 'A', 0xee, 0xec, 0xee, 0xf4 };
/* mov ecx, UNKNOWN_MSR; rdmsr; hlt */
static const uint8_t rdmsr_code[] = { 0x66, 0xb9, 0x00, 0x4f, 0x4f, 0x47, 0x0f, 0x32, 0xf4 };

static char io_data(const struct machine *m)
{
	return *((char *)m->run + m->run->io.data_offset);
}

/* --- chapters --- */

static void system_chapter(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	struct stat status;
	struct kvm_cpuid2 no_room = { .nent = 0 };
	struct kvm_msr_list no_list = { .nmsrs = 0 };
	char termios[256];

	value(kvm >= 0, 1);
	call(ioctl(kvm, KVM_GET_API_VERSION, 0), 12);
	call(ioctl(kvm, KVM_GET_API_VERSION, 1), -EINVAL);
	call(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_X86_USER_SPACE_MSR), 1);
	call(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_X86_MSR_FILTER), 1);
	call(ioctl(kvm, KVM_CHECK_EXTENSION, 0x7fffffff), 0);
	call(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), 3 * 4096);
	call(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 1), -EINVAL);
	call(ioctl(kvm, KVM_CREATE_VM, 0x12345), -EINVAL);
	call(ioctl(kvm, KVM_RUN, 0), -EINVAL);
	call(ioctl(kvm, UNKNOWN_REQUEST, 0), -EINVAL);
	call(ioctl(kvm, TCGETS, termios), -EINVAL);
	call(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &no_room), -E2BIG);
	call(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, BAD_POINTER), -EFAULT);
	call(ioctl(kvm, KVM_GET_MSR_INDEX_LIST, &no_list), -E2BIG);
	value(no_list.nmsrs > 0, 1);
	call(ioctl(kvm, KVM_GET_MSR_INDEX_LIST, BAD_POINTER), -EFAULT);
	call(fcntl(kvm, F_GETFD), FD_CLOEXEC);
	call(ioctl(kvm, FIONCLEX), 0);
	call(fcntl(kvm, F_GETFD), 0);
	call(stat("/dev/kvm", &status), 0);
	value(S_ISCHR(status.st_mode), 1);
	value(major(status.st_rdev), 10);
	value(minor(status.st_rdev), 232);
	call(fstatat(AT_FDCWD, "/dev/kvm", &status, AT_SYMLINK_NOFOLLOW), 0);
	value(minor(status.st_rdev), 232);
	call(access("/dev/kvm", R_OK | W_OK), 0);
	call(close(kvm), 0);
	call(ioctl(kvm, KVM_GET_API_VERSION, 0), -EBADF);
	call(close(kvm), -EBADF);
	call(ioctl(-1, KVM_GET_API_VERSION, 0), -EBADF);
}

static void vm_chapter(void)
{
	int kvm = open("/dev/kvm", O_RDWR);
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	struct kvm_enable_cap mask = { .cap = KVM_CAP_X86_USER_SPACE_MSR, .args[0] = 7 };
	struct kvm_enable_cap beyond = { .cap = KVM_CAP_X86_USER_SPACE_MSR, .args[0] = 8 };
	struct kvm_enable_cap filter_cap = { .cap = KVM_CAP_X86_MSR_FILTER };
	struct kvm_msr_filter filter = { .flags = KVM_MSR_FILTER_DEFAULT_DENY };
	struct kvm_userspace_memory_region crooked = { .memory_size = 0x1001 };
	uint64_t bitmap = 0;
	char termios[256];

	value(vm >= 0, 1);
	call(fcntl(vm, F_GETFD), FD_CLOEXEC);
	call(ioctl(vm, UNKNOWN_REQUEST, 0), -ENOTTY);
	call(ioctl(vm, TCGETS, termios), -ENOTTY);
	call(ioctl(vm, KVM_GET_API_VERSION, 0), -ENOTTY);
	call(ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_X86_MSR_FILTER), 1);
	call(ioctl(vm, KVM_ENABLE_CAP, &mask), 0);
	call(ioctl(vm, KVM_ENABLE_CAP, &beyond), -EINVAL);
	call(ioctl(vm, KVM_ENABLE_CAP, &filter_cap), -EINVAL);
	call(ioctl(vm, KVM_ENABLE_CAP, BAD_POINTER), -EFAULT);
	call(ioctl(kvm, KVM_ENABLE_CAP, &mask), -EINVAL);
	call(ioctl(vm, KVM_X86_SET_MSR_FILTER, &filter), -EINVAL);
	call(ioctl(vm, KVM_X86_SET_MSR_FILTER, BAD_POINTER), -EFAULT);
	filter.ranges[3].flags = KVM_MSR_FILTER_READ;
	filter.ranges[3].nmsrs = 1;
	call(ioctl(vm, KVM_X86_SET_MSR_FILTER, &filter), -EFAULT);
	filter.ranges[3].bitmap = (void *)&bitmap;
	call(ioctl(vm, KVM_X86_SET_MSR_FILTER, &filter), 0);
	/* Programs that keep requests in an int pass them sign-extended. */
	call(ioctl(vm, (unsigned long)(long)(int)0xc180aeff, 0), -ENOTTY);
	call(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &crooked), -EINVAL);
	call(ioctl(vm, KVM_SET_USER_MEMORY_REGION, BAD_POINTER), -EFAULT);
	call(ioctl(vm, KVM_CREATE_VCPU, 100000), -EINVAL);
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	value(vcpu >= 0, 1);
	call(ioctl(vm, KVM_CREATE_VCPU, 0), -EEXIST);
	/* The VM lives for as long as one descriptor leads to it. */
	call(close(vm), 0);
	call(close(kvm), 0);
	struct kvm_regs regs;
	call(ioctl(vcpu, KVM_GET_REGS, &regs), 0);
	value(regs.rip, 0xfff0);
	call(close(vcpu), 0);
	call(ioctl(vcpu, KVM_GET_REGS, &regs), -EBADF);
}

static void vcpu_chapter(void)
{
	struct machine m = machine(port_code, sizeof(port_code));
	struct kvm_regs regs;
	char termios[256];

	call(ioctl(m.vcpu, UNKNOWN_REQUEST, 0), -EINVAL);
	call(ioctl(m.vcpu, TCGETS, termios), -EINVAL);
	call(ioctl(m.vcpu, KVM_RUN, 1), -EINVAL);
	call(ioctl(m.vcpu, KVM_GET_REGS, BAD_POINTER), -EFAULT);
	call(ioctl(m.vcpu, KVM_SET_SREGS, BAD_POINTER), -EFAULT);
	call(ioctl(m.vcpu, KVM_CREATE_VCPU, 0), -EINVAL);
	m.run->immediate_exit = 1;
	call(ioctl(m.vcpu, KVM_RUN, 0), -EINTR);
	m.run->immediate_exit = 0;
	errno = 77;
	value(ioctl(m.vcpu, KVM_RUN, 0), 0);
	value(errno, 77);
	value(m.run->exit_reason, KVM_EXIT_IO);
	value(m.run->io.direction, KVM_EXIT_IO_OUT);
	value(m.run->io.port, 0x3f8);
	value(io_data(&m), 'A');
	call(ioctl(m.vcpu, KVM_RUN, 0), 0);
	value(m.run->exit_reason, KVM_EXIT_IO);
	value(m.run->io.direction, KVM_EXIT_IO_IN);
	*((char *)m.run + m.run->io.data_offset) = 'Z';
	call(ioctl(m.vcpu, KVM_RUN, 0), 0);
	value(io_data(&m), 'Z');
	call(ioctl(m.vcpu, KVM_RUN, 0), 0);
	value(m.run->exit_reason, KVM_EXIT_HLT);
	call(ioctl(m.vcpu, KVM_GET_REGS, &regs), 0);
	value(regs.rip, 0x1000 + sizeof(port_code));
}

static void msr_chapter(void)
{
	struct machine m = machine(rdmsr_code, sizeof(rdmsr_code));
	struct kvm_enable_cap mask = {
		.cap = KVM_CAP_X86_USER_SPACE_MSR,
		.args[0] = KVM_MSR_EXIT_REASON_UNKNOWN,
	};
	struct kvm_regs regs;

	call(ioctl(m.vm, KVM_ENABLE_CAP, &mask), 0);
	call(ioctl(m.vcpu, KVM_RUN, 0), 0);
	value(m.run->exit_reason, KVM_EXIT_X86_RDMSR);
	value(m.run->msr.reason, KVM_MSR_EXIT_REASON_UNKNOWN);
	value(m.run->msr.index, UNKNOWN_MSR);
	value(m.run->msr.data, 0);
	m.run->msr.data = 0x1122334455667788;
	call(ioctl(m.vcpu, KVM_RUN, 0), 0);
	value(m.run->exit_reason, KVM_EXIT_HLT);
	call(ioctl(m.vcpu, KVM_GET_REGS, &regs), 0);
	value(regs.rax, 0x55667788);
	value(regs.rdx, 0x11223344);
}

static void descriptors_chapter(void)
{
	struct machine m = machine(port_code, sizeof(port_code));
	struct kvm_regs regs;
	int other = open("/dev/zero", O_RDONLY);
	int pipes[2];

	int copy = dup(m.vcpu);
	call(ioctl(copy, KVM_GET_REGS, &regs), 0);
	call(close(m.vcpu), 0);
	call(ioctl(m.vcpu, KVM_GET_REGS, &regs), -EBADF);
	call(ioctl(copy, KVM_GET_REGS, &regs), 0);
	call(ioctl(copy, KVM_RUN, 0), 0);
	value(io_data(&m), 'A');

	int far = fcntl(copy, F_DUPFD_CLOEXEC, 500);
	value(far >= 500, 1);
	call(ioctl(far, KVM_GET_REGS, &regs), 0);

	/* Onto another file, and back. */
	call(dup2(copy, other), other);
	call(ioctl(other, KVM_GET_REGS, &regs), 0);
	call(dup2(other, other), other);
	call(ioctl(other, KVM_GET_REGS, &regs), 0);
	int zero = open("/dev/zero", O_RDONLY);
	call(dup3(zero, other, O_CLOEXEC), other);
	call(ioctl(other, KVM_GET_REGS, &regs), -ENOTTY);
	call(dup2(-1, copy), -EBADF);
	call(ioctl(copy, KVM_GET_REGS, &regs), 0);

	/* A number that is closed may mean anything else. */
	call(close(copy), 0);
	if (pipe(pipes))
		die("pipe");
	value(pipes[0] == copy || pipes[1] == copy || pipes[0] == m.vcpu, 1);
	call(ioctl(pipes[0], KVM_GET_REGS, &regs), -ENOTTY);
	call(ioctl(far, KVM_GET_REGS, &regs), 0);
	call(close_range(far, far, 0), 0);
	call(ioctl(far, KVM_GET_REGS, &regs), -EBADF);
	call(ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), 1);
}

static void fork_chapter(void)
{
	struct machine m = machine(port_code, sizeof(port_code));
	int status;

	fflush(stdout);
	pid_t child = fork();
	if (child == 0) {
		struct kvm_regs regs;
		dup2(STDERR_FILENO, STDOUT_FILENO); /* its lines are not the parent's */
		count = failures = 0;
		call(ioctl(m.vcpu, KVM_GET_REGS, &regs), -EIO);
		call(ioctl(m.vm, KVM_CREATE_VCPU, 1), -EIO);
		call(ioctl(m.system, KVM_GET_API_VERSION, 0), 12);
		struct machine own = machine(port_code, sizeof(port_code));
		call(ioctl(own.vcpu, KVM_RUN, 0), 0);
		value(own.run->exit_reason, KVM_EXIT_IO);
		fflush(stdout);
		_exit(failures);
	}
	waitpid(child, &status, 0);
	value(status, 0);
	call(ioctl(m.vcpu, KVM_RUN, 0), 0);
	value(m.run->exit_reason, KVM_EXIT_IO);
}

/* Whether the first 8259 has the line's interrupt waiting, soon. */
static int line_rises(int vm, int line)
{
	struct kvm_irqchip pic = { .chip_id = KVM_IRQCHIP_PIC_MASTER };

	for (int patience = 5000; patience > 0; patience--) {
		ioctl(vm, KVM_GET_IRQCHIP, &pic);
		if (pic.chip.pic.irr >> line & 1)
			return 1;
		usleep(1000);
	}
	return 0;
}

static void events_chapter(void)
{
	struct machine m = machine(port_code, sizeof(port_code));
	int event = eventfd(0, EFD_CLOEXEC), vm = ioctl(m.system, KVM_CREATE_VM, 0), status;
	struct kvm_ioeventfd port = { .addr = 0x3f8, .len = 1, .fd = event, .flags = KVM_IOEVENTFD_FLAG_PIO };
	struct kvm_irqfd line = { .fd = event, .gsi = 4 };
	uint64_t written = 0;

	/* Of the guest's OUT, IN, OUT, only IN leaves. */
	call(ioctl(m.vm, KVM_IOEVENTFD, &port), 0);
	call(ioctl(m.vcpu, KVM_RUN, 0), 0);
	value(m.run->exit_reason, KVM_EXIT_IO);
	value(m.run->io.direction, KVM_EXIT_IO_IN);
	call(ioctl(m.vcpu, KVM_RUN, 0), 0);
	value(m.run->exit_reason, KVM_EXIT_HLT);
	call(read(event, &written, sizeof(written)), sizeof(written));
	value(written, 2);
	port.flags |= KVM_IOEVENTFD_FLAG_DEASSIGN;
	call(ioctl(m.vm, KVM_IOEVENTFD, &port), 0);
	call(ioctl(m.vm, KVM_IRQFD, &line), -EINVAL);

	/* A child that closes what it has inherited takes nothing away. */
	call(ioctl(vm, KVM_CREATE_IRQCHIP, 0), 0);
	call(ioctl(vm, KVM_IRQFD, &line), 0);
	fflush(stdout);
	if (fork() == 0) {
		line.flags = KVM_IRQFD_FLAG_DEASSIGN;
		status = ioctl(vm, KVM_IRQFD, &line) != -1 || errno != EIO;
		close(vm);
		close(event);
		_exit(status);
	}
	wait(&status);
	value(status, 0);
	written = 1;
	call(write(event, &written, sizeof(written)), sizeof(written));
	value(line_rises(vm, line.gsi), 1);
	call(close(vm), 0);
	call(close(event), 0);
}

/* Each thread has a VM of its own, and all make and close descriptors at the same time. */
static void *thread_main(void *result)
{
	for (int round = 0; round < 20; round++) {
		struct machine m = machine(port_code, sizeof(port_code));
		for (int exits = 0; exits < 4; exits++)
			*(int *)result += ioctl(m.vcpu, KVM_RUN, 0) == 0;
		*(int *)result += m.run->exit_reason == KVM_EXIT_HLT;
		munmap(m.run, 3 * 4096);
		close(m.vcpu);
		close(m.vm);
		close(m.system);
		munmap(m.memory, 0x4000);
	}
	return NULL;
}

static void threads_chapter(void)
{
	pthread_t threads[4];
	int results[4] = { 0 };

	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, thread_main, &results[i]);
	for (int i = 0; i < 4; i++) {
		pthread_join(threads[i], NULL);
		value(results[i], 20 * 5);
	}
}

static void *close_later(void *fd)
{
	usleep(20000);
	close(*(int *)fd);
	return NULL;
}

/* A descriptor that is closed while KVM_RUN uses it: the run goes on. */
static void close_chapter(void)
{
	/* mov cx, 40; l: xor ax, ax; m: dec ax; jnz m; loop l; hlt */
	static const uint8_t code[] = { 0xb9, 40, 0, 0x31, 0xc0, 0x48, 0x75, 0xfd, 0xe2, 0xf9, 0xf4 };
	struct machine m = machine(code, sizeof(code));
	pthread_t thread;
	struct kvm_regs regs;

	pthread_create(&thread, NULL, close_later, &m.vcpu);
	call(ioctl(m.vcpu, KVM_RUN, 0), 0);
	value(m.run->exit_reason, KVM_EXIT_HLT);
	pthread_join(thread, NULL);
	call(ioctl(m.vcpu, KVM_GET_REGS, &regs), -EBADF);
}

static int handled;

static void handler(int number)
{
	handled = number;
}

/* A guest that never leaves by itself is ended by any signal that the thread handles. */
static void signal_chapter(void)
{
	static const uint8_t forever[] = { 0xeb, 0xfe };
	struct machine m = machine(forever, sizeof(forever));
	struct sigaction action = { .sa_handler = handler }, old;
	sigset_t alarm_only, none;

	call(sigaction(SIGALRM, &action, NULL), 0);
	call(sigaction(SIGALRM, NULL, &old), 0);
	value(old.sa_handler == handler, 1);
	ualarm(30000, 0);
	call(ioctl(m.vcpu, KVM_RUN, 0), -EINTR);
	value(m.run->exit_reason, KVM_EXIT_INTR);
	value(handled, SIGALRM);

	/* What was handled before KVM_RUN does not end it. */
	handled = 0;
	value(signal(SIGUSR1, handler) == SIG_DFL, 1);
	value(signal(SIGUSR1, handler) == handler, 1);
	raise(SIGUSR1);
	value(handled, SIGUSR1);
	ualarm(30000, 0);
	call(ioctl(m.vcpu, KVM_RUN, 0), -EINTR);
	value(handled, SIGALRM);

	/* Blocked by the thread, and open in KVM_RUN: it stays pending. */
	struct {
		struct kvm_signal_mask head;
		uint64_t set;
	} mask = { .head.len = 8 };
	sigemptyset(&alarm_only);
	sigaddset(&alarm_only, SIGALRM);
	sigprocmask(SIG_BLOCK, &alarm_only, &none);
	call(ioctl(m.vcpu, KVM_SET_SIGNAL_MASK, &mask), 0);
	handled = 0;
	ualarm(30000, 0);
	call(ioctl(m.vcpu, KVM_RUN, 0), -EINTR);
	value(handled, 0);
	sigpending(&alarm_only);
	value(sigismember(&alarm_only, SIGALRM), 1);
	sigprocmask(SIG_SETMASK, &none, NULL);
	value(handled, SIGALRM);

	signal(SIGALRM, SIG_DFL);
	alarm(60);
}

/* Whatever the request and wherever the pointer leads: an answer, and everything still works after. */
static void hostile_chapter(void)
{
	/* The last page is not there. */
	const size_t words = 8192;
	uint64_t *noise = mmap(NULL, words * 8 + 4096, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(noise + words, 4096);
	struct machine m = machine(port_code, sizeof(port_code));
	const int descriptors[] = { m.system, m.vm, m.vcpu };
	const unsigned long arguments[] = {
		0, 0x10, 1ul << 47, -1ul, -8ul, (uintptr_t)noise, (uintptr_t)noise + 1,
		(uintptr_t)(noise + words) - 8, (uintptr_t)hostile_chapter,
	};
	long answered = 0, asked = 0;

	srandom(1);
	m.run->immediate_exit = 1;
	for (unsigned int number = 0; number < 256; number++) {
		for (size_t i = 0; i < words; i++)
			noise[i] = i % 3 ? (uint64_t)random() << 33 : (uint64_t)random() % 4;
		for (unsigned int size = 0; size <= 4096; size += size < 600 ? 4 : 8) {
			for (unsigned int kind = 0; kind < 4 * 3; kind++) {
				unsigned long request = kind / 3 << 30 | size << 16 | KVMIO << 8 | number;
				int fd = descriptors[kind % 3];
				int result = ioctl(fd, request, arguments[random() % 9]);
				asked++;
				answered += result >= 0 || (result == -1 && errno > 0);
				if (result > m.vcpu && fcntl(result, F_GETFD) == FD_CLOEXEC)
					close(result);
			}
		}
	}
	value(asked > 1000000, 1);
	value(answered, asked);
	struct machine other = machine(port_code, sizeof(port_code));
	call(ioctl(other.vcpu, KVM_RUN, 0), 0);
	value(io_data(&other), 'A');
}

static void files_chapter(void)
{
	char text[16] = "";
	struct stat status;

	int fd = open("/sys/module/kvm/parameters/force_emulation_prefix", O_RDONLY);
	call(read(fd, text, sizeof(text)), 2);
	value(atoi(text), 1);
	FILE *stream = fopen("/sys/module/kvm/parameters/ignore_msrs", "r");
	value(stream && fgetc(stream) == 'N', 1);
	call(open("/sys/module/kvm/parameters/ignore_msrs", O_RDWR), -EACCES);
	call(open("/sys/module/kvm/parameters/no_such_parameter", O_RDONLY), -ENOENT);
	call(openat(-1, "/sys/module/kvm_intel/parameters/ept", O_RDONLY | O_CLOEXEC) >= 0, 1);
	call(access("/sys/module/kvm/parameters/ignore_msrs", R_OK), 0);
	call(access("/sys/module/kvm/parameters/no_such_parameter", R_OK), -ENOENT);
	call(stat("/sys/module/kvm/parameters/no_such_parameter", &status), -ENOENT);
	/* And what is not ours is as ever. */
	call(open("/dev/kvm-not", O_RDONLY), -ENOENT);
	const char *volatile nowhere = NULL;
	call(open(nowhere, O_RDONLY), -EFAULT);
	call(stat("/dev/null", &status), 0);
	value(minor(status.st_rdev), 3);
	call(access("/", R_OK), 0);
}

static const struct {
	const char *name;
	void (*run)(void);
} chapters[] = {
	{ "system", system_chapter },	{ "vm", vm_chapter },
	{ "vcpu", vcpu_chapter },	{ "msr", msr_chapter },
	{ "descriptors", descriptors_chapter }, { "fork", fork_chapter },
	{ "events", events_chapter },
	{ "threads", threads_chapter }, { "close", close_chapter },
	{ "signal", signal_chapter },	{ "hostile", hostile_chapter },	{ "files", files_chapter },
};

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	alarm(60);
	for (size_t i = 0; i < sizeof(chapters) / sizeof(*chapters); i++) {
		if (argc == 2 && !strcmp(argv[1], chapters[i].name)) {
			chapters[i].run();
			printf("1..%d\n", count);
			return failures != 0;
		}
	}
	fprintf(stderr, "which chapter?\n");
	return 2;
}
