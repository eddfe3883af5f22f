//! Rows of the store to lines and back. Floor 4.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::{
    error::TransferError,
    format::{
        AggregateLine, CommandLine, DeliveryLine, EntryLine, EventLine, HandlerLine, Instant, Line,
        ReadModelLine,
    },
};
use crate::{
    domain::{
        Aggregate, AggregateId, AggregateType, Command, CommandId, CommandStatus, CommandType,
        Delivery, DeliveryId, DeliveryStatus, Entry, Event, EventHandler, EventId, EventType,
        HandlerFunction, HandlerId, HandlerName, Json, JsonError, LastError, NameError, Partition,
        Position, ReadModel, ReadModelSource, StreamName, Timestamp, Version, canonical::compact,
    },
    store::{ExportedDelivery, ImportedDelivery},
};

type Done<R> = Result<R, TransferError>;

fn raw(text: &str) -> Result<&RawValue, JsonError> {
    serde_json::from_str(text).map_err(|_| JsonError::NotJson)
}

fn broken<T>(value: Result<T, JsonError>, what: impl FnOnce() -> String) -> Done<T> {
    value.map_err(|source| TransferError::Stored {
        what: what(),
        source,
    })
}

fn instant(instant: Option<Timestamp>) -> Option<Instant> {
    instant.map(Instant)
}

/// Hands an event over as a line.
pub(super) fn with_event<R>(event: &Event, take: impl FnOnce(Line<'_>) -> Done<R>) -> Done<R> {
    let what = || format!("the event {}", event.id);
    let data = compact(event.data.as_str());
    let metadata = compact(event.metadata.as_str());
    take(Line::Event(EventLine {
        partition: event.partition.0,
        position: event.position.0,
        id: event.id.0,
        aggregate_id: event.aggregate_id.0,
        aggregate_type: Cow::Borrowed(event.aggregate_type.as_str()),
        event_type: Cow::Borrowed(event.event_type.as_str()),
        version: event.version.0,
        created_at: Instant(event.created_at),
        data: broken(raw(&data), what)?,
        metadata: broken(raw(&metadata), what)?,
    }))
}

/// Hands an entry over as a line.
pub(super) fn with_entry<R>(
    entry: &Entry,
    aggregate: Option<AggregateId>,
    take: impl FnOnce(Line<'_>) -> Done<R>,
) -> Done<R> {
    let what = || format!("the entry {} of {}", entry.position.0, entry.stream_name);
    let data = compact(entry.data.as_str());
    take(Line::Entry(EntryLine {
        partition: entry.partition.0,
        entry_position: entry.entry_position.0,
        stream: Cow::Borrowed(entry.stream_name.as_str()),
        position: entry.position.0,
        event_id: entry.event_id.0,
        event_type: Cow::Borrowed(entry.event_type.as_str()),
        created_at: Instant(entry.created_at),
        aggregate_id: aggregate.map(|id| id.0),
        data: broken(raw(&data), what)?,
    }))
}

/// Hands a command over as a line.
pub(super) fn with_command<R>(
    command: &Command,
    take: impl FnOnce(Line<'_>) -> Done<R>,
) -> Done<R> {
    let what = || format!("the command {}", command.id);
    let data = compact(command.data.as_str());
    let metadata = compact(command.metadata.as_str());
    take(Line::Command(CommandLine {
        id: command.id.0,
        aggregate_id: command.aggregate_id.0,
        command_type: Cow::Borrowed(command.command_type.as_str()),
        data: broken(raw(&data), what)?,
        metadata: broken(raw(&metadata), what)?,
        status: Cow::Borrowed(command.status.as_str()),
        reason: command.reason.as_deref().map(Cow::Borrowed),
        attempts: command.attempts,
        not_before: instant(command.not_before),
        first_version: command.versions.map(|(first, _)| first.0),
        last_version: command.versions.map(|(_, last)| last.0),
        created_at: Instant(command.created_at),
        processed_at: instant(command.processed_at),
    }))
}

/// Hands a read model over as a line.
pub(super) fn with_read_model<R>(
    model: &ReadModel,
    take: impl FnOnce(Line<'_>) -> Done<R>,
) -> Done<R> {
    let what = || format!("the read model of {}", model.aggregate_id);
    let data = compact(model.data.as_str());
    take(Line::ReadModel(ReadModelLine {
        aggregate_id: model.aggregate_id.0,
        aggregate_type: Cow::Borrowed(model.aggregate_type.as_str()),
        data: broken(raw(&data), what)?,
        version: model.version.0,
        fault: model.fault.as_deref().map(Cow::Borrowed),
        deleted_at: instant(model.deleted_at),
        created_at: Instant(model.created_at),
        updated_at: Instant(model.updated_at),
    }))
}

/// An aggregate as a line.
pub(super) fn of_aggregate(aggregate: &Aggregate) -> AggregateLine<'_> {
    AggregateLine {
        id: aggregate.id.0,
        aggregate_type: Cow::Borrowed(aggregate.aggregate_type.as_str()),
        version: aggregate.version.0,
        created_at: Instant(aggregate.created_at),
    }
}

/// A handler as a line.
pub(super) fn of_handler(handler: &EventHandler) -> HandlerLine<'_> {
    let types = handler.event_types.iter();
    HandlerLine {
        id: handler.id.0,
        name: Cow::Borrowed(handler.name.as_str()),
        event_types: types.map(|name| name.as_str().to_owned()).collect(),
        function: Cow::Owned(handler.function.to_string()),
        is_active: handler.is_active,
        paused_until: instant(handler.paused_until),
        created_at: Instant(handler.created_at),
        revision: handler.revision,
    }
}

/// A delivery as a line.
pub(super) fn of_delivery(exported: &ExportedDelivery) -> DeliveryLine<'_> {
    let delivery = &exported.delivery;
    DeliveryLine {
        id: delivery.id.0,
        handler_id: delivery.handler_id.0,
        event_id: exported.event_id.0,
        aggregate_id: delivery.aggregate_id.0,
        status: Cow::Borrowed(delivery.status.as_str()),
        attempts: delivery.attempts,
        last_error: delivery
            .last_error
            .as_ref()
            .map(|error| Cow::Borrowed(error.as_str())),
        next_attempt_at: instant(delivery.next_attempt_at),
        updated_at: Instant(delivery.updated_at),
    }
}

/// What a line says about a row, or what is wrong with it.
pub(super) type Read<T> = Result<T, String>;

fn name<T>(name: Result<T, NameError>, of: &str) -> Read<T> {
    name.map_err(|error| format!("the {of} {error}"))
}

fn text(value: &RawValue) -> Json {
    Json::stored(value.get())
}

impl EventLine<'_> {
    /// The event at its new place.
    pub(super) fn read(&self, partition: Partition, position: Position) -> Read<Event> {
        Ok(Event {
            partition,
            position,
            id: EventId(self.id),
            aggregate_id: AggregateId(self.aggregate_id),
            aggregate_type: name(
                AggregateType::new(&self.aggregate_type),
                "type of aggregate",
            )?,
            event_type: name(EventType::new(&self.event_type), "type of event")?,
            data: text(self.data),
            metadata: text(self.metadata),
            version: Version(self.version),
            created_at: self.created_at.0,
        })
    }
}

