//! The statements that store what is taken over and is no log. Floor 2.

use entity::{aggregates, checkpoints, commands, deliveries, event_handlers, read_models};
use sea_orm::{
    Statement,
    sea_query::{Expr, IntoIden, IntoTableRef, OnConflict, Query, SimpleExpr},
};

use crate::{
    domain::{
        Aggregate, Command, Delivery, EventHandler, EventType, Partition, Position, ReadModel,
        Timestamp,
    },
    store::{Store, deliveries::COLUMNS as DELIVERY_COLUMNS},
};

type Insert = sea_orm::sea_query::InsertStatement;

/// Rows of a statement: SQLite takes 32,766 values, and a command has 14.
const ROWS_A_STATEMENT: usize = 1000;

/// One statement for as many rows as it may have.
pub(super) fn in_chunks<T>(
    store: &Store,
    rows: &[T],
    insert: impl Fn(&[T]) -> Insert,
) -> Vec<Statement> {
    let build = |chunk| store.backend.dialect().build(&insert(chunk));
    rows.chunks(ROWS_A_STATEMENT).map(build).collect()
}

pub(super) fn instant(instant: Option<Timestamp>) -> SimpleExpr {
    Expr::val(instant.map(Timestamp::to_utc))
}

fn insert_into<C: IntoIden, const N: usize>(
    table: impl IntoTableRef,
    columns: [C; N],
    rows: impl Iterator<Item = [SimpleExpr; N]>,
) -> Insert {
    let mut insert = Query::insert();
    insert.into_table(table).columns(columns);
    for row in rows {
        insert.values_panic(row);
    }
    insert
}

/// Aggregates before their events, which follow if there are some.
pub(super) fn aggregates(partition: Partition, rows: &[Aggregate]) -> Insert {
    use aggregates::{Column, Entity};
    let columns = [
        Column::PartitionNo,
        Column::Id,
        Column::AggregateType,
        Column::CurrentVersion,
        Column::CreatedAt,
        Column::UpdatedAt,
    ];
    let rows = rows.iter().map(|aggregate| {
        [
            Expr::val(partition.number()),
            Expr::val(aggregate.id.0),
            Expr::val(aggregate.aggregate_type.as_str()),
            Expr::val(0),
            Expr::val(aggregate.created_at.to_utc()),
            Expr::val(aggregate.created_at.to_utc()),
        ]
    });
    let mut insert = insert_into(Entity, columns, rows);
    insert.on_conflict(OnConflict::new().do_nothing().to_owned());
    insert
}

pub(super) fn commands(store: &Store, partition: Partition, rows: &[Command]) -> Insert {
    use commands::{Column, Entity};
    let columns = [
        Column::PartitionNo,
        Column::Id,
        Column::AggregateId,
        Column::CommandType,
        Column::CommandData,
        Column::CommandMetadata,
        Column::Status,
        Column::Reason,
        Column::Attempts,
        Column::NotBefore,
        Column::FirstVersion,
        Column::LastVersion,
        Column::CreatedAt,
        Column::ProcessedAt,
    ];
    let json = |json: &crate::domain::Json| store.backend.json_value(json.as_str().to_owned());
    let rows = rows.iter().map(|command| {
        [
            Expr::val(partition.number()),
            Expr::val(command.id.0),
            Expr::val(command.aggregate_id.0),
            Expr::val(command.command_type.as_str()),
            json(&command.data),
            json(&command.metadata),
            Expr::val(command.status.as_str()),
            Expr::val(command.reason.clone()),
            Expr::val(command.attempts),
            instant(command.not_before),
            Expr::val(command.versions.map(|(first, _)| first.0)),
            Expr::val(command.versions.map(|(_, last)| last.0)),
            Expr::val(command.created_at.to_utc()),
            instant(command.processed_at),
        ]
    });
    // One that was brought before may have been settled since, where the source is not at rest.
    let again = OnConflict::columns([Column::PartitionNo, Column::Id])
        .update_columns([
            Column::Status,
            Column::Reason,
            Column::Attempts,
            Column::NotBefore,
            Column::FirstVersion,
            Column::LastVersion,
            Column::ProcessedAt,
        ])
        .to_owned();
    let mut insert = insert_into(Entity, columns, rows);
    insert.on_conflict(again);
    insert
}

