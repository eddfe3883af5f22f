//! Where one handler is in one partition: its checkpoint, and its deliveries that are not done. Floor 4.

use std::{collections::HashSet, error::Error, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Handlers,
    committer::Committer,
    delays::retry_delay,
    endpoint::{Change, Endpoint, Turn},
};
use crate::{
    domain::{
        CheckpointStep, Delivery, DeliveryId, DeliveryStatus, DeliveryWrite, Event, EventHandler,
        FencingToken, HandlerStep, LastError, NewEntry, Partition, Position, SavedStep,
        append::Outcome,
    },
    store::{DueDeliveries, StoreError},
};

/// How often a checkpoint moves at most while there is nothing to store but it.
pub(super) const IDLE_EVERY: Duration = Duration::from_secs(1);

/// What went wrong; several handlers may have had a part in it.
pub(super) type Fault = Arc<StoreError>;

/// One handler in one partition.
pub(super) struct Place {
    pub(super) handlers: Arc<Handlers>,
    pub(super) handler: Arc<EventHandler>,
    pub(super) endpoint: Arc<Endpoint>,
    /// It is one of the tasks among which memory is divided.
    pub(super) _task: Arc<()>,
    pub(super) committer: Committer,
    pub(super) partition: Partition,
    pub(super) token: FencingToken,
    /// Where the checkpoint is, and since when.
    pub(super) stored: Position,
    pub(super) stored_at: Instant,
    /// When the next stored delivery is due; none where none is under way.
    pub(super) next_due: Option<Instant>,
}

/// Whether a step was stored, or the checkpoint is elsewhere, another runner's, or gone.
#[must_use]
pub(super) enum Stored {
    Yes,
    Lost,
}

impl Place {
    /// Stores what the handler has come to.
    pub(super) async fn save(
        &mut self,
        to: Position,
        deliveries: Vec<DeliveryWrite>,
        entries: Vec<(Partition, NewEntry, DeliveryWrite)>,
    ) -> Result<Stored, Fault> {
        let saved = self.save_step(to, deliveries, entries).await?;
        Ok(saved.map_or(Stored::Lost, |_| Stored::Yes))
    }

    /// Stores what the handler has come to, and answers what became of it; none where the checkpoint is lost.
    pub(super) async fn save_step(
        &mut self,
        to: Position,
        deliveries: Vec<DeliveryWrite>,
        entries: Vec<(Partition, NewEntry, DeliveryWrite)>,
    ) -> Result<Option<SavedStep>, Fault> {
        let is_dead = |write: &&DeliveryWrite| write.status == DeliveryStatus::Dead;
        let dead: Vec<DeliveryWrite> = deliveries.iter().filter(is_dead).cloned().collect();
        let published: Vec<DeliveryWrite> =
            entries.iter().map(|(_, _, write)| write.clone()).collect();
        let writes_deliveries =
            !deliveries.is_empty() || entries.iter().any(|(_, _, delivery)| !delivery.is_new);
        let step = HandlerStep {
            handler_id: self.handler.id,
            step: CheckpointStep {
                from: self.stored,
                to,
                token: self.token,
            },
            deliveries,
            entries,
        };
        let saved = self.committer.save(step).await?;
        let Some(saved) = saved else {
            return Ok(None);
        };
        self.has_stored(to);
        if writes_deliveries {
            self.is_due_in(saved.next_due);
        }
        for write in dead {
            self.report_dead(&write);
        }
        for (write, outcome) in published.into_iter().zip(&saved.entries) {
            if let Outcome::Refused(_) = outcome {
                self.report_dead(&DeliveryWrite {
                    attempts: write.attempts + 1,
                    last_error: Some(LastError::entry_refused()),
                    ..write
                });
            }
        }
        Ok(Some(saved))
    }

    pub(super) fn has_stored(&mut self, to: Position) {
        self.stored = to;
        self.stored_at = Instant::now();
    }

    /// Takes in when the next stored delivery is due.
    pub(super) fn is_due_in(&mut self, next: Option<Duration>) {
        self.next_due = next.map(|time| Instant::now() + time);
    }

    /// Whether it is time to look for stored deliveries.
    pub(super) fn is_due(&self) -> bool {
        self.next_due.is_some_and(|due| due <= Instant::now())
    }

