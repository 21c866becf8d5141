//! [`Symbols`]: which function of the guest's kernel an instruction is in, from its System.map or vmlinux.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

use anyhow::{Context, bail};
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSymbol, ReadCache, SymbolKind};

/// A System.map has some megabytes.
const MAP_LIMIT_BYTES: u64 = 256 << 20;
/// No function is longer.
const LONGEST_BYTES: u64 = 1 << 20;

/// Functions, by address. There may be none.
#[derive(Debug, Default)]
pub(super) struct Symbols(Vec<(u64, String)>);

impl Symbols {
    /// Reads what `nm` prints of a kernel, which is also its System.map, or an ELF64 file.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let mut file = File::open(path)?;
        let mut magic = Vec::new();
        file.by_ref().take(4).read_to_end(&mut magic)?;
        file.rewind()?;
        let mut functions = if magic == *b"\x7fELF" {
            elf(file)?
        } else {
            let text = io::read_to_string(file.take(MAP_LIMIT_BYTES));
            map(&text.context("neither a System.map nor an ELF file")?)
        };
        if functions.is_empty() {
            bail!("there is no function in it");
        }
        functions.sort();
        Ok(Self(functions))
    }

    /// The function and how far into it, as kernels print it.
    pub(super) fn find(&self, rip: u64) -> Option<String> {
        let behind = self.0.partition_point(|(address, _)| *address <= rip);
        let (address, name) = self.0.get(behind.checked_sub(1)?)?;
        let offset = rip - address;
        (offset < LONGEST_BYTES).then(|| format!("{name}+{offset:#x}"))
    }
}

fn elf(file: File) -> anyhow::Result<Vec<(u64, String)>> {
    let cache = ReadCache::new(file);
    let elf =
        ElfFile64::<Endianness, _>::parse(&cache).context("no ELF64 file that can be read")?;
    let functions = elf
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
        .filter_map(|symbol| Some((symbol.address(), symbol.name().ok()?.to_owned())));
    Ok(functions.collect())
}

/// The lines `ADDRESS TYPE NAME` of functions; others are passed over.
fn map(text: &str) -> Vec<(u64, String)> {
    let functions = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
        let address = u64::from_str_radix(address, 16).ok()?;
        matches!(kind, "t" | "T" | "w" | "W").then(|| (address, name.to_owned()))
    });
    functions.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruction_is_in_the_function_that_begins_last_before_it() {
        let text = "\
            ffffffff81000000 T startup_64\n\
            ffffffff81000100 t init_intel\n\
            ffffffff81000180 D some_data\n\
            nonsense\n";
        let symbols = Symbols(map(text));
        let find = |rip| symbols.find(rip);
        assert_eq!(
            find(0xffff_ffff_8100_0104).as_deref(),
            Some("init_intel+0x4")
        );
        assert_eq!(
            find(0xffff_ffff_8100_01f0).as_deref(),
            Some("init_intel+0xf0")
        );
        assert_eq!(
            find(0xffff_ffff_8100_0000).as_deref(),
            Some("startup_64+0x0")
        );
        assert_eq!(find(0xffff_ffff_80ff_ffff), None);
        assert_eq!(find(0xffff_ffff_8200_0000), None, "too far");
    }

    #[test]
    fn functions_of_an_elf_file_are_found() {
        let own = std::env::current_exe().unwrap();
        let symbols = Symbols::read(&own).unwrap();
        assert!(symbols.0.iter().any(|(_, name)| name == "main"));
    }
}
