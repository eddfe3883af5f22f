//! Reading all that a database has, to sum it up. Floor 4.

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use super::{
    Step, Tell, TransferError,
    format::{Line, Summed, Sums, Total, Trailer},
    lines,
    merge::Pages,
};
use crate::{
    domain::{AggregateId, Entry, Event, Partition, Position},
    store::{Heads, SnapshotRow, Store},
};

/// Rows of the snapshot that wait to be summed.
const WAITING_ROWS: usize = 1000;
/// Logs that are read side by side.
const SIDE_BY_SIDE: usize = 4;

/// Sums up what is stored.
pub(super) async fn sum_up(store: &Store, tell: &Tell) -> Result<Trailer, TransferError> {
    let (sender, rows) = mpsc::channel(WAITING_ROWS);
    let (read, summed) = tokio::join!(store.read_snapshot(sender), sum_snapshot(rows));
    let (heads, mut sums) = summed?;
    read?;
    let places = heads.events.iter().chain(&heads.entries);
    let rows = places.map(|head| head.0.unsigned_abs()).sum();
    tell(Step::Checking { rows });
    let parts = store.partitions().iter().map(|partition| {
        let (events, entries) = (
            heads.events[partition.index()],
            heads.entries[partition.index()],
        );
        let (store, tell) = (store.clone(), tell.clone());
        // A task of its own, so that partitions are summed up on several processors.
        async move {
            tokio::spawn(
                async move { sum_partition(&store, partition, events, entries, &tell).await },
            )
            .await?
        }
    });
    let mut parts = stream::iter(parts).buffer_unordered(SIDE_BY_SIDE);
    while let Some(part) = parts.try_next().await? {
        sums.join(&part);
    }
    let snapshot = sums.snapshot();
    Ok(sums.trailer(snapshot))
}

async fn sum_snapshot(
    mut rows: mpsc::Receiver<SnapshotRow>,
) -> Result<(Heads, Sums), TransferError> {
    let mut heads = Heads::default();
    let mut sums = Sums::default();
    while let Some(row) = rows.recv().await {
        match row {
            SnapshotRow::Heads(read) => heads = read,
            SnapshotRow::Handler(handler) => {
                add(&mut sums, &Line::Handler(lines::of_handler(&handler)))?;
            }
            SnapshotRow::Checkpoint { .. } => {}
            SnapshotRow::Aggregate(aggregate, _) => {
                let Sums {
                    aggregates, fields, ..
                } = &mut sums;
                let summed = lines::of_aggregate(&aggregate).add_to(aggregates, fields);
                summed.map_err(stored)?;
            }
            SnapshotRow::Command(command) => {
                lines::with_command(&command, |line| add(&mut sums, &line))?;
            }
            SnapshotRow::ReadModel(model) => {
                lines::with_read_model(&model, |line| add(&mut sums, &line))?;
            }
            SnapshotRow::Delivery(delivery) => {
                add(&mut sums, &Line::Delivery(lines::of_delivery(&delivery)))?;
            }
        }
    }
    Ok((heads, sums))
}

async fn sum_partition(
    store: &Store,
    partition: Partition,
    events: Position,
    entries: Position,
    tell: &Tell,
) -> Result<Sums, TransferError> {
    let mut sums = Sums::default();
    let mut pages = Pages::<Event>::read(store, partition, Position::START, events);
    while let Some(page) = pages.next_page().await? {
        for event in &page {
            lines::with_event(event, |line| add(&mut sums, &line))?;
        }
        tell(Step::Done {
            rows: page.len() as u64,
        });
    }
    let mut pages =
        Pages::<(Entry, Option<AggregateId>)>::read(store, partition, Position::START, entries);
    while let Some(page) = pages.next_page().await? {
        for (entry, aggregate) in &page {
            lines::with_entry(entry, *aggregate, |line| add(&mut sums, &line))?;
        }
        tell(Step::Done {
            rows: page.len() as u64,
        });
    }
    Ok(sums)
}

fn add(sums: &mut Sums, line: &Line<'_>) -> Result<(), TransferError> {
    sums.add(line).map_err(stored)
}

fn stored(source: crate::domain::JsonError) -> TransferError {
    TransferError::Stored {
        what: "a row".to_owned(),
        source,
    }
}

/// Compares what is stored with what was exported.
pub(super) fn compare(stored: &Trailer, exported: &Trailer) -> Result<(), TransferError> {
    let (is, was) = (&stored.snapshot, &exported.snapshot);
    let pairs = [
        ("events", &stored.events, &exported.events),
        ("entries", &stored.entries, &exported.entries),
        ("aggregates", &is.aggregates, &was.aggregates),
        ("commands", &is.commands, &was.commands),
        ("read models", &is.read_models, &was.read_models),
        ("event handlers", &is.handlers, &was.handlers),
        ("deliveries", &is.deliveries, &was.deliveries),
    ];
    let differs = |(_, stored, exported): &(&str, &Total, &Total)| stored != exported;
    match pairs.into_iter().find(differs) {
        None => Ok(()),
        Some((what, stored, exported)) => Err(TransferError::Mismatch {
            what,
            stored: stored.count,
            stored_sum: stored.checksum.clone(),
            exported: exported.count,
            exported_sum: exported.checksum.clone(),
        }),
    }
}
