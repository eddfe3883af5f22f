//! Following all events of one partition, for what runs under its lease. Floor 3.

use std::{panic::resume_unwind, sync::Arc};

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{
    Tail,
    events::{PAGE_BYTES, PAGE_ROWS},
};
use crate::{
    domain::{Event, EventFilter, Order, Partition, Position},
    store::{EventScan, Store, StoreError},
};

/// A batch is closed when it has so many events, or about so many bytes.
const BATCH_ROWS: usize = 1024;
const BATCH_BYTES: usize = 4 << 20;

/// The next events of a partition: one at least, in their order, without a gap.
pub type EventBatch = Vec<Arc<Event>>;

/// Somebody who follows all events of one partition behind a position.
pub struct PartitionFollower {
    tail: Arc<Tail>,
    heads: watch::Receiver<Vec<Position>>,
    partition: Partition,
    after: Position,
    page_bytes: usize,
    /// The page of history behind `after` that is being read. It goes on where whoever waits for it turns to something else:
    /// one that is often called away would never come to the end of a page otherwise.
    page: Option<AbortOnDropHandle<Result<Vec<Event>, StoreError>>>,
}

impl PartitionFollower {
    pub(super) fn new(
        tail: Arc<Tail>,
        heads: watch::Receiver<Vec<Position>>,
        partition: Partition,
        after: Position,
    ) -> Self {
        Self {
            tail,
            heads,
            partition,
            after,
            page_bytes: PAGE_BYTES,
            page: None,
        }
    }

    /// Reads history in pages of about so many bytes, one event at least: what is read for one follower is not shared with others.
    pub fn read_pages_of(&mut self, bytes: usize) {
        self.page_bytes = bytes.min(PAGE_BYTES);
    }

    /// Goes on behind this position, which may lie before what was given already.
    pub fn go_on_behind(&mut self, position: Position) {
        self.after = position;
        self.page = None;
    }

    /// Waits for what comes next, up to `most` events. It can be given up while it waits: then nothing was given, and
    /// the next call goes on with what was being read.
    ///
    /// # Errors
    /// When the database fails: the same call goes on.
    pub async fn next(&mut self, most: usize) -> Result<EventBatch, StoreError> {
        let most = most.clamp(1, BATCH_ROWS);
        loop {
            let head = self.heads.borrow_and_update()[self.partition.index()];
            if head > self.after {
                let batch = self.read(head, most).await?;
                if let Some(last) = batch.last() {
                    self.after = last.position;
                    return Ok(batch);
                }
            }
            if self.heads.changed().await.is_err() {
                // The tail has ended: the server stops, and whoever follows is told so by it.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Reads what the window has, or a page of history where that begins later.
    async fn read(&mut self, head: Position, most: usize) -> Result<EventBatch, StoreError> {
        if self.page.is_none() {
            let batch = self.read_window(most);
            if !batch.is_empty() {
                return Ok(batch);
            }
        }
        let page = match &mut self.page {
            Some(page) => page,
            none => none.insert(AbortOnDropHandle::new(tokio::spawn(read_page(
                self.tail.store.clone(),
                self.partition,
                (self.after, head),
                PAGE_ROWS.min(most) as u64,
                self.page_bytes,
            )))),
        };
        let read = page.await;
        self.page = None;
        let mut events = read.unwrap_or_else(|ended| resume_unwind(ended.into_panic()))?;
        events.truncate(most);
        Ok(events.into_iter().map(Arc::new).collect())
    }

    fn read_window(&self, most: usize) -> EventBatch {
        let window = &self.tail.events.windows[self.partition.index()];
        let mut batch = EventBatch::new();
        let mut bytes = 0;
        let mut after = self.after;
        while batch.len() < most
            && bytes < BATCH_BYTES
            && let Some(rows) = window.rows_after(after)
            && let Some(last) = rows.last()
        {
            after = last.position;
            bytes += rows.iter().map(|event| event.size_bytes()).sum::<usize>();
            batch.extend(rows);
        }
        batch.truncate(most);
        batch
    }
}

async fn read_page(
    store: Store,
    partition: Partition,
    (above, up_to): (Position, Position),
    limit: u64,
    max_bytes: usize,
) -> Result<Vec<Event>, StoreError> {
    let scan = EventScan {
        partition,
        above,
        up_to,
        filter: &EventFilter::default(),
        order: Order::OldestFirst,
        limit,
        max_bytes: Some(max_bytes),
    };
    store.scan_events(&scan).await
}
