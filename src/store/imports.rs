//! Taking over what another database has: in large transactions, at the places and with the times that it has there. Floor 2.
//!
//! The rules of appending hold all the same: positions follow the head under the partition's lock, versions follow the
//! aggregate's, positions in a stream the stream's. Nobody else writes meanwhile; where somebody does, it shows.

use entity::{
    aggregates, checkpoints, commands, deliveries, event_handlers, event_streams, events, imports,
    read_models,
};
use sea_orm::{
    Statement,
    sea_query::{Expr, ExprTrait, IntoIden, OnConflict, Order, Query, SimpleExpr},
};

use super::{Store, StoreError, rows::Row};
use crate::domain::{
    Aggregate, AggregateId, Command, DatabaseId, Delivery, Entry, Event, EventHandler, EventId,
    EventType, Partition, PartitionCount, Position, ReadModel, StreamName, Timestamp,
};

/// Rows of a statement: SQLite takes 32,766 values, and a command has 14.
const ROWS_A_STATEMENT: usize = 1000;

/// How far an import into a partition has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportPlace {
    /// The newest event: its position and id.
    pub event: Option<(Position, EventId)>,
    /// The newest entry: its position in the partition, its stream, and its position there.
    pub entry: Option<(Position, StreamName, Position)>,
}

/// Why nothing can be imported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportRefusal {
    /// There is something that no import has brought.
    #[error(
        "the database has data of its own (in {table}): an import needs an empty database, or one that the same import was \
         begun in"
    )]
    OtherData {
        /// In which table.
        table: &'static str,
    },
    /// It was begun from another database.
    #[error(
        "an import of the database {source_id} was begun in it, and this is an export of {asked}"
    )]
    OtherSource {
        /// The one that it was begun from.
        source_id: DatabaseId,
        /// The one that is to be imported.
        asked: DatabaseId,
    },
    /// Servers have worked on it.
    #[error(
        "a server has been started on the database since: nothing more can be imported into it. Import into an empty one"
    )]
    Served,
}

/// What is taken over in one transaction. All of it belongs to one partition.
#[derive(Clone, Debug)]
pub enum ImportBatch {
    /// Events, one behind the other, from this position on.
    Events(Vec<Event>),
    /// Entries, one behind the other, each with the partition of its event, if it shows one.
    Entries(Vec<(Entry, Option<Partition>)>),
    /// Aggregates that were made without an event.
    Aggregates(Vec<Aggregate>),
    /// Commands.
    Commands(Vec<Command>),
    /// Read models that were written from outside.
    ReadModels(Vec<ReadModel>),
    /// Deliveries, each with its event.
    Deliveries(Vec<ImportedDelivery>),
}

/// A delivery whose event has another place than it had.
#[derive(Clone, Debug)]
pub struct ImportedDelivery {
    /// The delivery; its position does not count.
    pub delivery: Delivery,
    /// Its event.
    pub event_id: EventId,
}

/// What became of a batch. It is stored as a whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImportOutcome {
    /// It is stored.
    Stored,
    /// The log does not end where the batch begins, but here.
    OtherHead(Position),
    /// A version, or a position in a stream, does not follow the one that is stored.
    Gap,
}

