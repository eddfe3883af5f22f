//! Cursors: opaque texts that name a place in one database. Floor 0.
//!
//! The bytes (format, kind, database, number of partitions, then what the kind needs) are written in base64url.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use uuid::Uuid;

use super::{
    AggregateId, CommandId, DatabaseId, DeliveryId, Partition, PartitionCount, Position,
    ReadModelTime, StreamName, Timestamp,
};

const FORMAT: u8 = 1;
/// The end of the year 9999: later ones, and those before 1970, are in no cursor that was given out.
const LATEST_MICROS: i64 = 253_402_300_799_999_999;
const KIND_EVENTS: u8 = b'e';
const KIND_AGGREGATES: u8 = b'a';
const KIND_COMMANDS: u8 = b'c';
const KIND_STREAMS: u8 = b's';
const KIND_CHANGES: u8 = b'g';
const KIND_READ_MODELS: u8 = b'r';
const KIND_DELIVERIES: u8 = b'd';

/// Why a text is no cursor that can be used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// The server did not make it.
    #[error(
        "is not a cursor: pass one on as this server gave it, or an empty text for the beginning"
    )]
    Malformed,
    /// Another list gave it.
    #[error("is the cursor of another kind of list: pass on one that this list gave")]
    OtherKind,
    /// Another database gave it.
    #[error("is a cursor of another database: read again from the beginning of this one")]
    OtherDatabase,
}

/// A place in the log of events: for each partition the position that it lies behind.
///
/// The place of one event lies just behind it in its own partition; going back from there begins below that event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// For each partition, the last position before the place.
    pub behind: Vec<Position>,
    /// The partition of the event that the place belongs to, if it belongs to one.
    pub event_in: Option<Partition>,
}

impl Place {
    /// The place before the first event.
    #[must_use]
    pub fn start(partitions: PartitionCount) -> Self {
        Self {
            behind: vec![Position::START; partitions.get()],
            event_in: None,
        }
    }

    /// The place behind these positions, one for each partition.
    #[must_use]
    pub fn behind(positions: Vec<Position>) -> Self {
        Self {
            behind: positions,
            event_in: None,
        }
    }

    /// The last position that lies before the place when the log is read backwards.
    #[must_use]
    pub fn last_before(&self, partition: Partition) -> Position {
        let behind = self.behind[partition.index()];
        if self.event_in == Some(partition) {
            Position(behind.0 - 1)
        } else {
            behind
        }
    }
}

/// What a cursor names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// A place in the log of events.
    Events(Place),
    /// A place in the log of events and in that of the changes of read models at the same time. It is of the kind of events.
    Head {
        /// In the log of events.
        events: Place,
        /// In that of the changes, for each partition.
        changes: Vec<Position>,
    },
    /// A place in the log of the changes of read models: for each partition the position that it lies behind.
    Changes(Vec<Position>),
    /// A read model in a list by one of its times.
    ReadModels {
        /// By which time.
        by: ReadModelTime,
        /// The time.
        at: Timestamp,
        /// Its aggregate.
        id: AggregateId,
    },
    /// An aggregate in the order of creation.
    Aggregates {
        /// When it was made.
        created_at: Timestamp,
        /// Its id.
        id: AggregateId,
    },
    /// A command in the order of creation.
    Commands {
        /// When it was recorded.
        created_at: Timestamp,
        /// Its id.
        id: CommandId,
    },
    /// A stream in the order of names.
    Streams(StreamName),
    /// A delivery in the order of ids.
    Deliveries(DeliveryId),
}

