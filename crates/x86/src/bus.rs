//! What a processor is plugged into: guest RAM by pages, and a clock.

/// Bytes of a page of guest RAM.
pub const PAGE_BYTES: usize = 4096;

/// A page of guest RAM, as the bus names it. The number means something only to the bus that gave it,
/// and only until [`Cpu::flush`](crate::Cpu::flush).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RamPage(pub u64);

/// Guest memory and time, as one processor sees them.
///
/// Offsets are within the page, and `offset + N <= 4096` always holds for the calls a processor makes;
/// a bus must still not reach outside its memory where it does not. `'static` because a processor keeps decoded code
/// that is made for the type of its bus.
pub trait Bus: 'static {
    /// The RAM behind guest-physical page number `pfn` (address >> 12), for reading or for writing.
    /// `None`: no RAM, so the access is MMIO. A read-only slot answers `None` for writing.
    fn ram_page(&mut self, pfn: u64, write: bool) -> Option<RamPage>;

    /// Loads `N` bytes (1, 2, 4, 8 or 16).
    fn load<const N: usize>(&self, page: RamPage, offset: usize) -> [u8; N];

    /// Stores `N` bytes (1, 2, 4, 8 or 16).
    fn store<const N: usize>(&mut self, page: RamPage, offset: usize, bytes: [u8; N]);

    /// Loads any number of bytes: string instructions, and code for the decoder.
    fn load_bytes(&self, page: RamPage, offset: usize, bytes: &mut [u8]);

    /// Stores any number of bytes.
    fn store_bytes(&mut self, page: RamPage, offset: usize, bytes: &[u8]);

    /// What RDTSC reads.
    fn tsc(&mut self) -> u64;
}
