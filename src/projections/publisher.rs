//! The publisher of one partition: makes the events of aggregates that are published entries of their stream, each once. Floor 4.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    Ended, Projections,
    projector::{begin, pause_after},
};
use crate::{
    domain::{
        Checkpoint, CheckpointStep, Entry, Event, ExpectedPosition, FencingToken, NewEntry,
        Partition, Position, Timestamp,
        append::{AppendedEntry, Committed, Outcome, Refusal},
    },
    store::StoreError,
    tail::PartitionFollower,
    traces::TracedEvent,
};

/// Events that are looked at at a time, at most.
const BATCH_EVENTS: usize = 1024;
/// How often the checkpoint moves at most while nothing is published.
const IDLE_EVERY: Duration = Duration::from_secs(1);

/// Runs the publisher of a partition until it is stopped, or another runner has taken its place.
pub async fn run_publisher(
    projections: Arc<Projections>,
    partition: Partition,
    token: FencingToken,
    stop: CancellationToken,
) -> Ended {
    let running = async {
        while let Some(stored) = begin(&projections, partition, Checkpoint::Publish, token).await {
            let mut publisher = Publisher {
                follower: projections.tail.follow_partition(partition, stored),
                projections: &projections,
                partition,
                token,
                stored,
                looked: stored,
                moved_at: Instant::now(),
            };
            if let Err(error) = publisher.run().await {
                let what = "events could not be published; trying again";
                pause_after(&error, partition, what).await;
            }
        }
        Ended::FencedOff
    };
    tokio::select! {
        () = stop.cancelled() => Ended::Stopped,
        ended = running => ended,
    }
}

struct Publisher<'p> {
    projections: &'p Projections,
    partition: Partition,
    token: FencingToken,
    follower: PartitionFollower,
    /// Where the checkpoint is, and up to where there was nothing to publish behind it.
    stored: Position,
    looked: Position,
    moved_at: Instant,
}

impl Publisher<'_> {
    /// Goes on until it is not known any more where the checkpoint is.
    async fn run(&mut self) -> Result<(), StoreError> {
        loop {
            let idle_until = self.moved_at + IDLE_EVERY;
            let mut traced = None;
            let entries = tokio::select! {
                events = self.follower.next(BATCH_EVENTS) => {
                    let events = events?;
                    self.looked = events.last().map_or(self.looked, |event| event.position);
                    let entries = events.iter().filter_map(|event| self.entry_of(event));
                    let entries: Vec<_> = entries.collect();
                    traced = self.traced(&events);
                    if entries.is_empty() && self.moved_at.elapsed() < IDLE_EVERY {
                        continue;
                    }
                    entries
                }
                () = sleep_until(idle_until), if self.looked > self.stored => Vec::new(),
            };
            let traces = &self.projections.traces;
            let recording = traced.map(|(traced, from)| traces.recording("publish", traced, from));
            let published = self.publish(entries).await;
            if !matches!(published, Ok(true)) {
                if let Some(recording) = recording {
                    recording.give_up();
                }
                return published.map(drop);
            }
        }
    }

    /// Those of the events that are published and that a trace goes through.
    fn traced(&self, events: &[Arc<Event>]) -> Option<(Vec<TracedEvent>, Timestamp)> {
        let domain = &self.projections.domain;
        let (mut traced, from) = self.projections.traces.traced(events)?;
        traced.retain(|event| domain.publish_to(event.aggregate_type()).is_some());
        Some((traced, from))
    }

    fn entry_of(&self, event: &Event) -> Option<(Partition, NewEntry)> {
        let stream = self.projections.domain.publish_to(&event.aggregate_type)?;
        let entry = NewEntry {
            stream_name: stream.clone(),
            event_id: event.id,
            event_type: event.event_type.clone(),
            data: event.data.clone(),
            expected_position: ExpectedPosition::Any,
        };
        let partitions = self.projections.store.partitions();
        Some((partitions.of_stream(stream), entry))
    }

    /// Appends entries and moves the checkpoint. False where it is elsewhere, or another runner's.
    async fn publish(&mut self, entries: Vec<(Partition, NewEntry)>) -> Result<bool, StoreError> {
        let step = CheckpointStep {
            from: self.stored,
            to: self.looked,
            token: self.token,
        };
        let store = &self.projections.store;
        let published = store
            .publish_entries(self.partition, step, &entries)
            .await?;
        let Some(outcomes) = published else {
            return Ok(false);
        };
        self.stored = self.looked;
        self.moved_at = Instant::now();
        self.tell(entries, outcomes);
        Ok(true)
    }

    /// Hands the new entries to those who follow.
    fn tell(&self, entries: Vec<(Partition, NewEntry)>, outcomes: Vec<Outcome<AppendedEntry>>) {
        let mut of_streams: BTreeMap<Partition, Vec<Arc<Entry>>> = BTreeMap::new();
        for ((stream, entry), outcome) in entries.into_iter().zip(outcomes) {
            match outcome {
                Outcome::Appended { places, .. } => {
                    let stored = places.first().map(|place| entry.stored(stream, *place));
                    of_streams
                        .entry(stream)
                        .or_default()
                        .extend(stored.map(Arc::new));
                }
                Outcome::Refused(Refusal::IdReused { id, .. }) => tracing::error!(
                    event_id = %id,
                    stream = entry.stream_name.as_str(),
                    "an event is not published: its stream has another entry of its id"
                ),
                Outcome::Duplicate | Outcome::Refused(_) => {}
            }
        }
        for (stream, entries) in of_streams {
            self.projections
                .tail
                .take_committed(Committed::Entries(stream, entries));
        }
    }
}
