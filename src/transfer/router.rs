//! Where each line of an export goes: to which partition, and at which place there. Floor 4.
//!
//! An event's place is how many events of its partition came before it. So what is stored already is known by its number alone,
//! and is passed by without asking the database.

use tokio::sync::mpsc;

use super::{
    Step, Tell, TransferError,
    format::{EntryLine, EventLine},
    lines::Read,
};
use crate::{
    domain::{AggregateId, Partition, PartitionCount, Position, Timestamp},
    store::{ImportBatch, ImportPlace},
};

/// A batch is one transaction: so many rows, or about so many bytes.
const BATCH_ROWS: usize = 4000;
const BATCH_BYTES: usize = 2 << 20;
/// How often it is told what was passed by, in rows.
const TELL_EVERY: u64 = 1000;

/// A batch on its way to whoever writes its partition.
pub(super) struct Routed {
    pub(super) partition: Partition,
    pub(super) batch: ImportBatch,
    /// The first and the last line that it is of.
    pub(super) lines: (u64, u64),
}

/// A checkpoint that is carried: how far its reader has come in each partition of the source, and what that is here.
struct Carried {
    name: String,
    /// None where it has no checkpoint: its handler was being removed.
    source: Vec<Option<Position>>,
    /// For each partition here: the events from the first on that it has done, and whether the next may still be one of them.
    done: Vec<(i64, bool)>,
}

/// One partition here.
#[derive(Default)]
struct Place {
    stored: ImportPlace,
    events: i64,
    entries: i64,
    last_event_at: Option<Timestamp>,
    last_entry_at: Option<Timestamp>,
    batch: Option<ImportBatch>,
    batch_bytes: usize,
    batch_lines: (u64, u64),
}

/// Sorts rows by their partition and hands them on in batches.
pub(super) struct Router {
    partitions: PartitionCount,
    source_partitions: usize,
    places: Vec<Place>,
    writers: Vec<mpsc::Sender<Routed>>,
    carried: Vec<Carried>,
    skipped: u64,
    tell: Tell,
    /// The number of the line that is read.
    pub(super) line: u64,
}

/// Why a row goes nowhere.
pub(super) enum Stop {
    /// There is a reason.
    Because(TransferError),
    /// What is wrong with the line.
    Line(String),
    /// Whoever writes has stopped, and knows why.
    Writer,
}

impl From<String> for Stop {
    fn from(problem: String) -> Self {
        Self::Line(problem)
    }
}

impl From<TransferError> for Stop {
    fn from(error: TransferError) -> Self {
        Self::Because(error)
    }
}

impl Router {
    pub(super) fn new(
        partitions: PartitionCount,
        source_partitions: u8,
        stored: Vec<ImportPlace>,
        writers: Vec<mpsc::Sender<Routed>>,
        tell: Tell,
    ) -> Self {
        let place = |stored| Place {
            stored,
            ..Place::default()
        };
        Self {
            partitions,
            source_partitions: usize::from(source_partitions),
            places: stored.into_iter().map(place).collect(),
            writers,
            carried: Vec::new(),
            skipped: 0,
            tell,
            line: 0,
        }
    }

    /// The partition of an aggregate here.
    pub(super) fn of_aggregate(&self, id: uuid::Uuid) -> Partition {
        self.partitions.of_aggregate(AggregateId(id))
    }

    /// Takes a checkpoint of the source.
    pub(super) fn carry(&mut self, name: &str, partition: u8, position: i64) -> Read<()> {
        let partition = usize::from(partition);
        if partition >= self.source_partitions {
            return Err(format!("there is no partition {partition}"));
        }
        let place = self.carried.iter().position(|carried| carried.name == name);
        let place = place.unwrap_or_else(|| {
            self.carried.push(Carried {
                name: name.to_owned(),
                source: vec![None; self.source_partitions],
                done: vec![(0, true); self.partitions.get()],
            });
            self.carried.len() - 1
        });
        self.carried[place].source[partition] = Some(Position(position));
        Ok(())
    }

