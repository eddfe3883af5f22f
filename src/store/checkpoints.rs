//! The table `checkpoints`. Floor 2.

use entity::checkpoints::{Column, Entity};
use sea_orm::sea_query::{Expr, ExprTrait, Query};

use super::{Store, StoreError, rows::Row};
use crate::domain::{Checkpoint, FencingToken, Partition, Position};

impl Store {
    /// Where a checkpoint is in each partition; at the start where nobody has begun.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn checkpoints(&self, checkpoint: Checkpoint) -> Result<Vec<Position>, StoreError> {
        let select = Query::select()
            .columns([Column::PartitionNo, Column::Position])
            .from(Entity)
            .and_where(Expr::col(Column::Name).eq(checkpoint.as_str()))
            .to_owned();
        let mut positions = vec![Position::START; self.partitions.get()];
        for row in self.select(&select).await? {
            let mut row = Row::of(&row);
            let partition = row.partition()?;
            if let Some(position) = positions.get_mut(partition.index()) {
                *position = Position(row.next()?);
            }
        }
        Ok(positions)
    }

    /// Makes a partition's checkpoint that of the runner with this token: whoever had it before moves it no more. Answers
    /// where it is; none where a newer runner has it already. One that is not there yet begins before the first event.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn fence_checkpoint(
        &self,
        partition: Partition,
        checkpoint: Checkpoint,
        token: FencingToken,
    ) -> Result<Option<Position>, StoreError> {
        self.backend
            .fence_checkpoint(partition, checkpoint, token)
            .await
    }
}
