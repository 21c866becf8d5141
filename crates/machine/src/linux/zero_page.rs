//! `struct boot_params`, the zero page of the boot protocol (`Documentation/arch/x86/zero-page.rst`).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{ACPI, BOOT_INFO, COMMAND_LINE, Stretch};

/// "None of the registered loaders".
const LOADER_OTHER: u8 = 0xff;

/// Writes the page that RSI will point to. `header` is the kernel's own.
pub(super) fn write(
    memory: &GuestMemoryMmap,
    header: linux_loader::loader::bootparam::setup_header,
    map: &[Stretch],
    initrd: Option<(u64, u64)>,
) -> Result<(), GuestMemoryError> {
    let mut page = boot_params {
        acpi_rsdp_addr: ACPI,
        hdr: header,
        ..boot_params::default()
    };
    page.hdr.type_of_loader = LOADER_OTHER;
    page.hdr.cmd_line_ptr = low(COMMAND_LINE);
    if let Some((address, size_bytes)) = initrd {
        page.hdr.ramdisk_image = low(address);
        page.hdr.ramdisk_size = low(size_bytes);
    }
    let mut table = page.e820_table;
    for (entry, stretch) in table.iter_mut().zip(map) {
        *entry = boot_e820_entry {
            addr: stretch.start,
            size: stretch.size_bytes,
            r#type: stretch.kind as u32,
        };
        page.e820_entries += 1;
    }
    page.e820_table = table;
    memory.write_obj(page, GuestAddress(BOOT_INFO))
}

/// RAM ends below 4 GiB, and so does everything in it.
fn low(address: u64) -> u32 {
    u32::try_from(address).expect("RAM ends below 4 GiB")
}
