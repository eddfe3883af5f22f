//! Reading the events of many aggregates together: while one statement runs, what is asked for gathers. Floor 4.

use std::{
    collections::HashMap,
    mem,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::oneshot;

use crate::{
    domain::{AggregateId, Event, Version},
    store::{EventRange, Store, StoreError},
};

/// Statements that run at the same time.
const AT_ONCE: usize = 2;
/// Aggregates in one statement.
const KEYS: usize = 256;
/// Versions of one aggregate in one statement.
const VERSIONS: i32 = 500;
/// Bytes of one statement, about.
const PAGE_BYTES: usize = 4 << 20;

/// Events of one aggregate behind a version, in their order.
pub(super) struct Page {
    pub(super) events: Vec<Event>,
    /// Whether these are all that there were.
    pub(super) is_last: bool,
}

/// Reads events of aggregates, in the order of aggregate and version, until they have come to [`PAGE_BYTES`].
type Read =
    dyn Fn(Vec<EventRange>) -> BoxFuture<'static, Result<Vec<Event>, StoreError>> + Send + Sync;

/// The reads of a server.
pub(super) struct Loads {
    events_to_fold: Box<Read>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    asked: Vec<Asked>,
    running: usize,
}

struct Asked {
    aggregate_id: AggregateId,
    behind: Version,
    answer: oneshot::Sender<Result<Page, Arc<StoreError>>>,
}

impl Loads {
    pub(super) fn new(store: &Store) -> Arc<Self> {
        let store = store.clone();
        Self::by(Box::new(move |ranges| {
            let store = store.clone();
            async move { store.events_to_fold(&ranges, PAGE_BYTES).await }.boxed()
        }))
    }

    fn by(events_to_fold: Box<Read>) -> Arc<Self> {
        Arc::new(Self {
            events_to_fold,
            waiting: Mutex::default(),
        })
    }

    /// Reads the next events of an aggregate behind a version.
    ///
    /// # Errors
    /// When the database fails.
    pub(super) async fn page(
        self: &Arc<Self>,
        aggregate_id: AggregateId,
        behind: Version,
    ) -> Result<Page, Arc<StoreError>> {
        let (answer, answered) = oneshot::channel();
        let begins = {
            let mut waiting = self.lock();
            waiting.asked.push(Asked {
                aggregate_id,
                behind,
                answer,
            });
            let begins = waiting.running < AT_ONCE;
            waiting.running += usize::from(begins);
            begins
        };
        if begins {
            // In a task of its own, which reads for others too, whatever becomes of who began it.
            tokio::spawn(self.clone().run());
        }
        answered.await.unwrap_or_else(|_| {
            Err(Arc::new(StoreError::Inconsistent(
                "a read was lost".to_owned(),
            )))
        })
    }

    /// Reads until nobody waits.
    async fn run(self: Arc<Self>) {
        while let Some(asked) = self.next() {
            // Whoever asked is told by the loss of his answer; the others wait for somebody who goes on.
            if AssertUnwindSafe(self.read(asked))
                .catch_unwind()
                .await
                .is_err()
            {
                tracing::error!("a read of events has ended with a fault");
            }
        }
    }

    fn next(&self) -> Option<Vec<Asked>> {
        let mut waiting = self.lock();
        if waiting.asked.is_empty() {
            waiting.running -= 1;
            return None;
        }
        let count = waiting.asked.len().min(KEYS);
        let rest = waiting.asked.split_off(count);
        Some(mem::replace(&mut waiting.asked, rest))
    }

    async fn read(&self, mut asked: Vec<Asked>) {
        // Who was given up may be followed by another one who asks for the same aggregate.
        asked.retain(|asked| !asked.answer.is_closed());
        let range = |asked: &Asked| EventRange {
            aggregate_id: asked.aggregate_id,
            first: asked.behind.next(),
            last: Version(asked.behind.0.saturating_add(VERSIONS)),
        };
        let ranges: Vec<EventRange> = asked.iter().map(range).collect();
        match (self.events_to_fold)(ranges).await {
            Ok(events) => self.share_out(asked, events),
            Err(error) => {
                let error = Arc::new(error);
                for asked in asked {
                    // Who asked may have gone away.
                    let _ = asked.answer.send(Err(error.clone()));
                }
            }
        }
    }

    /// Gives each the events of his own. Where the bytes were used up, the aggregates behind that place wait again.
    fn share_out(&self, asked: Vec<Asked>, events: Vec<Event>) {
        let bytes: usize = events.iter().map(Event::size_bytes).sum();
        let cut_at = (bytes >= PAGE_BYTES)
            .then(|| events.last().map(|event| event.aggregate_id))
            .flatten();
        let mut of_aggregates: HashMap<AggregateId, Vec<Event>> = HashMap::new();
        for event in events {
            of_aggregates
                .entry(event.aggregate_id)
                .or_default()
                .push(event);
        }
        for asked in asked {
            if cut_at.is_some_and(|cut_at| asked.aggregate_id > cut_at) {
                self.lock().asked.push(asked);
                continue;
            }
            let events = of_aggregates
                .remove(&asked.aggregate_id)
                .unwrap_or_default();
            let is_cut = cut_at == Some(asked.aggregate_id);
            let is_last =
                !is_cut && i32::try_from(events.len()).is_ok_and(|count| count < VERSIONS);
            let _ = asked.answer.send(Ok(Page { events, is_last }));
        }
    }

    // Nothing panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn reads_go_on_after_some_that_panicked() {
        let panics = AtomicUsize::new(3 * AT_ONCE);
        let loads = Loads::by(Box::new(move |_| {
            let is_left = panics.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            });
            assert!(is_left.is_err(), "it stumbles");
            async { Ok(Vec::new()) }.boxed()
        }));
        let id = AggregateId(Uuid::from_u128(1));
        for _ in 0..3 * AT_ONCE {
            assert!(loads.page(id, Version::NONE).await.is_err());
        }
        let page = tokio::time::timeout(
            std::time::Duration::from_secs(10),
            loads.page(id, Version::NONE),
        );
        let page = page.await.expect("somebody reads").expect("it works");
        assert!(page.is_last && page.events.is_empty());
    }
}
