//! Appends over several partitions: one transaction each, beside the queues. Floor 3.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{AppendError, Hooks, log};
use crate::{
    config::Limits,
    domain::{
        Event, NewEvent, Partition, Timestamp,
        append::{AppendRequest, AppendedEvent, BatchReport, Committed, LogName, Outcome, Refusal},
    },
    store::{AppendedAcross, LockWaits, Store, StoreError},
    traces::Span,
};

/// Appends over several partitions that run at the same time.
const AT_ONCE: usize = 4;
/// How long one waits for a lock while it may hold others, at first: batches hold a lock for some milliseconds.
pub(super) const SHORT_WAIT: Duration = Duration::from_millis(100);
/// It grows up to this where locks are held again and again.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// What appends over several partitions share.
pub(super) struct Across {
    store: Store,
    hooks: Hooks,
    turns: Semaphore,
    /// One for each partition.
    locks: Vec<Awaited>,
    bytes: Semaphore,
    stopping: CancellationToken,
}

/// The lock of a partition that was held for long. One at a time waits for it in the database, the others for that one: so they
/// take neither connections nor turns from those who do not need it.
struct Awaited {
    gate: Semaphore,
    waiting: AtomicUsize,
}

/// Somebody who has found a lock held, or waits for it, until it is dropped.
struct Waiter<'a> {
    partition: Partition,
    waiting: &'a AtomicUsize,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
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
            locks: store
                .partitions()
                .iter()
                .map(|_| Awaited {
                    gate: Semaphore::new(1),
                    waiting: AtomicUsize::new(0),
                })
                .collect(),
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
        if committed.is_ok()
            && let Some(times) = from.zip(self.hooks.traces.now())
        {
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
                    span.set_failed("the database");
                    self.hooks.measure(&report);
                }
                return Err(error);
            }
        };

        if let Some(refusal) = first_refusal(&outcomes, &places, &events) {
            self.hooks.measure(&report);
            return Ok(Outcome::Refused(refusal));
        }
        let mut stored: Vec<Option<Arc<Event>>> = vec![None; events.len()];
        let mut newest = Timestamp::from_micros(0);
        for (((partition, part), outcome), indices) in
            parts.into_iter().zip(outcomes).zip(places.values())
        {
            let Outcome::Appended { at, places } = outcome else {
                self.hooks.measure(&report);
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
        let mut giving_way = self.store.giving_way();
        let mut began = Instant::now();
        let mut held: Option<Waiter> = None;
        let mut patience = SHORT_WAIT;
        loop {
            let awaited = held.as_ref().map(|waiter| waiter.partition);
            let awaited = awaited.or_else(|| self.awaited_of(parts));
            let tried = match awaited {
                None => {
                    let turn = self.turns.acquire().await;
                    let _turn = turn.map_err(|_| AppendError::stopping())?;
                    // The time until its turn was no wait for a lock.
                    began = Instant::now();
                    // Whoever had the turn may have found a lock held: not each of them has to, with locks of its own meanwhile.
                    if let Some(partition) = self.awaited_of(parts) {
                        held = Some(self.waiter_for(partition));
                        continue;
                    }
                    let waits = LockWaits {
                        first: None,
                        others: patience,
                    };
                    let tried = self.store.append_events_across(parts, waits).await;
                    if let Ok(AppendedAcross::Held(partition)) = tried {
                        // Before the turn is given up: whoever has it next is to see it.
                        held = Some(self.waiter_for(partition));
                    }
                    tried
                }
                Some(partition) => {
                    let left = self.store.lock_timeout().saturating_sub(began.elapsed());
                    self.append_after(partition, left, patience, parts).await?
                }
            };
            match tried {
                Ok(AppendedAcross::Judged(outcomes)) => return Ok(outcomes),
                // Earlier it was another lock, such as that of a table, or of a row that a client has locked by hand.
                Ok(AppendedAcross::Held(partition))
                    if awaited == Some(partition)
                        && began.elapsed() >= self.store.lock_timeout() =>
                {
                    return Err(AppendError::locked());
                }
                Ok(AppendedAcross::Held(partition)) => {
                    held = Some(self.waiter_for(partition));
                    patience = LONGEST_WAIT.min(patience * 2);
                }
                Err(StoreError::GaveWay(_)) if giving_way.pause().await => {}
                Err(StoreError::ValueRefused(_)) => {
                    return Err(AppendError::Refused(Refusal::ValueRefused));
                }
                Err(error) => return Err(AppendError::of_store(Arc::new(error), ids())),
            }
        }
    }

    /// A partition whose lock others wait for. The highest: locks are taken in their order, so whoever waits for one holds those
    /// below it, and makes them look held too.
    fn awaited_of(&self, parts: &[(Partition, AppendRequest)]) -> Option<Partition> {
        let mut partitions = parts.iter().map(|(partition, _)| *partition);
        partitions.rfind(|partition| {
            let awaited = &self.locks[partition.index()];
            awaited.waiting.load(Ordering::Relaxed) > 0
        })
    }

    fn waiter_for(&self, partition: Partition) -> Waiter<'_> {
        let waiting = &self.locks[partition.index()].waiting;
        waiting.fetch_add(1, Ordering::Relaxed);
        Waiter { partition, waiting }
    }

    /// Waits for the lock of one partition, holding none, and then appends.
    async fn append_after(
        &self,
        partition: Partition,
        left: Duration,
        patience: Duration,
        parts: &[(Partition, AppendRequest)],
    ) -> Result<Result<AppendedAcross, StoreError>, AppendError> {
        let _waiter = self.waiter_for(partition);
        let asked = Instant::now();
        let gate = timeout(left, self.locks[partition.index()].gate.acquire()).await;
        let _gate = gate
            .map_err(|_| AppendError::locked())?
            .map_err(|_| AppendError::stopping())?;
        let waits = LockWaits {
            first: Some((partition, left.saturating_sub(asked.elapsed()))),
            others: patience,
        };
        Ok(self.store.append_events_across(parts, waits).await)
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
