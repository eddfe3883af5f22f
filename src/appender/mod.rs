//! Group commit: writers hand in requests, one task for each partition and log commits whatever waits as one batch. Floor 3.
//!
//! Batches form without waiting: while one is committed the next gathers, so they grow just as fast as load does.

mod across;
mod error;
mod log;
mod queue;
mod taken;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

pub use error::{AppendError, Reason};
pub use taken::taken_at;

use crate::{
    config::Limits,
    domain::{
        Aggregate, AggregateId, AggregateType, CommandStep, Entry, Event, EventId, NewEntry,
        NewEvent, Partition, Timestamp,
        append::{AppendRequest, BatchReport, Committed, LogName, Outcome, Refusal},
    },
    store::{Store, StoreError},
    traces::Traces,
};
use across::{Across, SHORT_WAIT};
use log::{EntryLog, EventLog};
use queue::Queue;

/// Called with what was committed, after each commit: in the order of its log, but for what was appended over several partitions.
pub type OnCommit = Arc<dyn Fn(Committed) + Send + Sync>;

/// Called with each batch, once it is committed and before its writers are told.
pub type OnBatch = Arc<dyn Fn(&BatchReport<'_>) + Send + Sync>;

/// What others do with what is appended.
#[derive(Clone)]
pub struct Hooks {
    /// Hands it on.
    pub on_commit: OnCommit,
    /// Measures it.
    pub on_batch: OnBatch,
    /// Traces it.
    pub traces: Traces,
}

impl Hooks {
    fn tell(&self, committed: Committed) {
        shielded(|| (self.on_commit)(committed));
    }

    fn measure(&self, report: &BatchReport<'_>) {
        shielded(|| (self.on_batch)(report));
    }
}

/// A fault in what others do must not end a queue, nor keep its writers from hearing that they have been committed.
fn shielded(hook: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(hook)).is_err() {
        tracing::error!(
            "what is done with committed batches has panicked: this is a defect, please report it"
        );
    }
}

/// What waits in a queue, or is being committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLength {
    /// The log.
    pub log: LogName,
    /// The partition.
    pub partition: Partition,
    /// How many requests wait.
    pub requests: usize,
    /// How many bytes they have, and those that are being committed.
    pub bytes: usize,
}

/// What an append came to.
#[derive(Clone, Debug)]
pub struct Appended<T> {
    /// What is stored now, in the order of the request.
    pub stored: Vec<Arc<T>>,
    /// Whether it was there already and nothing was appended.
    pub duplicate: bool,
}

/// What recording or settling a command came to.
#[derive(Clone, Debug)]
pub struct CommandAppended {
    /// When that was.
    pub at: Timestamp,
    /// The events that it caused.
    pub events: Vec<Arc<Event>>,
}

