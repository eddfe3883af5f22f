//! The projector of one partition: folds the events behind its checkpoint into read models. Floor 4.
//!
//! What a batch comes to and the checkpoint's move are one transaction, so each event is folded once. Each read model is
//! guarded by the change that its fold was based on, those that are passed by too: where somebody else has written meanwhile, a
//! rebuild or a client, the batch is folded again from what is stored then.

use std::{collections::HashMap, error::Error, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    Ended, Projections,
    batch::{Batch, Folding},
    states::{Held, States},
    stored_model,
};
use crate::{
    domain::{
        AggregateId, Checkpoint, CheckpointStep, FencingToken, Partition, Position, Projected,
        ReadModel, SaveOutcome, append::Committed,
    },
    store::StoreError,
    tail::{EventBatch, PartitionFollower},
};

/// Events that are folded at a time, at most.
const BATCH_EVENTS: usize = 1024;
/// States that are kept in memory for the next batches, for each partition.
const KEPT_BYTES: usize = 16 << 20;
/// How often a checkpoint moves at most while there is nothing to write but it.
const IDLE_EVERY: Duration = Duration::from_secs(1);
/// So many read models that are passed by are remembered before the checkpoint moves.
const MAX_PASSED: usize = 10_000;
const PAUSE_AFTER_FAULT: Duration = Duration::from_millis(250);
const PAUSE_AFTER_GIVING_WAY: Duration = Duration::from_millis(5);

/// Runs the projector of a partition until it is stopped, or another runner has taken its place.
pub async fn run_projector(
    projections: Arc<Projections>,
    partition: Partition,
    token: FencingToken,
    stop: CancellationToken,
) -> Ended {
    let running = async {
        while let Some(stored) = begin(&projections, partition, Checkpoint::ReadModels, token).await
        {
            Projector::new(&projections, partition, token, stored)
                .run()
                .await;
        }
        Ended::FencedOff
    };
    tokio::select! {
        () = stop.cancelled() => Ended::Stopped,
        ended = running => ended,
    }
}

/// Makes a checkpoint this runner's own, and says where it is; none where a newer runner has it.
pub(super) async fn begin(
    projections: &Projections,
    partition: Partition,
    checkpoint: Checkpoint,
    token: FencingToken,
) -> Option<Position> {
    loop {
        let fenced = projections
            .store
            .fence_checkpoint(partition, checkpoint, token)
            .await;
        match fenced {
            Ok(position) => return position,
            Err(error) => {
                pause_after(&error, partition, "a projection waits for the database").await
            }
        }
    }
}

/// Says what has failed, and leaves it some time to pass.
pub(super) async fn pause_after(error: &StoreError, partition: Partition, what: &str) {
    if matches!(error, StoreError::GaveWay(_)) {
        return sleep(PAUSE_AFTER_GIVING_WAY).await;
    }
    tracing::warn!(%partition, error = error as &dyn Error, "{what}");
    sleep(PAUSE_AFTER_FAULT).await;
}

struct Projector<'p> {
    projections: &'p Projections,
    partition: Partition,
    token: FencingToken,
    follower: PartitionFollower,
    states: States,
    /// Where the checkpoint is.
    stored: Position,
    /// Up to where there was nothing to write behind it, and the read models that were passed by, with their changes.
    looked: Position,
    passed: HashMap<AggregateId, Option<Position>>,
    moved_at: Instant,
    /// The most events of the next batch: few where one among many cannot be stored.
    most: usize,
    /// Whether somebody else has just written: then nothing is taken for granted.
    has_changed: bool,
}

/// What came of an attempt to save.
enum Attempt {
    Saved,
    /// What was read is to be folded again.
    Again,
    /// It is not known any more where the checkpoint is, or it is another runner's.
    Lost,
}

impl<'p> Projector<'p> {
    fn new(
        projections: &'p Projections,
        partition: Partition,
        token: FencingToken,
        stored: Position,
    ) -> Self {
        Self {
            follower: projections.tail.follow_partition(partition, stored),
            projections,
            partition,
            token,
            states: States::new(KEPT_BYTES),
            stored,
            looked: stored,
            passed: HashMap::new(),
            moved_at: Instant::now(),
            most: BATCH_EVENTS,
            has_changed: false,
        }
    }

    /// Goes on until it is not known any more where the checkpoint is.
    async fn run(&mut self) {
        loop {
            let idle_until = self.moved_at + IDLE_EVERY;
            let attempt = tokio::select! {
                batch = self.follower.next(self.most) => match batch {
                    Ok(events) => self.project(events).await,
                    Err(error) => Err(error),
                },
                () = sleep_until(idle_until), if self.looked > self.stored => {
                    self.save(Vec::new(), self.looked, &mut HashMap::new()).await
                }
            };
            match attempt {
                Ok(Attempt::Saved | Attempt::Again) => {}
                Ok(Attempt::Lost) => return,
                Err(error) => {
                    let what = "events could not be folded into read models; trying again";
                    pause_after(&error, self.partition, what).await;
                    return;
                }
            }
        }
    }

