//! The ioctl door: memory slots, signals, and a client that passes nonsense.

#![expect(
    clippy::unwrap_used,
    reason = "a test says what went wrong by panicking"
)]

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_HLT, KVM_EXIT_INTR, KVM_EXIT_MMIO, KVM_EXIT_X86_RDMSR,
    KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_MP_STATE_HALTED, kvm_regs, kvm_sregs,
    kvm_userspace_memory_region,
};
use msrgate_core::Errno;
use msrgate_soft::{Handle, Outcome, SystemConfig};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

const CREATE_VM: u32 = 0xae01;
const CREATE_VCPU: u32 = 0xae41;
const CREATE_IRQCHIP: u32 = 0xae60;
const IRQ_LINE: u32 = 0x4008_ae61;
const GET_IRQCHIP: u32 = 0xc208_ae62;
const SET_GSI_ROUTING: u32 = 0x4008_ae6a;
const CREATE_PIT2: u32 = 0x4040_ae77;
const GET_PIT2: u32 = 0x8070_ae9f;
const SIGNAL_MSI: u32 = 0x4020_aea5;
const INTERRUPT: u32 = 0x4004_ae86;
const GET_LAPIC: u32 = 0x8400_ae8e;
const SET_LAPIC: u32 = 0x4400_ae8f;
const GET_MP_STATE: u32 = 0x8004_ae98;
const SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
const GET_DIRTY_LOG: u32 = 0x4010_ae42;
const ENABLE_CAP: u32 = 0x4068_aea3;
const RUN: u32 = 0xae80;
const GET_REGS: u32 = 0x8090_ae81;
const SET_REGS: u32 = 0x4090_ae82;
const GET_SREGS: u32 = 0x8138_ae83;
const SET_SREGS: u32 = 0x4138_ae84;
const GET_MSRS: u32 = 0xc008_ae88;

const IMMEDIATE_EXIT: usize = 1;
const EXIT_REASON: usize = 8;
const CODE: u64 = 0x1000;

/// A client with one VM of one page at [`CODE`], and one vCPU in real mode.
struct Client {
    vm: Handle,
    vcpu: Handle,
    run: MmapRegion,
    ram: MmapRegion,
}

impl Client {
    fn new(code: &[u8]) -> Self {
        let (vm, _) = open(&Handle::open(SystemConfig::default()), CREATE_VM);
        Self::on(vm, code)
    }

    fn on(vm: Handle, code: &[u8]) -> Self {
        let ram = MmapRegion::new(0x3000).unwrap();
        ram.get_slice(0, code.len()).unwrap().copy_from(code);
        let (vcpu, fd) = open(&vm, CREATE_VCPU);
        let run = MmapRegion::from_file(FileOffset::new(File::from(fd), 0), 0x3000).unwrap();
        let client = Self { vm, vcpu, run, ram };
        client.set_slot(0, 0, CODE, 0x1000).unwrap();
        let mut sregs = kvm_sregs::default();
        client.ask(GET_SREGS, &mut sregs).unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        client.ask(SET_SREGS, &mut sregs).unwrap();
        let mut regs = kvm_regs {
            rip: CODE,
            rflags: 2,
            rcx: 0x474f_4f00,
            rbx: 0x5000,
            ..kvm_regs::default()
        };
        client.ask(SET_REGS, &mut regs).unwrap();
        client
    }

    /// An ioctl on the vCPU with a structure.
    fn ask<T>(&self, request: u32, argument: &mut T) -> Result<i32, Errno> {
        value(self.vcpu.ioctl(request, address(argument)))
    }

    fn run(&self) -> Result<i32, Errno> {
        value(self.vcpu.ioctl(RUN, 0))
    }

    fn exit_reason(&self) -> u32 {
        self.run.get_ref(EXIT_REASON).unwrap().load()
    }

    fn set_slot(&self, slot: u32, flags: u32, gpa: u64, size: u64) -> Result<i32, Errno> {
        let start = self.ram.as_ptr().expose_provenance() as u64;
        self.set_slot_at(slot, flags, gpa, size, start)
    }

