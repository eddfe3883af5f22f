//! Following the changes of read models: of those that somebody names, or of one until it is as wanted. Floor 3.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};

use super::{
    Tail,
    events::{PAGE_BYTES, PAGE_ROWS},
    watch::looked_through,
};
use crate::{
    domain::{AggregateId, Partition, Position, ReadModel, ReadModelFilter},
    store::StoreError,
};

const PAUSE_AFTER_FAULT: Duration = Duration::from_millis(250);

/// One change of a read model.
#[derive(Clone, Debug)]
pub struct ChangeStep {
    /// The place behind which to go on after this step: a position for each partition.
    pub place: Vec<Position>,
    /// The read model as it is after it; a tombstone where its aggregate was deleted.
    pub model: Arc<ReadModel>,
}

/// Somebody who follows the changes of read models behind a place. Of several changes of one read model it may be given the
/// newest alone.
pub struct ChangeFollower {
    tail: Arc<Tail>,
    heads: watch::Receiver<Vec<Position>>,
    filter: ReadModelFilter,
    /// For each partition, up to where everything that is named was delivered.
    behind: Vec<Position>,
    /// For each partition, a head that the database had when following began.
    newest_at_start: Vec<Position>,
    /// What was read and is to be delivered: changes of one partition, and up to where it was looked through for them.
    ready: VecDeque<Arc<ReadModel>>,
    looked: (Partition, Position),
}

impl ChangeFollower {
    pub(super) fn new(
        tail: Arc<Tail>,
        heads: watch::Receiver<Vec<Position>>,
        behind: Vec<Position>,
        newest_at_start: Vec<Position>,
        filter: ReadModelFilter,
    ) -> Self {
        Self {
            tail,
            heads,
            filter,
            looked: (Partition(0), behind[0]),
            behind,
            newest_at_start,
            ready: VecDeque::new(),
        }
    }

    /// Waits for the next change. Faults of the database that pass are waited out.
    ///
    /// # Errors
    /// A fault of the database that does not pass.
    pub async fn next(&mut self) -> Result<ChangeStep, StoreError> {
        loop {
            if let Some(model) = self.ready.pop_front() {
                return Ok(self.step_of(model));
            }
            self.finish_page();
            match self.read_on().await {
                Ok(true) => {}
                Ok(false) => {
                    if self.heads.changed().await.is_err() {
                        // The tail has ended: the server stops, and whoever follows is told so by it.
                        std::future::pending::<()>().await;
                    }
                }
                Err(error) if error.is_passing() => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "a subscription waits for the database"
                    );
                    sleep(PAUSE_AFTER_FAULT).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn step_of(&mut self, model: Arc<ReadModel>) -> ChangeStep {
        self.behind[model.partition.index()] = model.change_position;
        if self.ready.is_empty() {
            self.finish_page();
        }
        ChangeStep {
            place: self.behind.clone(),
            model,
        }
    }

    /// All that was read is delivered, so the place moves up to where it was looked through.
    fn finish_page(&mut self) {
        let (partition, position) = self.looked;
        let behind = &mut self.behind[partition.index()];
        *behind = position.max(*behind);
    }

    /// A partition with something that was not looked through yet.
    fn next_partition(&self) -> Option<(Partition, Position)> {
        let heads = self.heads.borrow();
        // Each in its turn: a follower that is slower than the writers of one still gets the others.
        let partitions = self.tail.store.partitions();
        let turn = self.looked.0.index() + 1;
        let mut in_turn = partitions.iter().cycle().skip(turn).take(partitions.get());
        in_turn.find_map(|partition| {
            // The window may lag behind what the database had when following began.
            let head = heads[partition.index()].max(self.newest_at_start[partition.index()]);
            (head > self.behind[partition.index()]).then_some((partition, head))
        })
    }

    /// Looks through the next part of the changes. False where there is none.
    async fn read_on(&mut self) -> Result<bool, StoreError> {
        self.heads.mark_unchanged();
        let Some((partition, head)) = self.next_partition() else {
            return Ok(false);
        };
        let after = self.behind[partition.index()];
        let window = &self.tail.changes.windows[partition.index()];
        if let Some((changes, looked)) = window.changes_after(after)
            && looked > after
        {
            let named = changes.into_iter().filter(|model| self.filter.names(model));
            self.ready.extend(named);
            self.looked = (partition, looked);
            return Ok(true);
        }
        let changes = self
            .tail
            .store
            .scan_changes(partition, after, &self.filter, PAGE_ROWS as u64, PAGE_BYTES)
            .await?;
        let looked = looked_through(&changes, after, head, PAGE_ROWS, PAGE_BYTES);
        self.ready.extend(changes.into_iter().map(Arc::new));
        self.looked = (partition, looked);
        Ok(true)
    }
}

/// Somebody who waits for one read model to change. Made before the read model is read for the first time, it misses nothing.
pub struct ReadModelWatch {
    tail: Arc<Tail>,
    heads: watch::Receiver<Vec<Position>>,
    id: AggregateId,
    partition: Partition,
    /// Up to where it is known whether the read model has changed; none before it was read.
    known: Option<Position>,
}

impl ReadModelWatch {
    pub(super) fn new(
        tail: Arc<Tail>,
        heads: watch::Receiver<Vec<Position>>,
        id: AggregateId,
    ) -> Self {
        let partition = tail.store.partitions().of_aggregate(id);
        Self {
            tail,
            heads,
            id,
            partition,
            known: None,
        }
    }

    /// The read model as it is, tombstones too: at first, and then whenever there may be something new of it. It can be given up
    /// while it waits.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn next(&mut self) -> Result<Option<Arc<ReadModel>>, StoreError> {
        loop {
            self.heads.mark_unchanged();
            let window = &self.tail.changes.windows[self.partition.index()];
            let newest = window.newest_of(self.id);
            if let Some(model) = newest.model
                && self.known.is_none_or(|known| model.change_position > known)
            {
                self.known = Some(model.change_position);
                return Ok(Some(model));
            }
            if self.known.is_none_or(|known| known < newest.above) {
                // Neither the window nor what was known before tells whether it has changed.
                let found = self.tail.store.read_model(self.id).await?;
                self.known = Some(newest.head);
                return Ok(found.map(Arc::new));
            }
            self.known = Some(newest.head);
            if self.heads.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
