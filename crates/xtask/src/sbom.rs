//! `cargo xtask sbom`: what each of the two programs is made of, as CycloneDX 1.5.
//!
//! The tree is cargo's own (normal edges, this target, the features that the program is built with),
//! the checksums are those of `Cargo.lock`, and nothing depends on the time or the machine, so that
//! two bills of one commit are the same bytes. The C library and the compiler are not in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use crate::print;

/// The programs, by their packages.
const PROGRAMS: [&str; 2] = ["rootswarm", "rootswarm-agent"];

/// What both are built for.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Write a bill of materials for each program (CycloneDX 1.5, JSON)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to
    #[arg(long, value_name = "DIR", default_value = "target/sbom")]
    out: PathBuf,
}

/// Writes `PROGRAM.cdx.json` for each and prints what is in it.
///
/// # Errors
/// When cargo fails, says what is not understood, or the lock file does not know a crate.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let out = &args.out;
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let lock = Lock::read()?;
    for program in PROGRAMS {
        let tree = Tree::of(program)?;
        let path = out.join(format!("{program}.cdx.json"));
        fs::write(&path, tree.document(&lock)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let linked = tree.linked().len() - 1;
        print::line(format_args!(
            "{}: {linked} crates in the program, {} that only generate code for it",
            path.display(),
            tree.crates.len() - 1 - linked
        ))?;
    }
    Ok(())
}

/// The bill of one program, as it is written into its package.
///
/// # Errors
/// As [`run`].
pub fn document(program: &str) -> anyhow::Result<String> {
    Tree::of(program)?.document(&Lock::read()?)
}

/// A crate of somebody else that is in a program.
pub struct Linked {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// An SPDX expression.
    pub licence: String,
}

/// All of them, in order.
///
/// # Errors
/// When cargo fails or says what is not understood.
pub fn linked(program: &str) -> anyhow::Result<Vec<Linked>> {
    let tree = Tree::of(program)?;
    let of_others = tree
        .linked()
        .into_iter()
        .filter_map(|id| Some((id, tree.crates.get(id).filter(|found| !found.is_ours)?)));
    let linked = of_others.map(|((name, version), found)| Linked {
        name: name.clone(),
        version: version.clone(),
        licence: found.licence.clone(),
    });
    Ok(linked.collect())
}

/// A crate: its name and version, of which a program has each at most once.
type Id = (String, String);

/// What `Cargo.lock` says of crates that come from a registry.
struct Lock {
    checksums: BTreeMap<Id, String>,
}

impl Lock {
    fn read() -> anyhow::Result<Lock> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.lock");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut checksums = BTreeMap::new();
        // Cargo writes it, one field a line: a name, a version, and for what was fetched a checksum.
        for package in text.split("[[package]]").skip(1) {
            let field = |name: &str| {
                let value =
                    |line: &str| Some(line.strip_prefix(name)?.strip_prefix(" = ")?.to_owned());
                let quoted = package.lines().find_map(value)?;
                Some(quoted.trim_matches('"').to_owned())
            };
            if let (Some(name), Some(version), Some(checksum)) =
                (field("name"), field("version"), field("checksum"))
            {
                checksums.insert((name, version), checksum);
            }
        }
        ensure!(!checksums.is_empty(), "{} has no checksums", path.display());
        Ok(Lock { checksums })
    }
}

#[derive(Debug, Default, PartialEq)]
struct Crate {
    /// An SPDX expression.
    licence: String,
    /// Runs in the compiler and is not in the program.
    is_macro: bool,
    /// Of this workspace.
    is_ours: bool,
    depends_on: BTreeSet<Id>,
}

/// A program and all it is made of.
#[derive(Debug)]
struct Tree {
    root: Id,
    crates: BTreeMap<Id, Crate>,
}

