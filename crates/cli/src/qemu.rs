//! `msrgate-qemu`: QEMU under the policy of its VM, to be what libvirt calls the `<emulator>`.
//!
//! It is `msrgate` under another name. All arguments are QEMU's; name and UUID in them say which files of a folder
//! are the VM's. A QEMU that runs no VM on KVM, as when libvirt asks what it can do, is left alone.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use clap::Parser;

use crate::{Status, wrap};

/// The name that makes the difference.
const NAME: &str = "msrgate-qemu";
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const POLICIES: &str = "/etc/msrgate/qemu.d";

/// Whether the program was started by its other name.
pub(crate) fn is_meant() -> bool {
    let name = env::args_os().next().unwrap_or_default();
    Path::new(&name).file_name() == Some(OsStr::new(NAME))
}

/// Becomes QEMU.
pub(crate) fn run() -> anyhow::Result<Status> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let variable = |name, default: &str| env::var_os(name).unwrap_or_else(|| default.into());
    let qemu = variable("MSRGATE_QEMU", QEMU);
    let folder = PathBuf::from(variable("MSRGATE_QEMU_POLICIES", POLICIES));
    let vm = Vm::of(&arguments);
    if let Some(words) = vm.wrapped(&folder)? {
        let line = words.into_iter().chain([qemu]).chain(arguments);
        let mut args = Line::try_parse_from(line).map(|line| line.wrap)?;
        args.vmm.guest = vm.name;
        return wrap::run(&args);
    }
    let error = Command::new(&qemu).args(&arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", Path::new(&qemu).display()))
}

/// The arguments of `msrgate wrap`.
#[derive(Parser)]
#[command(name = NAME)]
struct Line {
    #[command(flatten)]
    wrap: wrap::Args,
}

/// What QEMU's arguments say of the VM.
#[derive(Debug, Default, PartialEq, Eq)]
struct Vm {
    name: Option<String>,
    uuid: Option<String>,
    /// It runs a guest, and on KVM.
    has_kvm: bool,
}

impl Vm {
    fn of(arguments: &[OsString]) -> Self {
        let mut vm = Self::default();
        let mut has_machine = true;
        let mut arguments = arguments.iter().map(|word| word.to_string_lossy());
        while let Some(option) = arguments.next() {
            let Some(option) = option.strip_prefix('-') else {
                continue;
            };
            let option = option.strip_prefix('-').unwrap_or(option);
            match option {
                "enable-kvm" => vm.has_kvm = true,
                "name" | "uuid" | "accel" | "machine" | "M" => {
                    let value = arguments.next().unwrap_or_default();
                    let (first, rest) = parts(&value);
                    let named = |key| rest.iter().find_map(|part| part.strip_prefix(key));
                    match option {
                        "name" => vm.name = Some(named("guest=").unwrap_or(&first).to_owned()),
                        "uuid" => vm.uuid = Some(first),
                        "accel" => vm.has_kvm |= first == "kvm" || named("accel=") == Some("kvm"),
                        _ => {
                            has_machine &= first != "none" && named("type=") != Some("none");
                            let accelerators = named("accel=").unwrap_or("");
                            vm.has_kvm |= accelerators.split(':').any(|word| word == "kvm");
                        }
                    }
                }
                _ => {}
            }
        }
        vm.has_kvm &= has_machine;
        vm
    }

    /// What comes before QEMU and its arguments in the line of `msrgate wrap`; `None`: nothing is to be wrapped.
    fn wrapped(&self, folder: &Path) -> anyhow::Result<Option<Vec<OsString>>> {
        if !self.has_kvm {
            return Ok(None);
        }
        let policy = self.find(folder, "toml")?;
        let options = self.find(folder, "options")?;
        if policy.is_none() && options.is_none() {
            let name = self.name.as_deref().unwrap_or("without a name");
            let folder = folder.display();
            anstream::eprintln!(
                "{NAME}: nothing in {folder} is for the VM {name}: QEMU runs as it is"
            );
            return Ok(None);
        }
        let mut words: Vec<OsString> = [NAME, "--kvm", "real"].map(OsString::from).into();
        if let Some(policy) = policy {
            words.extend(["--policy".into(), policy.into()]);
        }
        if let Some(path) = options {
            words.extend(self.options(&path)?);
        }
        words.push("--".into());
        Ok(Some(words))
    }

