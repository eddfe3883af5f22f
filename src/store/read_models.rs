//! The table `read_models`: reading it, and writing what was folded or came from outside. Floor 2.

use std::collections::HashMap;

use entity::read_models::{Column, Entity};
use futures_util::future::try_join_all;
use sea_orm::{
    Statement,
    sea_query::{Cond, Expr, ExprTrait, Order as SqlOrder, Query, SelectStatement},
};

use super::{
    Store, StoreError,
    bounded::{PAGE_BYTES, Part, merge},
    events::{KEYS_A_STATEMENT, sql_order},
    rows,
};
use crate::domain::{
    AggregateId, AggregateType, CheckpointStep, ExternalModel, ExternalOutcome, Order, Partition,
    Position, Projected, ReadModel, ReadModelFilter, ReadModelSource, ReadModelTime,
    RebuildOutcome, SaveOutcome, Timestamp, Version,
};

/// The most read models that are looked through at a time for those that contain something, where the database cannot tell.
const LOOKED_THROUGH_ROWS: u64 = 1000;

/// What came of a write from outside, as the database tells it.
#[derive(Clone, Debug)]
pub(super) enum ExternalWrite {
    Written {
        change_position: Position,
        created_at: Timestamp,
        updated_at: Timestamp,
    },
    Unchanged,
    VersionAhead {
        actual: Version,
    },
    TypeMismatch {
        actual: AggregateType,
    },
}

/// Read models that were asked for by their aggregates, with tombstones, as far as they fit.
#[derive(Debug)]
pub struct LoadedModels {
    /// Those that are there.
    pub models: HashMap<AggregateId, ReadModel>,
    /// So many of the aggregates, from the first on, are answered; those behind did not fit.
    pub answered: usize,
}

/// From where and how a list of read models goes.
#[derive(Clone, Copy, Debug)]
pub struct ReadModelList {
    /// By what it is ordered.
    pub by: ReadModelTime,
    /// From which end.
    pub order: Order,
    /// The read model that it goes on behind: its time and its aggregate.
    pub after: Option<(Timestamp, AggregateId)>,
}

/// A page of read models.
#[derive(Debug)]
pub struct ReadModelPage {
    /// Those that are on it.
    pub models: Vec<ReadModel>,
    /// Whether there may be more behind it.
    pub has_next: bool,
}

