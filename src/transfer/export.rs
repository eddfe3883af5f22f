//! Writing all that a database has, line by line. Floor 4.
//!
//! What can change is read in one snapshot, together with the heads of the logs. The logs only grow, so they are read up to these
//! heads afterwards, page by page: nothing is held open in the database for long, and servers go on meanwhile.

use std::io::{BufWriter, Write};

use tokio::{sync::mpsc, task::spawn_blocking};

use super::{
    Step, Tell, TransferError, Unfinished,
    format::{CheckpointLine, FORMAT, Header, Instant, Line, SnapshotTotals, Summed, Sums},
    lines,
    merge::{Merged, Row},
    unfinished::Places,
};
use crate::{
    domain::{AggregateId, Clock, Entry, Event, Position},
    store::{SnapshotRow, Store},
};

/// Rows of the snapshot that wait to be written.
const WAITING_ROWS: usize = 1000;
/// How much is written at a time.
const BUFFER_BYTES: usize = 256 << 10;
/// How often progress is told, in rows.
const TELL_EVERY: u64 = 1000;

/// What was exported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// How many events.
    pub events: u64,
    /// How many entries.
    pub entries: u64,
}

/// Exports a database, or goes on with what was written of it.
///
/// # Errors
/// When the database fails, or the output.
pub async fn export(
    store: &Store,
    clock: &dyn Clock,
    unfinished: Option<Unfinished>,
    output: Box<dyn Write + Send>,
    tell: Tell,
) -> Result<Exported, TransferError> {
    let writer = Writer {
        output: BufWriter::with_capacity(BUFFER_BYTES, output),
        sums: Sums::default(),
        buffer: Vec::new(),
        tell,
        untold: 0,
    };
    let (mut writer, begun) = match unfinished {
        Some(unfinished) => writer.resume(unfinished),
        None => begin(store, clock, writer).await?,
    };
    let Begun {
        header,
        totals,
        behind,
    } = begun;
    let up_to = |heads: &[i64]| heads.iter().copied().map(Position).collect::<Vec<_>>();
    let events = Merged::<Event>::read(store, &behind.events, &up_to(&header.events));
    writer = writer.write_all(events).await?;
    let entries = Merged::<(Entry, Option<AggregateId>)>::read(
        store,
        &behind.entries,
        &up_to(&header.entries),
    );
    writer = writer.write_all(entries).await?;
    writer.end(totals).await
}

/// What was read of the snapshot, and the places behind which the logs are still to be written.
struct Begun {
    header: Header,
    totals: SnapshotTotals,
    behind: Places,
}

async fn begin(
    store: &Store,
    clock: &dyn Clock,
    mut writer: Writer,
) -> Result<(Writer, Begun), TransferError> {
    let (sender, mut rows) = mpsc::channel(WAITING_ROWS);
    let mut header = Header {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        database_id: store.database_id().0,
        database: store.kind().to_owned(),
        partitions: u8::try_from(store.partitions().get()).unwrap_or(1),
        exported_at: Instant(clock.now()),
        events: Vec::new(),
        entries: Vec::new(),
    };
    let write = spawn_blocking(move || {
        while let Some(row) = rows.blocking_recv() {
            match row {
                SnapshotRow::Heads(heads) => {
                    let places = |heads: &[Position]| heads.iter().map(|head| head.0).collect();
                    header.events = places(&heads.events);
                    header.entries = places(&heads.entries);
                    (writer.tell)(Step::Begun {
                        rows: header.rows(),
                    });
                    writer.write(&Line::Export(header.clone()))?;
                }
                row => writer.write_row(row)?,
            }
        }
        Ok::<_, TransferError>((writer, header))
    });
    let (read, written) = tokio::join!(store.read_snapshot(sender), write);
    let (mut writer, header) = written??;
    read?;
    let totals = writer.sums.snapshot();
    writer.write(&Line::Snapshot(totals.clone()))?;
    let begun = Begun {
        behind: Places::start(header.events.len()),
        header,
        totals,
    };
    Ok((writer, begun))
}

