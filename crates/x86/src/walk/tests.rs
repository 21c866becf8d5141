//! Each row builds tables for one linear address, and says what the SDM (vol. 3, 4.6 and 4.7) says.

use super::*;
use crate::RamPage;

const PAGES: usize = 16;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;
const LINEAR: u64 = 0x1234_5678_9abc;
const PHYSICAL: u64 = 0x55_5000;

/// The first 64 KiB of memory, one page of it read-only.
struct Ram {
    bytes: Vec<u8>,
    read_only_pfn: Option<u64>,
}

impl Ram {
    fn new() -> Self {
        Self {
            bytes: vec![0; PAGES * 4096],
            read_only_pfn: None,
        }
    }

    fn put(&mut self, address: u64, entry: u64) {
        let at = usize::try_from(address).unwrap();
        self.bytes[at..at + 8].copy_from_slice(&entry.to_le_bytes());
    }

    fn put_u32(&mut self, address: u64, entry: u32) {
        let at = usize::try_from(address).unwrap();
        self.bytes[at..at + 4].copy_from_slice(&entry.to_le_bytes());
    }

    fn get(&self, address: u64) -> u64 {
        let at = usize::try_from(address).unwrap();
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    /// 4-level tables for `LINEAR`, `shift` being the leaf's, each level with its own flags.
    fn with_path(shift: u32, flags: [u64; 4]) -> Self {
        let mut ram = Self::new();
        for (level, table, next) in [(39, PML4, PDPT), (30, PDPT, PD), (21, PD, PT), (12, PT, 0)] {
            let i = usize::try_from((39 - level) / 9).unwrap();
            let address = if level == shift {
                PHYSICAL & !((1 << shift) - 1)
            } else {
                next
            };
            let large = if level == shift && level != 12 {
                LARGE
            } else {
                0
            };
            ram.put(entry_address(table, level), address | large | flags[i]);
            if level == shift {
                break;
            }
        }
        ram
    }
}

fn entry_address(table: u64, shift: u32) -> u64 {
    table + (LINEAR >> shift & 0x1ff) * 8
}

impl Bus for Ram {
    fn ram_page(&mut self, pfn: u64, write: bool) -> Option<RamPage> {
        (pfn < PAGES as u64 && !(write && self.read_only_pfn == Some(pfn))).then_some(RamPage(pfn))
    }
    fn load<const N: usize>(&self, page: RamPage, offset: usize) -> [u8; N] {
        let at = usize::try_from(page.0).unwrap() * 4096 + offset;
        self.bytes[at..at + N].try_into().unwrap()
    }
    fn store<const N: usize>(&mut self, page: RamPage, offset: usize, bytes: [u8; N]) {
        let at = usize::try_from(page.0).unwrap() * 4096 + offset;
        self.bytes[at..at + N].copy_from_slice(&bytes);
    }
    fn load_bytes(&self, _: RamPage, _: usize, _: &mut [u8]) {
        unreachable!()
    }
    fn store_bytes(&mut self, _: RamPage, _: usize, _: &[u8]) {
        unreachable!()
    }
    fn tsc(&mut self) -> u64 {
        0
    }
}

const CR0: u64 = cr0::PE | cr0::PG | cr0::WP;
const CR4: u64 = cr4::PAE | cr4::PGE;
const EFER: u64 = efer::LME | efer::LMA | efer::NXE;

fn long() -> Paging {
    Paging::new(CR0, PML4, CR4, EFER, 40)
}

fn access(kind: AccessKind, user: bool) -> Access {
    Access {
        kind,
        user,
        alignment_check: false,
    }
}

const P: u64 = PRESENT;
const W: u64 = WRITABLE;
const U: u64 = USER;
const A: u64 = ACCESSED;
const D: u64 = DIRTY;
const NX: u64 = NO_EXECUTE;
const ALL: u64 = P | W | U;

#[test]
fn every_page_size_translates_to_its_frame() {
    for (shift, pfn) in [
        (12, PHYSICAL >> 12),
        (21, (0x40_0000 | LINEAR & 0x1f_ffff) >> 12),
        (30, (LINEAR & 0x3fff_ffff) >> 12),
    ] {
        let mut ram = Ram::with_path(shift, [ALL; 4]);
        let found = walk(&mut ram, &long(), LINEAR, access(AccessKind::Read, true)).unwrap();
        assert_eq!((found.pfn, found.page_shift), (pfn, shift));
        assert!(found.writable && found.user && !found.no_execute && !found.dirty);
    }
}

/// Name, state, flags of each level, access, whether it is the user's, and the error code.
type Row = (
    &'static str,
    Paging,
    [u64; 4],
    AccessKind,
    bool,
    Option<u32>,
);

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn permission_table_gives_the_manuals_error_codes() {
    use AccessKind::{Fetch, Read, Write};
    let wp = long();
    let no_wp = Paging::new(CR0 & !cr0::WP, PML4, CR4, EFER, 40);
    let smep = Paging::new(CR0, PML4, CR4 | cr4::SMEP, EFER, 40);
    let smap = Paging::new(CR0, PML4, CR4 | cr4::SMAP, EFER, 40);
    let no_nx = Paging::new(CR0, PML4, CR4, EFER & !efer::NXE, 40);
    let rows: &[Row] = &[
        ("user reads user page", wp, [ALL; 4], Read, true, None),
        ("user writes user page", wp, [ALL; 4], Write, true, None),
        ("user fetches user page", wp, [ALL; 4], Fetch, true, None),
        (
            "supervisor reads user page",
            wp,
            [ALL; 4],
            Read,
            false,
            None,
        ),
        (
            "supervisor fetches user page",
            wp,
            [ALL; 4],
            Fetch,
            false,
            None,
        ),
        (
            "leaf not present",
            wp,
            [ALL, ALL, ALL, W | U],
            Read,
            false,
            Some(0),
        ),
        (
            "leaf not present, user write",
            wp,
            [ALL, ALL, ALL, 0],
            Write,
            true,
            Some(0b110),
        ),
        (
            "root not present, user fetch",
            wp,
            [0, ALL, ALL, ALL],
            Fetch,
            true,
            Some(0b1_0100),
        ),
        (
            "fetch without NX has no I bit",
            no_nx,
            [0, ALL, ALL, ALL],
            Fetch,
            true,
            Some(0b100),
        ),
        (
            "fetch with SMEP has the I bit",
            smep,
            [0, ALL, ALL, ALL],
            Fetch,
            false,
            Some(0b1_0000),
        ),
        (
            "user reads supervisor leaf",
            wp,
            [ALL, ALL, ALL, P | W],
            Read,
            true,
            Some(0b101),
        ),
        (
            "user reads below supervisor root",
            wp,
            [P | W, ALL, ALL, ALL],
            Read,
            true,
            Some(0b101),
        ),
        (
            "user writes read-only leaf",
            wp,
            [ALL, ALL, ALL, P | U],
            Write,
            true,
            Some(0b111),
        ),
        (
            "user writes below read-only directory",
            wp,
            [ALL, ALL, P | U, ALL],
            Write,
            true,
            Some(0b111),
        ),
        (
            "supervisor writes read-only page with WP",
            wp,
            [ALL, ALL, ALL, P],
            Write,
            false,
            Some(0b011),
        ),
        (
            "supervisor writes read-only page",
            no_wp,
            [ALL, ALL, ALL, P],
            Write,
            false,
            None,
        ),
        (
            "user writes read-only page, WP or not",
            no_wp,
            [ALL, ALL, ALL, P | U],
            Write,
            true,
            Some(0b111),
        ),
        (
            "fetch from NX leaf",
            wp,
            [ALL, ALL, ALL, ALL | NX],
            Fetch,
            false,
            Some(0b1_0001),
        ),
        (
            "user fetch below NX root",
            wp,
            [ALL | NX, ALL, ALL, ALL],
            Fetch,
            true,
            Some(0b1_0101),
        ),
        (
            "read from NX leaf",
            wp,
            [ALL, ALL, ALL, ALL | NX],
            Read,
            true,
            None,
        ),
        (
            "NX is reserved without EFER.NXE",
            no_nx,
            [ALL, ALL, ALL, ALL | NX],
            Read,
            false,
            Some(0b1001),
        ),
        (
            "address above MAXPHYADDR",
            wp,
            [ALL, ALL, ALL, ALL | 1 << 40],
            Write,
            true,
            Some(0b1111),
        ),
        (
            "bits 62:52 are ignored",
            wp,
            [ALL, ALL, ALL, ALL | 0x7ff << 52],
            Read,
            true,
            None,
        ),
        (
            "PS is reserved in the root",
            wp,
            [ALL | LARGE, ALL, ALL, ALL],
            Read,
            false,
            Some(0b1001),
        ),
        (
            "not present beats reserved",
            wp,
            [ALL, ALL, ALL, 1 << 40],
            Read,
            false,
            Some(0),
        ),
        (
            "SMEP: supervisor fetches user page",
            smep,
            [ALL; 4],
            Fetch,
            false,
            Some(0b1_0001),
        ),
        (
            "SMEP: user fetches user page",
            smep,
            [ALL; 4],
            Fetch,
            true,
            None,
        ),
        (
            "SMEP: supervisor reads user page",
            smep,
            [ALL; 4],
            Read,
            false,
            None,
        ),
        (
            "SMAP: supervisor reads user page",
            smap,
            [ALL; 4],
            Read,
            false,
            Some(0b001),
        ),
        (
            "SMAP: supervisor writes user page",
            smap,
            [ALL; 4],
            Write,
            false,
            Some(0b011),
        ),
        (
            "SMAP: supervisor fetches user page",
            smap,
            [ALL; 4],
            Fetch,
            false,
            None,
        ),
        (
            "SMAP: supervisor reads its own page",
            smap,
            [ALL, ALL, ALL, P],
            Read,
            false,
            None,
        ),
    ];
    for &(what, paging, flags, kind, user, expected) in rows {
        let mut ram = Ram::with_path(12, flags);
        let before = ram.bytes.clone();
        let result = walk(&mut ram, &paging, LINEAR, access(kind, user));
        assert_eq!(
            result.err().map(|fault| fault.error_code),
            expected,
            "{what}"
        );
        if expected.is_some() {
            assert!(ram.bytes == before, "{what}: a fault leaves A and D alone");
        }
    }
}

#[test]
fn smap_is_suspended_by_ac() {
    let paging = Paging::new(CR0, PML4, CR4 | cr4::SMAP, EFER, 40);
    let with_ac = Access {
        alignment_check: true,
        ..access(AccessKind::Write, false)
    };
    walk(&mut Ram::with_path(12, [ALL; 4]), &paging, LINEAR, with_ac).unwrap();
}

#[test]
fn reserved_bits_of_large_pages_fault() {
    for (shift, bit) in [(21, 13), (21, 20), (30, 13), (30, 29)] {
        let mut flags = [ALL; 4];
        flags[if shift == 21 { 2 } else { 1 }] |= 1 << bit;
        let mut ram = Ram::with_path(shift, flags);
        let fault = walk(&mut ram, &long(), LINEAR, access(AccessKind::Read, false)).unwrap_err();
        assert_eq!(
            fault.error_code, 0b1001,
            "bit {bit} of a page of 1 << {shift}"
        );
    }
}

#[test]
fn read_sets_accessed_and_write_sets_dirty_in_the_leaf_only() {
    let mut ram = Ram::with_path(12, [ALL; 4]);
    let read = walk(&mut ram, &long(), LINEAR, access(AccessKind::Read, true)).unwrap();
    assert!(!read.dirty);
    let flags = |ram: &Ram| {
        [(PML4, 39), (PDPT, 30), (PD, 21), (PT, 12)]
            .map(|(table, shift)| ram.get(entry_address(table, shift)) & (A | D))
    };
    assert_eq!(flags(&ram), [A; 4]);
    let write = walk(&mut ram, &long(), LINEAR, access(AccessKind::Write, true)).unwrap();
    assert!(write.dirty);
    assert_eq!(flags(&ram), [A, A, A, A | D]);
}

#[test]
fn probe_leaves_the_tables_alone() {
    let mut ram = Ram::with_path(12, [ALL, ALL, ALL, P]);
    let before = ram.bytes.clone();
    assert_eq!(
        probe(&mut ram, &long(), LINEAR).unwrap().pfn,
        PHYSICAL >> 12
    );
    assert!(ram.bytes == before);
}

#[test]
fn global_needs_pge() {
    for (cr4, global) in [(CR4, true), (CR4 & !cr4::PGE, false)] {
        let mut ram = Ram::with_path(12, [ALL, ALL, ALL, ALL | GLOBAL]);
        let paging = Paging::new(CR0, PML4, cr4, EFER, 40);
        let found = walk(&mut ram, &paging, LINEAR, access(AccessKind::Read, false)).unwrap();
        assert_eq!(found.global, global);
    }
}

#[test]
fn tables_outside_ram_are_not_present() {
    let mut ram = Ram::with_path(12, [ALL; 4]);
    ram.put(entry_address(PD, 21), 0xff_ffff_f000 | ALL);
    let fault = walk(&mut ram, &long(), LINEAR, access(AccessKind::Write, false)).unwrap_err();
    assert_eq!(fault.error_code, 0b010);
    let paging = Paging::new(CR0, !0, CR4, EFER, 52);
    walk(
        &mut Ram::new(),
        &paging,
        !0,
        access(AccessKind::Fetch, true),
    )
    .unwrap_err();
}

#[test]
fn tables_in_read_only_memory_keep_their_bits() {
    let mut ram = Ram::with_path(12, [ALL; 4]);
    ram.read_only_pfn = Some(PT >> 12);
    walk(&mut ram, &long(), LINEAR, access(AccessKind::Write, true)).unwrap();
    assert_eq!(ram.get(entry_address(PT, 12)) & (A | D), 0);
    assert_eq!(ram.get(entry_address(PD, 21)) & A, A);
}

#[test]
fn no_paging_is_the_identity() {
    let paging = Paging::new(cr0::PE, 0, 0, 0, 40);
    let found = walk(
        &mut Ram::new(),
        &paging,
        0xdead_b000,
        access(AccessKind::Write, true),
    )
    .unwrap();
    assert_eq!(found.pfn, 0xd_eadb);
    assert!(found.writable && found.user && !found.no_execute && found.dirty);
}

#[test]
fn legacy_paging_has_4k_pages_and_pse36() {
    let linear = 0x0040_3123;
    let paging = Paging::new(CR0, PML4, cr4::PSE, 0, 40);
    let mut ram = Ram::new();
    ram.put_u32(PML4 + 4, 0x2000 | 7);
    ram.put_u32(PDPT + 3 * 4, 0x5000 | 5);
    let read = walk(&mut ram, &paging, linear, access(AccessKind::Read, true)).unwrap();
    assert_eq!((read.pfn, read.page_shift, read.writable), (5, 12, false));
    let write = walk(&mut ram, &paging, linear, access(AccessKind::Write, true)).unwrap_err();
    assert_eq!(write.error_code, 0b111);

    // 4 MiB at 0x7f_0080_0000: bits 39:32 go to 20:13.
    ram.put_u32(PML4 + 4, 0x0080_0000 | 0x7f << 13 | 0x87);
    let large = walk(&mut ram, &paging, linear, access(AccessKind::Write, true)).unwrap();
    assert_eq!((large.pfn, large.page_shift), (0x07f0_0803, 22));
    assert_eq!(ram.get(PML4 + 4) & (A | D), A | D);
    let without_pse = Paging::new(CR0, PML4, 0, 0, 40);
    let table = walk(
        &mut ram,
        &without_pse,
        linear,
        access(AccessKind::Read, true),
    )
    .unwrap_err();
    assert_eq!(
        table.error_code, 0b100,
        "without PSE the entry points to a table, outside RAM here"
    );
    ram.put_u32(PML4 + 4, 0x0080_0000 | 1 << 21 | 0x87);
    let reserved = walk(&mut ram, &paging, linear, access(AccessKind::Read, false)).unwrap_err();
    assert_eq!(reserved.error_code, 0b1001);
}

#[test]
fn pae_paging_starts_at_four_pointers() {
    let linear = 0xc020_1123;
    let paging = Paging::new(CR0, 0x1020, cr4::PAE, efer::NXE, 40);
    let mut ram = Ram::new();
    ram.put(0x1020 + 3 * 8, 0x2000 | P);
    ram.put(0x2000 + 8, 0x3000 | ALL);
    ram.put(0x3000 + 8, 0x5000 | ALL | NX);
    let found = walk(&mut ram, &paging, linear, access(AccessKind::Write, true)).unwrap();
    assert_eq!(
        (found.pfn, found.page_shift, found.no_execute),
        (5, 12, true)
    );
    assert_eq!(
        ram.get(0x1020 + 3 * 8),
        0x2000 | P,
        "the pointers have no accessed bit"
    );
    ram.put(0x2000 + 8, 0x0060_0000 | ALL | LARGE);
    let large = walk(&mut ram, &paging, linear, access(AccessKind::Read, true)).unwrap();
    assert_eq!((large.pfn, large.page_shift), (0x601, 21));
    ram.put(0x1020 + 3 * 8, 0x2000 | P | W);
    let reserved = walk(&mut ram, &paging, linear, access(AccessKind::Read, false)).unwrap_err();
    assert_eq!(reserved.error_code, 0b1001);
}
