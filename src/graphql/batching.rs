//! Look-ups that wait for each other: those that one step of an operation asks for go out as one statement. Floor 6.
//!
//! An operation runs as far as it can, in one task; only when it waits are the look-ups that it asked for started. So how
//! many statements it takes depends on its document, and not on timers and threads.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    mem,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{
    Stream,
    future::{BoxFuture, poll_fn},
    stream::{BoxStream, FuturesUnordered},
    task::AtomicWaker,
};
use tokio::{sync::oneshot, task::unconstrained};

use super::errors::ApiError;
use crate::store::{Store, StoreError};

/// How many steps an operation makes before others have their turn.
const STEPS_AT_ONCE: usize = 1000;

/// A kind of look-up that takes many keys at a time, in a source: the store, or what is made of it.
pub(super) trait LookUp<Source = Store>: Send + Sync + 'static {
    /// What is looked up.
    type Key: Clone + Eq + Hash + Send + 'static;
    /// What is found.
    type Value: Clone + Send + 'static;

    /// Finds the values of keys, each of which comes once.
    fn find(
        source: &Source,
        keys: Vec<Self::Key>,
    ) -> impl Future<Output = Result<HashMap<Self::Key, Self::Value>, ApiError>> + Send;
}

type Answer<L, Source> = Result<Option<<L as LookUp<Source>>::Value>, ApiError>;
type Waiting<L, Source> = Vec<(
    <L as LookUp<Source>>::Key,
    oneshot::Sender<Answer<L, Source>>,
)>;

/// The look-ups of one kind that were asked for and are not started.
pub(super) struct Batch<L: LookUp<Source>, Source = Store> {
    waiting: Mutex<Waiting<L, Source>>,
}

impl<L: LookUp<Source>, Source> Default for Batch<L, Source> {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
        }
    }
}

impl<L: LookUp<Source>, Source: Clone + Send + Sync + 'static> Batch<L, Source> {
    /// Looks one key up, together with the others that the operation asks for before it waits.
    pub(super) async fn one(&self, key: L::Key) -> Answer<L, Source> {
        let (answer, answered) = oneshot::channel();
        self.lock().push((key, answer));
        answered.await.unwrap_or_else(|_| {
            let lost = StoreError::Inconsistent("a look-up was lost".to_owned());
            Err(lost.into())
        })
    }

    /// The look-up of all keys that are waiting; none where there are none.
    pub(super) fn take(&self, source: &Source) -> Option<BoxFuture<'static, ()>> {
        let waiting = mem::take(&mut *self.lock());
        if waiting.is_empty() {
            return None;
        }
        let source = source.clone();
        Some(Box::pin(async move {
            let keys: HashSet<L::Key> = waiting.iter().map(|(key, _)| key.clone()).collect();
            let found = L::find(&source, keys.into_iter().collect()).await;
            for (key, answer) in waiting {
                let value = found.as_ref().map(|found| found.get(&key).cloned());
                // Who asked may have been given up meanwhile.
                let _ = answer.send(value.map_err(Clone::clone));
            }
        }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting<L, Source>> {
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
    woken: Arc<Woken>,
}

/// Notes that the operation was woken, and wakes the task that it runs in.
#[derive(Default)]
struct Woken {
    again: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.again.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<O: Unpin, B: Batches> Batched<O, B> {
    pub(super) fn new(operation: O, batches: B) -> Self {
        Self {
            operation,
            batches,
            running: FuturesUnordered::new(),
            woken: Arc::default(),
        }
    }

    /// Runs the operation with `poll` until it is ready, or waits and none of its look-ups is done.
    fn advance<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut O, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.woken.task.register(cx.waker());
        let waker = Waker::from(self.woken.clone());
        for _ in 0..STEPS_AT_ONCE {
            self.woken.again.store(false, Ordering::Release);
            // The runtime's budget for a task would cut a step in two.
            let step = unconstrained(poll_fn(|cx| poll(&mut self.operation, cx)));
            if let Poll::Ready(output) = pin!(step).poll(&mut Context::from_waker(&waker)) {
                return Poll::Ready(output);
            }
            // Many futures side by side wake themselves to go on: then not all has been asked for yet.
            if self.woken.again.load(Ordering::Acquire) {
                continue;
            }
            self.running.extend(self.batches.take_all());
            match Pin::new(&mut self.running).poll_next(cx) {
                Poll::Ready(Some(())) => {}
                // With nothing running, the operation waits for something else and is woken by it.
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
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