impl Cursor {
    /// Writes the cursor for clients of one database.
    #[must_use]
    pub fn encode(&self, database: DatabaseId, partitions: PartitionCount) -> String {
        let mut bytes = Vec::with_capacity(32);
        bytes.push(FORMAT);
        bytes.push(match self {
            Self::Events(_) | Self::Head { .. } => KIND_EVENTS,
            Self::Changes(_) => KIND_CHANGES,
            Self::ReadModels { .. } => KIND_READ_MODELS,
            Self::Aggregates { .. } => KIND_AGGREGATES,
            Self::Commands { .. } => KIND_COMMANDS,
            Self::Streams(_) => KIND_STREAMS,
            Self::Deliveries(_) => KIND_DELIVERIES,
        });
        bytes.extend_from_slice(database.0.as_bytes());
        bytes.push(u8::try_from(partitions.get()).unwrap_or(u8::MAX));
        match self {
            Self::Events(place) => push_place(&mut bytes, place),
            Self::Head { events, changes } => {
                push_place(&mut bytes, events);
                push_positions(&mut bytes, changes);
            }
            Self::Changes(behind) => push_positions(&mut bytes, behind),
            Self::ReadModels { by, at, id } => {
                bytes.push(match by {
                    ReadModelTime::Created => 0,
                    ReadModelTime::Updated => 1,
                });
                bytes.extend_from_slice(&at.as_micros().to_be_bytes());
                bytes.extend_from_slice(id.0.as_bytes());
            }
            Self::Aggregates { created_at, id } => push_made(&mut bytes, *created_at, id.0),
            Self::Commands { created_at, id } => push_made(&mut bytes, *created_at, id.0),
            Self::Streams(name) => bytes.extend_from_slice(name.as_str().as_bytes()),
            Self::Deliveries(id) => bytes.extend_from_slice(id.0.as_bytes()),
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a cursor that a client hands in.
    ///
    /// # Errors
    /// When the text is no cursor, or one of another database.
    pub fn decode(
        text: &str,
        database: DatabaseId,
        partitions: PartitionCount,
    ) -> Result<Self, CursorError> {
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| CursorError::Malformed)?;
        let (head, body) = bytes.split_at_checked(19).ok_or(CursorError::Malformed)?;
        if head[0] != FORMAT {
            return Err(CursorError::Malformed);
        }
        let cursor = Self::decode_body(head[1], usize::from(head[18]), body)
            .ok_or(CursorError::Malformed)?;
        let of_database = Uuid::from_slice(&head[2..18]).map_err(|_| CursorError::Malformed)?;
        if DatabaseId(of_database) != database || usize::from(head[18]) != partitions.get() {
            return Err(CursorError::OtherDatabase);
        }
        Ok(cursor)
    }

    fn decode_body(kind: u8, partitions: usize, body: &[u8]) -> Option<Self> {
        match kind {
            KIND_EVENTS => {
                let (&event_in, mut rest) = body.split_first()?;
                if usize::from(event_in) > partitions {
                    return None;
                }
                let event_in = event_in.checked_sub(1).map(Partition);
                let behind = take_positions(&mut rest, partitions)?;
                let starts_in_an_event =
                    event_in.is_none_or(|partition| behind[partition.index()] > Position::START);
                starts_in_an_event.then_some(())?;
                let events = Place { behind, event_in };
                if rest.is_empty() {
                    return Some(Self::Events(events));
                }
                let changes = take_positions(&mut rest, partitions)?;
                rest.is_empty().then_some(Self::Head { events, changes })
            }
            KIND_CHANGES => {
                let mut rest = body;
                let behind = take_positions(&mut rest, partitions)?;
                rest.is_empty().then_some(Self::Changes(behind))
            }
            KIND_READ_MODELS => {
                let (by, body) = body.split_first()?;
                let by = match by {
                    0 => ReadModelTime::Created,
                    1 => ReadModelTime::Updated,
                    _ => return None,
                };
                let (at, id) = take_made(body)?;
                let id = AggregateId(id);
                Some(Self::ReadModels { by, at, id })
            }
            KIND_AGGREGATES => take_made(body).map(|(created_at, id)| Self::Aggregates {
                created_at,
                id: AggregateId(id),
            }),
            KIND_COMMANDS => take_made(body).map(|(created_at, id)| Self::Commands {
                created_at,
                id: CommandId(id),
            }),
            KIND_STREAMS => Some(Self::Streams(
                StreamName::new(std::str::from_utf8(body).ok()?).ok()?,
            )),
            KIND_DELIVERIES => Uuid::from_slice(body)
                .ok()
                .map(|id| Self::Deliveries(DeliveryId(id))),
            _ => None,
        }
    }
}

/// Appends when something was made, and its id.
fn push_made(bytes: &mut Vec<u8>, created_at: Timestamp, id: Uuid) {
    bytes.extend_from_slice(&created_at.as_micros().to_be_bytes());
    bytes.extend_from_slice(id.as_bytes());
}

fn take_made(body: &[u8]) -> Option<(Timestamp, Uuid)> {
    let (created_at, id) = body.split_at_checked(8)?;
    let micros = i64::from_be_bytes(created_at.try_into().ok()?);
    (0..=LATEST_MICROS).contains(&micros).then_some(())?;
    Some((Timestamp::from_micros(micros), Uuid::from_slice(id).ok()?))
}

fn push_place(bytes: &mut Vec<u8>, place: &Place) {
    bytes.push(place.event_in.map_or(0, |partition| partition.0 + 1));
    push_positions(bytes, &place.behind);
}

fn push_positions(bytes: &mut Vec<u8>, positions: &[Position]) {
    for position in positions {
        push_number(bytes, position.0.unsigned_abs());
    }
}

fn take_positions(bytes: &mut &[u8], count: usize) -> Option<Vec<Position>> {
    (0..count).map(|_| take_number(bytes)).collect()
}

/// Appends a number in base 128, the low digits first.
fn push_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take_number(bytes: &mut &[u8]) -> Option<Position> {
    let mut number = 0_u64;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return i64::try_from(number).ok().map(Position);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DATABASE: DatabaseId = DatabaseId(Uuid::from_u128(7));

    fn four() -> PartitionCount {
        PartitionCount::new(4).expect("a power of two")
    }

    proptest! {
        #[test]
        fn a_cursor_comes_back_as_it_was_made(
            behind in proptest::collection::vec(1..i64::MAX, 4),
            event_in in proptest::option::of(0_u8..4),
            micros in 0..=LATEST_MICROS,
            id in any::<u128>(),
            changes in proptest::collection::vec(0..i64::MAX, 4),
            by in prop_oneof![Just(ReadModelTime::Created), Just(ReadModelTime::Updated)],
        ) {
            let events = Place {
                behind: behind.into_iter().map(Position).collect(),
                event_in: event_in.map(Partition),
            };
            let changes: Vec<Position> = changes.into_iter().map(Position).collect();
            let places = [
                Cursor::Events(events.clone()),
                Cursor::Head { events, changes: changes.clone() },
                Cursor::Changes(changes),
                Cursor::ReadModels {
                    by,
                    at: Timestamp::from_micros(micros),
                    id: AggregateId(Uuid::from_u128(id)),
                },
                Cursor::Aggregates {
                    created_at: Timestamp::from_micros(micros),
                    id: AggregateId(Uuid::from_u128(id)),
                },
                Cursor::Commands {
                    created_at: Timestamp::from_micros(micros),
                    id: CommandId(Uuid::from_u128(id)),
                },
                Cursor::Streams(StreamName::new("user_events").expect("a name")),
                Cursor::Deliveries(DeliveryId(Uuid::from_u128(id))),
            ];
            for cursor in places {
                let text = cursor.encode(DATABASE, four());
                prop_assert_eq!(Cursor::decode(&text, DATABASE, four()), Ok(cursor));
            }
        }

        #[test]
        fn no_text_makes_decoding_panic(text in "[A-Za-z0-9_-]{0,80}") {
            let _ = Cursor::decode(&text, DATABASE, four());
        }
    }

    #[test]
    fn a_cursor_of_another_database_or_number_of_partitions_is_refused() {
        let text = Cursor::Events(Place::start(four())).encode(DATABASE, four());
        let other = DatabaseId(Uuid::from_u128(8));
        assert_eq!(
            Cursor::decode(&text, other, four()),
            Err(CursorError::OtherDatabase)
        );
        assert_eq!(
            Cursor::decode(&text, DATABASE, PartitionCount::ONE),
            Err(CursorError::OtherDatabase)
        );
        assert_eq!(
            Cursor::decode("bm90IGEgY3Vyc29y", DATABASE, four()),
            Err(CursorError::Malformed)
        );
        assert_eq!(
            Cursor::decode("!", DATABASE, four()),
            Err(CursorError::Malformed)
        );
    }
}
