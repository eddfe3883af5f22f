//! Appends over several partitions: one transaction each, beside the queues. Floor 3.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{AppendError, Hooks, log};
use crate::{
    config::Limits,
    domain::{
        Event, NewEvent, Partition, Timestamp,
        append::{AppendRequest, AppendedEvent, BatchReport, Committed, LogName, Outcome, Refusal},
    },
    store::{GivingWay, Store, StoreError},
    traces::Span,
};

/// Appends over several partitions that run at the same time.
const AT_ONCE: usize = 4;

/// What appends over several partitions share.
pub(super) struct Across {
    store: Store,
    hooks: Hooks,
    turns: Semaphore,
    bytes: Semaphore,
    stopping: CancellationToken,
}

impl Across {
    pub(super) fn new(
        store: &Store,
        limits: &Limits,
        hooks: &Hooks,
        stopping: &CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            store: store.clone(),
            hooks: hooks.clone(),
            turns: Semaphore::new(AT_ONCE),
            bytes: Semaphore::new(limits.max_queue_bytes.min(Semaphore::MAX_PERMITS)),
            stopping: stopping.clone(),
        })
    }

    /// One transaction over several partitions, beside their queues.
    pub(super) async fn append(
        &self,
        mut events: Vec<NewEvent>,
        taken_at: Instant,
        span: Span,
    ) -> Result<Outcome<Arc<Event>>, AppendError> {
        if let Some(parent) = span.parent() {
            log::trace_events(&mut events, parent);
        }
        let bytes: usize = events.iter().map(NewEvent::size_bytes).sum();
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let _room = self
            .bytes
            .try_acquire_many(bytes)
            .map_err(|_| AppendError::full())?;
        if self.stopping.is_cancelled() {
            return Err(AppendError::stopping());
        }
        let _turn = self
            .turns
            .acquire()
            .await
            .map_err(|_| AppendError::stopping())?;

        let partitions = self.store.partitions();
        let mut places: BTreeMap<Partition, Vec<usize>> = BTreeMap::new();
        for (index, event) in events.iter().enumerate() {
            places
                .entry(partitions.of_aggregate(event.aggregate_id))
                .or_default()
                .push(index);
        }
        let parts: Vec<(Partition, AppendRequest)> = places
            .iter()
            .map(|(partition, indices)| {
                let events = indices.iter().map(|&index| events[index].clone());
                (*partition, AppendRequest::of_events(events.collect()))
            })
            .collect();
        let (began, from) = (Instant::now(), self.hooks.traces.now());
        let committed = self.commit_across(&parts, &events).await;
        let took = began.elapsed();
        if let Some(times) = from.zip(self.hooks.traces.now()) {
            let numbers = [
                ("tidings.batch.requests", 1),
                ("tidings.batch.events", events.len()),
                ("tidings.batch.partitions", parts.len()),
            ];
            span.record_part("commit", times, &numbers);
        }
        let mut report = BatchReport {
            log: LogName::Events,
            took,
            is_committed: committed.is_ok(),
            size: events.len(),
            requests: &[],
            events: &[],
        };
        let outcomes = match committed {
            Ok(outcomes) => outcomes,
            Err(error) => {
                // What is refused for a value in it is no failure of the database.
                if !matches!(error, AppendError::Refused(_)) {
                    self.hooks.measure(&report);
                }
                return Err(error);
            }
        };

        if let Some(refusal) = first_refusal(&outcomes, &places, &events) {
            (self.hooks.on_batch)(&report);
            return Ok(Outcome::Refused(refusal));
        }
        let mut stored: Vec<Option<Arc<Event>>> = vec![None; events.len()];
        let mut newest = Timestamp::from_micros(0);
        for (((partition, part), outcome), indices) in
            parts.into_iter().zip(outcomes).zip(places.values())
        {
            let Outcome::Appended { at, places } = outcome else {
                (self.hooks.on_batch)(&report);
                return Ok(Outcome::Duplicate);
            };
            newest = newest.max(at);
            let part = log::stored_events(partition, part.events, places);
            for (&index, event) in indices.iter().zip(&part) {
                stored[index] = Some(event.clone());
            }
            self.hooks.tell(Committed::Events(partition, part));
        }
        let stored: Vec<Arc<Event>> = stored.into_iter().flatten().collect();
        let requests = [((began + took).duration_since(taken_at), stored.len())];
        (report.requests, report.events) = (&requests, &stored);
        self.hooks.measure(&report);
        Ok(Outcome::Appended {
            at: newest,
            places: stored,
        })
    }

    async fn commit_across(
        &self,
        parts: &[(Partition, AppendRequest)],
        events: &[NewEvent],
    ) -> Result<Vec<Outcome<AppendedEvent>>, AppendError> {
        let ids = || events.iter().map(|event| event.id.0).collect();
        let mut giving_way = GivingWay::begin();
        loop {
            match self.store.append_events_across(parts).await {
                Ok(outcomes) => return Ok(outcomes),
                Err(StoreError::GaveWay(_)) if giving_way.pause().await => {}
                Err(StoreError::ValueRefused(_)) => {
                    return Err(AppendError::Refused(Refusal::ValueRefused));
                }
                Err(error) => return Err(AppendError::of_store(Arc::new(error), ids())),
            }
        }
    }
}

/// The refusal of a request over several partitions, each of which has judged its own part: what one that knows all of them
/// would say. Ids come first; then what is wrong first in the request.
fn first_refusal<T>(
    outcomes: &[Outcome<T>],
    places: &BTreeMap<Partition, Vec<usize>>,
    events: &[NewEvent],
) -> Option<Refusal> {
    let parts = || outcomes.iter().zip(places.values());
    let refusals = || {
        parts().filter_map(|(outcome, indices)| match outcome {
            Outcome::Refused(refusal) => Some(refusal.clone().at(|index| indices[index])),
            _ => None,
        })
    };
    let reused = refusals().filter(|refusal| matches!(refusal, Refusal::IdReused { .. }));
    if let Some(refusal) = reused.min_by_key(Refusal::index) {
        return Some(refusal);
    }
    let known: Vec<usize> = parts()
        .filter(|(outcome, _)| matches!(outcome, Outcome::Duplicate))
        .filter_map(|(_, indices)| indices.first().copied())
        .collect();
    if known.len() == outcomes.len() {
        return None;
    }
    match known.into_iter().min() {
        // Some of the request is known, and some is not.
        Some(index) => Some(Refusal::IdReused {
            index,
            id: events[index].id,
        }),
        None => refusals().min_by_key(Refusal::index),
    }
}