    /// The first file that is there: by name, by UUID, for all.
    fn find(&self, folder: &Path, kind: &str) -> anyhow::Result<Option<PathBuf>> {
        let own = [&self.name, &self.uuid].into_iter().flatten();
        let own = own.map(String::as_str).filter(|name| is_file_name(name));
        for name in own.chain(["default"]) {
            let path = folder.join(format!("{name}.{kind}"));
            let is_there = path.try_exists();
            if is_there
                .with_context(|| format!("cannot tell whether there is {}", path.display()))?
            {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// More words for `wrap`, as a shell would read them.
    fn options(&self, path: &Path) -> anyhow::Result<Vec<OsString>> {
        let text = fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        let Some(words) = shlex::split(&text) else {
            bail!("{}: a quotation mark has no other", path.display());
        };
        let value = |value: &Option<String>| {
            let value = value.as_deref().filter(|value| is_file_name(value));
            value.unwrap_or("unnamed").to_owned()
        };
        let (name, uuid) = (value(&self.name), value(&self.uuid));
        let words = words.into_iter();
        let words = words.map(|word| word.replace("{name}", &name).replace("{uuid}", &uuid));
        Ok(words.map(OsString::from).collect())
    }
}

/// Whether a VM's name can be a file's without leading elsewhere.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0'])
}

/// QEMU's `first,key=value,…`, in which two commas are one of the text.
fn parts(value: &str) -> (String, Vec<String>) {
    let mut parts = vec![String::new()];
    let mut letters = value.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == ',' && letters.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(letter);
        }
    }
    (parts[0].clone(), parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(line: &str) -> Vm {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        Vm::of(&words)
    }

    fn named(name: &str, has_kvm: bool) -> Vm {
        Vm {
            name: Some(name.to_owned()),
            uuid: None,
            has_kvm,
        }
    }

    #[test]
    fn name_is_found_in_each_of_its_forms() {
        for line in [
            "-name guest=web,debug-threads=on -accel kvm",
            "-name web -enable-kvm",
            "--name debug-threads=on,guest=web -machine q35,accel=kvm:tcg",
            "-M pc,accel=kvm -name web,process=x",
        ] {
            assert_eq!(vm(line), named("web", true), "{line}");
        }
        assert_eq!(vm("-name guest=a,,b,c=d"), named("a,b", false));
        let uuid = "2c8a4b6e-0000-4000-8000-000000000001";
        assert_eq!(vm(&format!("-uuid {uuid}")).uuid.as_deref(), Some(uuid));
    }

    #[test]
    fn qemu_without_a_guest_or_without_kvm_is_left_alone() {
        for line in [
            "-machine none,accel=kvm:tcg",
            "-S -machine type=none,accel=kvm -enable-kvm",
            "-machine q35,accel=tcg",
            "-accel tcg",
            "-help",
            "-name",
        ] {
            assert!(!vm(line).has_kvm, "{line}");
        }
    }

    #[test]
    fn name_leads_to_no_other_folder() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("qemu.d");
        fs::create_dir(&inner).unwrap();
        fs::write(folder.path().join("secret.toml"), "").unwrap();
        for name in ["../secret", "/secret", "..", ".secret", ""] {
            assert_eq!(
                named(name, true).find(&inner, "toml").unwrap(),
                None,
                "{name}"
            );
        }
        fs::write(inner.join("default.toml"), "").unwrap();
        let found = named("../secret", true).find(&inner, "toml").unwrap();
        assert_eq!(found, Some(inner.join("default.toml")));
    }

    #[test]
    fn options_are_words_in_which_the_vm_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("default.options");
        fs::write(
            &path,
            "--trace '/var/log/m s/{name}'  # of {uuid}\n--stats\n",
        )
        .unwrap();
        let words = named("web", true).options(&path).unwrap();
        assert_eq!(words, ["--trace", "/var/log/m s/web", "--stats"]);
        let words = named("../web", true).options(&path).unwrap();
        assert_eq!(words[1], "/var/log/m s/unnamed");
        fs::write(&path, "--trace 'x").unwrap();
        assert!(named("web", true).options(&path).is_err());
    }
}
