//! Reading a whole database to carry it elsewhere: what can change in one snapshot, and the logs page by page. Floor 2.

use entity::event_streams;
use sea_orm::{
    QueryResult, Statement,
    sea_query::{Expr, ExprTrait, JoinType, Order as SqlOrder, Query},
};
use tokio::sync::mpsc;

use super::{EventScan, Heads, Store, StoreError, deliveries, handlers, rows, rows::Row};
use crate::domain::{
    Aggregate, AggregateId, Command, Delivery, Entry, Event, EventFilter, EventHandler, EventId,
    Order, Partition, Position, ReadModel,
};

/// What a page has at most: rows, and about so many bytes.
const PAGE_ROWS: u64 = 2000;
const PAGE_BYTES: usize = 1 << 20;
/// Rows of a snapshot that wait to be taken.
const WAITING_ROWS: usize = 1000;

/// A row of the snapshot. The kinds come in this order.
#[derive(Clone, Debug)]
pub enum SnapshotRow {
    /// The newest positions, once.
    Heads(Heads),
    /// An event handler.
    Handler(EventHandler),
    /// The place of the publisher or of a handler in a partition.
    Checkpoint {
        /// Its name.
        name: String,
        /// The partition.
        partition: Partition,
        /// Where it is.
        position: Position,
    },
    /// An aggregate, and whether it was made by its first event.
    Aggregate(Aggregate, bool),
    /// A command.
    Command(Command),
    /// A read model that was written from outside.
    ReadModel(ReadModel),
    /// An event that a handler has not done yet.
    Delivery(ExportedDelivery),
}

/// A delivery with the id of its event: the event's position is another one elsewhere.
#[derive(Clone, Debug)]
pub struct ExportedDelivery {
    /// The delivery.
    pub delivery: Delivery,
    /// Its event.
    pub event_id: EventId,
}

