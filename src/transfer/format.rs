//! The lines of an export: one JSON object each, with the kind of the line as its only key. Floor 4.
//!
//! `docs/operations.md` describes them for people. What is in a line is also what its checksum is over; the place that an event
//! or entry had in its partition is not.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::domain::{Checksum, JsonError, Timestamp, canonical::Fields};

/// What this version writes, and the newest that it reads.
pub(super) const FORMAT: u32 = 1;

/// An instant, as RFC 3339 with microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Instant(pub(super) Timestamp);

impl Serialize for Instant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Instant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        Timestamp::parse(&text)
            .map(Self)
            .ok_or_else(|| D::Error::custom("an instant is not written as RFC 3339 has it"))
    }
}

/// Any line.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Line<'a> {
    /// The first one.
    Export(Header),
    #[serde(borrow)]
    Handler(HandlerLine<'a>),
    #[serde(borrow)]
    Checkpoint(CheckpointLine<'a>),
    #[serde(borrow)]
    Aggregate(AggregateLine<'a>),
    #[serde(borrow)]
    Command(CommandLine<'a>),
    #[serde(borrow)]
    ReadModel(ReadModelLine<'a>),
    #[serde(borrow)]
    Delivery(DeliveryLine<'a>),
    /// Behind all that can change.
    Snapshot(SnapshotTotals),
    #[serde(borrow)]
    Event(EventLine<'a>),
    #[serde(borrow)]
    Entry(EntryLine<'a>),
    /// The last one.
    End(Trailer),
}

/// What is wrong with a line. serde_json counts lines, too, and every line is its first.
pub(super) fn problem(error: &serde_json::Error) -> String {
    let said = error.to_string();
    match said.split_once(" at line ") {
        Some((problem, _)) => format!("{problem} (column {})", error.column()),
        None => said,
    }
}

/// What is exported.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Header {
    pub(super) format: u32,
    /// The version of Tidings that wrote it.
    pub(super) version: String,
    pub(super) database_id: Uuid,
    pub(super) database: String,
    pub(super) partitions: u8,
    pub(super) exported_at: Instant,
    /// The newest positions of each partition, which are how many there are.
    pub(super) events: Vec<i64>,
    pub(super) entries: Vec<i64>,
}

impl Header {
    /// How many events and entries there are.
    pub(super) fn rows(&self) -> u64 {
        let rows = self.events.iter().chain(&self.entries);
        rows.map(|head| head.unsigned_abs()).sum()
    }
}

/// How much there is of what can change, all as of one instant.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SnapshotTotals {
    pub(super) handlers: Total,
    /// Of all aggregates.
    pub(super) aggregates: Total,
    pub(super) commands: Total,
    pub(super) read_models: Total,
    pub(super) deliveries: Total,
}

/// What was exported.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Trailer {
    #[serde(flatten)]
    pub(super) snapshot: SnapshotTotals,
    pub(super) events: Total,
    pub(super) entries: Total,
}

/// How many rows of one kind there are, and their checksum.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Total {
    pub(super) count: u64,
    pub(super) checksum: String,
}

impl From<Checksum> for Total {
    fn from(checksum: Checksum) -> Self {
        Self {
            count: checksum.count(),
            checksum: checksum.to_string(),
        }
    }
}

/// A line that is summed.
pub(super) trait Summed {
    /// Adds what is in it.
    fn fields(&self, fields: &mut Fields) -> Result<(), JsonError>;

    /// Adds it to a checksum.
    fn add_to(&self, checksum: &mut Checksum, fields: &mut Fields) -> Result<(), JsonError> {
        fields.clear();
        self.fields(fields)?;
        checksum.add(fields);
        Ok(())
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HandlerLine<'a> {
    pub(super) id: Uuid,
    #[serde(borrow)]
    pub(super) name: Cow<'a, str>,
    pub(super) event_types: Vec<String>,
    #[serde(borrow)]
    pub(super) function: Cow<'a, str>,
    pub(super) is_active: bool,
    pub(super) paused_until: Option<Instant>,
    pub(super) created_at: Instant,
    pub(super) revision: i64,
}

/// Whether a handler is active, or waits, does not count: another database may not be able to run its function.
impl Summed for HandlerLine<'_> {
    fn fields(&self, fields: &mut Fields) -> Result<(), JsonError> {
        fields.text(&self.id.to_string()).text(&self.name);
        fields.number(self.event_types.len() as i64);
        for event_type in &self.event_types {
            fields.text(event_type);
        }
        fields
            .text(&self.function)
            .number(self.created_at.0.as_micros());
        Ok(())
    }
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct CheckpointLine<'a> {
    #[serde(borrow)]
    pub(super) name: Cow<'a, str>,
    pub(super) partition: u8,
    pub(super) position: i64,
}

/// An aggregate that was not made by its first event. The others are known by their events.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AggregateLine<'a> {
    pub(super) id: Uuid,
    #[serde(borrow, rename = "type")]
    pub(super) aggregate_type: Cow<'a, str>,
    pub(super) version: i32,
    pub(super) created_at: Instant,
}

impl Summed for AggregateLine<'_> {
    fn fields(&self, fields: &mut Fields) -> Result<(), JsonError> {
        fields
            .text(&self.id.to_string())
            .text(&self.aggregate_type)
            .number(self.version.into())
            .number(self.created_at.0.as_micros());
        Ok(())
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CommandLine<'a> {
    pub(super) id: Uuid,
    pub(super) aggregate_id: Uuid,
    #[serde(borrow, rename = "type")]
    pub(super) command_type: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) data: &'a RawValue,
    #[serde(borrow)]
    pub(super) metadata: &'a RawValue,
    #[serde(borrow)]
    pub(super) status: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) reason: Option<Cow<'a, str>>,
    pub(super) attempts: i32,
    pub(super) not_before: Option<Instant>,
    pub(super) first_version: Option<i32>,
    pub(super) last_version: Option<i32>,
    pub(super) created_at: Instant,
    pub(super) processed_at: Option<Instant>,
}