    /// Whether some aggregates may be held back by deliveries that are stored.
    pub(super) fn has_deliveries(&self) -> bool {
        self.next_due.is_some()
    }

    /// Finds the deliveries that are due, without those that are `taken`.
    pub(super) async fn fetch_due(
        &mut self,
        taken: &HashSet<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<(Delivery, Arc<Event>)>, Fault> {
        let store = &self.handlers.store;
        let DueDeliveries { due, next } = store
            .due_deliveries(self.partition, self.handler.id, taken, limit)
            .await?;
        // While some are in hand there are deliveries, whatever else there is: what they come to tells when to look again.
        let in_hand = !due.is_empty() || !taken.is_empty();
        let next = next.map(|time| Instant::now() + time);
        self.next_due = next.or(in_hand.then(|| Instant::now() + IDLE_EVERY));
        let due = due.into_iter();
        Ok(due
            .map(|(delivery, event)| (delivery, Arc::new(event)))
            .collect())
    }

    /// A delivery that is not stored yet.
    pub(super) fn new_delivery(&self, event: &Event) -> DeliveryWrite {
        DeliveryWrite {
            id: DeliveryId(self.handlers.clock.new_id()),
            is_new: true,
            event_id: event.id,
            position: event.position,
            aggregate_id: event.aggregate_id,
            status: DeliveryStatus::Waiting,
            attempts: 0,
            last_error: None,
            delay: None,
        }
    }

    /// What becomes of a delivery that has failed (again).
    pub(super) fn failed(&self, mut write: DeliveryWrite, error: LastError) -> DeliveryWrite {
        write.attempts += 1;
        if self.is_last(write.attempts) {
            write.status = DeliveryStatus::Dead;
            write.delay = None;
        } else {
            write.status = DeliveryStatus::Retrying;
            let attempts = u32::try_from(write.attempts).unwrap_or(u32::MAX);
            let chance = self.handlers.clock.new_id();
            write.delay = Some(retry_delay(&self.handlers.config, attempts, chance));
        }
        write.last_error = Some(error);
        write
    }

    /// Whether a delivery is dead that has failed so often.
    pub(super) fn is_last(&self, attempts: i32) -> bool {
        u32::try_from(attempts).unwrap_or(u32::MAX) >= self.handlers.config.attempts
    }

    /// Says that a delivery is given up, once that is stored.
    pub(super) fn report_dead(&self, write: &DeliveryWrite) {
        self.handlers.counts.dead();
        tracing::error!(
            handler = self.handler.name.as_str(),
            event_id = %write.event_id,
            partition = %self.partition,
            position = write.position.0,
            aggregate_id = %write.aggregate_id,
            attempts = write.attempts,
            error = write.last_error.as_ref().map(LastError::as_str),
            "a delivery is dead: retryDeadDeliveries puts it back in line"
        );
    }

    /// Tells the endpoint what came of a call, and everybody else where that changes something.
    pub(super) async fn report(&self, turn: &Turn, succeeded: bool) {
        let counts = &self.handlers.counts;
        match succeeded {
            true => counts.delivered(1),
            false => counts.failed(),
        }
        let (handler, store) = (self.handler.as_ref(), &self.handlers.store);
        let paused = match turn.report(succeeded) {
            None => return,
            Some(Change::Paused(pause)) => {
                tracing::warn!(
                    handler = handler.name.as_str(),
                    pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
                    "a handler waits at its place: what it calls has failed many times in a row"
                );
                Some(self.handlers.clock.now().after(pause))
            }
            Some(Change::Resumed) => {
                tracing::info!(handler = handler.name.as_str(), "a handler goes on");
                None
            }
        };
        if let Err(error) = store.pause_handler(handler.id, paused).await {
            // It is for people only: the next change writes it again.
            let error = &error as &dyn Error;
            tracing::warn!(
                handler = handler.name.as_str(),
                error,
                "a handler's pause is not stored"
            );
        }
    }
}

/// A stored delivery as it is, to be written as something else.
pub(super) fn stored_delivery(delivery: &Delivery, event: &Event) -> DeliveryWrite {
    DeliveryWrite {
        id: delivery.id,
        is_new: false,
        event_id: event.id,
        position: delivery.position,
        aggregate_id: delivery.aggregate_id,
        status: DeliveryStatus::Delivered,
        attempts: delivery.attempts,
        last_error: None,
        delay: None,
    }
}
