//! Linux kernels as guests, made here: what they find where they start, and files that are no kernels or do not fit.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use msrgate_machine::{Boot, End, Guest, LinuxError, LoadError, Machine, guest_memory};
use msrgate_soft::{SoftVm, SystemConfig};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

const MIB: u64 = 1 << 20;
/// Where the kernels of this file belong, and how much room they ask for.
const KERNEL: u64 = 4 * MIB;
const INIT_SIZE: u32 = 2 << 20;

/// An ELF64 with one segment at [`KERNEL`], entered there, and a note if there is one.
fn elf(code: &[u8], note: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend([2, 0, 0x3e, 0, 1, 0, 0, 0]);
    for word in [KERNEL, 64, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let code_at = 64 + 2 * 56;
    let note_at = code_at + code.len() as u64;
    for (kind, offset, address, length) in [
        (1, code_at, KERNEL, code.len() as u64),
        (4, note_at, 0, note.len() as u64),
    ] {
        bytes.extend([kind, 0, 0, 0, 7, 0, 0, 0]);
        // Linked high, as Linux is; its entry point is a physical address all the same.
        let linked = address.wrapping_sub(0x8000_0000);
        for word in [offset, linked, address, length, length, 4] {
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes.extend(code);
    bytes.extend(note);
    bytes
}

/// XEN_ELFNOTE_PHYS32_ENTRY.
fn pvh_note() -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4u32, 4, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(u32::try_from(KERNEL).unwrap().to_le_bytes());
    note
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A bzImage with this payload; Documentation/arch/x86/boot.rst has the offsets.
fn bz_image(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    let mut put =
        |offset: usize, field: &[u8]| bytes[offset..][..field.len()].copy_from_slice(field);
    put(0x1f1, &[1]);
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes());
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x236, &1_u16.to_le_bytes());
    put(0x238, &64_u32.to_le_bytes());
    let length = u32::try_from(payload.len()).unwrap();
    put(0x248, &0x40_u32.to_le_bytes());
    put(0x24c, &length.to_le_bytes());
    put(0x258, &KERNEL.to_le_bytes());
    put(0x260, &INIT_SIZE.to_le_bytes());
    bytes.extend([0; 0x40]);
    bytes.extend(payload);
    bytes
}

/// A bzImage of a kernel that does this.
fn kernel(code: &[u8]) -> Vec<u8> {
    bz_image(&gzip(&elf(code, &[])))
}

fn load(file: &[u8], memory_bytes: u64, boot: Boot) -> Result<(), LoadError> {
    let memory = guest_memory(memory_bytes).unwrap();
    Guest::parse(file)?.with_boot(boot).load(&memory).map(drop)
}

/// The Linux-specific reason why it is refused.
fn refusal(file: &[u8], memory_bytes: u64, boot: Boot) -> LinuxError {
    match load(file, memory_bytes, boot) {
        Err(LoadError::Linux(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// Runs a guest with an irqchip, with 16 MiB.
fn run(file: &[u8], boot: Boot) -> (End, Vec<u8>) {
    let memory = guest_memory(16 * MIB).unwrap();
    let guest = Guest::parse(file).unwrap().with_boot(boot);
    assert!(guest.is_linux());
    let guest = guest.load(&memory).unwrap();
    let vm = SoftVm::new(&memory, SystemConfig::default()).unwrap();
    vm.create_irqchip().unwrap();
    let mut console = Vec::new();
    let end = Machine::new(vm, &guest, Vec::new(), vec![()], &mut console)
        .unwrap()
        .run()
        .unwrap();
    (end, console)
}

#[test]
fn kernel_starts_in_64_bit_mode_with_its_zero_page() {
    // mov al, [rsi + 0x210]; out 0xf4, al: type_of_loader, "other"
    let (end, _) = run(&kernel(b"\x8a\x86\x10\x02\0\0\xe6\xf4"), Boot::default());
    assert_eq!(end, End::Exit { code: 0xff });
    // mov al, [rsi + 0x1e8]; out 0xf4, al: entries of the memory map
    let (end, _) = run(&kernel(b"\x8a\x86\xe8\x01\0\0\xe6\xf4"), Boot::default());
    assert_eq!(end, End::Exit { code: 3 });
    // mov eax, cs; out 0xf4, al: __BOOT_CS
    let (end, _) = run(&kernel(b"\x8c\xc8\xe6\xf4"), Boot::default());
    assert_eq!(end, End::Exit { code: 0x10 });
}

#[test]
fn kernel_finds_command_line_initrd_and_acpi() {
    let boot = Boot {
        command_line: "Qx".to_owned(),
        initrd: Some(b"Zinitrd".to_vec()),
        cpus: 1,
    };
    // mov ebx, [rsi + 0x228]; mov al, [rbx]; out 0xf4, al: cmd_line_ptr
    let (end, _) = run(
        &kernel(b"\x8b\x9e\x28\x02\0\0\x8a\x03\xe6\xf4"),
        boot.clone(),
    );
    assert_eq!(end, End::Exit { code: b'Q' });
    // ramdisk_image
    let (end, _) = run(
        &kernel(b"\x8b\x9e\x18\x02\0\0\x8a\x03\xe6\xf4"),
        boot.clone(),
    );
    assert_eq!(end, End::Exit { code: b'Z' });
    // ramdisk_size
    let (end, _) = run(&kernel(b"\x8a\x86\x1c\x02\0\0\xe6\xf4"), boot.clone());
    assert_eq!(end, End::Exit { code: 7 });
    // acpi_rsdp_addr: "RSD PTR "
    let (end, _) = run(&kernel(b"\x8b\x5e\x70\x8a\x03\xe6\xf4"), boot);
    assert_eq!(end, End::Exit { code: b'R' });
}

#[test]
fn kernel_that_is_packed_in_an_unknown_way_unpacks_itself() {
    // The 64-bit entry point is 0x200 behind the start of the protected-mode kernel.
    let mut payload = vec![0; 0x200 - 0x40];
    payload.extend(b"\xb0\x2a\xe6\xf4");
    let (end, _) = run(&bz_image(&payload), Boot::default());
    assert_eq!(end, End::Exit { code: 0x2a });
}

#[test]
fn elf_with_a_pvh_note_starts_in_protected_mode_with_its_start_info() {
    // mov al, [ebx]; out 0xf4, al: the magic number's first byte
    let (end, _) = run(&elf(b"\x8a\x03\xe6\xf4", &pvh_note()), Boot::default());
    assert_eq!(end, End::Exit { code: 0x78 });
    // mov ebx, [ebx + 24]; mov al, [ebx]; out 0xf4, al: cmdline_paddr. In 64-bit mode it would be the same.
    let (end, _) = run(
        &elf(b"\x8b\x5b\x18\x8a\x03\xe6\xf4", &pvh_note()),
        Boot::default(),
    );
    assert_eq!(end, End::Exit { code: b'c' });
    // inc eax, which is a prefix in 64-bit mode: xor eax, eax; inc eax; out 0xf4, al
    let (end, _) = run(&elf(b"\x31\xc0\x40\xe6\xf4", &pvh_note()), Boot::default());
    assert_eq!(end, End::Exit { code: 1 });
}

#[test]
fn fast_strings_are_on_as_firmware_leaves_them() {
    // mov ecx, 0x1a0; rdmsr; and al, 1; out 0xf4, al: IA32_MISC_ENABLE
    let code = b"\xb9\xa0\x01\0\0\x0f\x32\x24\x01\xe6\xf4";
    assert_eq!(run(&kernel(code), Boot::default()).0, End::Exit { code: 1 });
}

#[test]
fn power_off_reset_and_panic_are_told_apart() {
    // mov dx, 0x604; mov al, 0x34; out dx, al: SLP_EN with the DSDT's type
    let (end, _) = run(&kernel(b"\x66\xba\x04\x06\xb0\x34\xee"), Boot::default());
    assert_eq!(end, End::PowerOff);
    // mov dx, 0x605; mov al, 1; out dx, al
    let reset = b"\x66\xba\x05\x06\xb0\x01\xee";
    assert_eq!(run(&kernel(reset), Boot::default()).0, End::Reset);
    // mov al, 0xfe; out 0x64, al
    let (end, _) = run(&kernel(b"\xb0\xfe\xe6\x64"), Boot::default());
    assert_eq!(end, End::Reset);
    // Writes its command line to COM1 up to the zero, then resets: mov ebx, [rsi + 0x228]; mov dx, 0x3f8;
    // next: mov al, [rbx]; inc rbx; test al, al; jz done; out dx, al; jmp next; done:
    let mut says =
        b"\x8b\x9e\x28\x02\0\0\x66\xba\xf8\x03\x8a\x03\x48\xff\xc3\x84\xc0\x74\x03\xee\xeb\xf4"
            .to_vec();
    says.extend(reset);
    let boot = Boot {
        command_line: "\nKernel panic - not syncing: x\n".to_owned(),
        ..Boot::default()
    };
    let (end, console) = run(&kernel(&says), boot.clone());
    assert_eq!(end, End::Panic);
    assert_eq!(console, boot.command_line.as_bytes());
}

#[test]
fn kernel_that_does_not_fit_is_refused_with_both_sizes() {
    let error = refusal(&kernel(b"\xf4"), 4 * MIB, Boot::default());
    assert!(
        matches!(error, LinuxError::NoRoom { needed_bytes, memory_bytes }
            if needed_bytes == 6 * MIB && memory_bytes == 4 * MIB),
        "{error}"
    );
}

#[test]
fn initrd_that_does_not_fit_is_refused() {
    let boot = |size_bytes| Boot {
        initrd: Some(vec![0; size_bytes]),
        ..Boot::default()
    };
    assert!(load(&kernel(b"\xf4"), 8 * MIB, boot(2 << 20)).is_ok());
    for size_bytes in [(2 << 20) + 1, 9 << 20] {
        let error = refusal(&kernel(b"\xf4"), 8 * MIB, boot(size_bytes));
        assert!(
            matches!(error, LinuxError::InitrdNoRoom { room_bytes, .. } if room_bytes == 2 * MIB),
            "{error}"
        );
    }
}

#[test]
fn command_line_that_is_too_long_is_refused() {
    let boot = |command_line| Boot {
        command_line,
        ..Boot::default()
    };
    assert!(load(&kernel(b"\xf4"), 8 * MIB, boot("x".repeat(64))).is_ok());
    for line in ["x".repeat(65), "a\0b".to_owned()] {
        let error = refusal(&kernel(b"\xf4"), 8 * MIB, boot(line));
        assert!(
            matches!(
                error,
                LinuxError::CommandLine {
                    limit_bytes: 64,
                    ..
                }
            ),
            "{error}"
        );
    }
}

#[test]
fn damaged_payload_is_refused() {
    let elf = elf(b"\xf4", &[]);
    let mut damaged = gzip(&elf);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    let no_elf = gzip(b"not an ELF");
    let too_long = gzip(&vec![0; 3 << 20]);
    let outside = gzip(&{
        let mut elf = elf;
        elf[24..32].copy_from_slice(&(64 * MIB).to_le_bytes());
        elf
    });
    for payload in [damaged, no_elf, too_long, outside] {
        let error = refusal(&bz_image(&payload), 16 * MIB, Boot::default());
        assert!(matches!(error, LinuxError::Payload), "{error}");
    }
    for magic in [
        &b"\x02\x21\x4c\x18"[..],
        b"\x28\xb5\x2f\xfd",
        b"\xfd7zXZ\0",
        b"\x1f\x8b",
    ] {
        let payload = [magic, &[0x5a; 100]].concat();
        let error = refusal(&bz_image(&payload), 16 * MIB, Boot::default());
        assert!(matches!(error, LinuxError::Payload), "{error}");
    }
}

#[test]
fn kernel_without_a_64_bit_entry_point_is_refused() {
    for (offset, value) in [(0x206, 0x0b), (0x236, 0)] {
        let mut file = kernel(b"\xf4");
        file[offset] = value;
        let error = refusal(&file, 16 * MIB, Boot::default());
        assert!(matches!(error, LinuxError::Protocol { .. }), "{error}");
    }
}

#[test]
fn every_prefix_of_a_kernel_is_refused() {
    let file = kernel(b"\xf4");
    for end in 0x206..file.len() {
        let error = refusal(&file[..end], 16 * MIB, Boot::default());
        assert!(
            matches!(error, LinuxError::Truncated { .. }),
            "{end:#x}: {error}"
        );
    }
}

proptest! {
    /// What a file says of itself may be anything.
    #[test]
    fn damaged_kernel_is_a_guest_or_an_error(
        in_elf in any::<bool>(),
        damages in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let damage = |bytes: &mut Vec<u8>, from: usize| {
            for (place, value) in &damages {
                let place = from + place.index(bytes.len() - from);
                bytes[place] = *value;
            }
        };
        let mut elf = elf(b"\xf4", &pvh_note());
        if in_elf {
            damage(&mut elf, 0);
        }
        let mut file = bz_image(&gzip(&elf));
        if !in_elf {
            damage(&mut file, 0x1f1);
        }
        let boot = Boot { initrd: Some(vec![1; 0x1234]), ..Boot::default() };
        let _ = load(&file, 8 * MIB, boot.clone());
        let _ = load(&elf, 8 * MIB, boot);
    }
}

#[test]
fn nothing_but_what_was_asked_for_is_written_over_the_kernel() {
    let memory = guest_memory(8 * MIB).unwrap();
    let code = vec![0x5a; 0x1_0000];
    let boot = Boot {
        initrd: Some(vec![1; 0x1000]),
        cpus: msrgate_machine::MAX_CPUS,
        ..Boot::default()
    };
    let guest = Guest::parse(&kernel(&code)).unwrap().with_boot(boot);
    guest.load(&memory).unwrap();
    let mut found = vec![0; code.len()];
    memory.read_slice(&mut found, GuestAddress(KERNEL)).unwrap();
    assert_eq!(found, code);
}
