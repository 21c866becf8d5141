//! The command line of `run`.

use std::convert::Infallible;
use std::path::PathBuf;

use msrgate_machine::MAX_CPUS;

use crate::backend::{Choice, Processor};

/// Boot a guest, and show what became of its MSR accesses.
///
/// Without GUEST it is the built-in tour: a small 64-bit guest that tries some MSRs and says what it saw.
///
/// Without --policy the tour has its own; another guest has KVM's own behaviour, and what KVM refuses is shown.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The guest: a Linux kernel (bzImage, or an ELF with a PVH note), an ELF64 executable, or a flat binary
    /// (16-bit, started at 0000:7c00)
    pub(super) guest: Option<PathBuf>,
    /// What MSR accesses do
    #[arg(long, value_name = "FILE")]
    pub(super) policy: Option<PathBuf>,
    /// Replace the policy while the guest runs, whenever its file (or one that it includes) changes; SIGHUP
    /// does so too
    #[arg(long, requires = "policy")]
    pub(super) watch: bool,
    /// Who runs the guest
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    pub(super) backend: Choice,
    /// Whose processor the guest sees, on soft
    #[arg(long, value_enum, default_value_t = Processor::Host)]
    pub(super) processor: Processor,
    /// Processors, for Linux
    #[arg(long, value_name = "N", default_value_t = 1, requires = "guest",
        value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_CPUS)))]
    pub(super) cpus: u8,
    /// Guest memory, such as 64M or 1G [default: 512M for Linux, else 64M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) mem: Option<u64>,
    /// Linux's initial RAM disk
    #[arg(long, value_name = "FILE", requires = "guest")]
    pub(super) initrd: Option<PathBuf>,
    /// Linux's command line [default: console=ttyS0]
    #[arg(long, value_name = "TEXT", requires = "guest")]
    pub(super) append: Option<String>,
    /// The guest's console: on the terminal (Ctrl-A X ends a Linux guest), off, or into a file
    #[arg(long, value_name = "on|off|FILE", default_value = "on", value_parser = parse_console)]
    pub(super) console: Place,
    /// Write each MSR access to a trace: see `export` and `learn`
    #[arg(long, value_name = "FILE")]
    pub(super) trace: Option<PathBuf>,
    /// Which accesses are seen [default: with --trace or --top auto, else off]
    #[arg(long, value_enum)]
    pub(super) observe: Option<Observe>,
    /// Show what becomes of the guest's accesses while it runs: see `top`
    #[arg(long, conflicts_with = "json")]
    pub(super) top: bool,
    /// Exit status 1 if the policy answered an access with a fault
    #[arg(long)]
    pub(super) strict: bool,
    /// Count exits and instructions, and measure the time
    #[arg(long)]
    pub(super) stats: bool,
    /// Print JSON instead of a table; the guest's console goes to the standard error
    #[arg(long)]
    pub(super) json: bool,
    /// Print the policy that would be in force, and boot nothing
    #[arg(long)]
    pub(super) print_policy: bool,
}

/// Which accesses are seen, beyond those that leave the guest because of the policy or because KVM refuses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Observe {
    /// As many as can be without a change for the guest
    Auto,
    /// All: the backend tells of those that it does by itself (soft)
    Native,
    /// Those too that can leave the guest and be done by KVM all the same
    Filter,
    /// No others
    Off,
}

/// Where the guest's console is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    On,
    Off,
    File(PathBuf),
}

fn parse_console(text: &str) -> Result<Place, Infallible> {
    Ok(match text {
        "on" => Place::On,
        "off" => Place::Off,
        path => Place::File(path.into()),
    })
}

/// A number of bytes, with K, M or G for the powers of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        _ => return Err("the unit is K, M or G".to_owned()),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "not a number of bytes".to_owned())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "more than 64 bits".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("1g"), Ok(1 << 30));
        assert!(parse_size("64X").is_err());
        assert!(parse_size("M").is_err());
        assert!(parse_size("99999999999999999G").is_err());
    }
}