    fn set_slot_at(
        &self,
        slot: u32,
        flags: u32,
        guest_phys_addr: u64,
        memory_size: u64,
        userspace_addr: u64,
    ) -> Result<i32, Errno> {
        let mut region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr,
            memory_size,
            userspace_addr,
        };
        value(self.vm.ioctl(SET_USER_MEMORY_REGION, address(&mut region)))
    }
}

fn address<T>(value: &mut T) -> u64 {
    (&raw mut *value).expose_provenance() as u64
}

fn value(answer: Result<Outcome, Errno>) -> Result<i32, Errno> {
    match answer? {
        Outcome::Value(value) => Ok(value),
        Outcome::Descriptor { .. } => panic!("a descriptor"),
    }
}

fn open(on: &Handle, request: u32) -> (Handle, std::os::fd::OwnedFd) {
    match on.ioctl(request, 0).unwrap() {
        Outcome::Descriptor { handle, fd } => (handle, fd),
        Outcome::Value(value) => panic!("{value}"),
    }
}

#[test]
fn slot_rules_are_those_of_the_kernel() {
    let client = Client::new(&[0xf4]);
    let set = |slot, flags, gpa, size| client.set_slot(slot, flags, gpa, size);
    // Alignment, size, number, flags.
    assert_eq!(set(1, 0, 0x10_0800, 0x1000), Err(Errno::EINVAL));
    assert_eq!(set(1, 0, 0x10_0000, 0x1800), Err(Errno::EINVAL));
    assert_eq!(set(32_764, 0, 0x10_0000, 0x1000), Err(Errno::EINVAL));
    assert_eq!(set(1 << 16, 0, 0x10_0000, 0x1000), Err(Errno::EINVAL));
    assert_eq!(set(1, 4, 0x10_0000, 0x1000), Err(Errno::EINVAL));
    assert_eq!(set(1, 0, u64::MAX - 0xfff, 0x1000), Err(Errno::EINVAL));
    assert_eq!(set(1, 0, 1 << 52, 0x1000), Err(Errno::EINVAL));
    let unaligned = client.ram.as_ptr().expose_provenance() as u64 + 8;
    assert_eq!(
        client.set_slot_at(1, 0, 0x10_0000, 0x1000, unaligned),
        Err(Errno::EINVAL)
    );
    let kernel = 0xffff_8000_0000_0000;
    assert_eq!(
        client.set_slot_at(1, 0, 0x10_0000, 0x1000, kernel),
        Err(Errno::EINVAL)
    );
    // Overlap; making; the same again; moving; no change of size or of being read-only; deleting.
    assert_eq!(set(1, 0, CODE, 0x1000), Err(Errno::EEXIST));
    assert_eq!(set(1, 0, 0x10_0000, 0x2000), Ok(0));
    assert_eq!(set(1, 0, 0x10_0000, 0x2000), Ok(0));
    assert_eq!(set(1, 0, 0x20_0000, 0x2000), Ok(0));
    assert_eq!(set(2, 0, 0x10_0000, 0x1000), Ok(0), "moved away");
    assert_eq!(set(1, 0, 0x10_0000, 0x2000), Err(Errno::EEXIST));
    assert_eq!(set(1, 0, 0x20_0000, 0x1000), Err(Errno::EINVAL));
    assert_eq!(
        set(1, KVM_MEM_READONLY, 0x20_0000, 0x2000),
        Err(Errno::EINVAL)
    );
    assert_eq!(set(1, 0, 0, 0), Ok(0));
    assert_eq!(set(1, 0, 0, 0), Err(Errno::EINVAL), "nothing to delete");
}

#[test]
fn slot_without_memory_behind_it_fails_the_run_with_efault() {
    let client = Client::new(&[0x8b, 0x07, 0xf4]); // mov ax, [bx]; hlt
    client.set_slot_at(1, 0, 0x5000, 0x1000, 0x1000).unwrap();
    assert_eq!(client.run(), Err(Errno::EFAULT));
    // With memory there, the same instruction goes through.
    client.set_slot(1, 0, 0, 0).unwrap();
    client.set_slot(1, 0, 0x5000, 0x1000).unwrap();
    assert_eq!(client.run(), Ok(0));
    assert_eq!(client.exit_reason(), KVM_EXIT_HLT);
}