/// Writes lines and sums them up.
struct Writer {
    output: BufWriter<Box<dyn Write + Send>>,
    sums: Sums,
    buffer: Vec<u8>,
    tell: Tell,
    untold: u64,
}

impl Writer {
    fn resume(mut self, unfinished: Unfinished) -> (Self, Begun) {
        let Unfinished {
            header,
            totals,
            sums,
            behind,
            ..
        } = unfinished;
        (self.tell)(Step::Begun {
            rows: header.rows(),
        });
        (self.tell)(Step::Skipped {
            rows: sums.events.count() + sums.entries.count(),
        });
        self.sums = sums;
        let begun = Begun {
            header,
            totals,
            behind,
        };
        (self, begun)
    }

    fn write(&mut self, line: &Line<'_>) -> Result<(), TransferError> {
        let summed = self.sums.add(line);
        summed.map_err(|source| TransferError::Stored {
            what: "a row".to_owned(),
            source,
        })?;
        self.buffer.clear();
        serde_json::to_writer(&mut self.buffer, line)
            .map_err(|error| TransferError::Output(error.into()))?;
        self.buffer.push(b'\n');
        self.output
            .write_all(&self.buffer)
            .map_err(TransferError::Output)
    }

    fn write_row(&mut self, row: SnapshotRow) -> Result<(), TransferError> {
        match row {
            SnapshotRow::Heads(_) => Ok(()),
            SnapshotRow::Handler(handler) => {
                self.write(&Line::Handler(lines::of_handler(&handler)))
            }
            SnapshotRow::Checkpoint {
                name,
                partition,
                position,
            } => self.write(&Line::Checkpoint(CheckpointLine {
                name: name.into(),
                partition: partition.0,
                position: position.0,
            })),
            SnapshotRow::Aggregate(aggregate, is_made_by_event) => {
                let line = lines::of_aggregate(&aggregate);
                let Sums {
                    aggregates, fields, ..
                } = &mut self.sums;
                let summed = line.add_to(aggregates, fields);
                summed.map_err(|source| TransferError::Stored {
                    what: format!("the aggregate {}", aggregate.id),
                    source,
                })?;
                match is_made_by_event {
                    true => Ok(()),
                    false => self.write(&Line::Aggregate(line)),
                }
            }
            SnapshotRow::Command(command) => {
                lines::with_command(&command, |line| self.write(&line))
            }
            SnapshotRow::ReadModel(model) => {
                lines::with_read_model(&model, |line| self.write(&line))
            }
            SnapshotRow::Delivery(delivery) => {
                self.write(&Line::Delivery(lines::of_delivery(&delivery)))
            }
        }
    }

    /// Writes the rows of a log, on a thread that may be blocked.
    async fn write_all<T: Row + Written>(
        mut self,
        mut rows: Merged<T>,
    ) -> Result<Self, TransferError> {
        spawn_blocking(move || {
            while let Some(row) = rows.next()? {
                row.write_to(&mut self)?;
                self.untold += 1;
                if self.untold >= TELL_EVERY {
                    self.tell_rows();
                }
            }
            self.tell_rows();
            Ok(self)
        })
        .await?
    }

    fn tell_rows(&mut self) {
        (self.tell)(Step::Done { rows: self.untold });
        self.untold = 0;
    }

    async fn end(mut self, totals: SnapshotTotals) -> Result<Exported, TransferError> {
        spawn_blocking(move || {
            let trailer = self.sums.trailer(totals);
            self.write(&Line::End(trailer))?;
            self.output.flush().map_err(TransferError::Output)?;
            Ok(Exported {
                events: self.sums.events.count(),
                entries: self.sums.entries.count(),
            })
        })
        .await?
    }
}

/// What can be written as a line.
trait Written {
    fn write_to(&self, writer: &mut Writer) -> Result<(), TransferError>;
}

impl Written for Event {
    fn write_to(&self, writer: &mut Writer) -> Result<(), TransferError> {
        lines::with_event(self, |line| writer.write(&line))
    }
}

impl Written for (Entry, Option<AggregateId>) {
    fn write_to(&self, writer: &mut Writer) -> Result<(), TransferError> {
        lines::with_entry(&self.0, self.1, |line| writer.write(&line))
    }
}
