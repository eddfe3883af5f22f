//! Taking over an export. Floor 4.
//!
//! One thread reads and parses, a few tasks write, each for some of the partitions. Then everything is read again.

use std::io::{BufRead, Read as _};

use tokio::{
    runtime::Handle,
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
};

use super::{
    Step, Tell, TransferError,
    aside::Aside,
    check,
    format::{FORMAT, Header, Line, Trailer, problem},
    router::{Routed, Router, Stop, rows_of},
};
use crate::{
    domain::{DatabaseId, EventHandler, Partition, PartitionCount, Position},
    store::{ImportBatch, ImportOutcome, Store},
};

/// Tasks that write.
const WRITERS: usize = 4;
/// Batches that wait for each of them.
const WAITING_BATCHES: usize = 2;
/// The longest line: far longer than any event is.
const MAX_LINE_BYTES: u64 = 1 << 30;

/// Where an export comes from.
pub type Source = Box<dyn BufRead + Send>;

/// What was imported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Events that are stored now.
    pub events: u64,
    /// Their checksum.
    pub events_checksum: String,
    /// Entries that are stored now.
    pub entries: u64,
    /// Handlers that were made inactive, for this database cannot run their function.
    pub inactive_handlers: u64,
}

/// Takes over an export, or goes on with it.
///
/// # Errors
/// When the export is not whole or not right, the database has other data, or it fails.
pub async fn import(store: &Store, source: Source, tell: Tell) -> Result<Imported, TransferError> {
    let (source, header) = spawn_blocking(move || {
        let mut lines = Lines {
            source,
            number: 0,
            buffer: Vec::new(),
        };
        let header = lines.header()?;
        Ok::<_, TransferError>((lines, header))
    })
    .await??;
    let source_partitions = PartitionCount::new(header.partitions);
    let source_partitions = source_partitions.ok_or(TransferError::NotAnExport)?;
    let places = store
        .begin_import(DatabaseId(header.database_id), source_partitions)
        .await??;
    tell(Step::Begun {
        rows: header.rows(),
    });

    let mut writers = JoinSet::new();
    let senders = (0..WRITERS.min(store.partitions().get())).map(|_| {
        let (sender, batches) = mpsc::channel(WAITING_BATCHES);
        writers.spawn(write(store.clone(), batches, tell.clone()));
        sender
    });
    let router = Router::new(
        store.partitions(),
        header.partitions,
        places,
        senders.collect(),
        tell.clone(),
    );
    let reader = Reader {
        lines: source,
        router,
        store: store.clone(),
        handle: Handle::current(),
        handlers: Vec::new(),
        inactive_handlers: 0,
        deliveries: Aside::default(),
    };
    let read = spawn_blocking(move || reader.read()).await?;
    // Whoever writes ends when the reader is gone; what went wrong there comes first.
    while let Some(written) = writers.join_next().await {
        written??;
    }
    let read = match read {
        Ok(read) => read,
        Err(Stop::Because(error)) => return Err(error),
        Err(Stop::Line(_) | Stop::Writer) => return Err(TransferError::NotAnExport),
    };
    let stored = check::sum_up(store, &tell).await?;
    check::compare(&stored, &read.trailer)?;
    store
        .finish_import(&read.checkpoints, read.partitions_become_fewer)
        .await?;
    Ok(Imported {
        events: stored.events.count,
        events_checksum: stored.events.checksum,
        entries: stored.entries.count,
        inactive_handlers: read.inactive_handlers,
    })
}

/// Stores batches until no more come.
async fn write(
    store: Store,
    mut batches: mpsc::Receiver<Routed>,
    tell: Tell,
) -> Result<(), TransferError> {
    while let Some(routed) = batches.recv().await {
        let Routed {
            partition,
            batch,
            lines: (first_line, last_line),
        } = routed;
        match store.import(partition, &batch).await? {
            ImportOutcome::Stored => {}
            ImportOutcome::OtherHead(head) => {
                return Err(TransferError::Disturbed {
                    partition: partition.0,
                    head: head.0,
                });
            }
            ImportOutcome::Gap => {
                return Err(TransferError::Gap {
                    partition: partition.0,
                    first_line,
                    last_line,
                });
            }
            ImportOutcome::NoEvent(event) => return Err(TransferError::NoEvent { event }),
        }
        if matches!(batch, ImportBatch::Events(_) | ImportBatch::Entries(_)) {
            tell(Step::Done {
                rows: rows_of(&batch) as u64,
            });
        }
    }
    Ok(())
}

/// The lines of an export.
struct Lines {
    source: Source,
    number: u64,
    buffer: Vec<u8>,
}

impl Lines {
    /// Reads the next line; false where the export ends.
    fn next(&mut self) -> Result<bool, TransferError> {
        self.buffer.clear();
        let mut bounded = (&mut self.source).take(MAX_LINE_BYTES);
        bounded
            .read_until(b'\n', &mut self.buffer)
            .map_err(TransferError::Input)?;
        if self.buffer.last() != Some(&b'\n') {
            if self.buffer.len() as u64 == MAX_LINE_BYTES {
                return Err(TransferError::Line {
                    line: self.number + 1,
                    problem: "it is longer than 1 GiB".to_owned(),
                });
            }
            return Ok(false);
        }
        self.number += 1;
        Ok(true)
    }

