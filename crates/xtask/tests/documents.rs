//! What the documents name is there: tests, files, commands, plans, faults, attacks.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The files below `directory` that end so, but for what was built and what begins with a dot.
fn files(directory: &Path, ends: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" {
                files(&path, ends, found);
            }
        } else if name.ends_with(ends) {
            found.push(path);
        }
    }
}

/// What a `cargo xtask` command prints.
fn printed(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The words of a command line, with quotes taken off; as far as it goes on one line.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for letter in line.chars() {
        match (letter, quote) {
            ('\'' | '"', None) => quote = Some(letter),
            (_, Some(open)) if letter == open => quote = None,
            (' ', None) => words.push(String::new()),
            ('`' | '#' | '\n' | ')' | ',', None) => break,
            _ => words.last_mut().unwrap().push(letter),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// What is there to be named.
struct Known {
    root: PathBuf,
    functions: BTreeSet<String>,
    commands: BTreeSet<String>,
    suites: BTreeSet<String>,
    plans: String,
    faults: String,
    attacks: String,
}

impl Known {
    fn gather() -> Known {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut sources = Vec::new();
        files(&root, ".rs", &mut sources);
        let mut functions = BTreeSet::new();
        let mut suites = BTreeSet::new();
        for source in &sources {
            let text = fs::read_to_string(source).unwrap();
            let names = text.split("fn ").skip(1);
            functions.extend(names.map(|rest| {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
                rest[..end.unwrap_or(rest.len())].to_owned()
            }));
            if source.parent().unwrap().ends_with("tests") {
                suites.insert(source.file_stem().unwrap().to_string_lossy().into_owned());
            }
        }
        let help = printed(&["--help"]);
        let commands = help
            .lines()
            .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
            .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()));
        Known {
            functions,
            suites,
            commands: commands.collect(),
            plans: printed(&["sim", "list"]),
            faults: printed(&["faults", "--list"]),
            attacks: printed(&["hostile", "--list"]),
            root,
        }
    }

    /// What is wrong with a command line that begins with `cargo`.
    fn command(&self, line: &str) -> Option<String> {
        let words = words(line);
        let word = |place: usize| words.get(place).map_or("", String::as_str);
        if let Some(place) = words.iter().position(|word| word == "--test") {
            return (!self.suites.contains(word(place + 1))).then(|| "no such suite".to_owned());
        }
        let place = words.iter().position(|word| word == "xtask")?;
        let command = word(place + 1);
        if !self.commands.contains(command) {
            return Some("no such command".to_owned());
        }
        let is_placeholder = |word: &str| {
            word.is_empty() || word.starts_with(['-', '[']) || word.contains('/') || word == "PLAN"
        };
        let argument = word(place + 2);
        let known = match command {
            _ if is_placeholder(argument) => return None,
            "sim" if argument == "list" => return None,
            "sim" => self
                .plans
                .lines()
                .any(|line| line.split_whitespace().next() == Some(argument)),
            "faults" => self.faults.contains(argument),
            "hostile" => self.attacks.contains(argument),
            _ => true,
        };
        (!known).then(|| format!("no {argument:?}"))
    }

    /// Whether a word in backquotes can only be a function's name, and none is called so.
    fn lacks_function(&self, word: &str) -> bool {
        let parts: Vec<&str> = word.split('_').collect();
        let plain = |part: &&str| {
            !part.is_empty()
                && part
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        };
        parts.len() > 2 && parts.iter().all(plain) && !self.functions.contains(word)
    }

    /// Whether a word is the path of a file of this repository, and there is none.
    fn lacks_file(&self, document: &Path, word: &str) -> bool {
        let ends = [".rs", ".md", ".toml", ".service"];
        word.contains('/')
            && !word.starts_with(['/', '.'])
            && ends.iter().any(|end| word.ends_with(end))
            && !self.root.join(word).exists()
            && !document.with_file_name(word).exists()
    }
}

#[test]
fn what_the_documents_name_is_there() {
    let known = Known::gather();
    let mut documents = Vec::new();
    files(&known.root, ".md", &mut documents);
    let mut wrong = Vec::new();
    let mut looked_at = 0;
    for document in &documents {
        let text = fs::read_to_string(document).unwrap();
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut say = |what: String| wrong.push(format!("{}: {what}", document.display()));
        for word in text.split(|c: char| !(c.is_alphanumeric() || "_./-".contains(c))) {
            let word = word.trim_end_matches('.');
            looked_at += 1;
            // An example of what a reader may write himself.
            if known.lacks_file(document, word) && word != "my/own.toml" {
                say(format!("no file {word}"));
            }
        }
        for word in text.split('`').skip(1) {
            if known.lacks_function(word) {
                say(format!("no function {word}"));
            }
        }
        // In the running text a command may go on in the next line; in an example it does not.
        let lines = text.lines().filter_map(|line| line.strip_prefix("cargo "));
        let quoted = flat.split("`cargo ").skip(1);
        for rest in lines.chain(quoted) {
            looked_at += 1;
            if let Some(what) = known.command(rest) {
                let end = rest.find('`').unwrap_or(rest.len()).min(60);
                let line: String = rest[..end].chars().collect();
                say(format!("cargo {line}: {what}"));
            }
        }
    }
    assert!(documents.len() > 5 && looked_at > 1000, "{documents:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
