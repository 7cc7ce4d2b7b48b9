//! Plans as TOML: the text into a [`Plan`], every field checked.
//!
//! The text is a table; values given on a command line, and the plan's own `small` section, are
//! laid over it before anything is read, so that they are checked like the rest. A field that is
//! not known is refused: a misspelt `los` must not leave the links lossless.

mod reader;
mod tables;

use crate::plan::Plan;
use reader::Reader;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Where the plan's smaller version is described: values to lay over the others.
const SMALL: &str = "small";
/// What is expected of the whole plan.
const EXPECT: &str = "expect";

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The file cannot be read.
    #[error("cannot read plan {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The text is no TOML.
    #[error("plan {} line {line}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where in it, from 1.
        line: usize,
        /// What was found and expected.
        reason: String,
    },
    /// A field is missing, unknown, of the wrong kind or out of range.
    #[error("plan {}: {field}: {reason}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// Its name with those of the tables around it; `(top)` where it is not inside one.
        field: String,
        /// What was found and expected.
        reason: String,
    },
    /// No plan has this name, and no file this path.
    #[error("no plan {name:?}: expected the path of a TOML file or one of {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A value for a plan that has no fields.
    #[error("plan {name:?} is drawn from the seed: expected no other values, found {found}")]
    Drawn {
        /// The plan.
        name: &'static str,
        /// What was given.
        found: String,
    },
    /// A value given beside the plan is not of the form `KEY=VALUE`.
    #[error("bad value {0:?}: expected KEY=VALUE, as in nodes=1000 or links.seed=10Gbit")]
    Override(String),
}

/// A value to lay over those of a plan: `nodes=1000`, `links.seed=10Gbit`.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    keys: Vec<String>,
    value: Value,
    text: String,
}

impl Override {
    /// The text it came from: what replays it.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl std::str::FromStr for Override {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let bad = || PlanError::Override(text.to_owned());
        let (key, value) = text.split_once('=').ok_or_else(bad)?;
        let keys: Vec<String> = key.split('.').map(|key| key.trim().to_owned()).collect();
        if keys.iter().any(String::is_empty) || value.trim().is_empty() {
            return Err(bad());
        }
        // What is no TOML is meant as a string: quotes are a nuisance in a shell.
        let value = match format!("value = {value}").parse::<Table>() {
            Ok(mut table) => table.remove("value").ok_or_else(bad)?,
            Err(_) => Value::String(value.trim().to_owned()),
        };
        Ok(Self {
            keys,
            value,
            text: text.to_owned(),
        })
    }
}

/// Reads the plan at `path`, with its `small` section if that is wanted, and then `overrides`.
///
/// # Errors
/// A file that cannot be read, is no TOML, or has a field that is missing, unknown or out of range.
pub fn read(path: &Path, small: bool, overrides: &[Override]) -> Result<Plan, PlanError> {
    let text = std::fs::read_to_string(path).map_err(|error| PlanError::Read {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    parse(path, &text, small, overrides)
}

/// The same from a text; `path` is for messages, and its stem the plan's name.
///
/// # Errors
/// Text that is no TOML, or a field that is missing, unknown or out of range; in the `small` section
/// too, even if it is not wanted.
pub fn parse(
    path: &Path,
    text: &str,
    small: bool,
    overrides: &[Override],
) -> Result<Plan, PlanError> {
    let mut table: Table = text.parse().map_err(|error| syntax(path, text, &error))?;
    let reader = Reader { path };
    let over = match table.remove(SMALL) {
        // A plan that says nothing of it is small as it is.
        None => Table::new(),
        Some(Value::Table(over)) => over,
        Some(other) => {
            let found = other.type_str();
            return Err(reader.refuse(SMALL, format!("found {found}, expected a table")));
        }
    };
    let mut reduced = table.clone();
    // What is expected of a large image is not what a small one comes to: there the start is a larger part.
    reduced.remove(EXPECT);
    lay_over(&mut reduced, over);
    let [whole, reduced] = [table, reduced].map(|mut table| {
        for given in overrides {
            put(&mut table, &given.keys, given.value.clone());
        }
        reader.plan(table)
    });
    let (whole, reduced) = (whole?, reduced?);
    Ok(if small { reduced } else { whole })
}

fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> PlanError {
    let start = error.span().map_or(0, |span| span.start).min(text.len());
    let before = &text.as_bytes()[..start];
    PlanError::Syntax {
        path: path.to_owned(),
        line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
        reason: one_line(error.message()),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Tables are merged, everything else is replaced.
fn lay_over(table: &mut Table, over: Table) {
    for (key, value) in over {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(value)) => lay_over(under, value),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

fn put(table: &mut Table, keys: &[String], value: Value) {
    let Some((first, rest)) = keys.split_first() else {
        return;
    };
    if rest.is_empty() {
        table.insert(first.clone(), value);
        return;
    }
    let inner = table
        .entry(first.clone())
        .or_insert_with(|| Value::Table(Table::new()));
    if !inner.is_table() {
        *inner = Value::Table(Table::new());
    }
    if let Value::Table(inner) = inner {
        put(inner, rest, value);
    }
}