    fn header(&mut self) -> Result<Header, TransferError> {
        /// What of a header every version has.
        #[derive(serde::Deserialize)]
        struct AnyHeader {
            export: AnyFormat,
        }
        #[derive(serde::Deserialize)]
        struct AnyFormat {
            format: u32,
        }
        if !self.next()? {
            return Err(match self.buffer.is_empty() {
                true => TransferError::Empty,
                false => TransferError::NotAnExport,
            });
        }
        let any: AnyHeader =
            serde_json::from_slice(&self.buffer).map_err(|_| TransferError::NotAnExport)?;
        let format = any.export.format;
        if format > FORMAT {
            return Err(TransferError::TooNew {
                format,
                newest: FORMAT,
            });
        }
        match serde_json::from_slice(&self.buffer) {
            Ok(Line::Export(header)) => Ok(header),
            _ => Err(TransferError::NotAnExport),
        }
    }
}

/// Reads an export to its end.
struct Reader {
    lines: Lines,
    router: Router,
    store: Store,
    handle: Handle,
    handlers: Vec<EventHandler>,
    inactive_handlers: u64,
    /// Deliveries, until their events are stored.
    deliveries: Aside,
}

/// What was read, and is left to be done.
struct Read {
    trailer: Trailer,
    checkpoints: Vec<(String, Partition, Position)>,
    partitions_become_fewer: bool,
    inactive_handlers: u64,
}

impl Reader {
    fn read(mut self) -> Result<Read, Stop> {
        let mut trailer = None;
        while trailer.is_none() && self.lines.next().map_err(Stop::Because)? {
            let buffer = std::mem::take(&mut self.lines.buffer);
            self.router.line = self.lines.number;
            let took = self.take(&buffer);
            self.lines.buffer = buffer;
            match took {
                Ok(last) => trailer = last,
                Err(Stop::Line(problem)) => {
                    // What came before is whole.
                    self.router.flush()?;
                    return Err(Stop::Because(TransferError::Line {
                        line: self.lines.number,
                        problem,
                    }));
                }
                Err(stop) => return Err(stop),
            }
        }
        let Some(trailer) = trailer else {
            self.router.flush()?;
            return Err(Stop::Because(TransferError::CutOff {
                line: self.lines.number,
            }));
        };
        // Behind the events: the rows of a partition are stored in their order.
        let mut deliveries = std::mem::take(&mut self.deliveries).take_back()?;
        while let Some(text) = deliveries.next()? {
            if let Line::Delivery(line) = parse(text)? {
                let partition = self.router.of_aggregate(line.aggregate_id);
                let row = ImportBatch::Deliveries(vec![line.read(partition)?]);
                self.router.row(partition, text.len(), row)?;
            }
        }
        self.router.flush()?;
        self.router.check_end()?;
        Ok(Read {
            trailer,
            checkpoints: self.router.checkpoints(),
            partitions_become_fewer: self.router.partitions_become_fewer(),
            inactive_handlers: self.inactive_handlers,
        })
    }

    /// Takes a line; the last one is handed back.
    fn take(&mut self, text: &[u8]) -> Result<Option<Trailer>, Stop> {
        let bytes = text.len();
        match parse(text)? {
            Line::Event(line) => self.router.event(&line)?,
            Line::Entry(line) => self.router.entry(&line)?,
            Line::Command(line) => {
                let partition = self.router.of_aggregate(line.aggregate_id);
                let row = ImportBatch::Commands(vec![line.read(partition)?]);
                self.router.row(partition, bytes, row)?;
            }
            Line::Aggregate(line) => {
                let partition = self.router.of_aggregate(line.id);
                let row = ImportBatch::Aggregates(vec![line.read()?]);
                self.router.row(partition, bytes, row)?;
            }
            Line::ReadModel(line) => {
                let partition = self.router.of_aggregate(line.aggregate_id);
                let row = ImportBatch::ReadModels(vec![line.read(partition)?]);
                self.router.row(partition, bytes, row)?;
            }
            Line::Delivery(line) => {
                line.read(self.router.of_aggregate(line.aggregate_id))?;
                self.deliveries.keep(text)?;
            }
            Line::Handler(line) => self.handlers.push(line.read()?),
            Line::Checkpoint(line) => {
                self.router
                    .carry(&line.name, line.partition, line.position)?;
            }
            Line::Snapshot(_) => {
                let import = self.store.import_handlers(&self.handlers);
                let inactive = self.handle.block_on(import);
                self.inactive_handlers = inactive.map_err(TransferError::from)?;
            }
            Line::End(trailer) => return Ok(Some(trailer)),
            Line::Export(_) => {
                return Err(Stop::Line("a second export begins here".to_owned()));
            }
        }
        Ok(None)
    }
}

fn parse(line: &[u8]) -> Result<Line<'_>, Stop> {
    serde_json::from_slice(line).map_err(|error| Stop::Line(problem(&error)))
}
