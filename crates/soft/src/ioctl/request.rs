//! The numbers of the ioctls, made of the UAPI's ordinals and the sizes of its structures.

use kvm_bindings::{
    kvm_clock_data, kvm_cpuid2, kvm_debugregs, kvm_dirty_log, kvm_enable_cap, kvm_fpu,
    kvm_guest_debug, kvm_interrupt, kvm_ioeventfd, kvm_irq_level, kvm_irq_routing, kvm_irqchip,
    kvm_irqfd, kvm_lapic_state, kvm_mp_state, kvm_msi, kvm_msr_filter, kvm_msr_list, kvm_msrs,
    kvm_pit_config, kvm_pit_state, kvm_pit_state2, kvm_regs, kvm_signal_mask, kvm_sregs,
    kvm_sregs2, kvm_tpr_access_ctl, kvm_translation, kvm_userspace_memory_region,
    kvm_userspace_memory_region2, kvm_vapic_addr, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};

/// The ioctl type of KVM (`KVMIO`).
const KVMIO: u32 = 0xae;

/// `_IO`.
const fn none(number: u32) -> u32 {
    KVMIO << 8 | number
}

/// `_IOW`: the client writes a structure for the kernel.
const fn write<T>(number: u32) -> u32 {
    1 << 30 | size::<T>() | none(number)
}

/// `_IOR`: the client reads a structure of the kernel's.
const fn read<T>(number: u32) -> u32 {
    2 << 30 | size::<T>() | none(number)
}

/// `_IOWR`: both.
const fn both<T>(number: u32) -> u32 {
    3 << 30 | size::<T>() | none(number)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "no structure of the UAPI reaches 2^14 bytes"
)]
const fn size<T>() -> u32 {
    assert!(size_of::<T>() < 1 << 14);
    (size_of::<T>() as u32) << 16
}

macro_rules! requests {
    ($($name:ident = $number:expr;)*) => {
        $(pub(super) const $name: u32 = $number;)*
    };
}

// The system.
requests! {
    GET_API_VERSION = none(0x00);
    CREATE_VM = none(0x01);
    GET_MSR_INDEX_LIST = both::<kvm_msr_list>(0x02);
    CHECK_EXTENSION = none(0x03);
    GET_VCPU_MMAP_SIZE = none(0x04);
    GET_SUPPORTED_CPUID = both::<kvm_cpuid2>(0x05);
    GET_EMULATED_CPUID = both::<kvm_cpuid2>(0x09);
    GET_MSR_FEATURE_INDEX_LIST = both::<kvm_msr_list>(0x0a);
    X86_GET_MCE_CAP_SUPPORTED = read::<u64>(0x9d);
}

// A VM.
requests! {
    CREATE_VCPU = none(0x41);
    GET_DIRTY_LOG = write::<kvm_dirty_log>(0x42);
    SET_NR_MMU_PAGES = none(0x44);
    GET_NR_MMU_PAGES = none(0x45);
    SET_USER_MEMORY_REGION = write::<kvm_userspace_memory_region>(0x46);
    SET_TSS_ADDR = none(0x47);
    SET_IDENTITY_MAP_ADDR = write::<u64>(0x48);
    SET_USER_MEMORY_REGION2 = write::<kvm_userspace_memory_region2>(0x49);
    CREATE_IRQCHIP = none(0x60);
    IRQ_LINE = write::<kvm_irq_level>(0x61);
    IRQ_LINE_STATUS = both::<kvm_irq_level>(0x67);
    GET_IRQCHIP = both::<kvm_irqchip>(0x62);
    SET_IRQCHIP = read::<kvm_irqchip>(0x63);
    CREATE_PIT = none(0x64);
    GET_PIT = both::<kvm_pit_state>(0x65);
    SET_PIT = read::<kvm_pit_state>(0x66);
    SET_GSI_ROUTING = write::<kvm_irq_routing>(0x6a);
    REINJECT_CONTROL = none(0x71);
    GET_PIT2 = read::<kvm_pit_state2>(0x9f);
    SET_PIT2 = write::<kvm_pit_state2>(0xa0);
    SIGNAL_MSI = write::<kvm_msi>(0xa5);
    IRQFD = write::<kvm_irqfd>(0x76);
    CREATE_PIT2 = write::<kvm_pit_config>(0x77);
    SET_BOOT_CPU_ID = none(0x78);
    IOEVENTFD = write::<kvm_ioeventfd>(0x79);
    SET_CLOCK = write::<kvm_clock_data>(0x7b);
    GET_CLOCK = read::<kvm_clock_data>(0x7c);
    X86_SET_MSR_FILTER = write::<kvm_msr_filter>(0xc6);
}

