//! Beginning an import, or going on with one: what may be imported into, and from where on. Floor 2.

use entity::{checkpoints, deliveries, event_handlers, imports, read_models};
use sea_orm::{
    QueryResult, Statement,
    sea_query::{Expr, IntoIden, OnConflict, Query},
};

use super::{ImportPlace, rows::instant};
use crate::{
    domain::{DatabaseId, EventId, Partition, PartitionCount, Position, StreamName},
    store::{Store, StoreError, rows::Row},
};

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
        let sql = "SELECT position, id FROM events WHERE partition_no = $1 ORDER BY position DESC LIMIT 1";
        let rows = self.newest(sql, partition).await?;
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
        let sql = "SELECT entry_position, stream_name, position FROM event_streams WHERE partition_no = $1 \
                   ORDER BY entry_position DESC LIMIT 1";
        let rows = self.newest(sql, partition).await?;
        let newest = rows.first().map(|row| {
            let mut row = Row::of(row);
            let entry_position = Position(row.next()?);
            let stream_name = StreamName::stored(row.text()?);
            Ok((entry_position, stream_name, Position(row.next()?)))
        });
        newest.transpose()
    }

    async fn newest(
        &self,
        sql: &str,
        partition: Partition,
    ) -> Result<Vec<QueryResult>, StoreError> {
        let statement = self.statement(sql, [partition.number().into()]);
        self.read(statement).await
    }
}
