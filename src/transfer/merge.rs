//! The rows of all partitions in one order: by time, and in each partition as they stand there. Floor 4.

use std::iter::Peekable;

use tokio::sync::mpsc;

use crate::{
    domain::{AggregateId, Entry, Event, Partition, Position, Timestamp},
    store::{Store, StoreError},
};

/// Pages of a partition that wait to be taken.
const WAITING_PAGES: usize = 2;

/// A row of a log.
pub(super) trait Row: Send + 'static {
    /// When it was appended.
    fn created_at(&self) -> Timestamp;

    /// Its place in its partition.
    fn place(&self) -> Position;

    /// Reads the next page of a partition.
    fn page(
        store: &Store,
        partition: Partition,
        above: Position,
        up_to: Position,
    ) -> impl Future<Output = Result<Vec<Self>, StoreError>> + Send
    where
        Self: Sized;
}

impl Row for Event {
    fn created_at(&self) -> Timestamp {
        self.created_at
    }

    fn place(&self) -> Position {
        self.position
    }

    async fn page(
        store: &Store,
        partition: Partition,
        above: Position,
        up_to: Position,
    ) -> Result<Vec<Self>, StoreError> {
        store.export_events(partition, above, up_to).await
    }
}

impl Row for (Entry, Option<AggregateId>) {
    fn created_at(&self) -> Timestamp {
        self.0.created_at
    }

    fn place(&self) -> Position {
        self.0.entry_position
    }

    async fn page(
        store: &Store,
        partition: Partition,
        above: Position,
        up_to: Position,
    ) -> Result<Vec<Self>, StoreError> {
        store.export_entries(partition, above, up_to).await
    }
}

/// The pages of one partition, read ahead by a task of its own, which ends when nobody takes them any more.
pub(super) struct Pages<T> {
    rows: Peekable<std::vec::IntoIter<T>>,
    pages: mpsc::Receiver<Result<Vec<T>, StoreError>>,
}

impl<T: Row> Pages<T> {
    /// Reads a partition's rows behind a place up to another one. There has to be a row at each place.
    pub(super) fn read(
        store: &Store,
        partition: Partition,
        above: Position,
        up_to: Position,
    ) -> Self {
        let (sender, pages) = mpsc::channel(WAITING_PAGES);
        let store = store.clone();
        tokio::spawn(async move {
            let mut above = above;
            while above < up_to {
                let page = T::page(&store, partition, above, up_to).await;
                let page = page.and_then(|rows| match rows.last() {
                    Some(last) => {
                        above = last.place();
                        Ok(rows)
                    }
                    None => Err(StoreError::Inconsistent(format!(
                        "partition {partition} ends at {} and not at {}",
                        above.0, up_to.0
                    ))),
                });
                let is_fault = page.is_err();
                if sender.send(page).await.is_err() || is_fault {
                    return;
                }
            }
        });
        Self {
            rows: Vec::new().into_iter().peekable(),
            pages,
        }
    }

    /// The next page; none behind the last.
    pub(super) async fn next_page(&mut self) -> Result<Option<Vec<T>>, StoreError> {
        self.pages.recv().await.transpose()
    }

    fn peek(&mut self) -> Result<Option<&T>, StoreError> {
        while self.rows.peek().is_none() {
            match self.pages.blocking_recv() {
                Some(page) => self.rows = page?.into_iter().peekable(),
                None => return Ok(None),
            }
        }
        Ok(self.rows.peek())
    }
}

/// The rows of several partitions. To be used where a thread may be blocked.
pub(super) struct Merged<T>(Vec<Pages<T>>);

impl<T: Row> Merged<T> {
    /// Reads the rows of each partition behind a place up to another one.
    pub(super) fn read(store: &Store, above: &[Position], up_to: &[Position]) -> Self {
        let places = above.iter().zip(up_to);
        let partitions = store.partitions().iter().zip(places);
        Self(
            partitions
                .map(|(partition, (above, up_to))| Pages::read(store, partition, *above, *up_to))
                .collect(),
        )
    }

    /// The next row.
    pub(super) fn next(&mut self) -> Result<Option<T>, StoreError> {
        let mut oldest: Option<(Timestamp, usize)> = None;
        for (index, pages) in self.0.iter_mut().enumerate() {
            let Some(row) = pages.peek()? else {
                continue;
            };
            let key = (row.created_at(), index);
            if oldest.is_none_or(|oldest| key < oldest) {
                oldest = Some(key);
            }
        }
        Ok(oldest.and_then(|(_, index)| self.0[index].rows.next()))
    }
}
