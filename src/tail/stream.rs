//! Following one stream. Floor 3.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};

use super::{
    Tail,
    events::{PAGE_BYTES, PAGE_ROWS, is_full},
    window::Windowed,
};
use crate::{
    domain::{Entry, Partition, Position, StreamName},
    store::StoreError,
};

const PAUSE_AFTER_FAULT: Duration = Duration::from_millis(250);

/// Somebody who follows a stream behind a position.
pub struct StreamFollower {
    tail: Arc<Tail>,
    heads: watch::Receiver<Vec<Position>>,
    name: StreamName,
    partition: Partition,
    /// Up to where the stream was delivered.
    after: Position,
    /// Up to where the partition's log of entries was looked through; none while history is read.
    looked: Option<Position>,
    ready: VecDeque<Arc<Entry>>,
}

impl StreamFollower {
    pub(super) fn new(
        tail: Arc<Tail>,
        heads: watch::Receiver<Vec<Position>>,
        name: StreamName,
        after: Position,
    ) -> Self {
        let partition = tail.store.partitions().of_stream(&name);
        Self {
            tail,
            heads,
            name,
            partition,
            after,
            looked: None,
            ready: VecDeque::new(),
        }
    }

    /// Waits for the next entry. Faults of the database that pass are waited out.
    ///
    /// # Errors
    /// A fault of the database that does not pass.
    pub async fn next(&mut self) -> Result<Arc<Entry>, StoreError> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                self.after = entry.position;
                return Ok(entry);
            }
            match self.looked {
                Some(looked) => self.read_live(looked).await,
                None => match self.read_history().await {
                    Ok(()) => {}
                    Err(error) if error.is_passing() => {
                        tracing::debug!(
                            error = &error as &dyn std::error::Error,
                            "a subscription waits for the database"
                        );
                        sleep(PAUSE_AFTER_FAULT).await;
                    }
                    Err(error) => return Err(error),
                },
            }
        }
    }

    /// Reads the next page of the stream. A page that is not full has all that there was up to the window's head of
    /// before, so from there the window goes on.
    async fn read_history(&mut self) -> Result<(), StoreError> {
        let head = self.tail.entries.windows[self.partition.index()].head();
        let entries = self
            .tail
            .store
            .scan_stream(&self.name, self.after, PAGE_ROWS as u64, PAGE_BYTES)
            .await?;
        let bytes = entries.iter().map(Entry::size_bytes).sum();
        if !is_full(entries.len(), bytes) {
            self.looked = Some(head);
        }
        self.ready.extend(entries.into_iter().map(Arc::new));
        Ok(())
    }

    /// Takes what is new from the window, or waits for it. A window that begins later sends back to history.
    async fn read_live(&mut self, looked: Position) {
        self.heads.mark_unchanged();
        match self.tail.entries.windows[self.partition.index()].rows_after(looked) {
            None => self.looked = None,
            Some(rows) => match rows.last() {
                Some(last) => {
                    self.looked = Some(last.entry_position);
                    let after = self.after;
                    let name = &self.name;
                    self.ready.extend(
                        rows.into_iter()
                            .filter(|entry| entry.stream_name == *name && entry.position > after),
                    );
                }
                None => {
                    if self.heads.changed().await.is_err() {
                        // The tail has ended: the server stops, and whoever follows is told so by it.
                        std::future::pending::<()>().await;
                    }
                }
            },
        }
    }
}
