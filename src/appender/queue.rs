//! The queue of one partition and log, and the task that commits what waits in it. Floor 3.

use std::{collections::HashSet, mem, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    AppendError, OnCommit,
    giving_way::GivingWay,
    log::{Done, Log},
};
use crate::{
    config::Limits,
    domain::append::{Outcome, Refusal},
    store::StoreError,
};

/// A batch is closed when it holds this many bytes.
const MAX_BATCH_BYTES: usize = 8 << 20;

type Answer<L> = Result<Outcome<Arc<<L as Log>::Stored>>, AppendError>;

/// A request that waits, and who waits for its answer.
struct Waiting<L: Log> {
    request: L::Request,
    answer: oneshot::Sender<Answer<L>>,
    /// Gives its bytes back to the queue when the request is done with.
    _room: OwnedSemaphorePermit,
}

/// The writers' end of a queue.
pub(super) struct Queue<L: Log> {
    sender: mpsc::Sender<Waiting<L>>,
    bytes: Arc<Semaphore>,
    stopping: CancellationToken,
}

impl<L: Log> Queue<L> {
    /// Starts the task that commits. It ends when `stopping` is cancelled and everything accepted is committed.
    pub(super) fn start(
        tasks: &TaskTracker,
        stopping: &CancellationToken,
        log: L,
        limits: &Limits,
        on_commit: &OnCommit,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(limits.max_queue_requests);
        let committer = Committer {
            log,
            receiver,
            carried_over: None,
            max_events: limits.max_batch_events,
            on_commit: on_commit.clone(),
        };
        tasks.spawn(committer.run(stopping.clone()));
        let bytes = Arc::new(Semaphore::new(
            limits.max_queue_bytes.min(Semaphore::MAX_PERMITS),
        ));
        Self {
            sender,
            bytes,
            stopping: stopping.clone(),
        }
    }

    /// Hands in a request and waits for what becomes of it. A full queue refuses at once.
    pub(super) async fn submit(&self, request: L::Request) -> Answer<L> {
        let bytes = u32::try_from(L::size_bytes(&request)).unwrap_or(u32::MAX);
        let room = self
            .bytes
            .clone()
            .try_acquire_many_owned(bytes)
            .map_err(|_| AppendError::full())?;
        if self.stopping.is_cancelled() {
            return Err(AppendError::stopping());
        }
        let (answer, answered) = oneshot::channel();
        self.sender
            .try_send(Waiting {
                request,
                answer,
                _room: room,
            })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => AppendError::full(),
                mpsc::error::TrySendError::Closed(_) => AppendError::stopping(),
            })?;
        answered.await.map_err(|_| AppendError::stopping())?
    }
}

/// The task's end of a queue.
struct Committer<L: Log> {
    log: L,
    receiver: mpsc::Receiver<Waiting<L>>,
    /// A request that did not fit into the batch before.
    carried_over: Option<Waiting<L>>,
    max_events: usize,
    on_commit: OnCommit,
}

impl<L: Log> Committer<L> {
    async fn run(mut self, stopping: CancellationToken) {
        loop {
            let first = match self.carried_over.take() {
                Some(waiting) => waiting,
                None => {
                    let next = tokio::select! {
                        next = self.receiver.recv() => next,
                        () = stopping.cancelled(), if !self.receiver.is_closed() => {
                            self.receiver.close();
                            continue;
                        }
                    };
                    let Some(next) = next else { return };
                    next
                }
            };
            let batch = self.gather(first);
            let done = self.commit(batch).await;
            for committed in self.log.committed(done) {
                (self.on_commit)(committed);
            }
        }
    }

    /// Takes what is waiting behind `first`, without waiting for more.
    fn gather(&mut self, first: Waiting<L>) -> Vec<Waiting<L>> {
        let mut events = L::count(&first.request);
        let mut bytes = L::size_bytes(&first.request);
        let mut keys: HashSet<L::Key> = L::keys(&first.request).into_iter().collect();
        let mut batch = vec![first];
        while events < self.max_events && bytes < MAX_BATCH_BYTES {
            let Ok(next) = self.receiver.try_recv() else {
                break;
            };
            events += L::count(&next.request);
            bytes += L::size_bytes(&next.request);
            let next_keys = L::keys(&next.request);
            let repeats = next_keys.iter().any(|key| keys.contains(key));
            if repeats || events > self.max_events || bytes > MAX_BATCH_BYTES {
                // A repeat of an id has to find what the first one has stored.
                self.carried_over = Some(next);
                break;
            }
            keys.extend(next_keys);
            batch.push(next);
        }
        batch
    }

    /// Commits a batch, answers its writers, and returns what was appended, in order.
    ///
    /// A batch that fails for what one request holds is split until that one alone is refused.
    fn commit(&self, batch: Vec<Waiting<L>>) -> BoxFuture<'_, Done<L::Stored>> {
        Box::pin(async move {
            match self.try_commit(&batch).await {
                Ok(outcomes) => self.answer(batch, outcomes),
                Err(StoreError::ValueRefused(_)) if batch.len() > 1 => {
                    let mut first = batch;
                    let second = first.split_off(first.len() / 2);
                    let mut committed = self.commit(first).await;
                    committed.extend(self.commit(second).await);
                    committed
                }
                Err(StoreError::ValueRefused(error)) => {
                    tracing::debug!(%error, "the database refuses a value");
                    for waiting in batch {
                        let _ = waiting
                            .answer
                            .send(Ok(Outcome::Refused(Refusal::ValueRefused)));
                    }
                    Done::default()
                }
                Err(error) => {
                    let error = Arc::new(error);
                    for waiting in batch {
                        let ids = L::ids(&waiting.request);
                        let _ = waiting
                            .answer
                            .send(Err(AppendError::of_store(error.clone(), ids)));
                    }
                    Done::default()
                }
            }
        })
    }

    async fn try_commit(&self, batch: &[Waiting<L>]) -> Result<Vec<Outcome<L::Place>>, StoreError> {
        let requests: Vec<&L::Request> = batch.iter().map(|waiting| &waiting.request).collect();
        let mut giving_way = GivingWay::begin();
        loop {
            match self.log.commit(&requests).await {
                Err(StoreError::GaveWay(_)) if giving_way.pause().await => {}
                answer => return answer,
            }
        }
    }

    fn answer(&self, batch: Vec<Waiting<L>>, outcomes: Vec<Outcome<L::Place>>) -> Done<L::Stored> {
        let mut done = Done::default();
        for (waiting, outcome) in batch.into_iter().zip(outcomes) {
            let Waiting {
                request,
                answer,
                _room,
            } = waiting;
            let outcome = match outcome {
                Outcome::Appended { at, places } => {
                    done.commands.extend(L::command(&request));
                    let stored = self.log.stored(request, places);
                    done.stored.extend(stored.iter().cloned());
                    Outcome::Appended { at, places: stored }
                }
                Outcome::Duplicate => Outcome::Duplicate,
                Outcome::Refused(refusal) => Outcome::Refused(refusal),
            };
            // Who waited may have gone away: what is committed stays committed.
            mem::drop(answer.send(Ok(outcome)));
        }
        done
    }
}
