//! Guest memory: the slots of `KVM_SET_USER_MEMORY_REGION`, and a processor's view of them.
//!
//! [`Memory`] checks a change as the kernel does and publishes an immutable [`Slots`]; a vCPU takes the new
//! one (and forgets every translation) when it sees that the generation has moved. There is one address
//! space, without SMM, and no `guest_memfd`.

mod host;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use msrgate_core::Errno;
use msrgate_x86::RamPage;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::shared::SharedBytes;
use host::{HostPages, PageSet, Window};

/// Bytes of a page.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Slots that a client may number (`KVM_USER_MEM_SLOTS`).
pub(crate) const MAX_SLOTS: u32 = 32_764;
/// Pages in one slot (`KVM_MEM_MAX_NR_PAGES`).
const MAX_SLOT_PAGES: u64 = (1 << 31) - 1;
/// Guest-physical addresses have at most 52 bits (`kvm_mmu_max_gfn`).
const MAX_PFN: u64 = (1 << (52 - PAGE_SHIFT)) - 1;
/// End of a client's half of the address space (`TASK_SIZE_MAX`).
const CLIENT_END: u64 = 0x7fff_ffff_f000;
const PAGE_SHIFT: u32 = PAGE_BYTES.trailing_zeros();
const PAGE_MASK: u64 = PAGE_BYTES as u64 - 1;

/// One memory slot.
#[derive(Debug)]
pub(crate) struct Slot {
    id: u32,
    first_pfn: u64,
    flags: u32,
    host: Arc<HostPages>,
    /// Pages written since the last `KVM_GET_DIRTY_LOG`, if they are logged.
    dirty: Option<Arc<PageSet>>,
}

impl Slot {
    fn end_pfn(&self) -> u64 {
        self.first_pfn + self.host.pages()
    }

    fn holds(&self, pfn: u64) -> bool {
        (self.first_pfn..self.end_pfn()).contains(&pfn)
    }
}

/// The slots at one moment.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    /// In the order of their guest addresses.
    slots: Vec<Arc<Slot>>,
    /// The bytes of the largest slot, which is where nearly all accesses go.
    main: Window,
    main_position: usize,
}

/// Bits of a [`RamPage`] that number the page in its slot. The rest number the slot: 0 is the main one, and the others are
/// their position and 1. So a page of another slot, taken for one of the main slot's, is far behind its end.
const PAGE_BITS: u32 = 32;
const _: () = assert!(MAX_SLOT_PAGES < 1 << PAGE_BITS);

impl Slots {
    fn new(mut slots: Vec<Arc<Slot>>) -> Self {
        slots.sort_by_key(|slot| slot.first_pfn);
        let largest = slots
            .iter()
            .enumerate()
            .max_by_key(|(_, slot)| slot.host.pages());
        let (main_position, main) = largest.map_or_else(Default::default, |(position, slot)| {
            (position, Window::new(&slot.host))
        });
        Self {
            slots,
            main,
            main_position,
        }
    }

    /// The page handle of `pfn`: its slot's position here, and its number in the slot. `Err` where the
    /// slot's memory is not there (KVM_RUN then fails with EFAULT).
    pub(crate) fn page(&self, pfn: u64, write: bool) -> Result<Option<RamPage>, BadMemory> {
        let position = self.slots.partition_point(|slot| slot.end_pfn() <= pfn);
        let Some(slot) = self.slots.get(position).filter(|slot| slot.holds(pfn)) else {
            return Ok(None);
        };
        if write && slot.flags & KVM_MEM_READONLY != 0 {
            return Ok(None);
        }
        let page = pfn - slot.first_pfn;
        if !slot.host.probe(page, write) {
            return Err(BadMemory {
                address: pfn << PAGE_SHIFT,
            });
        }
        if write && let Some(dirty) = &slot.dirty {
            dirty.insert(page);
        }
        let number = if position == self.main_position {
            0
        } else {
            position as u64 + 1
        };
        Ok(Some(RamPage(number << PAGE_BITS | page)))
    }

    #[inline(always)]
    pub(crate) fn load<const N: usize>(&self, page: RamPage, offset: usize) -> [u8; N] {
        match self.main.bytes().load_array(main_offset(page, offset)) {
            Some(bytes) => bytes,
            None => self.load_elsewhere(page, offset),
        }
    }

    #[inline(always)]
    pub(crate) fn store<const N: usize>(&self, page: RamPage, offset: usize, bytes: [u8; N]) {
        if !self
            .main
            .bytes()
            .store_array(main_offset(page, offset), bytes)
        {
            self.store_elsewhere(page, offset, bytes);
        }
    }

    #[cold]
    fn load_elsewhere<const N: usize>(&self, page: RamPage, offset: usize) -> [u8; N] {
        let bytes = self.resolve(page, offset);
        bytes
            .and_then(|(host, at)| host.load_array(at))
            .unwrap_or([0; N])
    }