impl Store {
    /// Begins an import from a database, or goes on with it: the places that it has come to, one for each partition.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn begin_import(
        &self,
        source: DatabaseId,
        partitions: PartitionCount,
    ) -> Result<Result<Vec<ImportPlace>, ImportRefusal>, StoreError> {
        match self.import_source().await? {
            Some((begun, _)) if begun != source => {
                return Ok(Err(ImportRefusal::OtherSource {
                    source_id: begun,
                    asked: source,
                }));
            }
            // Once it was finished and a server has begun, the database has a life of its own.
            Some((_, true)) if self.has_rows("domains").await? => {
                return Ok(Err(ImportRefusal::Served));
            }
            Some(_) => {}
            None => {
                for table in Self::filled_by_others() {
                    if self.has_rows(table).await? {
                        return Ok(Err(ImportRefusal::OtherData { table }));
                    }
                }
            }
        }
        self.mark_import(source, partitions).await?;
        // A server looks for the mark after it has put its domain in force, and an import for the domain after its mark: one of
        // them sees the other.
        if self.has_rows("domains").await? {
            return Ok(Err(ImportRefusal::Served));
        }
        self.clear_what_may_change().await?;
        let mut places = Vec::with_capacity(self.partitions.get());
        for partition in self.partitions.iter() {
            places.push(ImportPlace {
                event: self.newest_event(partition).await?,
                entry: self.newest_entry(partition).await?,
            });
        }
        Ok(Ok(places))
    }

    /// Whether an import into the database was begun and not finished: it has only a part of what it is to have.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn is_import_unfinished(&self) -> Result<bool, StoreError> {
        let source = self.import_source().await?;
        Ok(source.is_some_and(|(_, is_finished)| !is_finished))
    }

    /// Stores a batch of one partition.
    ///
    /// # Errors
    /// When the database fails; then nothing was stored, unless the outcome is unknown.
    pub async fn import(
        &self,
        partition: Partition,
        batch: &ImportBatch,
    ) -> Result<ImportOutcome, StoreError> {
        let statements = match batch {
            ImportBatch::Events(events) => {
                return self.backend.import_events(partition, events).await;
            }
            ImportBatch::Entries(entries) => {
                return self.backend.import_entries(partition, entries).await;
            }
            ImportBatch::Aggregates(aggregates) => {
                insert_all(aggregates, |rows| insert_aggregates(partition, rows))
            }
            ImportBatch::Commands(commands) => {
                insert_all(commands, |rows| self.insert_commands(partition, rows))
            }
            ImportBatch::ReadModels(models) => {
                let head = self.heads().await?.changes[partition.index()];
                let places = (head.0 + 1..).map(Position);
                let models: Vec<_> = places.zip(models).collect();
                insert_all(&models, |rows| self.insert_read_models(partition, rows))
            }
            ImportBatch::Deliveries(deliveries) => {
                let ids: Vec<EventId> = deliveries.iter().map(|row| row.event_id).collect();
                let events = self.events_by_id(&ids).await?;
                let placed: Option<Vec<_>> = deliveries
                    .iter()
                    .map(|row| Some((events.get(&row.event_id)?.position, &row.delivery)))
                    .collect();
                let Some(placed) = placed else {
                    return Ok(ImportOutcome::Gap);
                };
                insert_all(&placed, |rows| insert_deliveries(partition, rows))
            }
        };
        let statements = statements
            .iter()
            .map(|insert| self.backend.dialect().build(insert))
            .collect();
        self.backend.write_all(statements).await?;
        Ok(ImportOutcome::Stored)
    }

    /// Stores event handlers as they are; those whose function this database cannot run are not active. Answers how many of
    /// these there are.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn import_handlers(&self, handlers: &[EventHandler]) -> Result<u64, StoreError> {
        use event_handlers::{Column, Entity};
        let has_sql = self.doorbell().is_some();
        let mut inactive = 0;
        let mut statements = Vec::with_capacity(handlers.len());
        for handler in handlers {
            let is_sql = matches!(handler.function, crate::domain::HandlerFunction::Sql(_));
            let is_active = handler.is_active && (has_sql || !is_sql);
            inactive += u64::from(handler.is_active && !is_active);
            let types: Vec<&str> = handler.event_types.iter().map(EventType::as_str).collect();
            let types = serde_json::Value::from(types).to_string();
            let insert = Query::insert()
                .into_table(Entity)
                .columns([
                    Column::Id,
                    Column::HandlerName,
                    Column::EventTypes,
                    Column::HandlerFunction,
                    Column::IsActive,
                    Column::PausedUntil,
                    Column::CreatedAt,
                    Column::Revision,
                ])
                .values_panic([
                    Expr::val(handler.id.0),
                    Expr::val(handler.name.as_str()),
                    self.backend.json_value(types),
                    Expr::val(handler.function.to_string()),
                    Expr::val(is_active),
                    instant(handler.paused_until),
                    Expr::val(handler.created_at.to_utc()),
                    Expr::val(handler.revision),
                ])
                .to_owned();
            statements.push(self.backend.dialect().build(&insert));
        }
        self.backend.write_all(statements).await?;
        Ok(inactive)
    }

    /// Finishes an import: checkpoints begin at these places, and servers may start.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn finish_import(
        &self,
        places: &[(String, Partition, Position)],
    ) -> Result<(), StoreError> {
        use checkpoints::{Column, Entity};
        let mut statements = Vec::new();
        for chunk in places.chunks(ROWS_A_STATEMENT) {
            let mut insert = Query::insert();
            insert.into_table(Entity).columns([
                Column::PartitionNo,
                Column::Name,
                Column::Position,
                Column::Fence,
            ]);
            for (name, partition, position) in chunk {
                insert.values_panic([
                    Expr::val(partition.number()),
                    Expr::val(name.as_str()),
                    Expr::val(position.0),
                    Expr::val(0_i64),
                ]);
            }
            statements.push(self.backend.dialect().build(&insert));
        }
        // What lies behind a handler's place is given to it anew.
        for (name, partition, position) in places {
            let id = name.strip_prefix("handler:");
            let Some(id) = id.and_then(|id| uuid::Uuid::try_parse(id).ok()) else {
                continue;
            };
            let delete = Query::delete()
                .from_table(deliveries::Entity)
                .and_where(Expr::col(deliveries::Column::PartitionNo).eq(partition.number()))
                .and_where(Expr::col(deliveries::Column::HandlerId).eq(id))
                .and_where(Expr::col(deliveries::Column::EventPosition).gt(position.0))
                .to_owned();
            statements.push(self.backend.dialect().build(&delete));
        }
        let finished = Query::update()
            .table(imports::Entity)
            .value(imports::Column::FinishedAt, self.now())
            .to_owned();
        statements.push(self.backend.dialect().build(&finished));
        self.backend.write_all(statements).await.map(drop)
    }

    /// Tables in which there is nothing before an import.
    fn filled_by_others() -> [&'static str; 7] {
        [
            "events",
            "event_streams",
            "aggregates",
            "commands",
            "read_models",
            "event_handlers",
            "domains",
        ]
    }

    async fn has_rows(&self, table: &'static str) -> Result<bool, StoreError> {
        let sql = format!("SELECT 1 FROM {table} LIMIT 1");
        let statement = Statement::from_string(self.backend.dialect(), sql);
        Ok(!self.read(statement).await?.is_empty())
    }

    async fn import_source(&self) -> Result<Option<(DatabaseId, bool)>, StoreError> {
        use imports::{Column, Entity};
        let select = Query::select()
            .columns([Column::SourceId, Column::FinishedAt])
            .from(Entity)
            .to_owned();
        let rows = self.select(&select).await?;
        let source = rows.first().map(|row| {
            let mut row = Row::of(row);
            Ok((DatabaseId(row.next()?), row.optional_instant()?.is_some()))
        });
        source.transpose()
    }

    async fn mark_import(
        &self,
        source: DatabaseId,
        partitions: PartitionCount,
    ) -> Result<(), StoreError> {
        use imports::{Column, Entity};
        let again = OnConflict::column(Column::Id)
            .update_columns([Column::SourcePartitions, Column::FinishedAt])
            .to_owned();
        let insert = Query::insert()
            .into_table(Entity)
            .columns([
                Column::Id,
                Column::SourceId,
                Column::SourcePartitions,
                Column::BegunAt,
                Column::FinishedAt,
            ])
            .values_panic([
                Expr::val(1_i16),
                Expr::val(source.0),
                Expr::val(i16::try_from(partitions.get()).unwrap_or(1)),
                self.now(),
                instant(None),
            ])
            .on_conflict(again)
            .to_owned();
        let statement = self.backend.dialect().build(&insert);
        self.backend.execute(statement).await
    }

    /// Removes what an earlier try has brought and what is brought again as it is by now. No server has seen any of it.
    async fn clear_what_may_change(&self) -> Result<(), StoreError> {
        let tables = [
            read_models::Entity.into_iden(),
            event_handlers::Entity.into_iden(),
            checkpoints::Entity.into_iden(),
            deliveries::Entity.into_iden(),
        ];
        let deletes = tables.into_iter().map(|table| {
            let delete = Query::delete().from_table(table).to_owned();
            self.backend.dialect().build(&delete)
        });
        self.backend.write_all(deletes.collect()).await.map(drop)
    }

    async fn newest_event(
        &self,
        partition: Partition,
    ) -> Result<Option<(Position, EventId)>, StoreError> {
        use events::{Column, Entity};
        let select = Query::select()
            .columns([Column::Position, Column::Id])
            .from(Entity)
            .and_where(Expr::col(Column::PartitionNo).eq(partition.number()))
            .order_by(Column::Position, Order::Desc)
            .limit(1)
            .to_owned();
        let rows = self.select(&select).await?;
        let newest = rows.first().map(|row| {
            let mut row = Row::of(row);
            Ok((Position(row.next()?), EventId(row.next()?)))
        });
        newest.transpose()
    }

    async fn newest_entry(
        &self,
        partition: Partition,
    ) -> Result<Option<(Position, StreamName, Position)>, StoreError> {
        use event_streams::{Column, Entity};
        let select = Query::select()
            .columns([Column::EntryPosition, Column::StreamName, Column::Position])
            .from(Entity)
            .and_where(Expr::col(Column::PartitionNo).eq(partition.number()))
            .order_by(Column::EntryPosition, Order::Desc)
            .limit(1)
            .to_owned();
        let rows = self.select(&select).await?;
        let newest = rows.first().map(|row| {
            let mut row = Row::of(row);
            let entry_position = Position(row.next()?);
            Ok((
                entry_position,
                StreamName::stored(row.text()?),
                Position(row.next()?),
            ))
        });
        newest.transpose()
    }

    fn insert_commands(&self, partition: Partition, rows: &[Command]) -> Insert {
        use commands::{Column, Entity};
        let changing = [
            Column::Status,
            Column::Reason,
            Column::Attempts,
            Column::NotBefore,
            Column::FirstVersion,
            Column::LastVersion,
            Column::ProcessedAt,
        ];
        // One that was brought before may have been settled since, where the source is not at rest.
        let again = OnConflict::columns([Column::PartitionNo, Column::Id])
            .update_columns(changing)
            .to_owned();
        let mut insert = Query::insert();
        insert.into_table(Entity).columns([
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
        ]);
        for command in rows {
            insert.values_panic([
                Expr::val(partition.number()),
                Expr::val(command.id.0),
                Expr::val(command.aggregate_id.0),
                Expr::val(command.command_type.as_str()),
                self.backend.json_value(command.data.as_str().to_owned()),
                self.backend
                    .json_value(command.metadata.as_str().to_owned()),
                Expr::val(command.status.as_str()),
                Expr::val(command.reason.clone()),
                Expr::val(command.attempts),
                instant(command.not_before),
                Expr::val(command.versions.map(|(first, _)| first.0)),
                Expr::val(command.versions.map(|(_, last)| last.0)),
                Expr::val(command.created_at.to_utc()),
                instant(command.processed_at),
            ]);
        }
        insert.on_conflict(again);
        insert
    }

    fn insert_read_models(&self, partition: Partition, rows: &[(Position, &ReadModel)]) -> Insert {
        use read_models::{Column, Entity};
        let mut insert = Query::insert();
        insert.into_table(Entity).columns([
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
        ]);
        for (change_position, model) in rows {
            insert.values_panic([
                Expr::val(partition.number()),
                Expr::val(model.aggregate_id.0),
                Expr::val(model.aggregate_type.as_str()),
                self.backend.json_value(model.data.as_str().to_owned()),
                Expr::val(model.version.0),
                Expr::val(model.source.as_str()),
                Expr::val(model.fault.clone()),
                instant(model.deleted_at),
                Expr::val(change_position.0),
                Expr::val(model.created_at.to_utc()),
                Expr::val(model.updated_at.to_utc()),
            ]);
        }
        insert
    }
}

