//! A policy that somebody kept together with what it includes: [`compile_recorded`], and [`included`], the names that
//! make it possible.

use std::path::{Component, Path, PathBuf};

use crate::compile::{Compiled, Options, compile_with};
use crate::diagnostic::Diagnostic;
use crate::source::{Source, Sources};

/// Compiles `policy` again, without its files: `includes` are the other [`Sources`] that it was compiled from, under
/// their names.
///
/// # Errors
/// As for [`compile_with`].
pub fn compile_recorded(
    policy: &Source,
    includes: &[Source],
    options: &Options<'_>,
) -> (Sources, Result<Compiled, Vec<Diagnostic>>) {
    let load = |from: &str, path: &str| {
        let name = included(from, path);
        let found = includes.iter().find(|include| include.name == name);
        found.cloned().ok_or_else(|| "it was not kept".to_owned())
    };
    let options = Options {
        load: Some(&load),
        ..*options
    };
    compile_with(&policy.name, &policy.text, &options)
}

/// What a file is known by that the file `from` includes as `path`: a path from where `from` begins.
#[must_use]
pub fn included(from: &str, path: &str) -> String {
    let folder = Path::new(from).parent().unwrap_or(Path::new(""));
    short(&folder.join(path)).display().to_string()
}

/// Without `folder/..`: what a file is known by must not depend on the way to it.
fn short(path: &Path) -> PathBuf {
    let mut short = PathBuf::new();
    for component in path.components() {
        let last = short.components().next_back();
        match (component, last) {
            (Component::CurDir, _) => {}
            (Component::ParentDir, Some(Component::Normal(_))) => {
                short.pop();
            }
            _ => short.push(component),
        }
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_does_not_depend_on_the_way() {
        assert_eq!(included("p.toml", "q.toml"), "q.toml");
        assert_eq!(included("a/p.toml", "./b/../q.toml"), "a/q.toml");
        assert_eq!(included("a/p.toml", "../../q.toml"), "../q.toml");
        assert_eq!(included("a/p.toml", "/q.toml"), "/q.toml");
    }

    #[test]
    fn policy_compiles_again_from_what_was_kept() {
        let source = |name: &str, text: &str| Source {
            name: name.to_owned(),
            text: format!("version = 1\n{text}"),
        };
        let policy = source("etc/main.toml", "include = ['more/a.toml']");
        let includes = [
            source("etc/more/a.toml", "include = ['../b.toml']"),
            source("etc/b.toml", "[[rule]]\nmsr = 0x48\nread = 'fault'"),
        ];
        let options = Options::default();
        let (sources, compiled) = compile_recorded(&policy, &includes, &options);
        assert_eq!(compiled.expect("no mistakes").filter.ranges().len(), 1);
        assert_eq!(sources.iter().count(), 3);
        let mistakes = compile_recorded(&policy, &includes[..1], &options)
            .1
            .unwrap_err();
        assert_eq!(mistakes[0].labels[0].text, "it was not kept");
    }
}