impl Tree {
    fn of(program: &str) -> anyhow::Result<Tree> {
        let output = cargo_tree(program)
            .args(["--prefix", "depth", "--format", " {p}|{l}"])
            .output()
            .context("cannot run cargo tree")?;
        ensure!(
            output.status.success(),
            "cargo tree: {}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        Tree::parse(&String::from_utf8(output.stdout)?)
    }

    /// Lines like `2 tokio-macros v2.7.2 (proc-macro)|MIT`; with ` (*)` behind it, one whose own
    /// dependencies stood further up.
    fn parse(text: &str) -> anyhow::Result<Tree> {
        let mut crates: BTreeMap<Id, Crate> = BTreeMap::new();
        let mut above: Vec<Id> = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let odd = || format!("cargo tree: {line:?} is not \"DEPTH NAME vVERSION|LICENCE\"");
            let (depth, rest) = line.split_once(' ').with_context(odd)?;
            let depth: usize = depth.parse().with_context(odd)?;
            let (package, licence) = rest.split_once('|').with_context(odd)?;
            let licence = licence.strip_suffix(" (*)").unwrap_or(licence);
            let mut words = package.splitn(3, ' ');
            let name = words.next().with_context(odd)?.to_owned();
            let version = words.next().and_then(|word| word.strip_prefix('v'));
            let id = (name, version.with_context(odd)?.to_owned());
            let more = words.next().unwrap_or_default();
            ensure!(depth <= above.len(), odd());
            above.truncate(depth);
            if let Some(parent) = above.last().and_then(|parent| crates.get_mut(parent)) {
                parent.depends_on.insert(id.clone());
            }
            let found = crates.entry(id.clone()).or_default();
            // What some crates wrote before there were SPDX expressions.
            found.licence = licence.replace('/', " OR ");
            found.is_macro = more.contains("(proc-macro)");
            found.is_ours = more.contains("(/");
            above.push(id);
        }
        match above.first() {
            Some(root) => Ok(Tree {
                root: root.clone(),
                crates,
            }),
            None => bail!("cargo tree printed nothing"),
        }
    }

    /// What is in the program: reached without going through a macro.
    fn linked(&self) -> BTreeSet<&Id> {
        let mut linked = BTreeSet::new();
        let mut next = vec![&self.root];
        while let Some(id) = next.pop() {
            let Some(found) = self.crates.get(id).filter(|found| !found.is_macro) else {
                continue;
            };
            if linked.insert(id) {
                next.extend(&found.depends_on);
            }
        }
        linked
    }

    fn document(&self, lock: &Lock) -> anyhow::Result<String> {
        Ok(format!("{:#}\n", self.bill(lock)?))
    }

    fn bill(&self, lock: &Lock) -> anyhow::Result<Value> {
        let linked = self.linked();
        let mut components = Vec::new();
        for (id, found) in &self.crates {
            let mut component = json!({
                "type": if *id == self.root { "application" } else { "library" },
                "bom-ref": purl(id),
                "name": id.0,
                "version": id.1,
                "licenses": [{ "expression": found.licence }],
                "purl": purl(id),
                // CycloneDX's word for what is needed to build only.
                "scope": if linked.contains(id) { "required" } else { "excluded" },
            });
            if !found.is_ours {
                let checksum = lock.checksums.get(id);
                let checksum = checksum
                    .with_context(|| format!("Cargo.lock has no checksum of {} {}", id.0, id.1))?;
                component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
            }
            components.push(component);
        }
        let program = components
            .iter()
            .position(|component| component["type"] == "application")
            .map(|at| components.remove(at));
        let dependencies: Vec<Value> = self
            .crates
            .iter()
            .map(|(id, found)| {
                let on: Vec<String> = found.depends_on.iter().map(purl).collect();
                json!({ "ref": purl(id), "dependsOn": on })
            })
            .collect();
        Ok(json!({
            "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": { "component": program },
            "components": components,
            "dependencies": dependencies,
        }))
    }
}

/// What `program` is made of; how it is written is the caller's.
fn cargo_tree(program: &str) -> Command {
    let mut command = rootswarm_tests::cargo::command();
    command.args(["tree", "--locked", "--package", program]);
    command.args(["--edges", "normal", "--target", TARGET]);
    command
}