// A vCPU; some on other descriptors too.
requests! {
    RUN = none(0x80);
    GET_REGS = read::<kvm_regs>(0x81);
    SET_REGS = write::<kvm_regs>(0x82);
    GET_SREGS = read::<kvm_sregs>(0x83);
    SET_SREGS = write::<kvm_sregs>(0x84);
    TRANSLATE = both::<kvm_translation>(0x85);
    INTERRUPT = write::<kvm_interrupt>(0x86);
    GET_MSRS = both::<kvm_msrs>(0x88);
    SET_MSRS = write::<kvm_msrs>(0x89);
    SET_SIGNAL_MASK = write::<kvm_signal_mask>(0x8b);
    GET_FPU = read::<kvm_fpu>(0x8c);
    SET_FPU = write::<kvm_fpu>(0x8d);
    GET_LAPIC = read::<kvm_lapic_state>(0x8e);
    SET_LAPIC = write::<kvm_lapic_state>(0x8f);
    SET_CPUID2 = write::<kvm_cpuid2>(0x90);
    GET_CPUID2 = both::<kvm_cpuid2>(0x91);
    TPR_ACCESS_REPORTING = both::<kvm_tpr_access_ctl>(0x92);
    SET_VAPIC_ADDR = write::<kvm_vapic_addr>(0x93);
    GET_MP_STATE = read::<kvm_mp_state>(0x98);
    SET_MP_STATE = write::<kvm_mp_state>(0x99);
    NMI = none(0x9a);
    SET_GUEST_DEBUG = write::<kvm_guest_debug>(0x9b);
    X86_SETUP_MCE = write::<u64>(0x9c);
    GET_VCPU_EVENTS = read::<kvm_vcpu_events>(0x9f);
    SET_VCPU_EVENTS = write::<kvm_vcpu_events>(0xa0);
    GET_DEBUGREGS = read::<kvm_debugregs>(0xa1);
    SET_DEBUGREGS = write::<kvm_debugregs>(0xa2);
    SET_TSC_KHZ = none(0xa2);
    GET_TSC_KHZ = none(0xa3);
    ENABLE_CAP = write::<kvm_enable_cap>(0xa3);
    GET_XSAVE = read::<kvm_xsave>(0xa4);
    SET_XSAVE = write::<kvm_xsave>(0xa5);
    GET_XCRS = read::<kvm_xcrs>(0xa6);
    SET_XCRS = write::<kvm_xcrs>(0xa7);
    KVMCLOCK_CTRL = none(0xad);
    GET_SREGS2 = read::<kvm_sregs2>(0xcc);
    SET_SREGS2 = write::<kvm_sregs2>(0xcd);
    GET_XSAVE2 = read::<kvm_xsave>(0xcf);
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_those_of_the_uapi() {
        // As in the kernel's documentation and in strace's output.
        assert_eq!(super::RUN, 0xae80);
        assert_eq!(super::CHECK_EXTENSION, 0xae03);
        assert_eq!(super::X86_SET_MSR_FILTER, 0x4188_aec6);
        assert_eq!(super::ENABLE_CAP, 0x4068_aea3);
        assert_eq!(super::IRQFD, 0x4020_ae76);
        assert_eq!(super::IOEVENTFD, 0x4040_ae79);
        assert_eq!(super::GET_MSRS, 0xc008_ae88);
        assert_eq!(super::SET_MSRS, 0x4008_ae89);
        assert_eq!(super::SET_USER_MEMORY_REGION, 0x4020_ae46);
        assert_eq!(super::GET_SUPPORTED_CPUID, 0xc008_ae05);
        assert_eq!(super::GET_MSR_INDEX_LIST, 0xc004_ae02);
    }
}
