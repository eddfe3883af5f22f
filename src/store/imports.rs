//! Taking over what another database has: in large transactions, at the places and with the times that it has there. Floor 2.
//!
//! The rules of appending hold all the same: positions follow the head under the partition's lock, versions follow the
//! aggregate's, positions in a stream the stream's. Nobody else writes meanwhile; where somebody does, it shows.

mod begin;
mod rows;
mod runs;

use std::collections::HashMap;

use entity::{deliveries, imports};
use sea_orm::sea_query::{Expr, ExprTrait, Query};

use super::{Store, StoreError, events::KEYS_A_STATEMENT, rows::Row};
use crate::domain::{
    Aggregate, Command, Delivery, Entry, Event, EventHandler, EventId, HandlerFunction, Partition,
    Position, ReadModel, StreamName,
};

pub use begin::ImportRefusal;
pub(super) use runs::{Run, entry_runs, event_runs};

/// How far an import into a partition has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportPlace {
    /// The newest event: its position and id.
    pub event: Option<(Position, EventId)>,
    /// The newest entry: its position in the partition, its stream, and its position there.
    pub entry: Option<(Position, StreamName, Position)>,
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
    /// A delivery is of an event that is not there.
    NoEvent(EventId),
}

impl Store {
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
                rows::in_chunks(self, aggregates, |chunk| rows::aggregates(partition, chunk))
            }
            ImportBatch::Commands(commands) => rows::in_chunks(self, commands, |chunk| {
                rows::commands(self, partition, chunk)
            }),
            ImportBatch::ReadModels(models) => {
                let head = self.heads().await?.changes[partition.index()];
                let places = (head.0 + 1..).map(Position);
                let models: Vec<_> = places.zip(models).collect();
                rows::in_chunks(self, &models, |chunk| {
                    rows::read_models(self, partition, chunk)
                })
            }
            ImportBatch::Deliveries(deliveries) => {
                let events = self.places_of_events(partition, deliveries).await?;
                let mut placed = Vec::with_capacity(deliveries.len());
                for ImportedDelivery { delivery, event_id } in deliveries {
                    match events.get(event_id) {
                        Some(position) => placed.push((*position, delivery)),
                        None => return Ok(ImportOutcome::NoEvent(*event_id)),
                    }
                }
                rows::in_chunks(self, &placed, |chunk| rows::deliveries(partition, chunk))
            }
        };
        self.backend.write_all(statements).await?;
        Ok(ImportOutcome::Stored)
    }

    async fn places_of_events(
        &self,
        partition: Partition,
        deliveries: &[ImportedDelivery],
    ) -> Result<HashMap<EventId, Position>, StoreError> {
        use entity::events::{Column, Entity};
        let mut places = HashMap::with_capacity(deliveries.len());
        for chunk in deliveries.chunks(KEYS_A_STATEMENT) {
            let mut ids = chunk.iter().map(|row| row.event_id.0);
            let select = Query::select()
                .columns([Column::Id, Column::Position])
                .from(Entity)
                .and_where(Expr::col(Column::PartitionNo).eq(partition.number()))
                .and_where(self.backend.uuid_in(Expr::col(Column::Id), &mut ids))
                .to_owned();
            for row in &self.select(&select).await? {
                let mut row = Row::of(row);
                places.insert(EventId(row.next()?), Position(row.next()?));
            }
        }
        Ok(places)
    }

    /// Stores event handlers as they are; those whose function this database cannot run are not active. Answers how many of
    /// these there are.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn import_handlers(&self, handlers: &[EventHandler]) -> Result<u64, StoreError> {
        let has_sql = self.doorbell().is_some();
        let is_run = |handler: &EventHandler| {
            has_sql || !matches!(handler.function, HandlerFunction::Sql(_))
        };
        let handlers: Vec<_> = handlers
            .iter()
            .map(|handler| (handler, handler.is_active && is_run(handler)))
            .collect();
        let statements = rows::in_chunks(self, &handlers, |chunk| rows::handlers(self, chunk));
        self.backend.write_all(statements).await?;
        let inactive = handlers
            .iter()
            .filter(|(handler, is_active)| handler.is_active && !is_active);
        Ok(inactive.count() as u64)
    }

    /// Finishes an import: checkpoints begin at these places, and servers may start. Where partitions `become_fewer`, a place may
    /// lie before events that were given to its handler already; they are given to it anew, and so lose their deliveries.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn finish_import(
        &self,
        places: &[(String, Partition, Position)],
        become_fewer: bool,
    ) -> Result<(), StoreError> {
        use deliveries::{Column, Entity};
        let mut statements = rows::in_chunks(self, places, rows::checkpoints);
        for (name, partition, position) in places.iter().filter(|_| become_fewer) {
            let id = name.strip_prefix("handler:");
            let Some(id) = id.and_then(|id| uuid::Uuid::try_parse(id).ok()) else {
                continue;
            };
            let delete = Query::delete()
                .from_table(Entity)
                .and_where(Expr::col(Column::PartitionNo).eq(partition.number()))
                .and_where(Expr::col(Column::HandlerId).eq(id))
                .and_where(Expr::col(Column::EventPosition).gt(position.0))
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
}
