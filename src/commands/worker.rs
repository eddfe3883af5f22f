//! The worker: processes the pending commands of a partition when they are due, in the order of their creation. Floor 4.
//!
//! Only the server that has the partition's lease runs it. Where two run it all the same, nothing is processed twice: a
//! command is settled only while it is pending.

use std::{
    collections::HashMap,
    mem,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{CommandError, Executor};
use crate::{
    domain::{AggregateId, Command, CommandStatus, Partition},
    store::{Store, StoreError},
    tail::Tail,
};

/// Commands that are read at a time.
const BATCH: u64 = 256;
/// Aggregates whose commands are processed at the same time.
const AGGREGATES_AT_ONCE: usize = 64;
/// The pause after a fault of the database.
const PAUSE_AFTER_FAULT: Duration = Duration::from_millis(250);
/// How often due commands are looked for where other programs write too: they do not ring.
const POLL_EVERY: Duration = Duration::from_millis(100);
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
}

impl Worker {
    /// Makes the worker of a server.
    #[must_use]
    pub fn new(store: Store, executor: Arc<Executor>, tail: Arc<Tail>) -> Arc<Self> {
        Arc::new(Self {
            store,
            executor,
            tail,
            working: AtomicU32::new(0),
            begun: Notify::new(),
        })
    }

    /// Wakes the workers of partitions that have commands whose time has come, as long as any is worked on: for a database
    /// that other programs write to.
    pub async fn poll(&self, stop: CancellationToken) {
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
            let due = self.store.partitions_with_due_commands(&working).await;
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

    /// Processes what is due; whether there was anything.
    async fn work(&self, partition: Partition) -> Result<bool, StoreError> {
        let due = self.store.due_commands(partition, BATCH).await?;
        if due.is_empty() {
            return Ok(false);
        }
        let trouble = OnceLock::new();
        stream::iter(by_aggregate(due))
            .for_each_concurrent(AGGREGATES_AT_ONCE, |commands| {
                self.process(commands, &trouble)
            })
            .await;
        if let Some(error) = trouble.get() {
            tracing::warn!(
                error = error as &dyn std::error::Error,
                "a pending command cannot be processed; trying again"
            );
            sleep(PAUSE_AFTER_FAULT).await;
        }
        Ok(true)
    }

    /// Processes the commands of one aggregate, one after another. One that is put off holds back those behind it.
    async fn process(&self, commands: Vec<Command>, trouble: &OnceLock<CommandError>) {
        for command in commands {
            match self.executor.process_due(command).await {
                Ok(processed) if processed.executed.command.status == CommandStatus::Pending => {
                    return;
                }
                Ok(_) => {}
                Err(error) => {
                    // One of many that have the same cause.
                    let _ = trouble.set(error);
                    return;
                }
            }
        }
    }

    /// Works until there is nothing to do, and waits until there may be something again.
    async fn work_and_wait(&self, partition: Partition) -> Result<(), StoreError> {
        while self.work(partition).await? {}
        let next = self.store.next_due_in(partition).await?;
        // What has become due between the two looks is in neither of them.
        if self.work(partition).await? {
            return Ok(());
        }
        let time = next.map_or(LONGEST_SLEEP, |time| time.min(LONGEST_SLEEP));
        tokio::select! {
            () = self.tail.command_bell().pending(partition) => {}
            () = sleep(time) => {}
        }
        Ok(())
    }

    async fn run(&self, partition: Partition) {
        let mut is_failing = false;
        loop {
            let worked = self.work_and_wait(partition).await;
            if let Err(error) = &worked {
                if !is_failing {
                    log(error);
                }
                sleep(PAUSE_AFTER_FAULT).await;
            }
            is_failing = worked.is_err();
        }
    }
}

/// Processes the pending commands of a partition until it is stopped. What it was at then is done as a whole or not at all.
pub async fn run_worker(worker: Arc<Worker>, partition: Partition, stop: CancellationToken) {
    let _working = Working::begin(&worker, partition);
    tokio::select! {
        () = stop.cancelled() => {}
        () = worker.run(partition) => {}
    }
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

/// The commands of each aggregate in their order, the aggregates in the order of their first ones.
fn by_aggregate(commands: Vec<Command>) -> Vec<Vec<Command>> {
    let mut places: HashMap<AggregateId, usize> = HashMap::new();
    let mut groups: Vec<Vec<Command>> = Vec::new();
    for command in commands {
        let place = *places.entry(command.aggregate_id).or_insert(groups.len());
        if place == groups.len() {
            groups.push(Vec::new());
        }
        groups[place].push(command);
    }
    groups
}

fn log(error: &StoreError) {
    tracing::warn!(
        error = error as &dyn std::error::Error,
        "pending commands cannot be read; trying again"
    );
}
