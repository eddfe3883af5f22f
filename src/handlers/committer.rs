//! Storing what the handlers of one partition have come to: those that wait go together, in one transaction. Floor 4.
//!
//! So a hundred handlers write no more often than one does, and whoever appends has the database to himself in between. A step
//! whose checkpoint somebody has locked, as a function in SQL may for long, goes with a later transaction: none waits for it.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        Entry, EventId, FencingToken, HandlerId, HandlerStep, Partition, SavedStep, StepOutcome,
        StreamName,
        append::{Committed, Outcome},
    },
    store::{Store, StoreError},
    tail::Tail,
};

/// The least time between the beginnings of two transactions.
const COMMIT_EVERY: Duration = Duration::from_millis(20);
/// Handlers, and rows of them, that are stored together at most.
const MOST_STEPS: usize = 256;
const MOST_ROWS: usize = 2048;
/// Steps that wait at most; whoever has more waits himself.
const QUEUE: usize = 64;
/// How often, and after which pause, what had to give way to another transaction, or has waited for one, is tried again.
const TRIES_AFTER_GIVING_WAY: usize = 100;
const PAUSE_AFTER_GIVING_WAY: Duration = Duration::from_millis(5);

/// What became of a step; none where another runner has taken its place.
type Saved = Result<Option<SavedStep>, Arc<StoreError>>;

struct Request {
    step: HandlerStep,
    answer: oneshot::Sender<Saved>,
}

/// Where the handlers of a partition hand in what they have come to.
#[derive(Clone)]
pub(super) struct Committer {
    plain: mpsc::Sender<Request>,
    /// For steps with entries. These wait for the locks of streams, which SQL clients may hold for long; others need none.
    publishing: mpsc::Sender<Request>,
}

impl Committer {
    /// Stores a step, together with those that wait at the same time. Where the committer has ended, it never answers: whoever
    /// waits for it ends as well.
    pub(super) async fn save(&self, step: HandlerStep) -> Saved {
        let (answer, answered) = oneshot::channel();
        let requests = if step.entries.is_empty() {
            &self.plain
        } else {
            &self.publishing
        };
        if requests.send(Request { step, answer }).await.is_ok()
            && let Ok(saved) = answered.await
        {
            return saved;
        }
        std::future::pending().await
    }
}

/// Makes a committer, and what runs it until `stop` is cancelled.
pub(super) fn committer(
    store: Store,
    tail: Arc<Tail>,
    partition: Partition,
    token: FencingToken,
    stop: CancellationToken,
) -> (Committer, impl Future<Output = ()> + Send) {
    let run = |waiting| Run {
        store: store.clone(),
        tail: tail.clone(),
        partition,
        token,
        waiting,
        postponed: VecDeque::new(),
    };
    let (plain, waiting) = mpsc::channel(QUEUE);
    let storing = run(waiting);
    let (publishing, waiting) = mpsc::channel(QUEUE);
    let appending = run(waiting);
    let running = async move {
        tokio::select! {
            () = stop.cancelled() => {}
            _ = join(storing.run(), appending.run()) => {}
        }
    };
    (Committer { plain, publishing }, running)
}

struct Run {
    store: Store,
    tail: Arc<Tail>,
    partition: Partition,
    token: FencingToken,
    waiting: mpsc::Receiver<Request>,
    /// Those that could not go together with others, and those whose checkpoints were locked. Who waits for an answer hands in
    /// nothing else, so of each handler there is one.
    postponed: VecDeque<Request>,
}

impl Run {
    async fn run(mut self) {
        loop {
            let first = match self.postponed.pop_front() {
                Some(request) => request,
                None => match self.waiting.recv().await {
                    Some(request) => request,
                    None => return,
                },
            };
            let group = self.gather(first);
            if group.is_empty() {
                continue;
            }
            let begun = Instant::now();
            self.save(group).await;
            sleep_until(begun + COMMIT_EVERY).await;
        }
    }

