//! The queue of one partition and log, and the task that commits what waits in it. Floor 3.

use std::{collections::HashSet, mem, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    AppendError, Hooks, QueueLength,
    log::{Done, Log},
    taken,
};
use crate::{
    config::Limits,
    domain::{
        Timestamp,
        append::{BatchReport, Outcome, Refusal},
    },
    store::StoreError,
    traces::{Span, Traces},
};

/// A batch is closed when it holds this many bytes.
const MAX_BATCH_BYTES: usize = 8 << 20;

type Answer<L> = Result<Outcome<Arc<<L as Log>::Stored>>, AppendError>;

/// A request that waits, and who waits for its answer.
struct Waiting<L: Log> {
    request: L::Request,
    answer: oneshot::Sender<Answer<L>>,
    taken_at: Instant,
    span: Span,
    /// Gives its bytes back to the queue when the request is done with.
    _room: OwnedSemaphorePermit,
}

/// The writers' end of a queue.
pub(super) struct Queue<L: Log> {
    sender: mpsc::Sender<Waiting<L>>,
    bytes: Arc<Semaphore>,
    most_bytes: usize,
    length: QueueLength,
    traces: Traces,
    stopping: CancellationToken,
}

impl<L: Log> Queue<L> {
    /// Starts the task that commits. It ends when `stopping` is cancelled and everything accepted is committed.
    pub(super) fn start(
        tasks: &TaskTracker,
        stopping: &CancellationToken,
        log: L,
        limits: &Limits,
        hooks: &Hooks,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(limits.max_queue_requests);
        let length = QueueLength {
            log: L::NAME,
            partition: log.partition(),
            requests: 0,
            bytes: 0,
        };
        let committer = Committer {
            log,
            receiver,
            carried_over: None,
            max_events: limits.max_batch_events,
            hooks: hooks.clone(),
        };
        tasks.spawn(committer.run(stopping.clone()));
        let most_bytes = limits.max_queue_bytes.min(Semaphore::MAX_PERMITS);
        Self {
            sender,
            bytes: Arc::new(Semaphore::new(most_bytes)),
            most_bytes,
            length,
            traces: hooks.traces.clone(),
            stopping: stopping.clone(),
        }
    }

    /// What waits in it, or is being committed.
    pub(super) fn length(&self) -> QueueLength {
        QueueLength {
            requests: self.sender.max_capacity() - self.sender.capacity(),
            bytes: self.most_bytes - self.bytes.available_permits(),
            ..self.length
        }
    }