impl Store {
    /// Reads all that can change, and the heads of the logs, as of one instant. Rows are handed over as they are read, and no
    /// more of them than `rows` has room for.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn read_snapshot(&self, rows: mpsc::Sender<SnapshotRow>) -> Result<(), StoreError> {
        let (sender, mut receiver) = mpsc::channel(WAITING_ROWS);
        let dialect = self.backend.dialect();
        let statements = self.snapshot_statements();
        let statements = statements
            .into_iter()
            .map(|sql| Statement::from_string(dialect, sql))
            .collect();
        let read = self.backend.read_together(statements, sender);
        let convert = async {
            let mut heads = Heads::default();
            let mut seen = 0;
            while let Some((kind, row)) = receiver.recv().await {
                let row = match kind {
                    0 => {
                        heads.add(Row::of(&row))?;
                        seen += 1;
                        if seen < self.partitions.get() {
                            continue;
                        }
                        SnapshotRow::Heads(std::mem::take(&mut heads))
                    }
                    kind => snapshot_row(kind, &row)?,
                };
                if rows.send(row).await.is_err() {
                    break;
                }
            }
            // Whoever reads is told that nobody takes any more.
            drop(receiver);
            Ok::<_, StoreError>(())
        };
        let (read, converted) = tokio::join!(read, convert);
        converted.and(read)
    }

    fn snapshot_statements(&self) -> Vec<String> {
        let commands = rows::command_columns_of("c");
        let deliveries = deliveries::columns_of("d");
        vec![
            Self::heads_sql().to_owned(),
            "SELECT id, handler_name, CAST(event_types AS text), handler_function, is_active, paused_until, created_at, \
             revision FROM event_handlers ORDER BY handler_name"
                .to_owned(),
            "SELECT partition_no, position, name FROM checkpoints WHERE name = 'publish' OR name LIKE 'handler:%' \
             ORDER BY partition_no, name"
                .to_owned(),
            "SELECT a.id, a.aggregate_type, a.current_version, a.created_at, a.updated_at, CASE WHEN EXISTS (SELECT 1 \
             FROM events e WHERE e.partition_no = a.partition_no AND e.aggregate_id = a.id AND e.version = 1 \
             AND e.created_at = a.created_at) THEN 1 ELSE 0 END FROM aggregates a ORDER BY a.partition_no, a.id"
                .to_owned(),
            format!("SELECT {commands} FROM commands c ORDER BY c.partition_no, c.id"),
            "SELECT partition_no, aggregate_id, aggregate_type, CAST(model_data AS text), version, source, fault, deleted_at, \
             change_position, created_at, updated_at FROM read_models WHERE source = 'EXTERNAL' \
             ORDER BY partition_no, change_position"
                .to_owned(),
            // By an index, however many there are: a join might be planned to read all events.
            format!(
                "SELECT {deliveries}, (SELECT e.id FROM events e WHERE e.partition_no = d.partition_no \
                 AND e.position = d.event_position) FROM deliveries d \
                 WHERE EXISTS (SELECT 1 FROM event_handlers h WHERE h.id = d.handler_id) ORDER BY d.partition_no, d.id"
            ),
        ]
    }

    /// Reads the next page of a partition's events behind a place.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn export_events(
        &self,
        partition: Partition,
        above: Position,
        up_to: Position,
    ) -> Result<Vec<Event>, StoreError> {
        let scan = EventScan {
            partition,
            above,
            up_to,
            filter: &EventFilter::default(),
            order: Order::OldestFirst,
            limit: PAGE_ROWS,
            max_bytes: None,
        };
        let part = self.scan_event_part(&scan, PAGE_BYTES).await?;
        Ok(part.rows)
    }

    /// Reads the next page of a partition's entries behind a place: each with the aggregate of the event that it shows, if that
    /// is one of this database.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn export_entries(
        &self,
        partition: Partition,
        above: Position,
        up_to: Position,
    ) -> Result<Vec<(Entry, Option<AggregateId>)>, StoreError> {
        use entity::events;
        use event_streams::{Column, Entity};
        let is_its_event = Expr::col((events::Entity, events::Column::PartitionNo))
            .equals((Entity, Column::EventPartitionNo))
            .and(Expr::col((events::Entity, events::Column::Id)).equals((Entity, Column::EventId)));
        let select = rows::select_entry(&mut Query::select())
            .column((events::Entity, events::Column::AggregateId))
            .from(Entity)
            .join(JoinType::LeftJoin, events::Entity, is_its_event)
            .and_where(Expr::col((Entity, Column::PartitionNo)).eq(partition.number()))
            .and_where(Expr::col((Entity, Column::EntryPosition)).gt(above.0))
            .and_where(Expr::col((Entity, Column::EntryPosition)).lte(up_to.0))
            .order_by((Entity, Column::EntryPosition), SqlOrder::Asc)
            .limit(PAGE_ROWS)
            .to_owned();
        let read = |row: &QueryResult| {
            let aggregate = Row::at(row, rows::ENTRY_COLUMNS.len()).next::<Option<_>>()?;
            Ok((rows::entry(row)?, aggregate.map(AggregateId)))
        };
        let part = self.read_part(&select, PAGE_BYTES, read).await?;
        Ok(part.rows)
    }
}

fn snapshot_row(kind: usize, row: &QueryResult) -> Result<SnapshotRow, StoreError> {
    Ok(match kind {
        1 => SnapshotRow::Handler(handlers::handler(Row::of(row))?),
        2 => {
            let mut row = Row::of(row);
            SnapshotRow::Checkpoint {
                partition: row.partition()?,
                position: Position(row.next()?),
                name: row.next()?,
            }
        }
        3 => {
            let is_made_by_event = Row::at(row, 5).next::<i32>()? == 1;
            SnapshotRow::Aggregate(rows::aggregate(row)?, is_made_by_event)
        }
        4 => SnapshotRow::Command(rows::command(row)?),
        5 => SnapshotRow::ReadModel(rows::read_model(row)?),
        _ => {
            let mut row = Row::of(row);
            SnapshotRow::Delivery(ExportedDelivery {
                delivery: deliveries::delivery(&mut row)?,
                event_id: EventId(row.next()?),
            })
        }
    })
}
