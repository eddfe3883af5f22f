//! The dispatcher of one partition: a task for each active handler, begun and ended as the registry changes. Floor 4.

use std::{collections::HashMap, error::Error, sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, watch},
    task::{Id, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Handlers,
    batches::{BatchFunction, Batches},
    calls::Calls,
    committer::{Committer, committer},
    place::Place,
};
use crate::domain::{EventHandler, FencingToken, HandlerFunction, HandlerId, Partition};

/// The pause before a task that has ended by itself begins again.
const PAUSE_AFTER_FAULT: Duration = Duration::from_millis(250);
/// Checkpoints that are taken over at a time: whoever appends needs connections, too.
const FENCED_AT_A_TIME: usize = 16;

/// Runs the handlers of a partition until it is stopped.
pub async fn run_dispatcher(
    handlers: Arc<Handlers>,
    partition: Partition,
    token: FencingToken,
    stop: CancellationToken,
) {
    let (store, tail) = (handlers.store.clone(), handlers.tail.clone());
    let (committer, committing) = committer(store, tail, partition, token, stop.clone());
    let mut dispatcher = Dispatcher {
        handlers,
        partition,
        token,
        committer,
        fencing: Arc::new(Semaphore::new(FENCED_AT_A_TIME)),
        running: HashMap::new(),
        tasks: JoinSet::new(),
        ids: HashMap::new(),
        resting: Resting::default(),
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = committing => {}
        () = dispatcher.run() => {}
    }
}

struct Dispatcher {
    handlers: Arc<Handlers>,
    partition: Partition,
    token: FencingToken,
    committer: Committer,
    fencing: Arc<Semaphore>,
    /// The tasks that have not ended yet: no second one of a handler begins before.
    running: HashMap<HandlerId, Running>,
    tasks: JoinSet<()>,
    ids: HashMap<Id, HandlerId>,
    resting: Resting,
}

/// Handlers whose tasks have ended by themselves a moment ago, and until when each rests.
#[derive(Default)]
struct Resting(HashMap<HandlerId, Instant>);

impl Resting {
    fn add(&mut self, id: HandlerId) {
        self.0.insert(id, Instant::now() + PAUSE_AFTER_FAULT);
    }

    fn has(&self, id: &HandlerId) -> bool {
        self.0.contains_key(id)
    }

    /// When the first of them has rested, whatever else happens until then.
    fn first(&self) -> Option<Instant> {
        self.0.values().min().copied()
    }

    /// Lets go those that have rested.
    fn let_go(&mut self) {
        let now = Instant::now();
        self.0.retain(|_, until| *until > now);
    }
}

struct Running {
    handler: Arc<EventHandler>,
    revised: watch::Sender<i64>,
    stop: CancellationToken,
}

impl Running {
    /// Whether the task does what is wanted of the handler now.
    fn does(&self, handler: &EventHandler) -> bool {
        self.handler.function == handler.function && self.handler.event_types == handler.event_types
    }
}

impl Dispatcher {
    async fn run(&mut self) {
        let mut known = self.handlers.known();
        loop {
            let handlers = known.borrow_and_update().clone();
            self.resting.let_go();
            self.end_unwanted(&handlers);
            self.begin_wanted(&handlers);
            let rested_at = self.resting.first();
            tokio::select! {
                changed = known.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                Some(ended) = self.tasks.join_next_with_id() => {
                    let task = match &ended {
                        Ok((task, ())) => *task,
                        Err(error) => {
                            let fault = error as &dyn Error;
                            tracing::error!(error = fault, "a handler's task has ended with a fault; it begins again");
                            error.id()
                        }
                    };
                    if let Some(id) = self.ids.remove(&task)
                        && let Some(running) = self.running.remove(&id)
                        && !running.stop.is_cancelled()
                    {
                        self.resting.add(id);
                    }
                }
                () = sleep_until(rested_at.unwrap_or_else(Instant::now)), if rested_at.is_some() => {}
            }
        }
    }

    fn end_unwanted(&self, handlers: &[Arc<EventHandler>]) {
        let wanted: HashMap<HandlerId, &Arc<EventHandler>> = handlers
            .iter()
            .filter(|handler| handler.is_active)
            .map(|handler| (handler.id, handler))
            .collect();
        for (id, running) in &self.running {
            match wanted.get(id) {
                Some(handler) if running.does(handler) => {
                    running.revised.send_if_modified(|revision| {
                        let is_new = *revision != handler.revision;
                        *revision = handler.revision;
                        is_new
                    });
                }
                _ => running.stop.cancel(),
            }
        }
    }