    /// Hands in a request and waits for what becomes of it. A full queue refuses at once.
    pub(super) async fn submit(&self, mut request: L::Request) -> Answer<L> {
        let taken_at = taken::of_request();
        let span = self.traces.begin("append");
        if let Some(parent) = span.parent() {
            L::trace(&mut request, parent);
        }
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
                taken_at,
                span,
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
    hooks: Hooks,
}

/// When a batch went to the database, and how long that took.
#[derive(Clone, Copy)]
struct Times {
    began: Instant,
    /// By the clock, where there are traces.
    from: Option<Timestamp>,
    took: Duration,
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
                self.hooks.tell(committed);
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
            let began = Instant::now();
            let from = self.hooks.traces.now();
            let committed = self.try_commit(&batch).await;
            let times = Times {
                began,
                from,
                took: began.elapsed(),
            };
            match committed {
                Ok(outcomes) => self.answer(batch, outcomes, times),
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
                    self.report(&Done::default(), size_of(&batch), times.took, false);
                    let error = Arc::new(error);
                    for waiting in batch {
                        waiting.span.set_failed("the database");
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
        let mut giving_way = self.log.giving_way();
        loop {
            match self.log.commit(&requests).await {
                Err(StoreError::GaveWay(_)) if giving_way.pause().await => {}
                answer => return answer,
            }
        }
    }

    /// Tells the writers what their requests have come to, once it is counted: who has an answer finds it in the counts.
    fn answer(
        &self,
        batch: Vec<Waiting<L>>,
        outcomes: Vec<Outcome<L::Place>>,
        times: Times,
    ) -> Done<L::Stored> {
        let committed_at = times.began + times.took;
        let mut done = Done::default();
        let mut answers = Vec::with_capacity(batch.len());
        let (batch_requests, size) = (batch.len(), size_of(&batch));
        for (waiting, outcome) in batch.into_iter().zip(outcomes) {
            let Waiting {
                request,
                answer,
                taken_at,
                span,
                _room,
            } = waiting;
            let outcome = match outcome {
                Outcome::Appended { at, places } => {
                    done.commands.extend(L::command(&request));
                    let stored = self.log.stored(request, places);
                    let took = committed_at.duration_since(taken_at);
                    done.requests.push((took, stored.len()));
                    done.stored.extend(stored.iter().cloned());
                    Outcome::Appended { at, places: stored }
                }
                Outcome::Duplicate => Outcome::Duplicate,
                Outcome::Refused(refusal) => Outcome::Refused(refusal),
            };
            answers.push((answer, outcome, span, _room));
        }
        self.report(&done, size, times.took, true);
        let to = self.hooks.traces.now();
        for (answer, outcome, span, _room) in answers {
            if let Some(times) = times.from.zip(to) {
                let numbers = [
                    ("tidings.batch.requests", batch_requests),
                    ("tidings.batch.events", done.stored.len()),
                ];
                span.record_part("commit", times, &numbers);
            }
            // Who waited may have gone away: what is committed stays committed.
            mem::drop(answer.send(Ok(outcome)));
        }
        done
    }

    fn report(&self, done: &Done<L::Stored>, size: usize, took: Duration, is_committed: bool) {
        self.hooks.measure(&BatchReport {
            log: L::NAME,
            took,
            is_committed,
            size,
            requests: &done.requests,
            events: L::events(&done.stored),
        });
    }
}

/// How much a batch holds, as its bound counts it.
fn size_of<L: Log>(batch: &[Waiting<L>]) -> usize {
    batch.iter().map(|waiting| L::count(&waiting.request)).sum()
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Mutex, PoisonError},
        time::Duration,
    };

    use futures_util::future::join_all;
    use uuid::Uuid;

    use super::*;
    use crate::appender::OnBatch;
    use crate::domain::{
        Event, Partition, TraceParent,
        append::{CommandChange, Committed, LogName},
    };
    use crate::store::GivingWay;

    /// A log whose database fails for one request, or for all.
    #[derive(Clone)]
    struct Faulty {
        /// Which fault.
        kind: usize,
        /// Only for batches with this request.
        only_for: Option<u128>,
        /// The batches that it was asked to commit.
        asked: Arc<Mutex<Vec<Vec<u128>>>>,
    }

    impl Faulty {
        fn fault(&self) -> StoreError {
            StoreError::of_each_kind().swap_remove(self.kind)
        }

        fn asked(&self) -> Vec<Vec<u128>> {
            let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.clone()
        }
    }

    impl Log for Faulty {
        type Request = u128;
        type Place = ();
        type Stored = u128;
        type Key = u128;

        const NAME: LogName = LogName::Events;

        fn partition(&self) -> Partition {
            Partition(0)
        }

        fn giving_way(&self) -> GivingWay {
            GivingWay::begin(Duration::ZERO)
        }

        fn events(_: &[Arc<u128>]) -> &[Arc<Event>] {
            &[]
        }

        fn trace(_: &mut u128, _: TraceParent) {}

        fn count(_: &u128) -> usize {
            1
        }

        fn size_bytes(_: &u128) -> usize {
            1
        }

        fn ids(request: &u128) -> Vec<Uuid> {
            vec![Uuid::from_u128(*request)]
        }

        fn keys(_: &u128) -> Vec<u128> {
            Vec::new()
        }

