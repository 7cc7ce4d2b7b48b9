//! Manual pages: what the program itself says with --help, so that there is one text to keep true.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use super::commit::Commit;
use super::output;

/// As wide as a manual page is read.
const COLUMNS: &str = "78";

/// What a page needs beside the program's own words.
pub(super) struct Page {
    pub(super) section: u8,
    /// Behind the name, in lists of pages.
    pub(super) summary: &'static str,
    /// Each has a --help of its own.
    pub(super) commands: &'static [&'static str],
}

impl Page {
    /// The page of a program that can be run here.
    ///
    /// # Errors
    /// When it does not run or knows no such command.
    pub(super) fn write(
        &self,
        binary: &Path,
        name: &str,
        commit: &Commit,
    ) -> anyhow::Result<String> {
        let mut page = String::new();
        writeln!(
            page,
            ".TH \"{}\" \"{}\" \"{}\" \"rootswarm {}\"",
            name.to_uppercase().replace('-', "\\-"),
            self.section,
            commit.day,
            commit.version
        )?;
        let summary = self.summary;
        writeln!(page, ".SH NAME\n{} \\- {summary}", name.replace('-', "\\-"))?;
        section(&mut page, ".SH DESCRIPTION", &help(binary, None)?)?;
        writeln!(page, ".SH COMMANDS")?;
        for &command in self.commands {
            section(
                &mut page,
                &format!(".SS {command}"),
                &help(binary, Some(command))?,
            )?;
        }
        Ok(page)
    }
}

fn help(binary: &Path, subcommand: Option<&str>) -> anyhow::Result<String> {
    let mut command = Command::new(binary);
    command.args(subcommand).arg("--help");
    // Options that are set in the environment would be shown with their values.
    command.env_clear().env("COLUMNS", COLUMNS);
    output(command)
}

/// A heading and lines that stay as they are.
fn section(page: &mut String, heading: &str, text: &str) -> anyhow::Result<()> {
    writeln!(page, "{heading}\n.nf")?;
    for line in text.lines() {
        writeln!(page, "{}", escape(line.trim_end()))?;
    }
    writeln!(page, ".fi")?;
    Ok(())
}

/// What roff would take for its own.
fn escape(line: &str) -> String {
    let line = line.replace('\\', "\\e").replace('-', "\\-");
    match line.starts_with(['.', '\'']) {
        true => format!("\\&{line}"),
        false => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_roff_would_take_for_its_own_is_escaped() {
        let cases = [
            ("", ""),
            ("  --out DIR", "  \\-\\-out DIR"),
            (".service", "\\&.service"),
            ("'quoted'", "\\&'quoted'"),
            ("a\\b", "a\\eb"),
        ];
        for (line, expected) in cases {
            assert_eq!(escape(line), expected, "{line:?}");
        }
    }
}
