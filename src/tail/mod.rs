//! Reading live: each log is read once, and all who follow it share what was read. Floor 3.
//!
//! A follower is a place in the log and nothing else: it reads on behind that place, from the window in memory where
//! that reaches back far enough, from the database where it does not. So history and live are one thing, a slow
//! follower costs no memory, and nothing is lost or repeated in between. The doorbell only ever says "look".

mod changes;
mod command_bell;
mod events;
mod newest;
mod partition;
mod stream;
mod watch;
mod window;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::{Notify, watch as heads_watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

pub use changes::{ChangeFollower, ChangeStep, ReadModelWatch};
pub use command_bell::CommandBell;
pub use events::{EventFollower, EventStep};
pub use partition::{EventBatch, PartitionFollower};
pub use stream::StreamFollower;

use crate::{
    config::Limits,
    domain::{
        AggregateId, Entry, Event, EventFilter, Partition, Place, Position, ReadModelFilter,
        StreamName, append::Committed,
    },
    store::{Seen, SeenLog, Store, StoreError},
};
use newest::ChangeWindow;
use window::{Extended, Logged, Window, Windowed};

/// Why following did not begin.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The place lies above the newest one.
    #[error("the place lies above the newest one")]
    NotReached {
        /// The newest place, or the newest position of the stream.
        head: Head,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The newest place of what is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// Of the log of events.
    Log(Place),
    /// Of the changes of read models, one for each partition.
    Changes(Vec<Position>),
    /// Of a stream.
    Stream(Position),
}

/// The tail of a database's logs.
pub struct Tail {
    store: Store,
    events: LogTail<Window<Event>>,
    entries: LogTail<Window<Entry>>,
    changes: LogTail<ChangeWindow>,
    commands: CommandBell,
    /// Rung when the tables may hold more than the windows.
    look: Notify,
    /// Rung when this server has committed something that other servers want to know.
    committed: Notify,
    /// Whether something of this was committed behind what is not known here yet.
    untold: AtomicBool,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

/// The tail of one log in all its partitions.
struct LogTail<W> {
    windows: Vec<W>,
    /// How far the windows reach; followers wait for it to change.
    heads: heads_watch::Sender<Vec<Position>>,
}

impl<W: Windowed> LogTail<W> {
    fn new(heads: Vec<Position>, max_bytes: usize) -> Self {
        let windows = heads.iter().map(|head| W::new(*head, max_bytes)).collect();
        Self {
            windows,
            heads: heads_watch::Sender::new(heads),
        }
    }

    /// Takes in all rows above a place and up to another one.
    fn extend(
        &self,
        partition: Partition,
        above: Position,
        rows: &[Arc<W::Row>],
        up_to: Position,
    ) -> Extended {
        let extended = self.windows[partition.index()].extend(above, rows, up_to);
        if let Extended::To(head) = extended {
            self.tell(partition, head);
        }
        extended
    }

    /// Only ever forward: two who extend a window one after the other may get here in the other order.
    fn tell(&self, partition: Partition, head: Position) {
        self.heads.send_if_modified(|heads| {
            let moves_on = head > heads[partition.index()];
            if moves_on {
                heads[partition.index()] = head;
            }
            moves_on
        });
    }

    /// Takes in what was committed as one, its positions side by side.
    fn take_committed(
        &self,
        partition: Partition,
        rows: &[Arc<W::Row>],
        position: impl Fn(&W::Row) -> Position,
    ) -> Extended {
        match (rows.first(), rows.last()) {
            (Some(first), Some(last)) => {
                let above = Position(position(first).0 - 1);
                self.extend(partition, above, rows, position(last))
            }
            _ => Extended::Unchanged,
        }
    }

    /// Where the windows end.
    fn window_heads(&self) -> Vec<Position> {
        self.windows.iter().map(W::head).collect()
    }

    fn is_followed(&self) -> bool {
        self.heads.receiver_count() > 0
    }
}

impl<T: Logged> LogTail<Window<T>> {
    /// The newest place of each partition, and what stands there where it is known.
    fn newest(&self) -> impl Iterator<Item = (Partition, Position, Option<Uuid>)> {
        let newest = |(number, window): (u8, &Window<T>)| {
            let (head, id) = window.newest();
            (Partition(number), head, id)
        };
        (0..).zip(&self.windows).map(newest)
    }
}

impl Tail {
    /// Starts following the logs from their present heads.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn start(store: Store, limits: &Limits) -> Result<Arc<Self>, StoreError> {
        let heads = store.heads().await?;
        let tail = Arc::new(Self {
            events: LogTail::new(heads.events, limits.tail_window_bytes),
            entries: LogTail::new(heads.entries, limits.tail_window_bytes),
            changes: LogTail::new(heads.changes, limits.tail_window_bytes),
            commands: CommandBell::new(store.partitions()),
            look: Notify::new(),
            committed: Notify::new(),
            untold: AtomicBool::new(false),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
            store,
        });
        let seen = Arc::downgrade(&tail);
        tail.store.hold_to(Arc::new(move || {
            seen.upgrade().map_or_else(Vec::new, |tail| tail.seen())
        }));
        tail.tasks.spawn(watch::look(tail.clone()));
        if let Some(doorbell) = tail.store.doorbell() {
            tail.tasks
                .spawn(watch::ring(tail.clone(), doorbell.clone()));
            tail.tasks.spawn(watch::listen(tail.clone(), doorbell));
        }
        tail.tasks.close();
        Ok(tail)
    }

