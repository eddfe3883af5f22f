//! Carrying a whole database elsewhere: to another engine, or to another number of partitions. Floor 4.
//!
//! [`export()`] writes lines, [`import()`] takes them over and then reads all of the target again, to compare checksums.

mod aside;
mod check;
mod error;
mod export;
mod format;
mod import;
mod lines;
mod merge;
mod router;
mod unfinished;

pub use error::TransferError;
pub use export::{Exported, export};
pub use import::{Imported, Source, import};
pub use unfinished::Unfinished;

/// Whoever is told how far it is.
pub type Tell = std::sync::Arc<dyn Fn(Step) + Send + Sync>;

/// What is told while it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many events and entries there are in all.
    Begun {
        /// How many.
        rows: u64,
    },
    /// So many more of them are done.
    Done {
        /// How many.
        rows: u64,
    },
    /// So many more were there already.
    Skipped {
        /// How many.
        rows: u64,
    },
    /// All is stored, and is read again now.
    Checking {
        /// How many events and entries are read.
        rows: u64,
    },
}
