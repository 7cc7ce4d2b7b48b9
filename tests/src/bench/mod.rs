//! The lab that measures how long N nodes need for an image, with rootswarm and with what people
//! use today, on the same shaped links in the same run.
//!
//! It leaves to others: the command line (`cargo xtask bench`) and building the binaries.

mod case;
mod lab;
mod measure;
mod report;
mod tool;

pub use case::{Case, ParseCaseError, default_cases};
pub use lab::{Lab, LabNode};
pub use measure::{BenchError, Image, Outcome, run};
pub use report::{Machine, Report, markdown};
pub use tool::{ParseToolError, Tool};
