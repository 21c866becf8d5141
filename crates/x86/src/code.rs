//! Decoded code: blocks of [`Op`]s, found by where they are in memory.
//!
//! A [`Block`] is code without a jump into or (but for conditional branches that fall through) out of its
//! middle. It belongs to a guest-physical address, and to the RIP that it was decoded for, because targets
//! and RIP-relative addresses are absolute in it. [`Code::find`] goes from RIP to the block, [`Code::find_known`] through a small
//! direct-mapped table, whose entries are good for one [`Tag`]: whenever an address may mean other code, the tag is another.
//!
//! Stores into code are noticed by [`memory`](crate::memory), through [`CodeState::lines`].

use core::array;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use crate::op::{Exit, Fault, Op};
use crate::page::line_mask;
use crate::{Bus, Cpu, RamPage, decode, seg};

/// Longest block in bytes: offsets in it are 8 bits wide.
const MAX_BLOCK_BYTES: usize = 240;
/// Longest block in instructions.
const MAX_BLOCK_OPS: usize = 64;
/// Longest instruction.
const MAX_OP_BYTES: usize = 15;
/// Everything is forgotten when there are more than this many decoded instructions.
const MAX_OPS: usize = 1 << 17;

const JUMPS: usize = 1 << 12;
const BUCKETS: usize = 1 << 14;
/// "No block" where a block number is stored.
const NONE: u32 = u32::MAX;

/// What the processor knows of decoded code without knowing the bus.
#[derive(Clone, Debug, Default)]
pub(crate) struct CodeState {
    /// Frames with decoded code.
    pub(crate) lines: Frames<Lines>,
    /// Frames whose decoded code a store has made stale.
    pub(crate) stale: Vec<u64>,
    /// For code in the lower half of the address space, and in the upper.
    tags: [Tag; 2],
    /// The upper half has had code that was not on a global page.
    upper_is_local: bool,
    /// Forget everything.
    pub(crate) flush: bool,
}

/// What an entry of the table from RIP to block must agree on: the mode (width and privilege), how often
/// [`Cpu::verify_code`] was called, and how often an address may have got to mean other code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tag(u64);

impl Tag {
    const MODE: u64 = 0xff;
    const VERIFY: u64 = 0xff_ffff << 8;
    const ONE_VERIFY: u64 = 1 << 8;
    const ONE_CHANGE: u64 = 1 << 32;

    /// The number of the last call of [`Cpu::verify_code`].
    const fn round(self) -> u32 {
        ((self.0 & Self::VERIFY) >> 8) as u32
    }

    const fn differs_in_round_only(self, other: Self) -> bool {
        (self.0 ^ other.0) & !Self::VERIFY == 0
    }
}

/// Something about frames, by their number.
pub(crate) type Frames<T> = HashMap<u64, T, BuildHasherDefault<FrameHasher>>;

/// Spreads frame numbers. A guest that makes them collide slows only itself down.
#[derive(Clone, Debug, Default)]
pub(crate) struct FrameHasher(u64);

impl Hasher for FrameHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(26);
    }
}

/// The 64-byte lines of a frame that hold decoded code, one bit each.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lines {
    pub(crate) mask: u64,
    /// Stores to other lines of the frame, each of which took the slow way.
    spared: u8,
}

impl Lines {
    /// After so many stores to other lines, the code there is likely to be gone: what was code is data now.
    const PATIENCE: u8 = 64;

    /// Takes note of a store to another line; whether to forget the code.
    pub(crate) fn spare(&mut self) -> bool {
        self.spared = self.spared.saturating_add(1);
        self.spared >= Self::PATIENCE
    }
}

/// A run of instructions.
struct Block<B> {
    ops: Arc<[Op<B>]>,
    key: Key,
    /// Where its first byte is.
    page: RamPage,
    /// The frame that the last instruction reaches into, if it is not the first one's.
    second_pfn: Option<u64>,
    /// Where its bytes are in [`Code::bytes`], and how many.
    bytes: u32,
    len_bytes: u8,
    /// [`Tag::round`] when the bytes were last compared.
    round: u32,
    live: bool,
    /// The next block of the same bucket.
    next: u32,
}

/// What a block belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    gpa: u64,
    rip: u64,
    bits: u8,
}

impl Key {
    fn bucket(self) -> usize {
        (self.gpa ^ self.gpa >> 12).wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> 32
            & (BUCKETS - 1)
    }
}

/// An entry of the table from RIP to block.
pub(crate) struct Jump<B> {
    rip: u64,
    tag: Tag,
    pub(crate) ops: Arc<[Op<B>]>,
    /// How many instructions the [`Op`]s are.
    pub(crate) instructions: u8,
    /// The block's number.
    number: u32,
}