/// The appender of a database.
pub struct Appender {
    store: Store,
    events: Vec<Queue<EventLog>>,
    entries: Vec<Queue<EntryLog>>,
    across: Arc<Across>,
    /// The turns of those who make aggregates without events, in each partition.
    makers: Vec<Arc<Semaphore>>,
    request_timeout: Duration,
    traces: Traces,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Appender {
    /// Starts the tasks of all partitions.
    #[must_use]
    pub fn start(store: Store, limits: &Limits, hooks: Hooks) -> Self {
        let stopping = CancellationToken::new();
        let tasks = TaskTracker::new();
        let partitions = store.partitions();
        let events = partitions
            .iter()
            .map(|partition| {
                Queue::start(
                    &tasks,
                    &stopping,
                    EventLog::new(&store, partition),
                    limits,
                    &hooks,
                )
            })
            .collect();
        let entries = partitions
            .iter()
            .map(|partition| {
                Queue::start(
                    &tasks,
                    &stopping,
                    EntryLog::new(&store, partition),
                    limits,
                    &hooks,
                )
            })
            .collect();
        let across = Across::new(&store, limits, &hooks, &stopping);
        tasks.close();
        let makers = partitions.iter().map(|_| Arc::new(Semaphore::new(1)));
        Self {
            makers: makers.collect(),
            store,
            events,
            entries,
            across,
            request_timeout: limits.request_timeout,
            traces: hooks.traces,
            stopping,
            tasks,
        }
    }

    /// Appends events, to one or more aggregates: all of them or none. No id may be in the list twice.
    ///
    /// # Errors
    /// When the append is refused, or the database cannot take it now.
    pub async fn append_events(
        &self,
        events: Vec<NewEvent>,
    ) -> Result<Appended<Event>, AppendError> {
        let ids: Vec<EventId> = events.iter().map(|event| event.id).collect();
        match timeout(
            self.request_timeout,
            self.append_events_untimed(events, &ids),
        )
        .await
        {
            Ok(answer) => answer,
            Err(_) => Err(AppendError::timed_out(uuids(&ids))),
        }
    }

    /// Records or settles a command together with the events that it causes, all of which are of its aggregate.
    ///
    /// # Errors
    /// When it is refused, or the database has not taken it by the deadline.
    pub async fn append_command(
        &self,
        step: CommandStep,
        events: Vec<NewEvent>,
        deadline: Instant,
    ) -> Result<CommandAppended, AppendError> {
        let id = step.id;
        let partition = self.store.partitions().of_aggregate(step.aggregate_id);
        let request = AppendRequest {
            events,
            command: Some(step),
        };
        let submitted = self.events[partition.index()].submit(request);
        let Ok(outcome) = timeout_at(deadline, submitted).await else {
            return Err(AppendError::timed_out(vec![id.0]));
        };
        match outcome? {
            Outcome::Appended { at, places } => Ok(CommandAppended { at, events: places }),
            Outcome::Refused(refusal) => Err(AppendError::Refused(refusal)),
            Outcome::Duplicate => Err(AppendError::Refused(Refusal::CommandKnown { id })),
        }
    }

    /// Appends an entry to a stream.
    ///
    /// # Errors
    /// When the append is refused, or the database cannot take it now.
    pub async fn append_entry(&self, entry: NewEntry) -> Result<Appended<Entry>, AppendError> {
        let ids = vec![entry.event_id.0];
        match timeout(self.request_timeout, self.append_entry_untimed(entry)).await {
            Ok(answer) => answer,
            Err(_) => Err(AppendError::timed_out(ids)),
        }
    }

    /// Makes an aggregate without events, unless it is there already. Answers it, and whether it was made.
    ///
    /// # Errors
    /// When the database cannot take it now.
    pub async fn create_aggregate(
        &self,
        id: AggregateId,
        aggregate_type: &AggregateType,
    ) -> Result<(Aggregate, bool), AppendError> {
        if self.stopping.is_cancelled() {
            return Err(AppendError::stopping());
        }
        let (store, aggregate_type) = (self.store.clone(), aggregate_type.clone());
        let turns = self.makers[store.partitions().of_aggregate(id).index()].clone();
        let made = self.tasks.spawn(async move {
            // Where the lock is held for long, they would take the connections of everybody else.
            let (patience, asked) = (store.lock_timeout(), Instant::now());
            let turn = timeout(patience, turns.acquire()).await;
            let _turn = turn
                .map_err(|_| AppendError::locked())?
                .map_err(|_| AppendError::stopping())?;
            // Batches hold it for some milliseconds: who is late waits for one of those still.
            let lock_wait = patience.saturating_sub(asked.elapsed()).max(SHORT_WAIT);
            create_aggregate(store, id, aggregate_type, lock_wait).await
        });
        match timeout(self.request_timeout, made).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(AppendError::timed_out(vec![id.0])),
        }
    }

    /// The traces that appends are part of.
    #[must_use]
    pub fn traces(&self) -> &Traces {
        &self.traces
    }

    /// What waits in each queue.
    #[must_use]
    pub fn queue_lengths(&self) -> Vec<QueueLength> {
        let events = self.events.iter().map(Queue::length);
        events
            .chain(self.entries.iter().map(Queue::length))
            .collect()
    }

    /// Commits what was accepted, accepts nothing more, and returns when all tasks have ended.
    pub async fn stop(&self) {
        self.stopping.cancel();
        self.tasks.wait().await;
    }

