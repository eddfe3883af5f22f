//! What can go wrong between two databases. Floor 4.

use std::io;

use crate::{
    domain::{DatabaseId, EventId, JsonError},
    store::{ImportRefusal, StoreError},
};

/// Why an export or import does not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The database fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is stored is no JSON.
    #[error("what is stored of {what} {source}")]
    Stored {
        /// Of what.
        what: String,
        /// What is wrong with it.
        source: JsonError,
    },
    /// Nothing can be written.
    #[error("the export cannot be written")]
    Output(#[source] io::Error),
    /// Nothing can be read.
    #[error("the export cannot be read")]
    Input(#[source] io::Error),
    /// Nothing can be set aside.
    #[error("what has to wait of the export cannot be kept in the folder for temporary files")]
    Aside(#[source] io::Error),
    /// There is not one line.
    #[error("there is no export to import: not one line came")]
    Empty,
    /// It is something else.
    #[error("this is no export of tidings: its first line is none")]
    NotAnExport,
    /// It was written by a later version.
    #[error(
        "the export has format {format}, and this version of tidings reads up to {newest}: use a newer one"
    )]
    TooNew {
        /// Its format.
        format: u32,
        /// The newest that can be read.
        newest: u32,
    },
    /// A line that is none.
    #[error("line {line} of the export is broken: {problem}")]
    Line {
        /// Its number, from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// The last line is missing.
    #[error(
        "the export ends in line {line}, without its last line: it was cut off. What came is stored; import the whole export, \
         and it goes on behind that"
    )]
    CutOff {
        /// Where it ends.
        line: u64,
    },
    /// The file holds something else.
    #[error(
        "{path} holds an export of the database {found}, and this one is {asked}: name another file"
    )]
    OtherExport {
        /// The file.
        path: String,
        /// Of which database.
        found: DatabaseId,
        /// Which one is to be exported.
        asked: DatabaseId,
    },
    /// The file is whole.
    #[error("{path} holds a whole export: name another file, or remove it")]
    WholeExport {
        /// The file.
        path: String,
    },
    /// The database has other data.
    #[error(transparent)]
    Refused(#[from] ImportRefusal),
    /// The database has what the export has not, or in another order.
    #[error(
        "the {log} of partition {partition} in the database are not those of the export: at position {position} there is another \
         one. Import into an empty database"
    )]
    Differs {
        /// `events` or `entries`.
        log: &'static str,
        /// The partition.
        partition: u8,
        /// From where on.
        position: i64,
    },
    /// The database has more.
    #[error(
        "partition {partition} of the database has {stored} {log}, and the export {exported}: it is an older one, or of another \
         database"
    )]
    Behind {
        /// `events` or `entries`.
        log: &'static str,
        /// The partition.
        partition: u8,
        /// How many are stored.
        stored: i64,
        /// How many the export has.
        exported: i64,
    },
    /// Somebody else writes.
    #[error(
        "somebody else writes to the database: partition {partition} ends at {head}. Let nothing else use it until the import is \
         done"
    )]
    Disturbed {
        /// The partition.
        partition: u8,
        /// Where its log ends.
        head: i64,
    },
    /// A gap.
    #[error(
        "a version or position in partition {partition} does not follow the one before it, between the lines {first_line} and \
         {last_line}: the export is not whole"
    )]
    Gap {
        /// The partition.
        partition: u8,
        /// In which lines.
        first_line: u64,
        /// To which.
        last_line: u64,
    },
    /// A delivery of nothing.
    #[error("a delivery is of the event {event}, which is not there: the export is not whole")]
    NoEvent {
        /// The event.
        event: EventId,
    },
    /// The counts or checksums are not the same.
    #[error(
        "the {what} that are stored are not those of the export: {stored} with checksum {stored_sum}, instead of {exported} with \
         {exported_sum}. Import into an empty database again"
    )]
    Mismatch {
        /// Which kind.
        what: &'static str,
        /// How many are stored.
        stored: u64,
        /// Their checksum.
        stored_sum: String,
        /// How many there were.
        exported: u64,
        /// Their checksum.
        exported_sum: String,
    },
    /// A task has ended by a panic.
    #[error("a task has ended with a fault")]
    Fault(#[from] tokio::task::JoinError),
}