/// A package URL.
fn purl((name, version): &Id) -> String {
    format!("pkg:cargo/{name}@{}", version.replace('+', "%2B"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against another of cargo's views of the same, in which nothing has to be put together.
    #[test]
    fn a_bill_has_exactly_the_crates_of_the_tree() {
        let lock = Lock::read().unwrap();
        for program in PROGRAMS {
            let output = cargo_tree(program)
                .args(["--prefix", "none", "--no-dedupe"])
                .output()
                .unwrap();
            let said = String::from_utf8(output.stdout).unwrap();
            let expected: BTreeSet<String> = said
                .lines()
                .filter(|line| !line.is_empty())
                .map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" v"))
                .map(|id| id.replace(" vv", " v"))
                .collect();
            let tree = Tree::of(program).unwrap();
            let bill = tree.bill(&lock).unwrap();
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let components = bill["components"].as_array().unwrap();
            let root = &bill["metadata"]["component"];
            let found: BTreeSet<String> = components
                .iter()
                .chain([root])
                .map(|c| format!("{} v{}", text(&c["name"]), text(&c["version"])))
                .collect();
            assert_eq!(found, expected, "{program}");
            assert_eq!(found.len(), components.len() + 1, "{program}: each once");
            assert_eq!(root["name"], program);
            // All that is not ours has the checksum that it was fetched by, and a licence.
            for component in components {
                let ours = text(&component["name"]).starts_with("rootswarm");
                let hash = component["hashes"][0]["content"].as_str();
                assert_eq!(hash.map(str::len), (!ours).then_some(64), "{component}");
                assert!(!text(&component["licenses"][0]["expression"]).is_empty());
            }
            // What is depended on is in it.
            let known: BTreeSet<String> = components
                .iter()
                .chain([root])
                .map(|component| text(&component["bom-ref"]))
                .collect();
            let dependencies = bill["dependencies"].as_array().unwrap();
            assert_eq!(dependencies.len(), known.len());
            for dependency in dependencies {
                assert!(known.contains(&text(&dependency["ref"])));
                for on in dependency["dependsOn"].as_array().unwrap() {
                    assert!(known.contains(&text(on)), "{on}");
                }
            }
        }
    }

    #[test]
    fn what_only_generates_code_is_told_from_what_is_linked() {
        let text = "0 app v1.0.0 (/src/app)|MIT\n\
                    1 serde v1.2.3|MIT/Apache-2.0\n\
                    2 derive v1.2.3 (proc-macro)|MIT\n\
                    3 syn v2.0.0|MIT\n\
                    4 ident v1.0.0|MIT\n\
                    1 toml v1.0.0+spec-1.1.0|MIT\n\
                    2 ident v1.0.0|MIT (*)\n\
                    2 serde v1.2.3|MIT/Apache-2.0 (*)\n";
        let tree = Tree::parse(text).unwrap();
        let linked: Vec<&str> = tree.linked().iter().map(|id| id.0.as_str()).collect();
        assert_eq!(linked, ["app", "ident", "serde", "toml"]);
        let id = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        let toml = &tree.crates[&id("toml", "1.0.0+spec-1.1.0")];
        let on = BTreeSet::from([id("ident", "1.0.0"), id("serde", "1.2.3")]);
        assert_eq!(toml.depends_on, on);
        assert_eq!(
            tree.crates[&id("serde", "1.2.3")].licence,
            "MIT OR Apache-2.0"
        );
        assert_eq!(
            purl(&id("toml", "1.0.0+spec")),
            "pkg:cargo/toml@1.0.0%2Bspec"
        );
        for bad in [
            "",
            "0 app|MIT\n",
            "x app v1|MIT\n",
            "0 app v1\n",
            "1 app v1|MIT\n",
        ] {
            assert!(Tree::parse(bad).is_err(), "{bad:?}");
        }
        // A crate that the lock file does not know is an error, not a gap.
        let lock = Lock {
            checksums: BTreeMap::new(),
        };
        assert!(tree.bill(&lock).is_err());
    }
}
