//! The worker: processes the pending commands of a partition when they are due, in the order of their creation. Floor 4.
//!
//! Only the server that has the partition's lease runs it. Where two run it all the same, nothing is processed twice: a
//! command is settled only while it is pending, and a try is counted only once.

mod agenda;

use std::{
    mem,
    panic::resume_unwind,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::{JoinError, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::agenda::{Agenda, Group, rest};
use super::{CommandError, Executor};
use crate::{
    appender::taken_at,
    domain::{AggregateId, CommandStatus, Partition},
    store::{Store, StoreError},
    tail::Tail,
};

/// Commands that are read at a time.
const BATCH: usize = 256;
/// The pause after a fault of the database.
const PAUSE_AFTER_FAULT: Duration = Duration::from_millis(250);
/// How long commands are let alone that only the domain in force knows, before it is looked whether that is still another one.
const PAUSE_WHILE_SUPERSEDED: Duration = Duration::from_secs(10);
/// How often due commands are looked for where other programs write too: they do not ring.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// A look that takes long has pauses so many times as long.
const POLL_PAUSES: u32 = 9;
/// A timer that is set for longer is set again: clocks drift.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// What the workers of all partitions share.
pub struct Worker {
    store: Store,
    executor: Arc<Executor>,
    tail: Arc<Tail>,
    /// The partitions that are worked on here, a bit for each.
    working: AtomicU32,
    begun: Notify,
    /// One for each partition.
    agendas: Vec<Mutex<Agenda>>,
    has_left_commands: AtomicBool,
}

/// How the work on an aggregate has ended.
struct Ended {
    aggregate_id: AggregateId,
    /// Whether it came to nothing, so that it is better let alone for a while: until then.
    rests_until: Option<Instant>,
    trouble: Option<CommandError>,
}

impl Worker {
    /// Makes the worker of a server.
    #[must_use]
    pub fn new(store: Store, executor: Arc<Executor>, tail: Arc<Tail>) -> Arc<Self> {
        let agendas = store.partitions().iter();
        Arc::new(Self {
            agendas: agendas.map(|_| Mutex::default()).collect(),
            store,
            executor,
            tail,
            working: AtomicU32::new(0),
            begun: Notify::new(),
            has_left_commands: AtomicBool::new(false),
        })
    }

    /// Wakes the workers of partitions that have commands whose time has come, as long as any is worked on: for a database
    /// that other programs write to.
    pub async fn poll(self: Arc<Self>, stop: CancellationToken) {
        if self.store.doorbell().is_none() {
            return;
        }
        let mut ticks = interval(POLL_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_failing = false;
        loop {
            let is_idle = self.partitions().is_empty();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.begun.notified(), if is_idle => {}
                _ = ticks.tick(), if !is_idle => {}
            }
            let working = self.partitions();
            let began = Instant::now();
            let working: Vec<(Partition, Vec<AggregateId>)> = working
                .into_iter()
                .map(|partition| (partition, self.agenda(partition).left_out()))
                .collect();
            let due = self.store.partitions_with_due_commands(&working).await;
            ticks.reset_after(POLL_EVERY.max(began.elapsed() * POLL_PAUSES));
            let was_failing = mem::replace(&mut is_failing, due.is_err());
            match due {
                Ok(due) => {
                    for partition in due {
                        self.tail.command_bell().wake_worker(partition);
                    }
                }
                Err(error) => {
                    if !was_failing {
                        log(&error);
                    }
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = sleep(PAUSE_AFTER_FAULT) => {}
                    }
                }
            }
        }
    }

    fn partitions(&self) -> Vec<Partition> {
        let working = self.working.load(Ordering::Relaxed);
        let all = self.store.partitions().iter();
        all.filter(|partition| working >> partition.index() & 1 == 1)
            .collect()
    }

    // Nothing panics while it holds the lock.
    fn agenda(&self, partition: Partition) -> MutexGuard<'_, Agenda> {
        self.agendas[partition.index()]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what is due into the agenda; how long it is until more will be.
    async fn look(&self, partition: Partition) -> Result<Duration, StoreError> {
        let but = self.agenda(partition).begin_look();
        // First this: what has become due since is among what is read then.
        let next = self.store.next_due_in(partition).await?;
        let due = self.store.due_commands(partition, BATCH, &but).await?;
        self.agenda(partition).take(due.commands, due.is_all);
        Ok(next.map_or(LONGEST_SLEEP, |time| time.min(LONGEST_SLEEP)))
    }

    /// Processes commands of one aggregate, one after another. One that is put off holds back those behind it.
    async fn process(self: Arc<Self>, group: Group) -> Ended {
        let mut ended = Ended {
            aggregate_id: group.aggregate_id,
            rests_until: None,
            trouble: None,
        };
        for command in group.commands {
            let name = command.command_type.clone();
            // Nobody has asked for it just now: its time begins here.
            let processing = taken_at(Instant::now(), self.executor.process_due(command));
            match processing.await {
                Ok(Some(processed))
                    if processed.executed.command.status == CommandStatus::Pending =>
                {
                    break;
                }
                Ok(Some(_)) => {}
                Ok(None) => {
                    if !self.has_left_commands.swap(true, Ordering::Relaxed) {
                        tracing::warn!(
                            "pending commands of the type {name} are left alone: this server does not know it, and another \
                             domain is in force"
                        );
                    }
                    ended.rests_until = rest(PAUSE_WHILE_SUPERSEDED);
                    break;
                }
                Err(error) => {
                    ended.rests_until = rest(PAUSE_AFTER_FAULT);
                    ended.trouble = Some(error);
                    break;
                }
            }
        }
        ended
    }

    /// Notes that the work on an aggregate has ended; whether it was as it should.
    fn end(
        &self,
        partition: Partition,
        ended: Result<Ended, JoinError>,
    ) -> Result<(), CommandError> {
        let ended = match ended {
            Ok(ended) => ended,
            // All that runs under the lease is started again then.
            Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
            Err(_) => return Ok(()),
        };
        self.agenda(partition)
            .end(ended.aggregate_id, ended.rests_until);
        ended.trouble.map_or(Ok(()), Err)
    }

    /// Keeps all places taken as long as there is something to do, and waits until there may be something again.
    async fn run(self: &Arc<Self>, partition: Partition, running: &mut JoinSet<Ended>) {
        *self.agenda(partition) = Agenda::default();
        let (mut is_blind, mut is_failing) = (false, false);
        let mut next_look = Instant::now();
        loop {
            while let Some(group) = self.agenda(partition).begin_next() {
                running.spawn(self.clone().process(group));
            }
            if self.agenda(partition).wants_look() {
                let looked = self.look(partition).await;
                let was_blind = mem::replace(&mut is_blind, looked.is_err());
                if let (Err(error), false) = (&looked, was_blind) {
                    log(error);
                }
                next_look = Instant::now() + looked.unwrap_or(PAUSE_AFTER_FAULT);
                continue;
            }
            let wakes_at = self.agenda(partition).wakes_at(next_look);
            tokio::select! {
                () = self.tail.command_bell().pending(partition) => self.agenda(partition).open(),
                () = sleep_until(wakes_at.unwrap_or(next_look)), if wakes_at.is_some() => {
                    self.agenda(partition).wake(Instant::now());
                }
                Some(ended) = running.join_next() => {
                    let mut next = Some(ended);
                    // Many end with one commit: one look is for all of them.
                    while let Some(ended) = next {
                        let result = self.end(partition, ended);
                        let was_failing = mem::replace(&mut is_failing, result.is_err());
                        if let (Err(error), false) = (result, was_failing) {
                            tracing::warn!(
                                error = &error as &dyn std::error::Error,
                                "a pending command cannot be processed; trying again"
                            );
                        }
                        next = running.try_join_next();
                    }
                }
            }
        }
    }
}

/// Processes the pending commands of a partition until it is stopped. What it was at then is done as a whole or not at all.
pub async fn run_worker(worker: Arc<Worker>, partition: Partition, stop: CancellationToken) {
    let _working = Working::begin(&worker, partition);
    let mut running = JoinSet::new();
    tokio::select! {
        () = stop.cancelled() => {}
        () = worker.run(partition, &mut running) => {}
    }
    // Not only cut off, but gone: so are their spans, before the last ones are sent.
    running.shutdown().await;
}

/// Notes that a partition is worked on, until it is dropped.
struct Working<'w> {
    worker: &'w Worker,
    bit: u32,
}

impl<'w> Working<'w> {
    fn begin(worker: &'w Worker, partition: Partition) -> Self {
        let bit = 1 << partition.index();
        worker.working.fetch_or(bit, Ordering::Relaxed);
        worker.begun.notify_one();
        Self { worker, bit }
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.worker.working.fetch_and(!self.bit, Ordering::Relaxed);
    }
}

fn log(error: &StoreError) {
    tracing::warn!(
        error = error as &dyn std::error::Error,
        "pending commands cannot be read; trying again"
    );
}