#[test]
fn deleted_slot_is_mmio_at_the_next_run() {
    // again: mov ax, [bx]; rdmsr; jmp again
    let client = Client::new(&[0x8b, 0x07, 0x0f, 0x32, 0xeb, 0xfa]);
    let mut cap = [0_u64; 13];
    (cap[0], cap[1]) = (188, 7);
    value(client.vm.ioctl(ENABLE_CAP, address(&mut cap))).unwrap();
    client.set_slot(1, 0, 0x5000, 0x1000).unwrap();
    assert_eq!(client.run(), Ok(0));
    assert_eq!(client.exit_reason(), KVM_EXIT_X86_RDMSR);
    client.set_slot(1, 0, 0, 0).unwrap();
    assert_eq!(client.run(), Ok(0));
    assert_eq!(client.exit_reason(), KVM_EXIT_MMIO);
}

#[test]
fn read_only_slot_is_mmio_for_writes() {
    let client = Client::new(&[0x8b, 0x07, 0x89, 0x07, 0xf4]); // mov ax, [bx]; mov [bx], ax; hlt
    client
        .set_slot(1, KVM_MEM_READONLY, 0x5000, 0x1000)
        .unwrap();
    assert_eq!(client.run(), Ok(0));
    assert_eq!(client.exit_reason(), KVM_EXIT_MMIO);
    let is_write: u8 = client.run.get_ref(32 + 20).unwrap().load();
    assert_eq!(is_write, 1);
    assert_eq!(client.run(), Ok(0));
    assert_eq!(client.exit_reason(), KVM_EXIT_HLT);
}

#[test]
fn dirty_log_has_the_pages_written_since_the_last_one() {
    let client = Client::new(&[0x89, 0x07, 0xf4, 0xeb, 0xfb]); // mov [bx], ax; hlt; jmp to the start
    client
        .set_slot(1, KVM_MEM_LOG_DIRTY_PAGES, 0x4000, 0x3000)
        .unwrap();
    let mut bitmap = 0_u64;
    let mut log = [1, address(&mut bitmap)];
    for _ in 0..2 {
        client.run().unwrap();
        assert_eq!(client.exit_reason(), KVM_EXIT_HLT);
        value(client.vm.ioctl(GET_DIRTY_LOG, address(&mut log))).unwrap();
        assert_eq!(bitmap, 0b10);
        value(client.vm.ioctl(GET_DIRTY_LOG, address(&mut log))).unwrap();
        assert_eq!(bitmap, 0, "taken");
    }
    log[0] = 0;
    let answer = value(client.vm.ioctl(GET_DIRTY_LOG, address(&mut log)));
    assert_eq!(answer, Err(Errno::ENOENT), "not logged");
}

#[test]
fn immediate_exit_completes_and_keeps_the_stale_reason() {
    let client = Client::new(&[0x0f, 0x32, 0xf4]); // rdmsr; hlt
    let mut cap = [0_u64; 13];
    (cap[0], cap[1]) = (188, 7);
    value(client.vm.ioctl(ENABLE_CAP, address(&mut cap))).unwrap();
    client.run().unwrap();
    client.run.get_ref(IMMEDIATE_EXIT).unwrap().store(1_u8);
    let mut regs = kvm_regs::default();
    for _ in 0..2 {
        assert_eq!(client.run(), Err(Errno::EINTR));
        assert_eq!(client.exit_reason(), KVM_EXIT_X86_RDMSR);
        client.ask(GET_REGS, &mut regs).unwrap();
        assert_eq!(regs.rip, CODE + 2);
    }
    client.run.get_ref(IMMEDIATE_EXIT).unwrap().store(0_u8);
    client.run().unwrap();
    assert_eq!(client.exit_reason(), KVM_EXIT_HLT);
}