    /// The checkpoints as they are here: each behind the events from the first on that its reader has all done.
    pub(super) fn checkpoints(&self) -> Vec<(String, Partition, Position)> {
        let mut places = Vec::new();
        for carried in &self.carried {
            for (partition, (done, _)) in self.partitions.iter().zip(&carried.done) {
                let is_there = |source: usize| carried.source[source].is_some();
                if self.sources_of(partition).all(is_there) {
                    places.push((carried.name.clone(), partition, Position(*done)));
                }
            }
        }
        places
    }

    /// The partitions that one here gets its events from.
    fn sources_of(&self, partition: Partition) -> impl Iterator<Item = usize> {
        // An aggregate's partition is the last bits of the same hash in both.
        let common = self.source_partitions.min(self.partitions.get()) - 1;
        (0..self.source_partitions).filter(move |source| (source ^ partition.index()) & common == 0)
    }

    /// Whether several partitions come into one.
    pub(super) fn partitions_become_fewer(&self) -> bool {
        self.source_partitions > self.partitions.get()
    }

    /// Takes an event.
    pub(super) fn event(&mut self, line: &EventLine<'_>) -> Result<(), Stop> {
        let partition = self.of_aggregate(line.aggregate_id);
        let source = usize::from(line.partition);
        if source >= self.source_partitions {
            return Err(format!("there is no partition {source}").into());
        }
        for carried in &mut self.carried {
            let (done, is_open) = &mut carried.done[partition.index()];
            *is_open &= carried.source[source].is_some_and(|place| place.0 >= line.position);
            *done += i64::from(*is_open);
        }
        let place = &mut self.places[partition.index()];
        place.events += 1;
        let (number, at) = (place.events, line.created_at.0);
        in_order(&mut place.last_event_at, at)?;
        if let Some((stored, id)) = place.stored.event
            && number <= stored.0
        {
            if number == stored.0 && id.0 != line.id {
                return Err(differs("events", partition, number));
            }
            self.skip();
            return Ok(());
        }
        let event = line.read(partition, Position(number))?;
        let bytes = event.size_bytes();
        match &mut place.batch {
            Some(ImportBatch::Events(events)) => events.push(event),
            _ => self.begin(partition, ImportBatch::Events(vec![event]))?,
        }
        self.added(partition, bytes)
    }

    /// Takes an entry.
    pub(super) fn entry(&mut self, line: &EntryLine<'_>) -> Result<(), Stop> {
        let stream = line.stream()?;
        let partition = self.partitions.of_stream(&stream);
        let place = &mut self.places[partition.index()];
        place.entries += 1;
        let (number, at) = (place.entries, line.created_at.0);
        in_order(&mut place.last_entry_at, at)?;
        if let Some((stored, stored_stream, position)) = &place.stored.entry
            && number <= stored.0
        {
            if number == stored.0 && (*stored_stream != stream || position.0 != line.position) {
                return Err(differs("entries", partition, number));
            }
            self.skip();
            return Ok(());
        }
        let shown = line.aggregate_id.map(|id| self.of_aggregate(id));
        let entry = line.read(stream, partition, Position(number))?;
        let bytes = entry.size_bytes();
        let place = &mut self.places[partition.index()];
        match &mut place.batch {
            Some(ImportBatch::Entries(entries)) => entries.push((entry, shown)),
            _ => self.begin(partition, ImportBatch::Entries(vec![(entry, shown)]))?,
        }
        self.added(partition, bytes)
    }

    /// Takes a row of another kind.
    pub(super) fn row(
        &mut self,
        partition: Partition,
        bytes: usize,
        row: ImportBatch,
    ) -> Result<(), Stop> {
        let place = &mut self.places[partition.index()];
        let left = match (&mut place.batch, row) {
            (Some(ImportBatch::Aggregates(rows)), ImportBatch::Aggregates(row)) => {
                rows.extend(row);
                None
            }
            (Some(ImportBatch::Commands(rows)), ImportBatch::Commands(row)) => {
                rows.extend(row);
                None
            }
            (Some(ImportBatch::ReadModels(rows)), ImportBatch::ReadModels(row)) => {
                rows.extend(row);
                None
            }
            (Some(ImportBatch::Deliveries(rows)), ImportBatch::Deliveries(row)) => {
                rows.extend(row);
                None
            }
            (_, row) => Some(row),
        };
        if let Some(row) = left {
            self.begin(partition, row)?;
        }
        self.added(partition, bytes)
    }