    /// What is known of the logs, for the database to still have it.
    fn seen(&self) -> Vec<Seen> {
        let events = self.events.newest().map(|newest| (SeenLog::Events, newest));
        let entries = self
            .entries
            .newest()
            .map(|newest| (SeenLog::Entries, newest));
        let seen = |(log, (partition, position, id))| Seen {
            log,
            partition,
            position,
            id,
        };
        let is_something = |seen: &Seen| seen.position > Position::START;
        events
            .chain(entries)
            .map(seen)
            .filter(is_something)
            .collect()
    }

    /// Takes in what this server has committed, so that it need not be read again.
    pub fn take_committed(&self, committed: Committed) {
        let extended = match committed {
            Committed::Events(partition, events) => {
                self.events
                    .take_committed(partition, &events, |event| event.position)
            }
            Committed::Entries(partition, entries) => {
                self.entries
                    .take_committed(partition, &entries, |entry| entry.entry_position)
            }
            Committed::Changes(partition, changes) => {
                self.changes
                    .take_committed(partition, &changes, |change| change.change_position)
            }
            Committed::Commands(partition, changes) => {
                self.commands.take_committed(partition, &changes);
                Extended::Unchanged
            }
        };
        if extended == Extended::Gap {
            // The other servers are told once what lies between is known here: heads from before it are no news to them.
            self.untold.store(true, Ordering::Release);
            self.look.notify_one();
        } else {
            self.committed.notify_one();
        }
    }

    /// The bell of those who work on commands.
    #[must_use]
    pub fn command_bell(&self) -> &CommandBell {
        &self.commands
    }

    /// Follows the events behind a place; without one, those that come after now.
    ///
    /// # Errors
    /// When the place lies above the newest one, or the database fails.
    pub async fn follow_events(
        self: &Arc<Self>,
        after: Option<Place>,
        filter: EventFilter,
        progress: bool,
    ) -> Result<EventFollower, FollowError> {
        let heads = self.events.heads.subscribe();
        let newest = self.store.heads().await?.events;
        let place = match after {
            None => newest.clone(),
            Some(place)
                if place
                    .behind
                    .iter()
                    .zip(&newest)
                    .any(|(place, newest)| place > newest) =>
            {
                return Err(FollowError::NotReached {
                    head: Head::Log(Place::behind(newest)),
                });
            }
            Some(place) => place.behind,
        };
        self.look.notify_one();
        Ok(EventFollower::new(
            self.clone(),
            heads,
            place,
            newest,
            filter,
            progress,
        ))
    }

    /// Follows the entries of a stream behind a position; without one, those that come after now.
    ///
    /// # Errors
    /// When the position lies above the newest one, or the database fails.
    pub async fn follow_stream(
        self: &Arc<Self>,
        name: StreamName,
        after: Option<Position>,
    ) -> Result<StreamFollower, FollowError> {
        let heads = self.entries.heads.subscribe();
        let streams = self
            .store
            .streams_by_name(std::slice::from_ref(&name))
            .await?;
        let newest = streams
            .get(&name)
            .map_or(Position::START, |stream| stream.last_position);
        if let Some(after) = after
            && after > newest
        {
            return Err(FollowError::NotReached {
                head: Head::Stream(newest),
            });
        }
        self.look.notify_one();
        Ok(StreamFollower::new(
            self.clone(),
            heads,
            name,
            after.unwrap_or(newest),
        ))
    }

    /// Follows the changes of read models behind a place, one position for each partition; without one, those that come after
    /// now. What their data contains is not looked at.
    ///
    /// # Errors
    /// When the place lies above the newest one, or the database fails.
    pub async fn follow_changes(
        self: &Arc<Self>,
        after: Option<Vec<Position>>,
        filter: ReadModelFilter,
    ) -> Result<ChangeFollower, FollowError> {
        let heads = self.changes.heads.subscribe();
        let newest = self.store.heads().await?.changes;
        let place = match after {
            None => newest.clone(),
            Some(place)
                if place
                    .iter()
                    .zip(&newest)
                    .any(|(place, newest)| place > newest) =>
            {
                return Err(FollowError::NotReached {
                    head: Head::Changes(newest),
                });
            }
            Some(place) => place,
        };
        self.look.notify_one();
        Ok(ChangeFollower::new(
            self.clone(),
            heads,
            place,
            newest,
            filter,
        ))
    }

    /// Follows all events of one partition behind a position.
    #[must_use]
    pub fn follow_partition(
        self: &Arc<Self>,
        partition: Partition,
        after: Position,
    ) -> PartitionFollower {
        let heads = self.events.heads.subscribe();
        self.look.notify_one();
        PartitionFollower::new(self.clone(), heads, partition, after)
    }

    /// Watches one read model.
    #[must_use]
    pub fn watch_read_model(self: &Arc<Self>, id: AggregateId) -> ReadModelWatch {
        let heads = self.changes.heads.subscribe();
        self.look.notify_one();
        ReadModelWatch::new(self.clone(), heads, id)
    }

    /// Ends all tasks.
    pub async fn stop(&self) {
        self.stopping.cancel();
        self.tasks.wait().await;
    }
}
