//! Deliveries: an event given to a handler, and what a dispatcher writes about them. Floor 0.

use std::{fmt, time::Duration};

use super::{
    AggregateId, CheckpointStep, DeliveryId, EventId, FencingToken, HandlerId, NewEntry, Partition,
    Position, SqlFunctionName, Timestamp,
    append::{AppendedEntry, Outcome},
};

/// The longest text that is kept of why a delivery failed, in characters.
const MAX_ERROR_CHARS: usize = 500;

/// How far a delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeliveryStatus {
    /// It is done, and not stored.
    Delivered,
    /// It waits behind another one of the same aggregate.
    Waiting,
    /// It is tried (again) when its time has come.
    Retrying,
    /// Its last attempt failed.
    Dead,
}

impl DeliveryStatus {
    /// The status as it is stored, and as the API spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "DELIVERED",
            Self::Waiting => "WAITING",
            Self::Retrying => "RETRYING",
            Self::Dead => "DEAD",
        }
    }

    /// Reads a stored status.
    #[must_use]
    pub fn stored(text: &str) -> Option<Self> {
        [Self::Delivered, Self::Waiting, Self::Retrying, Self::Dead]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

/// One event given to one handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The partition of the event.
    pub partition: Partition,
    /// Its id.
    pub id: DeliveryId,
    /// The handler.
    pub handler_id: HandlerId,
    /// The event's place in its partition.
    pub position: Position,
    /// The event's aggregate.
    pub aggregate_id: AggregateId,
    /// How far it is.
    pub status: DeliveryStatus,
    /// How often it was tried.
    pub attempts: i32,
    /// Why the last attempt failed.
    pub last_error: Option<LastError>,
    /// When it is tried next.
    pub next_attempt_at: Option<Timestamp>,
    /// When any of this changed.
    pub updated_at: Timestamp,
}

/// Why an attempt failed, for people: short, and without control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError(String);

impl LastError {
    /// What is kept of a text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut kept: String = text
            .chars()
            .take(MAX_ERROR_CHARS)
            .map(|char| if char.is_control() { ' ' } else { char })
            .collect();
        if text.chars().nth(MAX_ERROR_CHARS).is_some() {
            kept.push('…');
        }
        Self(kept)
    }

    /// Takes a text that was shortened before it was stored.
    #[must_use]
    pub fn stored(text: String) -> Self {
        Self(text)
    }

    /// What is said of an entry that its stream does not take, also by the functions in PostgreSQL.
    #[must_use]
    pub fn entry_refused() -> Self {
        Self::new("the stream has another entry of this event's id")
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LastError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What becomes of one delivery.
#[derive(Clone, Debug)]
pub struct DeliveryWrite {
    /// The delivery.
    pub id: DeliveryId,
    /// Whether it is not stored yet.
    pub is_new: bool,
    /// The event.
    pub event_id: EventId,
    /// The event's place.
    pub position: Position,
    /// The event's aggregate.
    pub aggregate_id: AggregateId,
    /// What it becomes; a delivered one goes.
    pub status: DeliveryStatus,
    /// How often it was tried. One that is stored is changed only where it is RETRYING still, and was tried once less; or as
    /// often, where it is delivered.
    pub attempts: i32,
    /// Why the last attempt failed.
    pub last_error: Option<LastError>,
    /// How long to wait before the next attempt.
    pub delay: Option<Duration>,
}

/// What a dispatcher has come to for one handler in one partition: it is stored as a whole, or not at all.
#[derive(Clone, Debug)]
pub struct HandlerStep {
    /// The handler.
    pub handler_id: HandlerId,
    /// How its checkpoint moves.
    pub step: CheckpointStep,
    /// What becomes of deliveries.
    pub deliveries: Vec<DeliveryWrite>,
    /// Entries that are made of events, each with its stream's partition and with what it is stored as where its stream has
    /// another entry of its id.
    pub entries: Vec<(Partition, NewEntry, DeliveryWrite)>,
}

/// What became of a [`HandlerStep`].
#[derive(Clone, Debug)]
pub enum StepOutcome {
    /// It is stored.
    Saved(SavedStep),
    /// Somebody else has locked the checkpoint: the same again may succeed.
    Busy,
    /// The checkpoint is elsewhere, belongs to another runner, or is gone.
    Lost,
}

/// What became of a [`HandlerStep`] that was stored.
#[derive(Clone, Debug)]
pub struct SavedStep {
    /// In which time the next of the handler's deliveries is due; none where none is under way. Only told where the step wrote
    /// deliveries.
    pub next_due: Option<Duration>,
    /// For each entry, what became of it.
    pub entries: Vec<Outcome<AppendedEntry>>,
}

/// One call of a function in PostgreSQL.
#[derive(Clone, Copy, Debug)]
pub struct SqlTry {
    /// The delivery; a new id where it is not stored.
    pub id: DeliveryId,
    /// Whether it is not stored yet.
    pub is_new: bool,
    /// The event's place.
    pub position: Position,
    /// How often it was tried before.
    pub attempts: i32,
}

/// Calls of a function in PostgreSQL, in the transaction that moves the checkpoint.
#[derive(Clone, Debug)]
pub struct SqlRun<'r> {
    /// The handler.
    pub handler_id: HandlerId,
    /// The function.
    pub function: &'r SqlFunctionName,
    /// Where the checkpoint must be, where it goes when all events were looked at, and the runner's token.
    pub from: Position,
    /// See `from`.
    pub to: Position,
    /// See `from`.
    pub token: FencingToken,
    /// The events, in their order.
    pub tries: &'r [SqlTry],
    /// How long to wait after the first attempt that failed, the second one and so on, each shifted a little by chance; behind the
    /// last one it is dead.
    pub delays: &'r [Duration],
    /// The calls end after so many failures in a row.
    pub most_failures: u32,
    /// How long all of it may take.
    pub time_out: Duration,
    /// No call begins later than this.
    pub most_work: Duration,
}

/// What became of a [`SqlRun`].
#[derive(Clone, Debug)]
pub struct SqlRunOutcome {
    /// Where the checkpoint is now.
    pub reached: Position,
    /// In which time the next delivery is due; none where none is under way.
    pub next_due: Option<Duration>,
    /// What became of each event that was looked at, in order.
    pub calls: Vec<SqlCall>,
}

/// What became of one event of a [`SqlRun`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SqlCall {
    /// The function was called, and what it did is stored.
    Done,
    /// It failed.
    Failed(LastError),
    /// It was not called: an earlier event of the aggregate has failed.
    HeldBack,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_an_error_is_short_and_of_one_line() {
        assert_eq!(LastError::new("a\nb\0c").as_str(), "a b c");
        let long = LastError::new(&"ä".repeat(10_000));
        assert_eq!(long.as_str().chars().count(), MAX_ERROR_CHARS + 1);
        assert!(long.as_str().ends_with('…'));
    }
}