/// Read models, each with the place of its change.
pub(super) fn read_models(
    store: &Store,
    partition: Partition,
    rows: &[(Position, &ReadModel)],
) -> Insert {
    use read_models::{Column, Entity};
    let columns = [
        Column::PartitionNo,
        Column::AggregateId,
        Column::AggregateType,
        Column::ModelData,
        Column::Version,
        Column::Source,
        Column::Fault,
        Column::DeletedAt,
        Column::ChangePosition,
        Column::CreatedAt,
        Column::UpdatedAt,
    ];
    let rows = rows.iter().map(|(change_position, model)| {
        [
            Expr::val(partition.number()),
            Expr::val(model.aggregate_id.0),
            Expr::val(model.aggregate_type.as_str()),
            store.backend.json_value(model.data.as_str().to_owned()),
            Expr::val(model.version.0),
            Expr::val(model.source.as_str()),
            Expr::val(model.fault.clone()),
            instant(model.deleted_at),
            Expr::val(change_position.0),
            Expr::val(model.created_at.to_utc()),
            Expr::val(model.updated_at.to_utc()),
        ]
    });
    insert_into(Entity, columns, rows)
}

/// Deliveries, each with the place of its event.
pub(super) fn deliveries(partition: Partition, rows: &[(Position, &Delivery)]) -> Insert {
    let rows = rows.iter().map(|(position, delivery)| {
        let last_error = delivery
            .last_error
            .as_ref()
            .map(|error| error.as_str().to_owned());
        [
            Expr::val(partition.number()),
            Expr::val(delivery.id.0),
            Expr::val(delivery.handler_id.0),
            Expr::val(position.0),
            Expr::val(delivery.aggregate_id.0),
            Expr::val(delivery.status.as_str()),
            Expr::val(delivery.attempts),
            Expr::val(last_error),
            instant(delivery.next_attempt_at),
            Expr::val(delivery.updated_at.to_utc()),
        ]
    });
    insert_into(deliveries::Entity, DELIVERY_COLUMNS, rows)
}

/// Event handlers, each with whether it is active here.
pub(super) fn handlers(store: &Store, rows: &[(&EventHandler, bool)]) -> Insert {
    use event_handlers::{Column, Entity};
    let columns = [
        Column::Id,
        Column::HandlerName,
        Column::EventTypes,
        Column::HandlerFunction,
        Column::IsActive,
        Column::PausedUntil,
        Column::CreatedAt,
        Column::Revision,
    ];
    let rows = rows.iter().map(|(handler, is_active)| {
        let types: Vec<&str> = handler.event_types.iter().map(EventType::as_str).collect();
        let types = serde_json::Value::from(types).to_string();
        [
            Expr::val(handler.id.0),
            Expr::val(handler.name.as_str()),
            store.backend.json_value(types),
            Expr::val(handler.function.to_string()),
            Expr::val(*is_active),
            instant(handler.paused_until),
            Expr::val(handler.created_at.to_utc()),
            Expr::val(handler.revision),
        ]
    });
    insert_into(Entity, columns, rows)
}

/// Checkpoints that no runner has taken over.
pub(super) fn checkpoints(rows: &[(String, Partition, Position)]) -> Insert {
    use checkpoints::{Column, Entity};
    let columns = [
        Column::PartitionNo,
        Column::Name,
        Column::Position,
        Column::Fence,
    ];
    let rows = rows.iter().map(|(name, partition, position)| {
        [
            Expr::val(partition.number()),
            Expr::val(name.as_str()),
            Expr::val(position.0),
            Expr::val(0_i64),
        ]
    });
    insert_into(Entity, columns, rows)
}