#[test]
fn single_step_ends_with_the_completion() {
    const SET_GUEST_DEBUG: u32 = 0x4048_ae9b;
    let client = Client::new(&[0x0f, 0x32, 0xf4]); // rdmsr; hlt
    let mut cap = [0_u64; 13];
    (cap[0], cap[1]) = (188, 7);
    value(client.vm.ioctl(ENABLE_CAP, address(&mut cap))).unwrap();
    let mut debug = [0_u64; 9];
    debug[0] = 3; // enable, single step
    client.ask(SET_GUEST_DEBUG, &mut debug).unwrap();
    client.run().unwrap();
    assert_eq!(client.exit_reason(), KVM_EXIT_X86_RDMSR);
    client.run().unwrap();
    assert_eq!(client.exit_reason(), KVM_EXIT_DEBUG);
    let [exception, _]: [u32; 2] = client.run.get_ref(32).unwrap().load();
    let [pc, dr6]: [u64; 2] = client.run.get_ref(40).unwrap().load();
    assert_eq!((exception, pc, dr6), (1, CODE + 2, 0xffff_4ff0));
}

/// A signal is not needed: the client says so in the run page.
#[test]
fn halted_vcpu_with_controllers_waits_until_its_client_wants_it() {
    let (vm, _) = open(&Handle::open(SystemConfig::default()), CREATE_VM);
    assert_eq!(value(vm.ioctl(CREATE_IRQCHIP, 0)), Ok(0));
    let client = Client::on(vm, &[0xf4]);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(20));
            client.run.get_ref(IMMEDIATE_EXIT).unwrap().store(1_u8);
        });
        assert_eq!(client.run(), Err(Errno::EINTR));
    });
    assert_eq!(client.exit_reason(), KVM_EXIT_INTR);
    let mut mp_state = 0_u32;
    client.ask(GET_MP_STATE, &mut mp_state).unwrap();
    assert_eq!(mp_state, KVM_MP_STATE_HALTED);
}

#[test]
fn controllers_are_made_once_and_before_the_first_vcpu() {
    let mut words = [0_u64; 128];
    let client = Client::new(&[0xf4]);
    let on_vm = |client: &Client, request, words: &mut [u64; 128]| {
        value(client.vm.ioctl(request, address(words)))
    };
    let mut refused = |request| on_vm(&client, request, &mut words);
    assert_eq!(refused(CREATE_IRQCHIP), Err(Errno::EINVAL), "too late");
    assert_eq!(refused(CREATE_PIT2), Err(Errno::ENOENT));
    assert_eq!(refused(IRQ_LINE), Err(Errno::ENXIO));
    assert_eq!(refused(GET_IRQCHIP), Err(Errno::ENXIO));
    assert_eq!(refused(GET_PIT2), Err(Errno::ENXIO));
    assert_eq!(refused(SET_GSI_ROUTING), Err(Errno::EINVAL));
    assert_eq!(refused(SIGNAL_MSI), Err(Errno::EINVAL));
    assert_eq!(client.ask(GET_LAPIC, &mut words), Err(Errno::EINVAL));

    let (vm, _) = open(&Handle::open(SystemConfig::default()), CREATE_VM);
    assert_eq!(value(vm.ioctl(CREATE_IRQCHIP, 0)), Ok(0));
    assert_eq!(value(vm.ioctl(CREATE_IRQCHIP, 0)), Err(Errno::EEXIST));
    let client = Client::on(vm, &[0xf4]);
    let accepted = |request| on_vm(&client, request, &mut [0; 128]);
    assert_eq!(accepted(GET_PIT2), Err(Errno::ENXIO), "none yet");
    assert_eq!(accepted(CREATE_PIT2), Ok(0));
    assert_eq!(accepted(CREATE_PIT2), Err(Errno::EEXIST));
    for request in [IRQ_LINE, GET_IRQCHIP, GET_PIT2, SET_GSI_ROUTING] {
        assert_eq!(accepted(request), Ok(0), "{request:#x}");
    }
    assert_eq!(client.ask(GET_LAPIC, &mut words), Ok(0));
    assert_eq!(client.ask(SET_LAPIC, &mut words), Ok(0));
    words[0] = 3; // no such chip
    let refused = value(client.vm.ioctl(GET_IRQCHIP, address(&mut words)));
    assert_eq!(refused, Err(Errno::EINVAL));
    let mut vector = 0x30_u32;
    assert_eq!(client.ask(INTERRUPT, &mut vector), Err(Errno::ENXIO));
}

