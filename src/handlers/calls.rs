//! Handlers that are called event by event, several at a time: webhooks, and functions in Rust. Floor 4.
//!
//! Events of one aggregate come one after another. The checkpoint moves behind those that are done or stored as deliveries, and
//! what is stored of them goes into its transaction; so whatever ends the server, what is behind the checkpoint is given again.

use std::{
    collections::{HashSet, VecDeque},
    panic::resume_unwind,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    endpoint::Turn,
    place::{Fault, IDLE_EVERY, Place, Stored, stored_delivery},
};
use crate::{
    domain::{AggregateId, Delivery, DeliveryId, DeliveryWrite, Event, LastError, Position},
    tail::PartitionFollower,
};

/// Events that are in hand at most; their bytes depend on how many tasks there are.
const WINDOW_EVENTS: usize = 256;
/// Events that are read at a time.
const BATCH_EVENTS: usize = 64;
/// Stored deliveries that are in hand at most.
const MOST_DUE: usize = 32;
/// How long it takes at most until what was delivered is stored.
const STORE_EVERY: Duration = Duration::from_millis(200);

/// An event in hand.
struct Slot {
    event: Arc<Event>,
    state: SlotState,
}

enum SlotState {
    Waiting,
    Running,
    Done,
    Failed(LastError),
    /// One before it in its aggregate has failed: it is stored as waiting.
    HeldBack,
}

impl SlotState {
    fn is_settled(&self) -> bool {
        matches!(self, Self::Done | Self::Failed(_) | Self::HeldBack)
    }
}

/// What was called for.
enum Called {
    New(Position),
    Again(Box<Delivery>),
}

struct Finished {
    called: Called,
    event: Arc<Event>,
    outcome: Result<(), LastError>,
    turn: Turn,
}

pub(super) struct Calls {
    place: Place,
    follower: PartitionFollower,
    /// Changes when the stored deliveries have changed.
    revised: watch::Receiver<i64>,
    /// Events that are wanted, in their order.
    window: VecDeque<Slot>,
    window_bytes: usize,
    /// About so many there may be.
    most_bytes: usize,
    /// Up to where the log was read.
    read: Position,
    /// Aggregates of which one is being called for.
    busy: HashSet<AggregateId>,
    running: JoinSet<Finished>,
    /// Stored deliveries that are due, and those that are in hand until what they come to is stored.
    due: VecDeque<(Delivery, Arc<Event>)>,
    taken: HashSet<DeliveryId>,
    /// What is to be stored.
    writes: Vec<DeliveryWrite>,
    has_delivered: bool,
}

impl Calls {
    pub(super) fn new(
        place: Place,
        follower: PartitionFollower,
        revised: watch::Receiver<i64>,
    ) -> Self {
        Self {
            read: place.stored,
            place,
            follower,
            revised,
            window: VecDeque::new(),
            window_bytes: 0,
            most_bytes: 0,
            busy: HashSet::new(),
            running: JoinSet::new(),
            due: VecDeque::new(),
            taken: HashSet::new(),
            writes: Vec::new(),
            has_delivered: false,
        }
    }

