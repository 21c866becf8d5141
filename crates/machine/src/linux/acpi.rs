//! The ACPI tables of the board: processors, the I/O APIC, COM1, and how to switch it off.
//!
//! The hardware-reduced kind: no power management timer, no SCI, no 8259. Linux then takes its clocks from the
//! hypervisor and the local APICs.

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};

use super::layout;
use crate::board::{
    RESET, RESET_PORT, SERIAL_GSI, SERIAL_PORT, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT,
    SLEEP_TYPE_OFF,
};

const OEM: [u8; 6] = *b"MSRGAT";
const TABLE: [u8; 8] = *b"MSRGATE ";
const REVISION: u32 = 1;

const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// No VGA to probe for, and no real-time clock in CMOS; ACPI 6.5, table 5.11.
const NO_VGA_NO_CMOS: u16 = 1 << 2 | 1 << 5;

/// All tables, as they belong at [`layout::ACPI`]. The RSDP is the first.
pub(crate) fn tables(cpus: u8) -> Vec<u8> {
    let mut bytes = vec![0; Rsdp::len().next_multiple_of(16)];
    let dsdt = append(&mut bytes, &dsdt(cpus));
    let fadt = append(&mut bytes, &fadt(dsdt));
    let madt = append(&mut bytes, &madt(cpus));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = append(&mut bytes, &xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    bytes[..rsdp.len()].copy_from_slice(&rsdp);
    bytes
}

/// Puts a table behind the others; says where the guest will find it.
fn append(bytes: &mut Vec<u8>, table: &dyn Aml) -> u64 {
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    let address = layout::ACPI + bytes.len() as u64;
    table.to_aml_bytes(bytes);
    address
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let port = |port: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            port.into(),
        )
    };
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = NO_VGA_NO_CMOS.into();
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET;
    fadt.sleep_control_reg = port(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(SLEEP_STATUS_PORT);
    fadt.finalize()
}

fn madt(cpus: u8) -> MADT {
    let mut madt = MADT::new(
        OEM,
        TABLE,
        REVISION,
        LocalInterruptController::Address(LOCAL_APIC),
    );
    for id in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

fn dsdt(cpus: u8) -> Sdt {
    let mut code = Vec::new();
    aml::Name::new(
        "_S5_".into(),
        &aml::Package::new(vec![&SLEEP_TYPE_OFF, &0u8, &0u8, &0u8]),
    )
    .to_aml_bytes(&mut code);
    aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_STA".into(), &0x0fu8),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Interrupt::new(true, true, false, false, SERIAL_GSI),
                    &aml::IO::new(SERIAL_PORT, SERIAL_PORT, 1, 8),
                ]),
            ),
        ],
    )
    .to_aml_bytes(&mut code);
    for id in 0..cpus {
        let name = format!("_SB_.C{id:03}");
        aml::Device::new(
            name.as_str().into(),
            vec![
                &aml::Name::new("_HID".into(), &"ACPI0007"),
                &aml::Name::new("_UID".into(), &id),
            ],
        )
        .to_aml_bytes(&mut code);
    }
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    dsdt.append_slice(&code);
    dsdt
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::MAX_CPUS;

    /// The tables by their signatures, each found by the address in the one before.
    fn table(bytes: &[u8], address: u64) -> &[u8] {
        let start = usize::try_from(address - layout::ACPI).unwrap();
        let length = u32::from_le_bytes(bytes[start + 4..][..4].try_into().unwrap());
        let table = &bytes[start..][..length as usize];
        assert_eq!(
            table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
        table
    }

    fn word(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..][..8].try_into().unwrap())
    }

    #[test]
    fn tables_lead_from_one_to_the_next_and_sum_to_zero() {
        let bytes = tables(2);
        assert!(bytes.starts_with(b"RSD PTR "));
        let xsdt = table(&bytes, word(&bytes, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let [fadt, madt] = [36, 44].map(|offset| table(&bytes, word(xsdt, offset)));
        assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
        // X_DSDT; ACPI 6.5, table 5.9.
        assert_eq!(&table(&bytes, word(fadt, 140))[..4], b"DSDT");
        // Two processors of 8 bytes and an I/O APIC of 12 behind 44 bytes of header.
        assert_eq!(madt.len(), 44 + 2 * 8 + 12);
    }

    #[test]
    fn tables_of_the_most_processors_fit_below_the_high_memory() {
        let end = layout::ACPI + tables(MAX_CPUS).len() as u64;
        assert!(end <= layout::HIGH, "{end:#x}");
    }
}