impl<B> Jump<B> {
    /// No mode has this tag.
    fn none(ops: &Arc<[Op<B>]>) -> Self {
        Self {
            rip: 0,
            tag: Tag(u64::MAX),
            ops: Arc::clone(ops),
            instructions: 0,
            number: 0,
        }
    }
}

/// All decoded code.
pub(crate) struct Code<B> {
    blocks: Vec<Block<B>>,
    /// How many [`Op`]s were decoded since everything was forgotten, those of dead blocks too.
    ops: usize,
    /// Where they are decoded.
    decoded: Vec<Op<B>>,
    bytes: Vec<u8>,
    buckets: Box<[u32]>,
    jumps: Box<[Jump<B>; JUMPS]>,
    no_ops: Arc<[Op<B>]>,
    /// Blocks by frame.
    frames: Frames<Vec<u32>>,
}

impl<B: Bus> Code<B> {
    pub(crate) fn new() -> Self {
        let no_ops: Arc<[Op<B>]> = Arc::new([]);
        Self {
            blocks: Vec::new(),
            ops: 0,
            decoded: Vec::new(),
            bytes: Vec::new(),
            buckets: vec![NONE; BUCKETS].into(),
            jumps: Box::new(array::from_fn(|_| Jump::none(&no_ops))),
            no_ops,
            frames: Frames::default(),
        }
    }

    /// The block at RIP, if it is in the table.
    #[inline(always)]
    pub(crate) fn find_known(&self, cpu: &Cpu) -> Option<&Jump<B>> {
        let jump = &self.jumps[Self::jump_slot(cpu.rip)];
        (jump.rip == cpu.rip && jump.tag == cpu.code_tag()).then_some(jump)
    }

    /// The block that [`Self::find`] has found at RIP.
    pub(crate) fn found(&self, cpu: &Cpu) -> &Jump<B> {
        &self.jumps[Self::jump_slot(cpu.rip)]
    }

    /// Its first instruction, alone.
    pub(crate) fn first(&self, cpu: &Cpu) -> Op<B> {
        let jump = self.found(cpu);
        let op = jump.ops[0];
        if op.instructions() == 1 {
            return op;
        }
        let block = &self.blocks[jump.number as usize];
        let bytes = &self.bytes[block.bytes as usize..][..usize::from(block.len_bytes)];
        let mut ops = Vec::new();
        decode::block(cpu, bytes, 1, &mut ops);
        ops.pop().unwrap_or(op)
    }

    /// Does what [`CodeState`] asks for.
    pub(crate) fn settle(&mut self, cpu: &mut Cpu) {
        if cpu.code_state.flush {
            self.clear(cpu);
        }
        while let Some(pfn) = cpu.code_state.stale.pop() {
            self.invalidate(cpu, pfn);
        }
    }

    fn jump_slot(rip: u64) -> usize {
        (rip ^ rip >> 12) as usize % JUMPS
    }

    /// The block at RIP, decoded now if need be. It is in the table then.
    pub(crate) fn find(&mut self, cpu: &mut Cpu, bus: &mut B) -> Result<(), Exit> {
        let slot = Self::jump_slot(cpu.rip);
        let jump = &self.jumps[slot];
        let tag = cpu.code_tag();
        if jump.rip == cpu.rip
            && jump.tag.differs_in_round_only(tag)
            && self.is_unchanged(bus, jump.number, tag)
        {
            self.jumps[slot].tag = tag;
            return Ok(());
        }
        if self.ops > MAX_OPS {
            self.clear(cpu);
        }
        let place = Place::of(cpu, bus)?;
        let number = match self.search(cpu, bus, &place)? {
            Some(number) => number,
            None => self.build(cpu, bus, &place)?,
        };
        let block = &self.blocks[number as usize];
        if !(place.global && block.second_pfn.is_none()) {
            cpu.code_state.upper_is_local |= Cpu::is_upper(cpu.rip);
        }
        self.jumps[slot] = Jump {
            rip: cpu.rip,
            tag: cpu.code_tag(),
            ops: Arc::clone(&block.ops),
            instructions: block.ops.last().map_or(0, |op| op.through),
            number,
        };
        Ok(())
    }

