//! Where plans come from: the directory of plans that have a name, any other file, or the
//! generator of mixtures.

use crate::mixed::mixed;
use crate::plan::Plan;
use crate::plan_file::{self, Override, PlanError};
use std::path::{Path, PathBuf};

/// The name of the plan that is drawn anew from each seed; see [`mixed`].
pub const MIXED: &str = "mixed";

/// What a plan is read from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A file, its small version or not, with values laid over it.
    File {
        /// Where it is.
        path: PathBuf,
        /// Whether its `small` section counts.
        small: bool,
        /// What is laid over it.
        overrides: Vec<Override>,
    },
    /// A mixture of faults: another plan for each seed.
    Mixed,
}

impl Source {
    /// A plan by its name or its path.
    ///
    /// # Errors
    /// No such plan, or values for [`MIXED`], which takes none. Nothing is read yet.
    pub fn find(name: &str, small: bool, overrides: Vec<Override>) -> Result<Self, PlanError> {
        if name == MIXED {
            let given = overrides.first().map(|given| given.text().to_owned());
            let given = given.or(small.then(|| "--small".to_owned()));
            return match given {
                None => Ok(Source::Mixed),
                Some(found) => Err(PlanError::Drawn { name: MIXED, found }),
            };
        }
        let named = directory().join(format!("{name}.toml"));
        let path = if Path::new(name).is_file() {
            PathBuf::from(name)
        } else if !name.contains('/') && named.is_file() {
            named
        } else {
            let known = named_plans()?.join(", ");
            let name = name.to_owned();
            return Err(PlanError::Unknown { name, known });
        };
        Ok(Source::File {
            path,
            small,
            overrides,
        })
    }

    /// The plan for a seed.
    ///
    /// # Errors
    /// What is wrong with the file or with what is laid over it.
    pub fn plan(&self, seed: u64) -> Result<Plan, PlanError> {
        match self {
            Source::Mixed => Ok(mixed(seed)),
            Source::File {
                path,
                small,
                overrides,
            } => plan_file::read(path, *small, overrides),
        }
    }

    /// The command that runs it again with this seed, and nothing else.
    pub fn replay(&self, seed: u64) -> String {
        let mut command = String::from("cargo xtask sim ");
        match self {
            Source::Mixed => command += MIXED,
            Source::File {
                path,
                small,
                overrides,
            } => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                if path.parent() == Some(directory().as_path()) {
                    command += &stem;
                } else {
                    command += &path.display().to_string();
                }
                if *small {
                    command += " --small";
                }
                for given in overrides {
                    command += &format!(" --set '{}'", given.text());
                }
            }
        }
        command + &format!(" --seed {seed}")
    }
}

/// Where the plans with a name are.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("plans")
}

/// The names of all plans in files, in alphabetical order.
///
/// # Errors
/// When the directory cannot be read.
pub fn named_plans() -> Result<Vec<String>, PlanError> {
    let path = directory();
    let entries = std::fs::read_dir(&path).map_err(|error| PlanError::Read {
        path: path.clone(),
        reason: error.to_string(),
    })?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let is_plan = path.extension().is_some_and(|end| end == "toml");
            Some(
                path.file_stem()
                    .filter(|_| is_plan)?
                    .to_string_lossy()
                    .into_owned(),
            )
        })
        .collect();
    names.sort();
    Ok(names)
}