    /// Folds events and saves what they come to.
    async fn project(&mut self, events: EventBatch) -> Result<Attempt, StoreError> {
        let count = events.len();
        let traced = self.projections.traces.traced(&events);
        let folding = Folding {
            projections: self.projections,
            partition: self.partition,
            takes_nothing_for_granted: self.has_changed,
        };
        let mut batch = folding.fold(events, &mut self.states).await?;
        let last = batch.last;
        let recording = traced.map(|(mut traced, from)| {
            // Not all of them had room.
            traced.retain(|event| event.position() <= last);
            let traces = &self.projections.traces;
            traces.recording("project", traced, from)
        });
        let saved = self.save_batch(&mut batch).await;
        if let (Some(recording), false) = (recording, matches!(saved, Ok(Attempt::Saved))) {
            recording.give_up();
        }
        match saved {
            Err(StoreError::ValueRefused(_)) if count > 1 => {
                // One of them alone will show which it is.
                self.most = count / 2;
                self.follower.go_on_behind(self.looked);
                Ok(Attempt::Again)
            }
            Err(StoreError::ValueRefused(error)) => {
                tracing::debug!(%error, "the database refuses a state");
                folding.refuse(&mut batch).await?;
                self.save_batch(&mut batch).await
            }
            Ok(Attempt::Again) => {
                // The fewer read models a batch has, the fewer can change until it is saved.
                self.most = (count / 2).max(1);
                Ok(Attempt::Again)
            }
            saved => {
                self.most = (self.most * 2).min(BATCH_EVENTS);
                saved
            }
        }
    }

    async fn save_batch(&mut self, batch: &mut Batch) -> Result<Attempt, StoreError> {
        let projected = std::mem::take(&mut batch.projected);
        let attempt = if projected.iter().any(|model| model.folded.is_some()) {
            self.save(projected, batch.last, &mut batch.held).await?
        } else {
            self.pass_by(projected, batch.last).await?
        };
        if matches!(attempt, Attempt::Saved) {
            for (id, held) in batch.held.drain() {
                self.states.put(id, held);
            }
        }
        Ok(attempt)
    }

    /// Remembers what there is nothing to write of, until the checkpoint moves.
    async fn pass_by(
        &mut self,
        passed: Vec<Projected>,
        to: Position,
    ) -> Result<Attempt, StoreError> {
        let passed = passed
            .into_iter()
            .map(|model| (model.aggregate_id, model.based_on));
        self.passed.extend(passed);
        self.looked = to;
        self.follower.go_on_behind(to);
        let is_due = self.moved_at.elapsed() >= IDLE_EVERY || self.passed.len() > MAX_PASSED;
        if is_due {
            return self.save(Vec::new(), to, &mut HashMap::new()).await;
        }
        Ok(Attempt::Saved)
    }

    /// Writes what was folded and moves the checkpoint. What is held of the aggregates learns their changes.
    async fn save(
        &mut self,
        mut projected: Vec<Projected>,
        to: Position,
        held: &mut HashMap<AggregateId, Held>,
    ) -> Result<Attempt, StoreError> {
        if !self.passed.is_empty() {
            for model in &projected {
                self.passed.remove(&model.aggregate_id);
            }
            let passed = self.passed.iter().map(|(id, change)| Projected {
                aggregate_id: *id,
                based_on: *change,
                folded: None,
            });
            projected.extend(passed);
        }
        let step = CheckpointStep {
            from: self.stored,
            to,
            token: self.token,
        };
        let store = &self.projections.store;
        match store
            .save_read_models(self.partition, step, &projected)
            .await?
        {
            SaveOutcome::Saved(positions) => {
                self.stored = to;
                self.looked = to;
                self.passed.clear();
                self.moved_at = Instant::now();
                self.has_changed = false;
                self.follower.go_on_behind(to);
                for (model, position) in projected.iter().zip(&positions) {
                    if let (Some(held), Some(position)) =
                        (held.get_mut(&model.aggregate_id), position)
                    {
                        held.change_position = Some(*position);
                    }
                }
                self.tell(projected, &positions);
                Ok(Attempt::Saved)
            }
            SaveOutcome::Changed => {
                for model in &projected {
                    self.states.take(model.aggregate_id);
                }
                self.passed.clear();
                self.looked = self.stored;
                self.has_changed = true;
                self.follower.go_on_behind(self.stored);
                Ok(Attempt::Again)
            }
            SaveOutcome::FencedOff => Ok(Attempt::Lost),
        }
    }

    /// Hands what was saved to those who follow, and reports faults.
    fn tell(&mut self, projected: Vec<Projected>, positions: &[Option<Position>]) {
        let mut changes: Vec<Arc<ReadModel>> = Vec::with_capacity(projected.len());
        for (model, position) in projected.into_iter().zip(positions) {
            let (Some(folded), Some(position)) = (model.folded, *position) else {
                continue;
            };
            if let Some(fault) = &folded.fault {
                tracing::error!(
                    aggregate_id = %model.aggregate_id,
                    aggregate_type = %folded.aggregate_type,
                    version = folded.version.next().0,
                    fault,
                    "an event cannot be folded: its read model stands still until it is rebuilt"
                );
            }
            let stored = stored_model(self.partition, model.aggregate_id, folded, position);
            changes.push(Arc::new(stored));
        }
        if !changes.is_empty() {
            self.projections
                .tail
                .take_committed(Committed::Changes(self.partition, changes));
        }
    }
}