    /// Whether a block in one page still stands for its bytes.
    fn is_unchanged(&mut self, bus: &B, number: u32, tag: Tag) -> bool {
        let block = &mut self.blocks[number as usize];
        if block.second_pfn.is_some() {
            return false;
        }
        if block.round != tag.round() {
            let mut bytes = [0; MAX_BLOCK_BYTES + MAX_OP_BYTES];
            let bytes = &mut bytes[..usize::from(block.len_bytes)];
            bus.load_bytes(block.page, block.key.gpa as usize % 4096, bytes);
            if *bytes != self.bytes[block.bytes as usize..][..bytes.len()] {
                return false;
            }
            block.round = tag.round();
        }
        true
    }

    /// A block that was decoded before and still stands for its bytes. Dead blocks leave the chain on the way.
    fn search(&mut self, cpu: &mut Cpu, bus: &mut B, place: &Place) -> Result<Option<u32>, Exit> {
        let bucket = place.key.bucket();
        let mut before = None;
        let mut number = self.buckets[bucket];
        while number != NONE {
            let &Block {
                key, live, next, ..
            } = &self.blocks[number as usize];
            if !live {
                match before {
                    None => self.buckets[bucket] = next,
                    Some(before) => self.blocks[before as usize].next = next,
                }
            } else if key == place.key && self.is_current(cpu, bus, place, number)? {
                return Ok(Some(number));
            } else {
                before = Some(number);
            }
            number = next;
        }
        Ok(None)
    }

    fn is_current(
        &mut self,
        cpu: &mut Cpu,
        bus: &mut B,
        place: &Place,
        number: u32,
    ) -> Result<bool, Exit> {
        let block = &mut self.blocks[number as usize];
        if block.second_pfn.is_none() && block.round == cpu.code_tag().round() {
            return Ok(true);
        }
        let mut bytes = [0; MAX_BLOCK_BYTES + MAX_OP_BYTES];
        let len = usize::from(block.len_bytes);
        let source = place.load(cpu, bus, &mut bytes[..len])?;
        let known = &self.bytes[block.bytes as usize..][..len];
        if source == block.second_pfn && bytes[..len] == *known {
            block.round = cpu.code_tag().round();
            return Ok(true);
        }
        self.forget(number);
        Ok(false)
    }

    fn build(&mut self, cpu: &mut Cpu, bus: &mut B, place: &Place) -> Result<u32, Exit> {
        let mut bytes = [0; MAX_BLOCK_BYTES + MAX_OP_BYTES];
        let mut second_pfn = None;
        let mut room = place.room.min(bytes.len());
        place.load(cpu, bus, &mut bytes[..room])?;
        self.decoded.clear();
        let mut len = decode::block(cpu, &bytes[..room], MAX_BLOCK_OPS, &mut self.decoded);
        if len == 0 {
            // The first instruction needs the next page too.
            room = MAX_OP_BYTES;
            second_pfn = place.load(cpu, bus, &mut bytes[..room])?;
            len = decode::block(cpu, &bytes[..room], 1, &mut self.decoded);
        }
        if len == 0 {
            return Err(cpu.raise(Fault::UD));
        }
        let number = self.blocks.len() as u32;
        let bucket = &mut self.buckets[place.key.bucket()];
        self.ops += self.decoded.len();
        self.blocks.push(Block {
            ops: self.decoded.as_slice().into(),
            key: place.key,
            page: place.page,
            second_pfn,
            bytes: self.bytes.len() as u32,
            len_bytes: len as u8,
            round: cpu.code_tag().round(),
            live: true,
            next: core::mem::replace(bucket, number),
        });
        self.bytes.extend_from_slice(&bytes[..len]);
        self.note(
            cpu,
            number,
            place.pfn(),
            place.offset(),
            len.min(place.room),
        );
        if let Some(pfn) = second_pfn {
            self.note(cpu, number, pfn, 0, len.saturating_sub(place.room));
        }
        Ok(number)
    }

    /// Remembers that a block's bytes are in a frame.
    fn note(&mut self, cpu: &mut Cpu, number: u32, pfn: u64, offset: usize, len_bytes: usize) {
        self.frames.entry(pfn).or_default().push(number);
        let lines = cpu.code_state.lines.entry(pfn).or_default();
        if lines.mask == 0 {
            cpu.tlb.mark_code(pfn);
        }
        lines.mask |= line_mask(offset, len_bytes);
    }

    fn invalidate(&mut self, cpu: &mut Cpu, pfn: u64) {
        for number in self.frames.remove(&pfn).into_iter().flatten() {
            self.forget(number);
        }
        cpu.code_state.lines.remove(&pfn);
        cpu.tlb.unmark_code(pfn);
        cpu.change_code(false);
    }

    fn forget(&mut self, number: u32) {
        let block = &mut self.blocks[number as usize];
        block.live = false;
        block.ops = Arc::clone(&self.no_ops);
    }