    fn begin_wanted(&mut self, handlers: &[Arc<EventHandler>]) {
        for handler in handlers {
            if handler.is_active
                && !self.running.contains_key(&handler.id)
                && !self.resting.has(&handler.id)
            {
                self.begin(handler.clone());
            }
        }
    }

    /// Begins a handler's task. It takes the checkpoint over by itself: where somebody has locked that, no other handler waits.
    fn begin(&mut self, handler: Arc<EventHandler>) {
        let (revised, revisions) = watch::channel(handler.revision);
        let stop = CancellationToken::new();
        let start = Start {
            handlers: self.handlers.clone(),
            handler: handler.clone(),
            committer: self.committer.clone(),
            fencing: self.fencing.clone(),
            partition: self.partition,
            token: self.token,
        };
        let run = async move {
            if let Some(place) = start.take_over().await {
                run_handler(place, revisions).await;
            }
        };
        let stopped = stop.clone();
        let task = self.tasks.spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = run => {}
            }
        });
        self.ids.insert(task.id(), handler.id);
        self.running.insert(
            handler.id,
            Running {
                handler,
                revised,
                stop,
            },
        );
    }
}

/// What a handler's task begins with.
struct Start {
    handlers: Arc<Handlers>,
    handler: Arc<EventHandler>,
    committer: Committer,
    fencing: Arc<Semaphore>,
    partition: Partition,
    token: FencingToken,
}

impl Start {
    /// Makes the checkpoint that of this runner. None where it is gone, or another server has it (the registry or the lease will
    /// say so), or the database fails.
    async fn take_over(self) -> Option<Place> {
        let fenced = {
            let _permit = self.fencing.acquire().await;
            let store = &self.handlers.store;
            store
                .fence_handler(self.partition, self.handler.id, self.token)
                .await
        };
        let stored = match fenced {
            Ok(stored) => stored?,
            Err(error) => {
                let error = &error as &dyn Error;
                let (handler, partition) = (self.handler.name.as_str(), self.partition);
                tracing::warn!(handler, %partition, error, "a handler waits for the database");
                return None;
            }
        };
        Some(Place {
            endpoint: self.handlers.endpoint(&self.handler),
            _task: self.handlers.tasks.clone(),
            handlers: self.handlers,
            handler: self.handler,
            committer: self.committer,
            partition: self.partition,
            token: self.token,
            stored,
            stored_at: Instant::now(),
            // There may be deliveries from before.
            next_due: Some(Instant::now()),
        })
    }
}

/// Runs one handler until its checkpoint is lost, or the database fails: then it begins again where the checkpoint is.
async fn run_handler(place: Place, revised: watch::Receiver<i64>) {
    let (name, partition) = (place.handler.name.clone(), place.partition);
    let follower = place
        .handlers
        .tail
        .follow_partition(partition, place.stored);
    let batches = match &place.handler.function {
        HandlerFunction::Log => Some(BatchFunction::Log),
        HandlerFunction::Publish(stream) => Some(BatchFunction::Publish(stream.clone())),
        HandlerFunction::Sql(function) => Some(BatchFunction::Sql(function.clone())),
        HandlerFunction::Webhook(_) | HandlerFunction::Rust(_) => None,
    };
    let ended = match batches {
        Some(function) => Batches::new(place, function, follower, revised).run().await,
        None => Calls::new(place, follower, revised).run().await,
    };
    if let Err(error) = ended {
        let error = error.as_ref() as &dyn Error;
        tracing::warn!(handler = name.as_str(), %partition, error, "a handler waits for the database");
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_rests_goes_on_in_time_while_others_end_again_and_again() {
        let mut resting = Resting::default();
        let first = HandlerId(Uuid::from_u128(0));
        resting.add(first);
        for no in 1..=4 {
            assert!(resting.has(&first), "{no}");
            tokio::time::advance(PAUSE_AFTER_FAULT / 4).await;
            resting.add(HandlerId(Uuid::from_u128(no)));
            resting.let_go();
        }
        assert!(!resting.has(&first));
        let next = resting.first().expect("the others rest");
        assert_eq!(next, Instant::now() + PAUSE_AFTER_FAULT / 4);
    }
}