        async fn commit(&self, batch: &[&u128]) -> Result<Vec<Outcome<()>>, StoreError> {
            let batch: Vec<u128> = batch.iter().map(|request| **request).collect();
            let fails = self.only_for.is_none_or(|request| batch.contains(&request));
            let appended = |_| Outcome::Appended {
                at: Timestamp::from_micros(0),
                places: vec![()],
            };
            let outcomes = batch.iter().map(appended).collect();
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.push(batch);
            if fails {
                Err(self.fault())
            } else {
                Ok(outcomes)
            }
        }

        fn stored(&self, request: u128, _: Vec<()>) -> Vec<Arc<u128>> {
            vec![Arc::new(request)]
        }

        fn command(_: &u128) -> Option<CommandChange> {
            None
        }

        fn committed(&self, _: Done<u128>) -> Vec<Committed> {
            Vec::new()
        }
    }

    fn queue(log: &Faulty, on_batch: OnBatch) -> Queue<Faulty> {
        let hooks = Hooks {
            on_commit: Arc::new(|_| {}),
            on_batch,
            traces: Traces::default(),
        };
        let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
        Queue::start(&tasks, &stopping, log.clone(), &Limits::default(), &hooks)
    }

    /// Hands in requests that are committed as one batch: what each of them is answered.
    async fn submit(log: &Faulty, requests: &[u128]) -> Vec<Answer<Faulty>> {
        let queue = queue(log, Arc::new(|_| {}));
        join_all(requests.iter().map(|request| queue.submit(*request))).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_of_the_database_is_told_to_the_whole_batch_at_once() {
        for (kind, fault) in StoreError::of_each_kind().into_iter().enumerate() {
            if matches!(fault, StoreError::ValueRefused(_)) {
                continue;
            }
            let log = Faulty {
                kind,
                only_for: None,
                asked: Arc::default(),
            };
            let requests = [1, 2, 3, 4];
            for (request, answer) in requests.iter().zip(submit(&log, &requests).await) {
                let error = answer.expect_err("it fails");
                let expected = AppendError::of_store(Arc::new(log.fault()), Faulty::ids(request));
                assert_eq!(format!("{error:?}"), format!("{expected:?}"));
            }
            let asked = log.asked();
            assert!(
                asked.iter().all(|batch| *batch == requests),
                "{fault}: {asked:?}"
            );
            // Only who has to give way tries again.
            let gave_way = matches!(fault, StoreError::GaveWay(_));
            assert_eq!(asked.len() > 1, gave_way, "{fault}: {asked:?}");
        }
    }

    #[tokio::test]
    async fn a_batch_is_split_until_the_request_with_a_refused_value_stands_alone() {
        let refused = StoreError::of_each_kind()
            .iter()
            .position(|fault| matches!(fault, StoreError::ValueRefused(_)));
        let log = Faulty {
            kind: refused.expect("it is one of them"),
            only_for: Some(3),
            asked: Arc::default(),
        };
        let answers = submit(&log, &[1, 2, 3, 4]).await;
        for (request, answer) in (1_u128..).zip(answers) {
            match answer.expect("it is judged") {
                Outcome::Appended { places, .. } => assert_eq!(*places[0], request),
                Outcome::Refused(Refusal::ValueRefused) => assert_eq!(request, 3),
                other => panic!("{request}: {other:?}"),
            }
        }
        assert_eq!(
            log.asked(),
            [vec![1, 2, 3, 4], vec![1, 2], vec![3, 4], vec![3], vec![4]]
        );
    }

    #[tokio::test]
    async fn a_panic_in_what_measures_batches_neither_keeps_their_answers_back_nor_ends_the_queue()
    {
        let log = Faulty {
            kind: 0,
            only_for: Some(0),
            asked: Arc::default(),
        };
        let queue = queue(&log, Arc::new(|_| panic!("on purpose")));
        for request in [1, 2] {
            let answer = queue.submit(request).await;
            assert!(matches!(answer, Ok(Outcome::Appended { .. })), "{answer:?}");
        }
    }
}