type Insert = sea_orm::sea_query::InsertStatement;

fn insert_all<T>(rows: &[T], insert: impl Fn(&[T]) -> Insert) -> Vec<Insert> {
    rows.chunks(ROWS_A_STATEMENT).map(insert).collect()
}

fn instant(instant: Option<Timestamp>) -> SimpleExpr {
    Expr::val(instant.map(Timestamp::to_utc))
}

fn insert_aggregates(partition: Partition, rows: &[Aggregate]) -> Insert {
    use aggregates::{Column, Entity};
    let mut insert = Query::insert();
    insert.into_table(Entity).columns([
        Column::PartitionNo,
        Column::Id,
        Column::AggregateType,
        Column::CurrentVersion,
        Column::CreatedAt,
        Column::UpdatedAt,
    ]);
    for aggregate in rows {
        // Its events, if it has some, follow.
        insert.values_panic([
            Expr::val(partition.number()),
            Expr::val(aggregate.id.0),
            Expr::val(aggregate.aggregate_type.as_str()),
            Expr::val(0),
            Expr::val(aggregate.created_at.to_utc()),
            Expr::val(aggregate.created_at.to_utc()),
        ]);
    }
    insert.on_conflict(OnConflict::new().do_nothing().to_owned());
    insert
}

fn insert_deliveries(partition: Partition, rows: &[(Position, &Delivery)]) -> Insert {
    use deliveries::{Column, Entity};
    let mut insert = Query::insert();
    insert.into_table(Entity).columns([
        Column::PartitionNo,
        Column::Id,
        Column::HandlerId,
        Column::EventPosition,
        Column::AggregateId,
        Column::Status,
        Column::Attempts,
        Column::LastError,
        Column::NextAttemptAt,
        Column::UpdatedAt,
    ]);
    for (position, delivery) in rows {
        let last_error = delivery
            .last_error
            .as_ref()
            .map(|error| error.as_str().to_owned());
        insert.values_panic([
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
        ]);
    }
    insert
}

