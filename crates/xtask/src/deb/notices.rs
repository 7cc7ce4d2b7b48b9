//! What the crates of others ask of whoever passes a program on: their copyright and licence texts.
//!
//! MIT, BSD and ISC want their text in every copy, and a static program is a copy. Texts that are the
//! same for many crates stand once, with the names of all. The Apache License is on every Debian system
//! and is only named.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rootswarm_tests::vm::binaries::workspace_root;
use serde_json::Value;

use super::output;
use crate::sbom;

/// How the names of files with such texts begin.
const BEGINNINGS: [&str; 6] = [
    "COPYING",
    "COPYRIGHT",
    "LICENCE",
    "LICENSE",
    "NOTICE",
    "UNLICENSE",
];

/// Near its head, in every copy of it.
const APACHE: &str = "Apache License\nVersion 2.0";

/// The notices of all that is linked into `program`.
///
/// # Errors
/// When cargo fails or a text cannot be read.
pub(super) fn of(program: &str) -> anyhow::Result<String> {
    let sources = Sources::find()?;
    let mut text = String::from(
        "Crates of other authors that are linked into the program, and their licences:\n\n",
    );
    let mut notices: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for linked in sbom::linked(program)? {
        let name = format!("{} {}", linked.name, linked.version);
        writeln!(text, "  {name}: {}", linked.licence)?;
        for notice in texts(sources.of(&linked.name, &linked.version)?)? {
            notices.entry(notice).or_default().insert(name.clone());
        }
    }
    writeln!(
        text,
        "\nThe text of the Apache License 2.0 is in /usr/share/common-licenses/Apache-2.0."
    )?;
    // By their crates, so that what is added to a program moves nothing else.
    let mut notices: Vec<_> = notices.into_iter().map(|(text, of)| (of, text)).collect();
    notices.sort();
    for (of, notice) in notices {
        let of: Vec<String> = of.into_iter().collect();
        let of = of.join(", ");
        writeln!(text, "\n{}\n{of}\n\n{notice}", "-".repeat(72))?;
    }
    Ok(text)
}

/// Where cargo has unpacked each crate.
struct Sources(BTreeMap<(String, String), PathBuf>);

impl Sources {
    fn find() -> anyhow::Result<Sources> {
        let mut command = rootswarm_tests::cargo::command();
        command
            .args(["metadata", "--format-version", "1", "--locked"])
            .current_dir(workspace_root());
        let said: Value = serde_json::from_str(&output(command)?).context("cargo metadata")?;
        let packages = said["packages"].as_array().context("cargo metadata")?;
        let field = |package: &Value, name: &str| Some(package[name].as_str()?.to_owned());
        let found = packages.iter().filter_map(|package| {
            let manifest = PathBuf::from(field(package, "manifest_path")?);
            let id = (field(package, "name")?, field(package, "version")?);
            Some((id, manifest.parent()?.to_owned()))
        });
        Ok(Sources(found.collect()))
    }

    fn of(&self, name: &str, version: &str) -> anyhow::Result<&Path> {
        self.0
            .get(&(name.to_owned(), version.to_owned()))
            .map(PathBuf::as_path)
            .with_context(|| format!("cargo metadata does not know {name} {version}"))
    }
}

/// The texts in a crate's directory that have to be passed on.
fn texts(directory: &Path) -> anyhow::Result<Vec<String>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file() && is_notice(path.file_name().unwrap_or_default()))
        .collect();
    paths.sort();
    let mut texts = Vec::new();
    for path in paths {
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = normal(&String::from_utf8_lossy(&bytes));
        if !is_apache(&text) && !texts.contains(&text) {
            texts.push(text);
        }
    }
    Ok(texts)
}

fn is_notice(name: &OsStr) -> bool {
    let name = name.to_string_lossy().to_uppercase();
    BEGINNINGS.iter().any(|begin| name.starts_with(begin))
}

/// The same for copies that differ in their line ends only.
fn normal(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n").trim_matches('\n').to_owned()
}

/// A file that is that licence and nothing else.
fn is_apache(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let head: Vec<&str> = lines.by_ref().take(2).collect();
    let begins = head.join("\n").starts_with(APACHE);
    // Some crates have the licences of all their parts in one file.
    begins && !text.contains("Permission is hereby granted, free of charge")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_to_be_passed_on_is_told_from_what_is_on_every_debian() {
        let apache = "\n        Apache License\n   Version 2.0, January 2004\n\n1. Definitions";
        let mit = "Permission is hereby granted, free of charge, to any person";
        let both = format!("{apache}\n{mit}");
        let cases = [(apache, true), (mit, false), (both.as_str(), false)];
        for (text, expected) in cases {
            assert_eq!(is_apache(&normal(text)), expected, "{text}");
        }
        for (name, expected) in [
            ("LICENSE-MIT", true),
            ("license.txt", true),
            ("NOTICE", true),
            ("src", false),
            ("README.md", false),
        ] {
            assert_eq!(is_notice(OsStr::new(name)), expected, "{name}");
        }
        assert_eq!(normal("a  \r\nb\r\n\r\n"), "a\nb");
    }

    #[test]
    fn every_crate_of_the_agent_is_named_and_its_authors_are() {
        let text = of("rootswarm-agent").unwrap();
        for linked in sbom::linked("rootswarm-agent").unwrap() {
            let line = format!("  {} {}: {}\n", linked.name, linked.version, linked.licence);
            assert!(text.contains(&line), "{line}");
        }
        for needed in ["Copyright (c) Tokio Contributors", "free of charge"] {
            assert!(text.contains(needed), "no {needed}");
        }
    }
}