    #[cold]
    fn store_elsewhere<const N: usize>(&self, page: RamPage, offset: usize, bytes: [u8; N]) {
        if let Some((host, at)) = self.resolve(page, offset) {
            host.store_array(at, bytes);
        }
    }

    pub(crate) fn load_bytes(&self, page: RamPage, offset: usize, bytes: &mut [u8]) {
        if let Some((host, at)) = self.resolve(page, offset) {
            host.load_bytes(at, bytes);
        }
    }

    pub(crate) fn store_bytes(&self, page: RamPage, offset: usize, bytes: &[u8]) {
        if let Some((host, at)) = self.resolve(page, offset) {
            host.store_bytes(at, bytes);
        }
    }

    /// Fills bytes of a page with one value.
    pub(crate) fn fill(&self, page: RamPage, offset: usize, len_bytes: usize, value: u8) {
        if let Some((host, at)) = self.resolve(page, offset) {
            host.fill(at, len_bytes, value);
        }
    }

    /// Copies `len_bytes` from one place to another, as if all were read first.
    pub(crate) fn copy(&self, from: (RamPage, usize), to: (RamPage, usize), len_bytes: usize) {
        let [from, to] = [from, to].map(|(page, offset)| self.resolve(page, offset));
        if let (Some((from, from_at)), Some((to, to_at))) = (from, to) {
            to.copy_from(to_at, from, from_at, len_bytes);
        }
    }

    /// Bytes of guest memory, as KVM itself reads them; `None` where there is none.
    pub(crate) fn read_guest<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let mut rest = &mut bytes[..];
        let mut at = address;
        while !rest.is_empty() {
            let (page, offset, len) = self.piece(at, rest.len(), false)?;
            let (piece, behind) = rest.split_at_mut(len);
            self.load_bytes(page, offset, piece);
            (rest, at) = (behind, at.wrapping_add(len as u64));
        }
        Some(bytes)
    }

    /// Writes guest memory, up to where there is none.
    pub(crate) fn write_guest(&self, address: u64, bytes: &[u8]) {
        let (mut rest, mut at) = (bytes, address);
        while let Some((page, offset, len)) = self.piece(at, rest.len(), true) {
            let (piece, behind) = rest.split_at(len);
            self.store_bytes(page, offset, piece);
            (rest, at) = (behind, at.wrapping_add(len as u64));
        }
    }

    /// The page of `address`, the offset in it, and how many of `len` bytes it holds; `None` if that is none.
    fn piece(&self, address: u64, len: usize, write: bool) -> Option<(RamPage, usize, usize)> {
        let offset = usize::try_from(address & PAGE_MASK).ok()?;
        let len = len.min(PAGE_BYTES - offset);
        let page = self.page(address >> PAGE_SHIFT, write).ok()??;
        (len > 0).then_some((page, offset, len))
    }

    /// The bytes of the page's slot, and where in them `offset` is.
    #[inline]
    fn resolve(&self, page: RamPage, offset: usize) -> Option<(&SharedBytes, usize)> {
        let position = match usize::try_from(page.0 >> PAGE_BITS).ok()? {
            0 => self.main_position,
            other => other - 1,
        };
        let slot = self.slots.get(position)?;
        let page = usize::try_from(page.0 & ((1 << PAGE_BITS) - 1)).ok()?;
        Some((
            slot.host.bytes(),
            page * PAGE_BYTES + offset.min(PAGE_BYTES),
        ))
    }
}

/// Where a page's byte is in the main slot; behind its end if it is in another.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "a page's number has at most 47 bits"
)]
fn main_offset(page: RamPage, offset: usize) -> usize {
    ((page.0 as usize) << PAGE_SHIFT).wrapping_add(offset)
}

/// A slot points to where the client has no usable memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadMemory {
    /// Guest-physical address of the page.
    pub(crate) address: u64,
}

/// A VM's memory: the current slots, and how often they have changed.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    slots: RwLock<Arc<Slots>>,
    generation: AtomicU64,
}

impl Memory {
    /// One slot for each region of `memory`.
    ///
    /// # Errors
    /// A region that is not whole pages.
    pub(crate) fn of_regions(memory: &GuestMemoryMmap) -> Result<Self, Errno> {
        let mut slots = Vec::new();
        for (id, region) in (0u32..).zip(memory.iter()) {
            let start = region.start_addr().0;
            if (start | region.len()) & PAGE_MASK != 0 || id >= MAX_SLOTS {
                return Err(Errno::EINVAL);
            }
            slots.push(Arc::new(Slot {
                id,
                first_pfn: start >> PAGE_SHIFT,
                flags: 0,
                host: Arc::new(HostPages::of_mapping(region.get_mmap())),
                dirty: None,
            }));
        }
        Ok(Self {
            slots: RwLock::new(Arc::new(Slots::new(slots))),
            generation: AtomicU64::new(1),
        })
    }

