//! `cargo xtask abi`: are the structures that we use laid out as the machine's own `<linux/kvm.h>` says?
//!
//! The rooms take every layout from `kvm-bindings`. A C program prints the same sizes, offsets and constants
//! from the header, and the two lists must be equal.

use std::fs;
use std::mem::offset_of;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::shell;

/// A C expression and what it is worth to us.
type Row = (&'static str, u64);

macro_rules! layouts {
    ($($structure:ident { $($field:ident),* })*) => { &[$(
        (
            concat!("sizeof(struct ", stringify!($structure), ")"),
            size_of::<kvm_bindings::$structure>() as u64,
        ),
        $((
            concat!("offsetof(struct ", stringify!($structure), ", ", stringify!($field), ")"),
            offset_of!(kvm_bindings::$structure, $field) as u64,
        ),)*
    )*] };
}

macro_rules! constants {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), kvm_bindings::$name as u64),)*] };
}

const LAYOUTS: &[Row] = layouts! {
    kvm_msr_filter { flags, ranges }
    kvm_msr_filter_range { flags, nmsrs, base, bitmap }
    kvm_enable_cap { cap, flags, args }
    kvm_run {
        request_interrupt_window, immediate_exit, exit_reason, ready_for_interrupt_injection, if_flag,
        flags, cr8, apic_base, kvm_valid_regs, kvm_dirty_regs, s
    }
    kvm_msrs { nmsrs, pad, entries }
    kvm_msr_entry { index, reserved, data }
    kvm_msr_list { nmsrs, indices }
    kvm_regs { rax, rsp, rip, rflags }
    kvm_sregs { cs, tr, gdt, cr0, cr8, efer, apic_base, interrupt_bitmap }
    kvm_segment { base, limit, selector, present, dpl, avl }
    kvm_dtable { base, limit }
    kvm_cpuid2 { nent, entries }
    kvm_cpuid_entry2 { function, index, flags, eax, edx }
    kvm_userspace_memory_region { slot, flags, guest_phys_addr, memory_size, userspace_addr }
    kvm_vcpu_events { exception, interrupt, nmi, flags, smi, triple_fault }
    kvm_mp_state { mp_state }
    kvm_fpu { fpr, xmm, mxcsr }
    kvm_debugregs { db, dr6, dr7 }
    kvm_xcrs { nr_xcrs, xcrs }
    kvm_guest_debug { control, arch }
    kvm_dirty_log { slot }
};

const CONSTANTS: &[Row] = constants![
    KVM_CAP_X86_USER_SPACE_MSR,
    KVM_CAP_X86_MSR_FILTER,
    KVM_EXIT_IO,
    KVM_EXIT_HLT,
    KVM_EXIT_MMIO,
    KVM_EXIT_SHUTDOWN,
    KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_X86_RDMSR,
    KVM_EXIT_X86_WRMSR,
    KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN,
    KVM_MSR_EXIT_REASON_FILTER,
    KVM_MSR_FILTER_MAX_RANGES,
    KVM_MSR_FILTER_MAX_BITMAP_SIZE,
    KVM_MSR_FILTER_READ,
    KVM_MSR_FILTER_WRITE,
    KVM_MSR_FILTER_DEFAULT_ALLOW,
    KVM_MSR_FILTER_DEFAULT_DENY,
];

pub(crate) fn run() -> Result<ExitCode> {
    let folder = shell::target_dir().join("abi");
    fs::create_dir_all(&folder).context("cannot make a folder for the C program")?;
    let rows: Vec<Row> = LAYOUTS.iter().chain(CONSTANTS).copied().collect();
    let source = folder.join("abi.c");
    fs::write(&source, program(&rows)).context("cannot write the C program")?;
    let binary = folder.join("abi");
    let mut compiler = Command::new("cc");
    compiler.arg("-o").args([&binary, &source]);
    shell::run(&mut compiler).context("is there a C compiler with linux/kvm.h?")?;
    let output = Command::new(&binary)
        .output()
        .context("cannot run the C program")?;
    let text = String::from_utf8(output.stdout).context("the C program prints numbers")?;
    let values: Vec<&str> = text.lines().collect();
    ensure!(
        values.len() == rows.len(),
        "the C program printed {} of {} numbers",
        values.len(),
        rows.len()
    );
    let mut failed = 0;
    for ((expression, ours), header) in rows.iter().zip(values) {
        if header != ours.to_string() {
            failed += 1;
            println!("{expression}: {ours} in kvm-bindings, {header} in linux/kvm.h");
        }
    }
    println!("abi: {} passed, {failed} failed", rows.len() - failed);
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Prints one number for each row.
fn program(rows: &[Row]) -> String {
    let prints: String = rows
        .iter()
        .map(|(expression, _)| {
            format!("\tprintf(\"%llu\\n\", (unsigned long long)({expression}));\n")
        })
        .collect();
    format!(
        "#include <linux/kvm.h>\n#include <stddef.h>\n#include <stdio.h>\n\nint main(void)\n{{\n{prints}\treturn 0;\n}}\n"
    )
}