    /// Takes what waits, and what somebody waits for. No stream may get an event twice in one transaction, and no handler come
    /// twice: who would do that goes with the next one.
    fn gather(&mut self, first: Request) -> Vec<Request> {
        let mut group: Vec<Request> = Vec::new();
        let mut handlers: HashSet<HandlerId> = HashSet::new();
        let mut entries: HashSet<(StreamName, EventId)> = HashSet::new();
        let mut rows = 0;
        let mut left = VecDeque::new();
        let mut next = Some(first);
        while let Some(request) = next {
            let keys = || {
                let entries = request.step.entries.iter();
                entries.map(|(_, entry, _)| (entry.stream_name.clone(), entry.event_id))
            };
            if request.answer.is_closed() {
                // Its handler was stopped. Whoever runs it next begins where the checkpoint is.
            } else if handlers.contains(&request.step.handler_id)
                || keys().any(|key| entries.contains(&key))
            {
                left.push_back(request);
            } else {
                handlers.insert(request.step.handler_id);
                entries.extend(keys());
                rows += request.step.deliveries.len() + request.step.entries.len();
                group.push(request);
            }
            if group.len() >= MOST_STEPS || rows >= MOST_ROWS || left.len() >= MOST_STEPS {
                break;
            }
            next = self
                .postponed
                .pop_front()
                .or_else(|| self.waiting.try_recv().ok());
        }
        left.append(&mut self.postponed);
        self.postponed = left;
        group
    }

    async fn save(&mut self, group: Vec<Request>) {
        let (steps, answers): (Vec<HandlerStep>, Vec<_>) = group
            .into_iter()
            .map(|request| (request.step, request.answer))
            .unzip();
        let saved: Vec<Result<StepOutcome, Arc<StoreError>>> = match self.save_steps(&steps).await {
            Err(error) if steps.len() > 1 && !error.is_passing() => {
                // One of them alone will show which it is.
                let mut saved = Vec::with_capacity(steps.len());
                for step in &steps {
                    let one = self.save_steps(std::slice::from_ref(step)).await;
                    let one = one.map(|mut one| one.pop().unwrap_or(StepOutcome::Lost));
                    saved.push(one.map_err(Arc::new));
                }
                saved
            }
            Err(error) => {
                let error = Arc::new(error);
                steps.iter().map(|_| Err(error.clone())).collect()
            }
            Ok(saved) => saved.into_iter().map(Ok).collect(),
        };
        let mut of_streams: BTreeMap<Partition, Vec<Arc<Entry>>> = BTreeMap::new();
        let mut told = Vec::with_capacity(steps.len());
        for ((step, answer), saved) in steps.into_iter().zip(answers).zip(saved) {
            let saved = match saved {
                Ok(StepOutcome::Busy) => {
                    self.postponed.push_back(Request { step, answer });
                    continue;
                }
                Ok(StepOutcome::Saved(saved)) => {
                    made_entries(step, &saved, &mut of_streams);
                    Ok(Some(saved))
                }
                Ok(StepOutcome::Lost) => Ok(None),
                Err(error) => Err(error),
            };
            told.push((answer, saved));
        }
        // Those who follow are given the entries in the order of their places.
        for (stream, entries) in of_streams {
            self.tail
                .take_committed(Committed::Entries(stream, entries));
        }
        for (answer, saved) in told {
            // Who asked may have been given up meanwhile.
            let _ = answer.send(saved);
        }
    }

    async fn save_steps(&self, steps: &[HandlerStep]) -> Result<Vec<StepOutcome>, StoreError> {
        let mut tries = 0;
        loop {
            let saved = self
                .store
                .save_handler_steps(self.partition, self.token, steps);
            match saved.await {
                Err(StoreError::GaveWay(_) | StoreError::LockTimeout(_))
                    if tries < TRIES_AFTER_GIVING_WAY =>
                {
                    tries += 1;
                    sleep(PAUSE_AFTER_GIVING_WAY).await;
                }
                saved => return saved,
            }
        }
    }
}

/// Adds the entries that a step has made to those of their streams' partitions.
fn made_entries(
    step: HandlerStep,
    saved: &SavedStep,
    of_streams: &mut BTreeMap<Partition, Vec<Arc<Entry>>>,
) {
    for ((stream, entry, _), outcome) in step.entries.into_iter().zip(&saved.entries) {
        if let Outcome::Appended { places, .. } = outcome
            && let Some(place) = places.first()
        {
            let entry = Arc::new(entry.stored(stream, *place));
            of_streams.entry(stream).or_default().push(entry);
        }
    }
}