    /// Hands on what is left.
    pub(super) fn flush(&mut self) -> Result<(), Stop> {
        self.tell_skipped();
        for partition in self.partitions.iter() {
            self.send(partition)?;
        }
        Ok(())
    }

    /// Checks that the export has all that was stored before.
    pub(super) fn check_end(&self) -> Result<(), TransferError> {
        for (partition, place) in self.partitions.iter().zip(&self.places) {
            let events = place.stored.event.map_or(0, |(position, _)| position.0);
            let entry = place.stored.entry.as_ref();
            let entries = entry.map_or(0, |(position, ..)| position.0);
            for (log, stored, exported) in [
                ("events", events, place.events),
                ("entries", entries, place.entries),
            ] {
                if stored > exported {
                    return Err(TransferError::Behind {
                        log,
                        partition: partition.0,
                        stored,
                        exported,
                    });
                }
            }
        }
        Ok(())
    }

    fn skip(&mut self) {
        self.skipped += 1;
        if self.skipped >= TELL_EVERY {
            self.tell_skipped();
        }
    }

    fn tell_skipped(&mut self) {
        (self.tell)(Step::Skipped { rows: self.skipped });
        self.skipped = 0;
    }

    fn begin(&mut self, partition: Partition, batch: ImportBatch) -> Result<(), Stop> {
        self.send(partition)?;
        let place = &mut self.places[partition.index()];
        place.batch = Some(batch);
        place.batch_lines.0 = self.line;
        Ok(())
    }

    fn added(&mut self, partition: Partition, bytes: usize) -> Result<(), Stop> {
        let place = &mut self.places[partition.index()];
        place.batch_bytes += bytes;
        place.batch_lines.1 = self.line;
        let rows = place.batch.as_ref().map_or(0, rows_of);
        if rows >= BATCH_ROWS || place.batch_bytes >= BATCH_BYTES {
            return self.send(partition);
        }
        Ok(())
    }

    /// What belongs to one partition goes to one writer, in its order.
    fn send(&mut self, partition: Partition) -> Result<(), Stop> {
        let place = &mut self.places[partition.index()];
        place.batch_bytes = 0;
        let Some(batch) = place.batch.take() else {
            return Ok(());
        };
        let writer = &self.writers[partition.index() % self.writers.len()];
        let sent = writer.blocking_send(Routed {
            partition,
            batch,
            lines: place.batch_lines,
        });
        sent.map_err(|_| Stop::Writer)
    }
}

/// How many rows are in a batch.
pub(super) fn rows_of(batch: &ImportBatch) -> usize {
    match batch {
        ImportBatch::Events(rows) => rows.len(),
        ImportBatch::Entries(rows) => rows.len(),
        ImportBatch::Aggregates(rows) => rows.len(),
        ImportBatch::Commands(rows) => rows.len(),
        ImportBatch::ReadModels(rows) => rows.len(),
        ImportBatch::Deliveries(rows) => rows.len(),
    }
}

/// Time never runs backwards in a partition.
fn in_order(last: &mut Option<Timestamp>, at: Timestamp) -> Result<(), Stop> {
    if last.is_some_and(|last| at < last) {
        return Err(Stop::Line(
            "it is older than the one before it in its partition: the lines are not in the order in which they were exported, \
             or the export was gone on with while others wrote. Export again, into another file"
                .to_owned(),
        ));
    }
    *last = Some(at);
    Ok(())
}

fn differs(log: &'static str, partition: Partition, position: i64) -> Stop {
    Stop::Because(TransferError::Differs {
        log,
        partition: partition.0,
        position,
    })
}