    async fn append_events_untimed(
        &self,
        events: Vec<NewEvent>,
        ids: &[EventId],
    ) -> Result<Appended<Event>, AppendError> {
        let partitions = self.store.partitions();
        let Some(first) = events
            .first()
            .map(|event| partitions.of_aggregate(event.aggregate_id))
        else {
            return Ok(Appended {
                stored: Vec::new(),
                duplicate: false,
            });
        };
        self.refuse_ids_of_other_partitions(&events).await?;
        let outcome = if events
            .iter()
            .all(|event| partitions.of_aggregate(event.aggregate_id) == first)
        {
            self.events[first.index()]
                .submit(AppendRequest::of_events(events))
                .await?
        } else {
            self.append_across(events, ids).await?
        };
        match outcome {
            Outcome::Appended { places, .. } => Ok(Appended {
                stored: places,
                duplicate: false,
            }),
            Outcome::Duplicate => Ok(Appended {
                stored: self.stored_events(ids).await?,
                duplicate: true,
            }),
            Outcome::Refused(refusal) => Err(AppendError::Refused(refusal)),
        }
    }

    async fn append_entry_untimed(&self, entry: NewEntry) -> Result<Appended<Entry>, AppendError> {
        let partition = self.store.partitions().of_stream(&entry.stream_name);
        let (name, id) = (entry.stream_name.clone(), entry.event_id);
        match self.entries[partition.index()].submit(entry).await? {
            Outcome::Appended { places, .. } => Ok(Appended {
                stored: places,
                duplicate: false,
            }),
            Outcome::Refused(refusal) => Err(AppendError::Refused(refusal)),
            Outcome::Duplicate => {
                let stored = self
                    .store
                    .entry_by_event_id(&name, id)
                    .await
                    .map_err(AppendError::while_reading)?;
                let stored = stored.ok_or_else(|| AppendError::vanished(id))?;
                Ok(Appended {
                    stored: vec![Arc::new(stored)],
                    duplicate: true,
                })
            }
        }
    }

    /// An id means one thing in the whole database, and the log of a partition knows only its own.
    async fn refuse_ids_of_other_partitions(&self, events: &[NewEvent]) -> Result<(), AppendError> {
        let partitions = self.store.partitions();
        let given: Vec<EventId> = events
            .iter()
            .filter(|event| event.id_is_given)
            .map(|event| event.id)
            .collect();
        if partitions.get() == 1 || given.is_empty() {
            return Ok(());
        }
        let known = self
            .store
            .events_by_id(&given)
            .await
            .map_err(AppendError::while_reading)?;
        let reused = events.iter().position(|event| {
            known
                .get(&event.id)
                .is_some_and(|known| known.partition != partitions.of_aggregate(event.aggregate_id))
        });
        match reused {
            Some(index) => Err(AppendError::Refused(Refusal::IdReused {
                index,
                id: events[index].id,
            })),
            None => Ok(()),
        }
    }

    /// In a task of its own: what was begun is finished and told, also where whoever asked has gone away.
    async fn append_across(
        &self,
        events: Vec<NewEvent>,
        ids: &[EventId],
    ) -> Result<Outcome<Arc<Event>>, AppendError> {
        let across = self.across.clone();
        let (taken_at, span) = (taken::of_request(), self.traces.begin("append"));
        let append = self
            .tasks
            .spawn(async move { across.append(events, taken_at, span).await });
        append
            .await
            .unwrap_or_else(|_| Err(AppendError::timed_out(uuids(ids))))
    }

    async fn stored_events(&self, ids: &[EventId]) -> Result<Vec<Arc<Event>>, AppendError> {
        let mut stored = self
            .store
            .events_by_id(ids)
            .await
            .map_err(AppendError::while_reading)?;
        ids.iter()
            .map(|id| {
                stored
                    .remove(id)
                    .map(Arc::new)
                    .ok_or_else(|| AppendError::vanished(*id))
            })
            .collect()
    }
}

fn uuids(ids: &[EventId]) -> Vec<Uuid> {
    ids.iter().map(|id| id.0).collect()
}

async fn create_aggregate(
    store: Store,
    id: AggregateId,
    aggregate_type: AggregateType,
    lock_wait: Duration,
) -> Result<(Aggregate, bool), AppendError> {
    let mut giving_way = store.giving_way();
    loop {
        match store.create_aggregate(id, &aggregate_type, lock_wait).await {
            Ok(made) => return Ok(made),
            Err(StoreError::GaveWay(_)) if giving_way.pause().await => {}
            // The aggregate's own id makes a repeat safe.
            Err(error) => {
                return Err(AppendError::of_store(Arc::new(error), vec![id.0]));
            }
        }
    }
}