    /// Moves with every change. Read by a vCPU that has the VM's turn, and changed only by who has it.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The current slots.
    pub(crate) fn slots(&self) -> Arc<Slots> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&slots)
    }

    /// Makes, moves, changes or deletes a slot (`__kvm_set_memory_region`). The caller has the VM's turn, so
    /// that no vCPU uses the old slots any more when this returns.
    ///
    /// # Errors
    /// The first rule broken, in the kernel's order; nothing has changed.
    pub(crate) fn set_slot(&self, region: &kvm_userspace_memory_region) -> Result<(), Errno> {
        check_region(region)?;
        let slots = self.slots();
        let old = slots.slots.iter().find(|slot| slot.id == region.slot);
        let Some(new) = changed_slot(region, old)? else {
            return Ok(());
        };
        let others = slots.slots.iter().filter(|slot| slot.id != region.slot);
        let mut slots: Vec<_> = others.map(Arc::clone).collect();
        if let Change::Set(new) = new {
            if slots
                .iter()
                .any(|slot| slot.first_pfn < new.end_pfn() && new.first_pfn < slot.end_pfn())
            {
                return Err(Errno::EEXIST);
            }
            if new.end_pfn() - 1 > MAX_PFN {
                return Err(Errno::EINVAL);
            }
            slots.push(Arc::new(new));
        }
        self.publish(Slots::new(slots));
        Ok(())
    }

    /// Takes the dirty bitmap of a slot (`KVM_GET_DIRTY_LOG`); every vCPU then starts to log anew. The caller
    /// has the VM's turn.
    ///
    /// # Errors
    /// ENOENT for a slot that is not there or not logged.
    pub(crate) fn take_dirty(&self, id: u32) -> Result<Vec<u64>, Errno> {
        let slots = self.slots();
        let slot = slots.slots.iter().find(|slot| slot.id == id);
        let dirty = slot
            .and_then(|slot| slot.dirty.as_ref())
            .ok_or(Errno::ENOENT)?;
        let pages = dirty.take();
        self.generation.fetch_add(1, Ordering::Release);
        Ok(pages)
    }

    fn publish(&self, slots: Slots) {
        *self.slots.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(slots);
        self.generation.fetch_add(1, Ordering::Release);
    }
}

/// The checks that need no other slot, in the kernel's order.
fn check_region(region: &kvm_userspace_memory_region) -> Result<(), Errno> {
    let kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr,
        memory_size,
        userspace_addr,
    } = *region;
    let client_end = userspace_addr.checked_add(memory_size);
    let refused = slot & 0xffff >= MAX_SLOTS
        || flags & !(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY) != 0
        || (memory_size | guest_phys_addr | userspace_addr) & PAGE_MASK != 0
        || client_end.is_none_or(|end| end > CLIENT_END)
        || slot >> 16 != 0
        || guest_phys_addr.checked_add(memory_size).is_none()
        || memory_size >> PAGE_SHIFT > MAX_SLOT_PAGES;
    if refused { Err(Errno::EINVAL) } else { Ok(()) }
}

enum Change {
    Delete,
    Set(Slot),
}

/// What `region` does to the slot `old`; `None` if it asks for what is there already.
fn changed_slot(
    region: &kvm_userspace_memory_region,
    old: Option<&Arc<Slot>>,
) -> Result<Option<Change>, Errno> {
    let pages = region.memory_size >> PAGE_SHIFT;
    let first_pfn = region.guest_phys_addr >> PAGE_SHIFT;
    if pages == 0 {
        return old.map_or(Err(Errno::EINVAL), |_| Ok(Some(Change::Delete)));
    }
    let host = match old {
        None => {
            let host = HostPages::of_client(region.userspace_addr, pages);
            Arc::new(host.ok_or(Errno::ENOMEM)?)
        }
        Some(old) => {
            if old.host.address() != region.userspace_addr
                || old.host.pages() != pages
                || (old.flags ^ region.flags) & KVM_MEM_READONLY != 0
            {
                return Err(Errno::EINVAL);
            }
            if old.first_pfn == first_pfn && old.flags == region.flags {
                return Ok(None);
            }
            Arc::clone(&old.host)
        }
    };
    let logged = region.flags & KVM_MEM_LOG_DIRTY_PAGES != 0;
    let dirty = match old.and_then(|old| old.dirty.clone()) {
        _ if !logged => None,
        Some(dirty) => Some(dirty),
        None => Some(Arc::new(PageSet::new(pages).ok_or(Errno::ENOMEM)?)),
    };
    Ok(Some(Change::Set(Slot {
        id: region.slot,
        first_pfn,
        flags: region.flags,
        host,
        dirty,
    })))
}