    /// Goes on until the checkpoint is lost.
    pub(super) async fn run(&mut self) -> Result<(), Fault> {
        let mut changed = self.place.endpoint.watch();
        loop {
            self.most_bytes = self.place.handlers.bytes_of_a_task();
            self.follower.read_pages_of(self.most_bytes);
            self.begin_calls();
            if self.is_urgent()
                && let Stored::Lost = self.store().await?
            {
                return Ok(());
            }
            let shut = self.place.endpoint.shut_until();
            if shut.is_some() {
                self.put_down();
            }
            let can_read = shut.is_none()
                && self.window.len() < WINDOW_EVENTS
                && self.window_bytes < self.most_bytes;
            let can_fetch = shut.is_none() && self.due.is_empty() && self.taken.len() < MOST_DUE;
            // What is due has its turn before more events have theirs, however many there are.
            if can_fetch && self.place.is_due() {
                self.fetch_due().await?;
                continue;
            }
            let far = Instant::now() + IDLE_EVERY;
            let store_at = self.place.stored_at
                + if self.has_delivered {
                    STORE_EVERY
                } else {
                    IDLE_EVERY
                };
            tokio::select! {
                Some(finished) = self.running.join_next() => {
                    match finished {
                        Ok(finished) => self.finish(finished).await,
                        // Whoever runs this tells of it, and begins again.
                        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                        // A call that was aborted has nothing to tell.
                        Err(_) => {}
                    }
                }
                events = self.follower.next(BATCH_EVENTS), if can_read => self.take(events?).await?,
                () = sleep_until(self.place.next_due.unwrap_or(far)), if can_fetch && self.place.next_due.is_some() => {}
                () = sleep_until(store_at), if self.settled_up_to() > self.place.stored => {
                    if let Stored::Lost = self.store().await? {
                        return Ok(());
                    }
                }
                () = sleep_until(shut.unwrap_or(far)), if shut.is_some() => {}
                _ = changed.changed() => {}
                revised = self.revised.changed() => {
                    if revised.is_err() {
                        return Ok(());
                    }
                    self.place.next_due = Some(Instant::now());
                }
            }
        }
    }

    /// Takes stored deliveries in hand that are due.
    async fn fetch_due(&mut self) -> Result<(), Fault> {
        let due = self.place.fetch_due(&self.taken, MOST_DUE).await?;
        self.taken
            .extend(due.iter().map(|(delivery, _)| delivery.id));
        self.due.extend(due);
        Ok(())
    }

    /// Begins as many calls as may be.
    fn begin_calls(&mut self) {
        let mut left = VecDeque::new();
        while let Some((delivery, event)) = self.due.pop_front() {
            if self.busy.contains(&delivery.aggregate_id) {
                left.push_back((delivery, event));
                continue;
            }
            let Some(turn) = self.place.endpoint.turn() else {
                left.push_back((delivery, event));
                break;
            };
            self.call(Called::Again(Box::new(delivery)), event, turn);
        }
        left.append(&mut self.due);
        self.due = left;

        let mut passed: HashSet<AggregateId> = HashSet::new();
        for index in 0..self.window.len() {
            let slot = &self.window[index];
            let aggregate = slot.event.aggregate_id;
            match slot.state {
                SlotState::Waiting
                    if !passed.contains(&aggregate) && !self.busy.contains(&aggregate) =>
                {
                    let Some(turn) = self.place.endpoint.turn() else {
                        return;
                    };
                    let event = slot.event.clone();
                    self.window[index].state = SlotState::Running;
                    self.call(Called::New(event.position), event, turn);
                }
                SlotState::Waiting => {
                    passed.insert(aggregate);
                }
                _ => {}
            }
        }
    }

    fn call(&mut self, called: Called, event: Arc<Event>, turn: Turn) {
        self.busy.insert(event.aggregate_id);
        let handlers = self.place.handlers.clone();
        let handler = self.place.handler.clone();
        self.running.spawn(async move {
            let outcome = handlers.call(&handler, event.clone()).await;
            Finished {
                called,
                event,
                outcome,
                turn,
            }
        });
    }

    async fn finish(&mut self, finished: Finished) {
        let Finished {
            called,
            event,
            outcome,
            turn,
        } = finished;
        let aggregate_id = event.aggregate_id;
        self.busy.remove(&aggregate_id);
        self.place.report(&turn, outcome.is_ok()).await;
        if let Err(error) = &outcome {
            tracing::debug!(
                handler = self.place.handler.name.as_str(),
                %aggregate_id,
                error = error.as_str(),
                "an event was not delivered"
            );
        }
        match called {
            Called::Again(delivery) => {
                let write = stored_delivery(&delivery, &event);
                self.writes.push(match outcome {
                    Ok(()) => write,
                    Err(error) => self.place.failed(write, error),
                });
            }
            Called::New(position) => {
                let has_failed = outcome.is_err();
                for slot in &mut self.window {
                    if slot.event.position == position {
                        slot.state = match &outcome {
                            Ok(()) => SlotState::Done,
                            Err(error) => SlotState::Failed(error.clone()),
                        };
                    } else if has_failed
                        && slot.event.aggregate_id == aggregate_id
                        && slot.event.position > position
                    {
                        slot.state = SlotState::HeldBack;
                    }
                }
                self.has_delivered |= !has_failed;
            }
        }
    }