impl EntryLine<'_> {
    /// The entry at its new place.
    pub(super) fn read(
        &self,
        stream_name: StreamName,
        partition: Partition,
        entry_position: Position,
    ) -> Read<Entry> {
        Ok(Entry {
            partition,
            entry_position,
            stream_name,
            position: Position(self.position),
            event_id: EventId(self.event_id),
            event_type: name(EventType::new(&self.event_type), "type of event")?,
            data: text(self.data),
            created_at: self.created_at.0,
        })
    }

    /// The stream.
    pub(super) fn stream(&self) -> Read<StreamName> {
        name(StreamName::new(&self.stream), "name of the stream")
    }
}

impl AggregateLine<'_> {
    /// The aggregate, before its first event.
    pub(super) fn read(&self) -> Read<Aggregate> {
        Ok(Aggregate {
            id: AggregateId(self.id),
            aggregate_type: name(
                AggregateType::new(&self.aggregate_type),
                "type of aggregate",
            )?,
            version: Version::NONE,
            created_at: self.created_at.0,
            updated_at: self.created_at.0,
        })
    }
}

impl CommandLine<'_> {
    /// The command in its new partition.
    pub(super) fn read(&self, partition: Partition) -> Read<Command> {
        let status = CommandStatus::stored(&self.status);
        let of = |instant: Option<Instant>| instant.map(|instant| instant.0);
        Ok(Command {
            partition,
            id: CommandId(self.id),
            aggregate_id: AggregateId(self.aggregate_id),
            command_type: name(CommandType::new(&self.command_type), "type of command")?,
            data: text(self.data),
            metadata: text(self.metadata),
            status: status.ok_or_else(|| format!("no command can be {}", self.status))?,
            reason: self.reason.as_deref().map(str::to_owned),
            attempts: self.attempts,
            not_before: of(self.not_before),
            versions: self
                .first_version
                .map(Version)
                .zip(self.last_version.map(Version)),
            created_at: self.created_at.0,
            processed_at: of(self.processed_at),
        })
    }
}

impl ReadModelLine<'_> {
    /// The read model in its new partition.
    pub(super) fn read(&self, partition: Partition) -> Read<ReadModel> {
        Ok(ReadModel {
            partition,
            aggregate_id: AggregateId(self.aggregate_id),
            aggregate_type: name(
                AggregateType::new(&self.aggregate_type),
                "type of aggregate",
            )?,
            data: text(self.data),
            version: Version(self.version),
            source: ReadModelSource::External,
            fault: self.fault.as_deref().map(str::to_owned),
            deleted_at: self.deleted_at.map(|instant| instant.0),
            change_position: Position::START,
            created_at: self.created_at.0,
            updated_at: self.updated_at.0,
        })
    }
}

impl HandlerLine<'_> {
    /// The handler.
    pub(super) fn read(&self) -> Read<EventHandler> {
        let types = self.event_types.iter();
        let types = types.map(|text| name(EventType::new(text), "type of event"));
        Ok(EventHandler {
            id: HandlerId(self.id),
            name: name(HandlerName::new(&self.name), "name of the handler")?,
            event_types: types.collect::<Result<_, _>>()?,
            // What is none was none before.
            function: HandlerFunction::stored(&self.function),
            is_active: self.is_active,
            paused_until: self.paused_until.map(|instant| instant.0),
            created_at: self.created_at.0,
            revision: self.revision,
        })
    }
}

impl DeliveryLine<'_> {
    /// The delivery; its event's place is looked up.
    pub(super) fn read(&self, partition: Partition) -> Read<ImportedDelivery> {
        let status = DeliveryStatus::stored(&self.status);
        Ok(ImportedDelivery {
            event_id: EventId(self.event_id),
            delivery: Delivery {
                partition,
                id: DeliveryId(self.id),
                handler_id: HandlerId(self.handler_id),
                position: Position::START,
                aggregate_id: AggregateId(self.aggregate_id),
                status: status.ok_or_else(|| format!("no delivery can be {}", self.status))?,
                attempts: self.attempts,
                last_error: self.last_error.as_deref().map(LastError::new),
                next_attempt_at: self.next_attempt_at.map(|instant| instant.0),
                updated_at: self.updated_at.0,
            },
        })
    }
}