#[test]
fn unknown_requests_are_refused_by_kind() {
    let system = Handle::open(SystemConfig::default());
    let client = Client::new(&[0xf4]);
    for request in [0, 0x5401, 0xae7f, 0x4188_aec7] {
        assert_eq!(value(system.ioctl(request, 0)), Err(Errno::EINVAL));
        assert_eq!(value(client.vm.ioctl(request, 0)), Err(Errno::ENOTTY));
        assert_eq!(value(client.vcpu.ioctl(request, 0)), Err(Errno::EINVAL));
    }
    // The filter belongs to the VM; the 32-bit caller's number is nobody's.
    for request in [0x4188_aec6, 0x4104_aec6] {
        assert_eq!(value(system.ioctl(request, 0)), Err(Errno::EINVAL));
        assert_eq!(value(client.vcpu.ioctl(request, 0)), Err(Errno::EINVAL));
    }
    assert_eq!(value(client.vm.ioctl(0x4104_aec6, 0)), Err(Errno::ENOTTY));
    assert_eq!(value(client.vm.ioctl(0x4188_aec6, 0)), Err(Errno::EFAULT));
}

/// A generator of 64-bit numbers (xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Numbers of all ioctls of a kind of argument: the ordinals, with their directions and sizes.
fn requests() -> Vec<u32> {
    let sizes = [
        0, 4, 8, 16, 24, 32, 40, 48, 64, 72, 104, 128, 144, 160, 312, 320, 392, 416,
    ];
    let mut requests = Vec::new();
    for number in 0..=0xff {
        for direction in 0..4 {
            for size in sizes.iter().chain(&[520, 1024, 4096]) {
                requests.push(direction << 30 | size << 16 | 0xae00 | number);
            }
        }
    }
    requests
}

#[test]
fn nonsense_is_survived() {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let client = Client::new(&[0x0f, 0x32, 0x0f, 0x30, 0xe4, 0x60, 0xeb, 0xf8]);
    let system = Handle::open(SystemConfig::default());
    let mut blob = [0_u64; 1024];
    let requests: Vec<u32> = requests()
        .into_iter()
        // Slots would make the test's own memory the guest's.
        .filter(|request| !matches!(request & 0xff, 0x46 | 0x49))
        .collect();
    let end = Instant::now() + Duration::from_secs(5);
    let mut answered = 0;
    for request in requests.iter().cycle() {
        if Instant::now() > end {
            break;
        }
        for word in &mut blob {
            *word = match numbers.next() % 4 {
                0 => 0,
                1 => 1,
                2 => numbers.next() % 300,
                _ => numbers.next(),
            };
        }
        // The page of the run is junk as well, but for what would end the test's patience.
        for offset in (16..0x3000).step_by(8) {
            if numbers.next().is_multiple_of(8) {
                client.run.get_ref(offset).unwrap().store(numbers.next());
            }
        }
        let argument = match numbers.next() % 8 {
            0 => 0,
            1 => numbers.next(),
            _ => address(&mut blob),
        };
        for handle in [&system, &client.vm, &client.vcpu] {
            client.run.get_ref(IMMEDIATE_EXIT).unwrap().store(1_u8);
            answered += u64::from(handle.ioctl(*request, argument).is_ok());
        }
    }
    assert!(answered > 0);
}

#[test]
fn get_msrs_stops_at_the_first_refused() {
    let client = Client::new(&[0xf4]);
    // Header, then: IA32_PAT, an unknown one, IA32_PAT.
    let mut list = [3_u64, 0x277, 0, 0x474f_4f00, 0, 0x277, 0];
    assert_eq!(client.ask(GET_MSRS, &mut list), Ok(1));
    assert_eq!(list[2], 0x0007_0406_0007_0406);
    assert_eq!(list[6], 0);
    list[0] = 256;
    assert_eq!(client.ask(GET_MSRS, &mut list), Err(Errno::E2BIG));
}