    /// Takes events in hand.
    async fn take(&mut self, events: Vec<Arc<Event>>) -> Result<(), Fault> {
        let Some(last) = events.last().map(|event| event.position) else {
            return Ok(());
        };
        let wanted: Vec<Arc<Event>> = events
            .into_iter()
            .filter(|event| self.place.handler.wants(event))
            .collect();
        let mut held_back: HashSet<AggregateId> = self
            .window
            .iter()
            .filter(|slot| matches!(slot.state, SlotState::Failed(_) | SlotState::HeldBack))
            .map(|slot| slot.event.aggregate_id)
            .collect();
        if self.place.has_deliveries() && !wanted.is_empty() {
            let aggregates: HashSet<AggregateId> =
                wanted.iter().map(|event| event.aggregate_id).collect();
            let aggregates: Vec<AggregateId> = aggregates.into_iter().collect();
            let store = &self.place.handlers.store;
            let stored = store
                .held_back(self.place.partition, self.place.handler.id, &aggregates)
                .await;
            match stored {
                Ok(stored) => held_back.extend(stored),
                Err(error) => {
                    self.follower.go_on_behind(self.read);
                    return Err(error.into());
                }
            }
        }
        for event in wanted {
            let state = if held_back.contains(&event.aggregate_id) {
                SlotState::HeldBack
            } else {
                SlotState::Waiting
            };
            self.window_bytes += event.size_bytes();
            self.window.push_back(Slot { event, state });
        }
        self.read = last;
        Ok(())
    }

    /// Up to where everything is done, or can be stored.
    fn settled_up_to(&self) -> Position {
        match self.window.iter().find(|slot| !slot.state.is_settled()) {
            Some(slot) => Position(slot.event.position.0 - 1),
            None => self.read,
        }
    }

    /// Whether something is to be stored at once.
    fn is_urgent(&self) -> bool {
        let is_full = self.window.len() >= WINDOW_EVENTS || self.window_bytes >= self.most_bytes;
        let first = self.window.front().map(|slot| &slot.state);
        let first_is_settled = first.is_some_and(SlotState::is_settled);
        let stores_delivery = self
            .window
            .iter()
            .take_while(|slot| slot.state.is_settled())
            .any(|slot| !matches!(slot.state, SlotState::Done));
        !self.writes.is_empty() || stores_delivery || (is_full && first_is_settled)
    }

    async fn store(&mut self) -> Result<Stored, Fault> {
        let to = self.settled_up_to();
        let mut writes = std::mem::take(&mut self.writes);
        let again: Vec<DeliveryId> = writes.iter().map(|write| write.id).collect();
        while let Some(slot) = self.window.pop_front_if(|slot| slot.state.is_settled()) {
            self.window_bytes -= slot.event.size_bytes();
            let write = self.place.new_delivery(&slot.event);
            match slot.state {
                SlotState::Failed(error) => writes.push(self.place.failed(write, error)),
                SlotState::HeldBack => writes.push(write),
                _ => {}
            }
        }
        let stored = self.place.save(to, writes, Vec::new()).await?;
        for id in again {
            self.taken.remove(&id);
        }
        self.has_delivered = false;
        Ok(stored)
    }

    /// While the handler is paused, events are not kept in hand: they are read again when it goes on.
    fn put_down(&mut self) {
        let begun = |slot: &Slot| !matches!(slot.state, SlotState::Waiting);
        for (delivery, _) in self.due.drain(..) {
            self.taken.remove(&delivery.id);
            self.place.next_due = Some(Instant::now());
        }
        while let Some(slot) = self.window.pop_back() {
            if begun(&slot) {
                self.window.push_back(slot);
                break;
            }
            self.window_bytes -= slot.event.size_bytes();
            self.read = Position(slot.event.position.0 - 1);
            self.follower.go_on_behind(self.read);
        }
    }
}