/// What the events of a batch make of one aggregate, or its entries of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run<K, N> {
    pub(super) key: K,
    pub(super) first: N,
    pub(super) last: N,
    pub(super) began_at: Timestamp,
    pub(super) ended_at: Timestamp,
}

/// The runs of a batch in the order in which they begin; none where one of them has a gap or changes its type.
pub(super) fn event_runs(events: &[Event]) -> Option<Vec<Run<(AggregateId, &str), i32>>> {
    let rows = events.iter().map(|event| {
        let key = (event.aggregate_id, event.aggregate_type.as_str());
        (event.aggregate_id, key, event.version.0, event.created_at)
    });
    runs(rows, |last| last + 1)
}

/// The same of entries.
pub(super) fn entry_runs(entries: &[(Entry, Option<Partition>)]) -> Option<Vec<Run<&str, i64>>> {
    let rows = entries.iter().map(|(entry, _)| {
        let name = entry.stream_name.as_str();
        (name, name, entry.position.0, entry.created_at)
    });
    runs(rows, |last| last + 1)
}

fn runs<I: Eq + std::hash::Hash, K: Eq, N: Copy + Eq>(
    rows: impl Iterator<Item = (I, K, N, Timestamp)>,
    next: impl Fn(N) -> N,
) -> Option<Vec<Run<K, N>>> {
    let mut places = std::collections::HashMap::new();
    let mut runs: Vec<Run<K, N>> = Vec::new();
    for (id, key, number, at) in rows {
        let place = *places.entry(id).or_insert(runs.len());
        match runs.get_mut(place) {
            Some(run) if run.key == key && number == next(run.last) => {
                run.last = number;
                run.ended_at = at;
            }
            Some(_) => return None,
            None => runs.push(Run {
                key,
                first: number,
                last: number,
                began_at: at,
                ended_at: at,
            }),
        }
    }
    Some(runs)
}
