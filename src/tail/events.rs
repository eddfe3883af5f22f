//! Following the log of events through a filter. Floor 3.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};

use super::Tail;
use crate::{
    domain::{Event, EventFilter, Order, Partition, Place, Position},
    store::{EventScan, StoreError},
};

/// What is read of history at a time: so many rows, and about so many bytes.
pub(super) const PAGE_ROWS: usize = 500;
pub(super) const PAGE_BYTES: usize = 1 << 20;
/// At least so often a follower hears how far it is while the log moves on without an event for it.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
const PAUSE_AFTER_FAULT: Duration = Duration::from_millis(250);

/// Whether a page of history ends because it is full, so that there may be more behind it.
pub(super) fn is_full(rows: usize, bytes: usize) -> bool {
    rows == PAGE_ROWS || bytes >= PAGE_BYTES
}

/// One step of a follower.
#[derive(Clone, Debug)]
pub struct EventStep {
    /// The place behind which to go on after this step.
    pub place: Place,
    /// The event; none where only the place has moved on.
    pub event: Option<Arc<Event>>,
    /// Whether this is the newest there is.
    pub caught_up: bool,
}

/// Somebody who follows the events behind a place.
pub struct EventFollower {
    tail: Arc<Tail>,
    heads: watch::Receiver<Vec<Position>>,
    filter: EventFilter,
    progress: bool,
    /// For each partition, up to where everything that passes was delivered.
    behind: Vec<Position>,
    /// For each partition, a head that the database had when following began.
    newest_at_start: Vec<Position>,
    /// What was read and is to be delivered: events of one partition, and up to where it was looked through for them.
    ready: VecDeque<Arc<Event>>,
    looked: (Partition, Position),
    told: Told,
}

/// What the follower was told last.
struct Told {
    caught_up: bool,
    behind: Vec<Position>,
    at: Instant,
}

impl EventFollower {
    pub(super) fn new(
        tail: Arc<Tail>,
        heads: watch::Receiver<Vec<Position>>,
        behind: Vec<Position>,
        newest_at_start: Vec<Position>,
        filter: EventFilter,
        progress: bool,
    ) -> Self {
        let told = Told {
            caught_up: false,
            behind: behind.clone(),
            at: Instant::now(),
        };
        Self {
            tail,
            heads,
            filter,
            progress,
            looked: (Partition(0), behind[0]),
            behind,
            newest_at_start,
            ready: VecDeque::new(),
            told,
        }
    }

    /// Waits for the next step. Faults of the database that pass are waited out.
    ///
    /// # Errors
    /// A fault of the database that does not pass.
    pub async fn next(&mut self) -> Result<EventStep, StoreError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(self.step_of(event));
            }
            self.finish_page();
            if let Some(step) = self.overdue_progress() {
                return Ok(step);
            }
            match self.read_on().await {
                Ok(true) => {}
                Ok(false) => {
                    if let Some(step) = self.wait().await {
                        return Ok(step);
                    }
                }
                Err(error) if error.is_passing() => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "a subscription waits for the database"
                    );
                    sleep(PAUSE_AFTER_FAULT).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn step_of(&mut self, event: Arc<Event>) -> EventStep {
        let partition = event.partition;
        self.behind[partition.index()] = event.position;
        let place = Place {
            behind: self.behind.clone(),
            event_in: Some(partition),
        };
        if self.ready.is_empty() {
            self.finish_page();
        }
        let caught_up = self.ready.is_empty() && self.next_partition().is_none();
        self.told = Told {
            caught_up,
            behind: self.behind.clone(),
            at: Instant::now(),
        };
        EventStep {
            place,
            event: Some(event),
            caught_up,
        }
    }

    /// All that was read is delivered, so the place moves up to where it was looked through.
    fn finish_page(&mut self) {
        let (partition, position) = self.looked;
        let behind = &mut self.behind[partition.index()];
        *behind = position.max(*behind);
    }

    /// A partition with something that was not looked through yet.
    fn next_partition(&self) -> Option<(Partition, Position)> {
        let heads = self.heads.borrow();
        // Each in its turn: a follower that is slower than the writers of one still gets the others.
        let partitions = self.tail.store.partitions();
        let turn = self.looked.0.index() + 1;
        let in_turn = partitions.iter().cycle().skip(turn).take(partitions.get());
        in_turn.into_iter().find_map(|partition| {
            // The window may lag behind what the database had when following began.
            let head = heads[partition.index()].max(self.newest_at_start[partition.index()]);
            (head > self.behind[partition.index()]).then_some((partition, head))
        })
    }

    /// Looks through the next part of the log. False where there is none.
    async fn read_on(&mut self) -> Result<bool, StoreError> {
        self.heads.mark_unchanged();
        let Some((partition, head)) = self.next_partition() else {
            return Ok(false);
        };
        let after = self.behind[partition.index()];
        let window = &self.tail.events.windows[partition.index()];
        if let Some(rows) = window.rows_after(after).filter(|rows| !rows.is_empty()) {
            let looked = rows.last().map_or(after, |event| event.position);
            self.ready
                .extend(rows.into_iter().filter(|event| self.filter.matches(event)));
            self.looked = (partition, looked);
            return Ok(true);
        }
        let scan = EventScan {
            partition,
            above: after,
            up_to: head,
            filter: &self.filter,
            order: Order::OldestFirst,
            limit: PAGE_ROWS as u64,
            max_bytes: Some(PAGE_BYTES),
        };
        let events = self.tail.store.scan_events(&scan).await?;
        let bytes = events.iter().map(Event::size_bytes).sum();
        let looked = match events.last() {
            Some(last) if is_full(events.len(), bytes) => last.position,
            _ => head,
        };
        self.ready.extend(events.into_iter().map(Arc::new));
        self.looked = (partition, looked);
        Ok(true)
    }

    /// A step without an event for a follower that is behind and has heard nothing for long.
    fn overdue_progress(&mut self) -> Option<EventStep> {
        let overdue = self.progress
            && self.told.behind != self.behind
            && self.told.at.elapsed() >= PROGRESS_EVERY
            && self.next_partition().is_some();
        overdue.then(|| self.tell_place(false))
    }

    fn tell_place(&mut self, caught_up: bool) -> EventStep {
        self.told = Told {
            caught_up,
            behind: self.behind.clone(),
            at: Instant::now(),
        };
        EventStep {
            place: Place::behind(self.behind.clone()),
            event: None,
            caught_up,
        }
    }

    /// Waits for the log to move on; with `progress` it may have something to tell before.
    async fn wait(&mut self) -> Option<EventStep> {
        if !self.progress {
            self.changed().await;
            return None;
        }
        if self.told.caught_up {
            if self.told.behind == self.behind {
                self.changed().await;
                return None;
            }
            if timeout_at(self.told.at + PROGRESS_EVERY, self.changed())
                .await
                .is_ok()
            {
                return None;
            }
        }
        Some(self.tell_place(true))
    }

    async fn changed(&mut self) {
        if self.heads.changed().await.is_err() {
            // The tail has ended: the server stops, and whoever follows is told so by it.
            std::future::pending::<()>().await;
        }
    }
}