    fn clear(&mut self, cpu: &mut Cpu) {
        self.ops = 0;
        self.blocks.clear();
        self.bytes.clear();
        self.buckets.fill(NONE);
        self.jumps.fill_with(|| Jump::none(&self.no_ops));
        self.frames.clear();
        cpu.code_state.lines.clear();
        cpu.code_state.stale.clear();
        cpu.code_state.flush = false;
        cpu.flush_tlb(false);
    }
}

impl Cpu {
    /// What an entry of the table must agree on, for the code at RIP.
    #[inline(always)]
    fn code_tag(&self) -> Tag {
        self.code_state.tags[usize::from(Self::is_upper(self.rip))]
    }

    /// Whether an address is in the half of the kernels.
    #[inline(always)]
    const fn is_upper(linear: u64) -> bool {
        (linear as i64) < 0
    }

    /// Takes note of another mode.
    pub(crate) fn tag_code(&mut self) {
        let mode = u64::from(self.code_bits) | u64::from(self.cpl == 3) << 7;
        for tag in &mut self.code_state.tags {
            tag.0 = tag.0 & !Tag::MODE | mode;
        }
    }

    /// An address may mean other code from now on; not one on a global page, if `keep_global`.
    pub(crate) fn change_code(&mut self, keep_global: bool) {
        let CodeState {
            tags: [lower, upper],
            upper_is_local,
            flush,
            ..
        } = &mut self.code_state;
        lower.0 = lower.0.wrapping_add(Tag::ONE_CHANGE);
        if !keep_global || *upper_is_local {
            upper.0 = upper.0.wrapping_add(Tag::ONE_CHANGE);
            *upper_is_local = false;
        }
        if lower.0 < Tag::ONE_CHANGE || upper.0 < Tag::ONE_CHANGE {
            *flush = true; // no old number may come again
            self.attention = true;
        }
    }

    /// Memory may have been written by somebody else: decoded code is compared with its bytes before
    /// it runs again.
    pub fn verify_code(&mut self) {
        for tag in &mut self.code_state.tags {
            let round = tag.0.wrapping_add(Tag::ONE_VERIFY) & Tag::VERIFY;
            tag.0 = tag.0 & !Tag::VERIFY | round;
            if round == 0 {
                self.code_state.flush = true; // no old number may come again
                self.attention = true;
            }
        }
    }
}

/// Where RIP is in memory.
struct Place {
    key: Key,
    linear: u64,
    page: RamPage,
    /// Survives a CR3 write.
    global: bool,
    /// Bytes to the end of the page.
    room: usize,
}

impl Place {
    fn of<B: Bus>(cpu: &mut Cpu, bus: &mut B) -> Result<Self, Exit> {
        let rip = cpu.rip;
        let mut linear = rip;
        let mut room = 4096;
        if !cpu.is_64() {
            let cs = &cpu.segs[seg::CS];
            let Some(left) = u64::from(cs.limit).checked_sub(rip) else {
                return Err(cpu.raise(Fault::GP));
            };
            room = room.min(left as usize + 1);
            linear = cs.base.wrapping_add(rip) & 0xffff_ffff;
        }
        let Some((page, pfn)) = cpu.fetch_page(bus, linear)? else {
            return Err(cpu.raise(Fault::UD));
        };
        let mapping = cpu.tlb.fetch.find_mapping(linear, cpu.context);
        let offset = linear as usize % 4096;
        Ok(Self {
            key: Key {
                gpa: pfn << 12 | offset as u64,
                rip,
                bits: cpu.code_bits,
            },
            linear,
            page,
            global: mapping.is_some_and(|mapping| mapping.global),
            room: room.min(4096 - offset),
        })
    }

    fn pfn(&self) -> u64 {
        self.key.gpa >> 12
    }

    fn offset(&self) -> usize {
        self.key.gpa as usize % 4096
    }

    /// Loads code from here on. Returns the second frame, where it reaches into one.
    fn load<B: Bus>(
        &self,
        cpu: &mut Cpu,
        bus: &mut B,
        bytes: &mut [u8],
    ) -> Result<Option<u64>, Exit> {
        let (here, there) = bytes.split_at_mut(bytes.len().min(4096 - self.offset()));
        bus.load_bytes(self.page, self.offset(), here);
        if there.is_empty() {
            return Ok(None);
        }
        let next = self.linear.wrapping_add(here.len() as u64);
        let Some((page, pfn)) = cpu.fetch_page(bus, next)? else {
            return Err(cpu.raise(Fault::UD));
        };
        bus.load_bytes(page, 0, there);
        Ok(Some(pfn))
    }
}

#[cfg(test)]
mod tests;