impl Summed for CommandLine<'_> {
    fn fields(&self, fields: &mut Fields) -> Result<(), JsonError> {
        fields
            .text(&self.id.to_string())
            .text(&self.aggregate_id.to_string())
            .text(&self.command_type)
            .json(self.data.get())?
            .json(self.metadata.get())?
            .text(&self.status)
            .optional_text(self.reason.as_deref())
            .number(self.attempts.into())
            .optional_number(micros(self.not_before))
            .optional_number(self.first_version.map(i64::from))
            .optional_number(self.last_version.map(i64::from))
            .number(self.created_at.0.as_micros())
            .optional_number(micros(self.processed_at));
        Ok(())
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ReadModelLine<'a> {
    pub(super) aggregate_id: Uuid,
    #[serde(borrow)]
    pub(super) aggregate_type: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) data: &'a RawValue,
    pub(super) version: i32,
    #[serde(borrow)]
    pub(super) fault: Option<Cow<'a, str>>,
    pub(super) deleted_at: Option<Instant>,
    pub(super) created_at: Instant,
    pub(super) updated_at: Instant,
}

impl Summed for ReadModelLine<'_> {
    fn fields(&self, fields: &mut Fields) -> Result<(), JsonError> {
        fields
            .text(&self.aggregate_id.to_string())
            .text(&self.aggregate_type)
            .json(self.data.get())?
            .number(self.version.into())
            .optional_text(self.fault.as_deref())
            .optional_number(micros(self.deleted_at))
            .number(self.created_at.0.as_micros())
            .number(self.updated_at.0.as_micros());
        Ok(())
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EventLine<'a> {
    /// The place that it had.
    pub(super) partition: u8,
    pub(super) position: i64,
    pub(super) id: Uuid,
    pub(super) aggregate_id: Uuid,
    #[serde(borrow)]
    pub(super) aggregate_type: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    pub(super) event_type: Cow<'a, str>,
    pub(super) version: i32,
    pub(super) created_at: Instant,
    #[serde(borrow)]
    pub(super) data: &'a RawValue,
    #[serde(borrow)]
    pub(super) metadata: &'a RawValue,
}

impl Summed for EventLine<'_> {
    fn fields(&self, fields: &mut Fields) -> Result<(), JsonError> {
        let (high, low) = self.aggregate_id.as_u64_pair();
        let (id_high, id_low) = self.id.as_u64_pair();
        for half in [high, low, id_high, id_low] {
            fields.number(half.cast_signed());
        }
        fields
            .text(&self.aggregate_type)
            .text(&self.event_type)
            .number(self.version.into())
            .number(self.created_at.0.as_micros())
            .json(self.data.get())?
            .json(self.metadata.get())?;
        Ok(())
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EntryLine<'a> {
    /// The place that it had among the entries of its partition.
    pub(super) partition: u8,
    pub(super) entry_position: i64,
    #[serde(borrow)]
    pub(super) stream: Cow<'a, str>,
    pub(super) position: i64,
    pub(super) event_id: Uuid,
    #[serde(borrow, rename = "type")]
    pub(super) event_type: Cow<'a, str>,
    pub(super) created_at: Instant,
    /// The aggregate of the event that it shows, if that is one of the log.
    pub(super) aggregate_id: Option<Uuid>,
    #[serde(borrow)]
    pub(super) data: &'a RawValue,
}