impl Store {
    /// Finds the read model of an aggregate, or its tombstone.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn read_model(&self, id: AggregateId) -> Result<Option<ReadModel>, StoreError> {
        let mut select = select_models();
        let partition = self.partitions.of_aggregate(id);
        select
            .and_where(Expr::col((Entity, Column::PartitionNo)).eq(partition.number()))
            .and_where(Expr::col((Entity, Column::AggregateId)).eq(id.0));
        let rows = self.select(&select).await?;
        rows.first().map(rows::read_model).transpose()
    }

    /// Finds read models by their aggregates, tombstones too, all in one statement. None where they are larger than `max_bytes`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn read_models_by_id(
        &self,
        ids: &[AggregateId],
        max_bytes: usize,
    ) -> Result<Option<HashMap<AggregateId, ReadModel>>, StoreError> {
        let chunks = ids.chunks(KEYS_A_STATEMENT).map(|chunk| async move {
            let mut partitions: Vec<i16> = chunk
                .iter()
                .map(|id| self.partitions.of_aggregate(*id).number())
                .collect();
            partitions.sort_unstable();
            partitions.dedup();
            let ids = Expr::col(Column::AggregateId);
            let mut page = select_models();
            page.and_where(Expr::col(Column::PartitionNo).is_in(partitions))
                .and_where(self.backend.uuid_in(ids, &mut chunk.iter().map(|id| id.0)));
            self.read_part(&page, max_bytes, rows::read_model).await
        });
        let mut found = HashMap::with_capacity(ids.len());
        for part in try_join_all(chunks).await? {
            if part.is_cut {
                return Ok(None);
            }
            let models = part.rows.into_iter();
            found.extend(models.map(|model| (model.aggregate_id, model)));
        }
        Ok(Some(found))
    }

    /// Loads the read models of some aggregates of one partition, in the order given and about `max_bytes` of them at most.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn load_models(
        &self,
        partition: Partition,
        ids: &[AggregateId],
        max_bytes: usize,
    ) -> Result<LoadedModels, StoreError> {
        let ids = &ids[..ids.len().min(KEYS_A_STATEMENT)];
        let keys: Vec<_> = (0_i64..)
            .zip(ids)
            .map(|(ord, id)| (partition, id.0, ord, 0))
            .collect();
        let (relation, values) = self.backend.uuid_ranges(&keys);
        let columns = rows::READ_MODEL_COLUMNS.join(", ");
        let sql = format!(
            "WITH wanted (no, id, ord, unused) AS ({relation}), \
             found AS MATERIALIZED (SELECT r.ord, m.partition_no, m.aggregate_id, m.aggregate_type, CAST(m.model_data AS text) AS model_data, \
             m.version, m.source, m.fault, m.deleted_at, m.change_position, m.created_at, m.updated_at \
             FROM wanted r JOIN read_models m ON m.partition_no = r.no AND m.aggregate_id = r.id), \
             summed AS (SELECT found.*, SUM(LENGTH(model_data)) OVER (ORDER BY ord ROWS UNBOUNDED PRECEDING) \
             - LENGTH(model_data) AS chars_before FROM found) \
             SELECT {columns} FROM summed WHERE chars_before < {max_bytes} ORDER BY ord",
        );
        let backend = self.backend.dialect();
        let rows = self
            .read(Statement::from_sql_and_values(backend, sql, values))
            .await?;
        let found: Vec<ReadModel> = rows
            .iter()
            .map(rows::read_model)
            .collect::<Result<_, _>>()?;
        let chars = |model: &ReadModel| model.data.as_str().chars().count();
        let is_cut = found.iter().map(chars).sum::<usize>() >= max_bytes;
        let last = found.last().map(|model| model.aggregate_id);
        let answered = match last.filter(|_| is_cut) {
            Some(last) => ids.iter().position(|id| *id == last).map_or(0, |at| at + 1),
            None => ids.len(),
        };
        let models = found
            .into_iter()
            .map(|model| (model.aggregate_id, model))
            .collect();
        Ok(LoadedModels { models, answered })
    }

    /// A page of read models, without tombstones; one of large ones ends early. What the database cannot tell by itself of what
    /// they contain is looked through here, a bounded part at a time: on SQLite that costs reading every read model up to the
    /// end of the page.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn read_models_page(
        &self,
        filter: &ReadModelFilter,
        list: ReadModelList,
        first: usize,
    ) -> Result<ReadModelPage, StoreError> {
        let max_bytes = PAGE_BYTES / self.partitions.get();
        let of_partitions = self.partitions.iter().map(|partition| {
            self.models_of_partition(partition, filter, list, first + 1, max_bytes)
        });
        let parts = try_join_all(of_partitions).await?;
        let key = |model: &ReadModel| (list.by.of(model), model.aggregate_id);
        let page = merge(parts, list.order, first, key);
        Ok(ReadModelPage {
            models: page.rows,
            has_next: page.is_cut,
        })
    }

    async fn models_of_partition(
        &self,
        partition: Partition,
        filter: &ReadModelFilter,
        mut list: ReadModelList,
        wanted: usize,
        max_bytes: usize,
    ) -> Result<Part<ReadModel>, StoreError> {
        let conditions = filter
            .contains
            .as_ref()
            .map(|contained| self.backend.json_contains("model_data", contained));
        let is_exact = conditions.as_ref().is_none_or(|said| said.is_exact);
        let conditions = conditions.map_or(Vec::new(), |said| said.conditions);
        let rows = if is_exact {
            wanted as u64
        } else {
            LOOKED_THROUGH_ROWS
        };
        let mut found = Vec::new();
        let mut bytes = 0;
        loop {
            let mut select = self.select_list(partition, filter, list, rows);
            conditions.iter().for_each(|condition| {
                select.and_where(condition.clone());
            });
            let part = self.read_part(&select, max_bytes, rows::read_model).await?;
            if is_exact {
                return Ok(part);
            }
            let Some(last) = part.rows.last() else {
                return Ok(Part {
                    rows: found,
                    is_cut: false,
                });
            };
            list.after = Some((list.by.of(last), last.aggregate_id));
            for model in part.rows {
                if !filter.matches_data(&model) {
                    continue;
                }
                bytes += model.data.as_str().len();
                found.push(model);
                if found.len() >= wanted || bytes >= max_bytes {
                    return Ok(Part {
                        rows: found,
                        is_cut: bytes >= max_bytes,
                    });
                }
            }
            // Looking through much takes long: others have their turn, and whoever asked may have gone.
            tokio::task::yield_now().await;
        }
    }

    fn select_list(
        &self,
        partition: Partition,
        filter: &ReadModelFilter,
        list: ReadModelList,
        limit: u64,
    ) -> SelectStatement {
        let time = time_column(list.by);
        let order = sql_order(list.order);
        let mut select = select_models();
        select
            .and_where(Expr::col((Entity, Column::PartitionNo)).eq(partition.number()))
            .and_where(Expr::col((Entity, Column::DeletedAt)).is_null())
            .order_by((Entity, time), order.clone())
            .order_by((Entity, Column::AggregateId), order)
            .limit(limit);
        where_named(&mut select, filter);
        if let Some((at, id)) = list.after {
            let place = Expr::tuple([Expr::val(at.to_utc()), Expr::val(id.0)]);
            let row = Expr::tuple([
                Expr::col((Entity, time)),
                Expr::col((Entity, Column::AggregateId)),
            ]);
            select.and_where(match list.order {
                Order::OldestFirst => row.gt(place),
                Order::NewestFirst => row.lt(place),
            });
        }
        select
    }

    /// Reads the read models of one partition that have changed above a place in its log of changes, in its order, tombstones
    /// too: about `max_bytes` at most. What their data contains is not looked at.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn scan_changes(
        &self,
        partition: Partition,
        above: Position,
        filter: &ReadModelFilter,
        limit: u64,
        max_bytes: usize,
    ) -> Result<Vec<ReadModel>, StoreError> {
        let mut select = select_models();
        select
            .and_where(Expr::col((Entity, Column::PartitionNo)).eq(partition.number()))
            .and_where(Expr::col((Entity, Column::ChangePosition)).gt(above.0))
            .order_by((Entity, Column::ChangePosition), SqlOrder::Asc)
            .limit(limit);
        where_named(&mut select, filter);
        let select = rows::bounded(
            select,
            rows::READ_MODEL_COLUMNS,
            "model_data",
            "change_position",
            max_bytes,
        );
        self.select(&select)
            .await?
            .iter()
            .map(rows::read_model)
            .collect()
    }

    /// Saves what was folded from the events of one partition behind the checkpoint `read_models`, and moves that: all of it in
    /// one transaction, or nothing. Each aggregate may be there once.
    ///
    /// # Errors
    /// When the database fails; then nothing was saved, unless the outcome is unknown.
    pub async fn save_read_models(
        &self,
        partition: Partition,
        step: CheckpointStep,
        models: &[Projected],
    ) -> Result<SaveOutcome, StoreError> {
        self.backend.save_read_models(partition, step, models).await
    }

    /// Saves read models of one partition that were folded anew from their first events, each by itself, in one transaction.
    /// Each aggregate may be there once.
    ///
    /// # Errors
    /// When the database fails; then nothing was saved, unless the outcome is unknown.
    pub async fn save_rebuilt(
        &self,
        partition: Partition,
        models: &[Projected],
    ) -> Result<Vec<RebuildOutcome>, StoreError> {
        self.backend.save_rebuilt(partition, models).await
    }

    /// Writes a read model from outside.
    ///
    /// # Errors
    /// When the database fails; then nothing was written, unless the outcome is unknown.
    pub async fn write_read_model(
        &self,
        model: ExternalModel,
    ) -> Result<ExternalOutcome, StoreError> {
        let partition = self.partitions.of_aggregate(model.aggregate_id);
        let written = self
            .backend
            .write_read_model(partition, &model, self.clock.now())
            .await?;
        Ok(match written {
            ExternalWrite::Written {
                change_position,
                created_at,
                updated_at,
            } => ExternalOutcome::Written(ReadModel {
                partition,
                aggregate_id: model.aggregate_id,
                aggregate_type: model.aggregate_type,
                data: model.data,
                version: model.version,
                source: ReadModelSource::External,
                fault: None,
                deleted_at: None,
                change_position,
                created_at,
                updated_at,
            }),
            ExternalWrite::Unchanged => {
                let stored = self.read_model(model.aggregate_id).await?;
                let stored = stored.ok_or_else(|| {
                    StoreError::Inconsistent("a read model was there and is not any more".into())
                })?;
                ExternalOutcome::Unchanged(stored)
            }
            ExternalWrite::VersionAhead { actual } => ExternalOutcome::VersionAhead { actual },
            ExternalWrite::TypeMismatch { actual } => ExternalOutcome::TypeMismatch { actual },
        })
    }

    /// How many read models have a fault, and the aggregates of the first of them.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn faulted_models(&self, named: u64) -> Result<(u64, Vec<AggregateId>), StoreError> {
        let partitions = || self.partitions.iter().map(Partition::number);
        let faulted = |select: &mut SelectStatement| {
            select
                .from(Entity)
                .and_where(Expr::col(Column::PartitionNo).is_in(partitions()))
                .and_where(Expr::col(Column::Fault).is_not_null())
                .to_owned()
        };
        let count = faulted(Query::select().expr(Expr::col(Column::AggregateId).count()));
        let first = faulted(
            Query::select()
                .column(Column::AggregateId)
                .order_by(Column::PartitionNo, SqlOrder::Asc)
                .order_by(Column::AggregateId, SqlOrder::Asc)
                .limit(named),
        );
        let rows = self.select(&count).await?;
        let count = rows
            .first()
            .map_or(Ok(0), |row| rows::Row::of(row).next::<i64>())?;
        if count == 0 || named == 0 {
            return Ok((count.unsigned_abs(), Vec::new()));
        }
        let first = self.select(&first).await?;
        let first = first
            .iter()
            .map(|row| rows::Row::of(row).next().map(AggregateId))
            .collect::<Result<_, _>>()?;
        Ok((count.unsigned_abs(), first))
    }
}

fn time_column(by: ReadModelTime) -> Column {
    match by {
        ReadModelTime::Created => Column::CreatedAt,
        ReadModelTime::Updated => Column::UpdatedAt,
    }
}

fn select_models() -> SelectStatement {
    rows::select_read_model(&mut Query::select())
        .from(Entity)
        .to_owned()
}

fn where_named(select: &mut SelectStatement, filter: &ReadModelFilter) {
    if let Some(id) = filter.aggregate_id {
        select.and_where(Expr::col((Entity, Column::AggregateId)).eq(id.0));
    }
    if let Some(types) = &filter.aggregate_types {
        let types = types.iter().map(AggregateType::as_str);
        select.cond_where(Cond::all().add(Expr::col((Entity, Column::AggregateType)).is_in(types)));
    }
}
