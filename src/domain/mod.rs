//! The words of the event store: ids, names, versions, positions, cursors, events, aggregates, stream entries, commands,
//! deciders, read models, event handlers and deliveries.
//! Floor 0: pure values; no async, no I/O, no clock of its own.

pub mod access;
pub mod aggregate;
pub mod append;
pub mod canonical;
pub mod clock;
pub mod command;
pub mod contains;
pub mod cursor;
pub mod decider;
pub mod declared;
pub mod delivery;
pub mod entry;
pub mod event;
pub mod filter;
pub mod handler;
pub mod id;
pub mod json;
pub mod judge;
pub mod merge;
pub mod metric;
pub mod name;
pub mod partition;
pub mod projection;
pub mod read_model;
pub mod registry;
pub mod schema;
pub mod timestamp;
pub mod trace;
pub mod version;
pub mod webhook_url;

pub use access::{Caller, RequestId, Role};
pub use aggregate::Aggregate;
pub use canonical::Checksum;
pub use clock::{Clock, SystemClock};
pub use command::{Command, CommandStatus, CommandStep, NewCommand};
pub use cursor::{Cursor, CursorError, Place};
pub use decider::{
    CommandDescription, CommandInHand, DecidedEvent, Decider, Decision, FoldFault, PastEvent,
    Rejection, State,
};
pub use delivery::{
    Delivery, DeliveryStatus, DeliveryWrite, HandlerStep, LastError, SavedStep, SqlCall, SqlRun,
    SqlRunOutcome, SqlTry, StepOutcome,
};
pub use entry::{Entry, NewEntry, Stream};
pub use event::{Event, NewEvent};
pub use filter::EventFilter;
pub use handler::{
    EventHandler, FunctionError, HandlerFunction, SqlFunctionName, check_handler_name, is_paused,
};
pub use id::{AggregateId, CommandId, DatabaseId, DeliveryId, EventId, HandlerId};
pub use json::{Json, JsonError};
pub use metric::{EventMetric, MetricInterval, MinuteTally, Tally};
pub use name::{
    AggregateType, CommandType, EventType, FunctionName, HandlerName, NameError, StreamName,
};
pub use partition::{Partition, PartitionCount};
pub use projection::{
    Checkpoint, CheckpointStep, FencingToken, Folded, Projected, RebuildOutcome, SaveOutcome,
};
pub use read_model::{
    ExternalModel, ExternalOutcome, ReadModel, ReadModelFilter, ReadModelSource, ReadModelTime,
};
pub use registry::{CommandKind, DecideError, Domain, DomainError};
pub use schema::{DataSchema, SchemaError, SchemaViolation};
pub use timestamp::Timestamp;
pub use trace::TraceParent;
pub use version::{ExpectedPosition, ExpectedVersion, Position, Version};
pub use webhook_url::WebhookUrl;

/// Which end of a list comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// Ascending: in the order of the log.
    OldestFirst,
    /// Descending: the newest comes first.
    NewestFirst,
}