impl Summed for EntryLine<'_> {
    fn fields(&self, fields: &mut Fields) -> Result<(), JsonError> {
        let aggregate = self.aggregate_id.map(|id| id.to_string());
        fields
            .text(&self.stream)
            .number(self.position)
            .text(&self.event_id.to_string())
            .text(&self.event_type)
            .number(self.created_at.0.as_micros())
            .optional_text(aggregate.as_deref())
            .json(self.data.get())?;
        Ok(())
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeliveryLine<'a> {
    pub(super) id: Uuid,
    pub(super) handler_id: Uuid,
    pub(super) event_id: Uuid,
    pub(super) aggregate_id: Uuid,
    #[serde(borrow)]
    pub(super) status: Cow<'a, str>,
    pub(super) attempts: i32,
    #[serde(borrow)]
    pub(super) last_error: Option<Cow<'a, str>>,
    pub(super) next_attempt_at: Option<Instant>,
    pub(super) updated_at: Instant,
}

impl Summed for DeliveryLine<'_> {
    fn fields(&self, fields: &mut Fields) -> Result<(), JsonError> {
        for id in [self.id, self.handler_id, self.event_id, self.aggregate_id] {
            fields.text(&id.to_string());
        }
        fields
            .text(&self.status)
            .number(self.attempts.into())
            .optional_text(self.last_error.as_deref())
            .optional_number(micros(self.next_attempt_at))
            .number(self.updated_at.0.as_micros());
        Ok(())
    }
}

fn micros(instant: Option<Instant>) -> Option<i64> {
    instant.map(|instant| instant.0.as_micros())
}

/// The checksums of all kinds.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    pub(super) handlers: Checksum,
    pub(super) aggregates: Checksum,
    pub(super) commands: Checksum,
    pub(super) read_models: Checksum,
    pub(super) deliveries: Checksum,
    pub(super) events: Checksum,
    pub(super) entries: Checksum,
    pub(super) fields: Fields,
}

impl Sums {
    /// What stands behind the snapshot.
    pub(super) fn snapshot(&self) -> SnapshotTotals {
        SnapshotTotals {
            handlers: self.handlers.into(),
            aggregates: self.aggregates.into(),
            commands: self.commands.into(),
            read_models: self.read_models.into(),
            deliveries: self.deliveries.into(),
        }
    }

    /// What stands in the last line.
    pub(super) fn trailer(&self, snapshot: SnapshotTotals) -> Trailer {
        Trailer {
            snapshot,
            events: self.events.into(),
            entries: self.entries.into(),
        }
    }

    /// Adds a line. Of aggregates only some have one, so they are added by whoever reads all of them.
    pub(super) fn add(&mut self, line: &Line<'_>) -> Result<(), JsonError> {
        let fields = &mut self.fields;
        match line {
            Line::Handler(line) => line.add_to(&mut self.handlers, fields),
            Line::Command(line) => line.add_to(&mut self.commands, fields),
            Line::ReadModel(line) => line.add_to(&mut self.read_models, fields),
            Line::Delivery(line) => line.add_to(&mut self.deliveries, fields),
            Line::Event(line) => line.add_to(&mut self.events, fields),
            Line::Entry(line) => line.add_to(&mut self.entries, fields),
            Line::Export(_)
            | Line::Checkpoint(_)
            | Line::Aggregate(_)
            | Line::Snapshot(_)
            | Line::End(_) => Ok(()),
        }
    }

    /// Adds the sums of another part.
    pub(super) fn join(&mut self, other: &Self) {
        self.handlers.join(other.handlers);
        self.aggregates.join(other.aggregates);
        self.commands.join(other.commands);
        self.read_models.join(other.read_models);
        self.deliveries.join(other.deliveries);
        self.events.join(other.events);
        self.entries.join(other.entries);
    }
}
