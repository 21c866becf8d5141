//! Guest files that are cut off or damaged: a guest or an error, never a panic, never outside of guest memory.

use msrgate_machine::{Guest, guest_memory};

/// An ELF64 with two program headers, the second without bytes in the file.
fn elf() -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend([2, 0, 0x3e, 0, 1, 0, 0, 0]);
    for word in [0x10_0000u64, 64, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend([0; 4]);
    for half in [64u16, 56, 2, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    for (offset, address, in_file, in_memory) in [
        (176u64, 0x10_0000u64, 16u64, 16u64),
        (0, 0x11_0000, 0, 0x4000),
    ] {
        bytes.extend([1, 0, 0, 0, 7, 0, 0, 0]);
        for word in [offset, address, address, in_file, in_memory, 0x1000] {
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes.extend([0xf4; 16]);
    bytes
}

fn parse_and_load(file: &[u8]) -> bool {
    let memory = guest_memory(2 << 20).expect("2 MiB");
    Guest::parse(file).is_ok_and(|guest| guest.load(&memory).is_ok())
}

#[test]
fn whole_file_is_loaded() {
    assert!(parse_and_load(&elf()));
}

#[test]
fn every_prefix_is_refused() {
    let file = elf();
    for end in 0..file.len() {
        // Less than the magic number is a flat binary of a few bytes.
        if end >= 4 {
            assert!(!parse_and_load(&file[..end]), "{end} bytes");
        } else {
            let _ = parse_and_load(&file[..end]);
        }
    }
}

#[test]
fn every_byte_can_be_anything() {
    let file = elf();
    for position in 0..176 {
        for value in [0x00, 0x01, 0x7f, 0x80, 0xff] {
            let mut damaged = file.clone();
            damaged[position] = value;
            let _ = parse_and_load(&damaged);
        }
    }
}

#[test]
fn every_word_can_be_as_big_as_it_gets() {
    let file = elf();
    for position in 0..168 {
        let mut damaged = file.clone();
        damaged[position..position + 8].fill(0xff);
        let _ = parse_and_load(&damaged);
    }
}

#[test]
fn segment_that_ends_with_the_address_space_is_refused() {
    let mut file = elf();
    let address = 64 + 56 + 24;
    file[address..address + 8].copy_from_slice(&0xffff_ffff_ffff_c000u64.to_le_bytes());
    assert!(!parse_and_load(&file));
}
