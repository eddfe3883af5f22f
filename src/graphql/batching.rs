//! Look-ups that wait for each other: those that one step of an operation asks for go out as one statement. Floor 6.
//!
//! An operation runs as far as it can, in one task; only when it waits are the look-ups that it asked for started. So how
//! many statements it takes depends on its document, and not on timers and threads.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    mem,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
};

use futures_util::{
    Stream,
    future::BoxFuture,
    stream::{BoxStream, FuturesUnordered},
};
use tokio::sync::oneshot;

use super::errors::ApiError;
use crate::store::{Store, StoreError};

/// A kind of look-up that takes many keys at a time.
pub(super) trait LookUp: Send + Sync + 'static {
    /// What is looked up.
    type Key: Clone + Eq + Hash + Send + 'static;
    /// What is found.
    type Value: Clone + Send + 'static;

    /// Finds the values of keys, each of which comes once.
    fn find(
        store: &Store,
        keys: Vec<Self::Key>,
    ) -> impl Future<Output = Result<HashMap<Self::Key, Self::Value>, ApiError>> + Send;
}

type Answer<L> = Result<Option<<L as LookUp>::Value>, ApiError>;
type Waiting<L> = Vec<(<L as LookUp>::Key, oneshot::Sender<Answer<L>>)>;

/// The look-ups of one kind that were asked for and are not started.
pub(super) struct Batch<L: LookUp> {
    waiting: Mutex<Waiting<L>>,
}

impl<L: LookUp> Default for Batch<L> {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
        }
    }
}

impl<L: LookUp> Batch<L> {
    /// Looks one key up, together with the others that the operation asks for before it waits.
    pub(super) async fn one(&self, key: L::Key) -> Answer<L> {
        let (answer, answered) = oneshot::channel();
        self.lock().push((key, answer));
        answered.await.unwrap_or_else(|_| {
            let lost = StoreError::Inconsistent("a look-up was lost".to_owned());
            Err(lost.into())
        })
    }

    /// The look-up of all keys that are waiting; none where there are none.
    pub(super) fn take(&self, store: &Store) -> Option<BoxFuture<'static, ()>> {
        let waiting = mem::take(&mut *self.lock());
        if waiting.is_empty() {
            return None;
        }
        let store = store.clone();
        Some(Box::pin(async move {
            let keys: HashSet<L::Key> = waiting.iter().map(|(key, _)| key.clone()).collect();
            let found = L::find(&store, keys.into_iter().collect()).await;
            for (key, answer) in waiting {
                let value = found.as_ref().map(|found| found.get(&key).cloned());
                // Who asked may have been given up meanwhile.
                let _ = answer.send(value.map_err(Clone::clone));
            }
        }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting<L>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the look-ups of an operation are taken from.
pub(super) trait Batches: Send + Unpin {
    /// Those that were asked for since the last time.
    fn take_all(&self) -> Vec<BoxFuture<'static, ()>>;
}

/// An operation together with its look-ups.
pub(super) struct Batched<O, B> {
    operation: O,
    batches: B,
    running: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl<O, B: Batches> Batched<O, B> {
    pub(super) fn new(operation: O, batches: B) -> Self {
        Self {
            operation,
            batches,
            running: FuturesUnordered::new(),
        }
    }

    /// Runs the operation with `poll` until it is ready, or waits and none of its look-ups is done.
    fn advance<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut O, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        loop {
            if let Poll::Ready(output) = poll(&mut self.operation, cx) {
                return Poll::Ready(output);
            }
            self.running.extend(self.batches.take_all());
            match Pin::new(&mut self.running).poll_next(cx) {
                Poll::Ready(Some(())) => {}
                // With nothing running, the operation waits for something else and wakes by itself.
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl<T, B: Batches> Future for Batched<BoxFuture<'_, T>, B> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        self.advance(cx, |operation, cx| operation.as_mut().poll(cx))
    }
}

impl<T, B: Batches> Stream for Batched<BoxStream<'_, T>, B> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.advance(cx, |operation, cx| operation.as_mut().poll_next(cx))
    }
}
