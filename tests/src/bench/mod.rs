//! The lab that measures how long N nodes need for an image, with rootswarm and with what people
//! use today, on the same shaped links in the same run.
//!
//! It leaves to others: the command line (`cargo xtask bench`) and building the binaries.

mod case;
mod error;
mod lab;
mod measure;
mod plot;
mod report;
mod summary;
mod table;
mod tool;

pub use case::{Case, ParseCaseError, Trouble, default_cases, hard_cases};
pub use error::BenchError;
pub use lab::{Lab, LabNode};
pub use measure::{Image, Outcome, Trial, run};
pub use plot::svg;
pub use report::{Failure, Machine, Report, ReportError, Skipped};
pub use summary::{Spread, Summary, summarise};
pub use table::{markdown, terminal};
pub use tool::{ParseToolError, Tool};
