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

    /// Copies bytes within RAM, as if all of them were read before the first is written: string instructions.
    fn copy(&mut self, from: (RamPage, usize), to: (RamPage, usize), len_bytes: usize) {
        let mut bytes = vec![0; len_bytes];
        self.load_bytes(from.0, from.1, &mut bytes);
        self.store_bytes(to.0, to.1, &bytes);
    }

    /// Fills bytes of a page with one value, likewise.
    fn fill(&mut self, page: RamPage, offset: usize, len_bytes: usize, value: u8) {
        self.store_bytes(page, offset, &vec![value; len_bytes]);
    }

    /// What RDRAND and RDSEED read; `None`: there is nothing now, as the instructions then say.
    fn random(&mut self) -> Option<u64> {
        None
    }

    /// What RDTSC reads.
    fn tsc(&mut self) -> u64;
}
