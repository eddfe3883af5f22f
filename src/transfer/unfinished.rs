//! A file that an export was cut off in: what is in it, and where to go on. Floor 4.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use super::{
    error::TransferError,
    format::{EntryLine, EventLine, Header, Line, SnapshotTotals, Sums, problem},
};
use crate::domain::{DatabaseId, Position};

/// An export that was begun and not finished.
#[derive(Debug)]
pub struct Unfinished {
    /// How many bytes of the file are whole lines to go on behind.
    pub bytes: u64,
    pub(super) header: Header,
    pub(super) totals: SnapshotTotals,
    pub(super) sums: Sums,
    pub(super) behind: Places,
}

/// The places up to which the logs were written, one for each partition.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    pub(super) events: Vec<Position>,
    pub(super) entries: Vec<Position>,
}

impl Places {
    pub(super) fn start(partitions: usize) -> Self {
        Self {
            events: vec![Position::START; partitions],
            entries: vec![Position::START; partitions],
        }
    }
}

impl Unfinished {
    /// Looks into a file for an export of a database. None where there is nothing to go on with: no file, or nothing in it but
    /// the beginning, which is soon written again.
    ///
    /// # Errors
    /// When the file cannot be read, or holds something else than a part of such an export.
    pub fn read(path: &Path, database: DatabaseId) -> Result<Option<Self>, TransferError> {
        // Pipes and devices have nothing to go on with, and may be read for ever.
        if path.metadata().is_ok_and(|found| !found.is_file()) {
            return Ok(None);
        }
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(TransferError::Input(error)),
        };
        let mut lines = BufReader::with_capacity(256 << 10, file);
        let mut header: Option<Header> = None;
        let mut found: Option<Self> = None;
        let (mut bytes, mut number, mut buffer) = (0, 0, Vec::new());
        loop {
            buffer.clear();
            let read = lines.read_until(b'\n', &mut buffer);
            read.map_err(TransferError::Input)?;
            if buffer.last() != Some(&b'\n') {
                break;
            }
            bytes += buffer.len() as u64;
            number += 1;
            let line = serde_json::from_slice(&buffer).map_err(|error| TransferError::Line {
                line: number,
                problem: problem(&error),
            });
            match (line, &mut found) {
                (Ok(Line::Export(first)), None) if header.is_none() => {
                    let of = DatabaseId(first.database_id);
                    if of != database {
                        return Err(TransferError::OtherExport {
                            path: path.display().to_string(),
                            found: of,
                            asked: database,
                        });
                    }
                    header = Some(first);
                }
                (Ok(_) | Err(_), None) if header.is_none() => {
                    return Err(TransferError::NotAnExport);
                }
                (Ok(Line::Snapshot(totals)), None) => {
                    let header = header.clone().ok_or(TransferError::NotAnExport)?;
                    found = Some(Self {
                        behind: Places::start(header.events.len()),
                        header,
                        totals,
                        sums: Sums::default(),
                        bytes,
                    });
                }
                (Ok(Line::End(_)), _) => {
                    return Err(TransferError::WholeExport {
                        path: path.display().to_string(),
                    });
                }
                (Ok(line), Some(found)) => found.take(&line, bytes)?,
                (Ok(_), None) => {}
                (Err(error), _) => return Err(error),
            }
        }
        match (&header, bytes) {
            // A piece of a first line, or nothing, or something else without a line in it.
            (None, _) if !buffer.is_empty() && !buffer.starts_with(b"{\"export\"") => {
                Err(TransferError::NotAnExport)
            }
            _ => Ok(found),
        }
    }

    fn take(&mut self, line: &Line<'_>, bytes: u64) -> Result<(), TransferError> {
        let place = match line {
            Line::Event(EventLine {
                partition,
                position,
                ..
            }) => self
                .behind
                .events
                .get_mut(usize::from(*partition))
                .map(|place| (place, *position)),
            Line::Entry(EntryLine {
                partition,
                entry_position,
                ..
            }) => self
                .behind
                .entries
                .get_mut(usize::from(*partition))
                .map(|place| (place, *entry_position)),
            _ => None,
        };
        let Some((place, position)) = place else {
            return Err(TransferError::NotAnExport);
        };
        *place = Position(position);
        self.bytes = bytes;
        let summed = self.sums.add(line);
        summed.map_err(|source| TransferError::Stored {
            what: "a row".to_owned(),
            source,
        })
    }
}
