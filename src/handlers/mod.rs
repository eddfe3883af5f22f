//! Event handlers: the registry of who does what with which events, and the dispatchers that do it. Floor 4.

mod address;
mod again;
mod batches;
mod calls;
mod cloud_event;
mod committer;
mod delays;
mod dispatcher;
mod endpoint;
mod functions;
mod place;
mod signature;
mod spans;
mod webhook;

use std::{
    collections::HashMap,
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Mutex as AsyncMutex, Semaphore, watch},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

pub use dispatcher::run_dispatcher;
pub use functions::{FunctionNameError, HandlerError, HandlerFunctions};

use self::{
    endpoint::Endpoint,
    webhook::{Post, Webhooks},
};
use crate::{
    appender::Appender,
    config,
    domain::{
        Clock, DeliveryId, Event, EventHandler, EventType, HandlerFunction, HandlerId, HandlerName,
        LastError, Position,
    },
    metrics::DeliveryCounts,
    store::{MOST_HANDLERS, NewHandler, SQL_CALLS_AT_A_TIME, SqlFunctions, Store, StoreError},
    tail::Tail,
    traces::{Span, Traces},
};

/// How often it is looked at what others (servers, SQL clients) have changed in the registry.
const POLL_EVERY: Duration = Duration::from_millis(100);

/// How long it may take, beside the probe itself, until what came of it is stored.
const PROBE_SLACK: Duration = Duration::from_secs(1);

/// Transactions with calls of a function in SQL that one handler has at a time: one that is slow leaves room for others.
const SQL_CALLS_OF_A_HANDLER: u32 = 2;

/// About so many bytes of events all tasks of handlers may have in hand, and what one of them has of it at most and at least.
const BYTES_IN_HAND: usize = 128 << 20;
const MOST_BYTES_OF_A_TASK: usize = 2 << 20;
const LEAST_BYTES_OF_A_TASK: usize = 64 << 10;

/// The handlers of a database, sorted by name.
pub type Registered = Arc<Vec<Arc<EventHandler>>>;

/// A handler as a client wants it.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Its name.
    pub name: HandlerName,
    /// The types that it wants; empty: every type.
    pub event_types: Vec<EventType>,
    /// What it does.
    pub function: HandlerFunction,
    /// Where a new one begins, for each partition; none: with the next event.
    pub start: Option<Vec<Position>>,
}

/// Why a handler is not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Its function is not there, or not allowed: what would be right.
    #[error("{0}")]
    Function(String),
    /// There are as many as there can be.
    #[error("there are {MOST_HANDLERS} event handlers already: remove one first")]
    TooMany,
    /// The database failed while it was read.
    #[error("the database could not be read")]
    Read(#[source] StoreError),
    /// The database failed while it was written to.
    #[error("the database could not be written to")]
    Write(#[source] StoreError),
}

/// All that has to do with the event handlers of a database.
pub struct Handlers {
    store: Store,
    tail: Arc<Tail>,
    appender: Arc<Appender>,
    clock: Arc<dyn Clock>,
    config: config::Handlers,
    functions: HandlerFunctions,
    traces: Traces,
    counts: DeliveryCounts,
    webhooks: Webhooks,
    sql_calls: Semaphore,
    /// Each task has one.
    tasks: Arc<()>,
    known: watch::Sender<Registered>,
    /// Held while the registry is read, so that what was read first is not told last.
    refreshing: AsyncMutex<()>,
    /// What each handler calls, as it was when its endpoint was made.
    endpoints: Mutex<HashMap<HandlerId, (HandlerFunction, Arc<Endpoint>)>>,
}

impl Handlers {
    /// Reads the registry.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn start(
        store: Store,
        tail: Arc<Tail>,
        appender: Arc<Appender>,
        clock: Arc<dyn Clock>,
        functions: HandlerFunctions,
        counts: DeliveryCounts,
        config: &config::Handlers,
    ) -> Result<Arc<Self>, StoreError> {
        let handlers = Arc::new(Self {
            webhooks: Webhooks::new(config, store.database_id()),
            store,
            traces: appender.traces().clone(),
            tail,
            appender,
            clock,
            config: config.clone(),
            functions,
            counts,
            sql_calls: Semaphore::new(SQL_CALLS_AT_A_TIME as usize),
            tasks: Arc::default(),
            known: watch::Sender::new(Arc::default()),
            refreshing: AsyncMutex::default(),
            endpoints: Mutex::default(),
        });
        handlers.refresh().await?;
        Ok(handlers)
    }

    /// Looks at what others change in the registry, until it is stopped.
    pub async fn watch_registry(self: Arc<Self>, stop: CancellationToken) {
        let mut poll = interval(POLL_EVERY);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = poll.tick() => {}
            }
            let refreshed = tokio::select! {
                () = stop.cancelled() => return,
                refreshed = self.refresh() => refreshed,
            };
            if let Err(error) = refreshed {
                let error = &error as &dyn Error;
                tracing::warn!(
                    error,
                    "the registry of handlers cannot be read; trying again"
                );
            }
        }
    }

    /// Registers a handler, or changes the one of its name.
    ///
    /// # Errors
    /// When its function is not there or not allowed, or the database fails.
    pub async fn register(
        &self,
        registration: Registration,
    ) -> Result<Arc<EventHandler>, RegisterError> {
        self.check(&registration.function).await?;
        let mut event_types = registration.event_types;
        event_types.sort();
        event_types.dedup();
        let handler = NewHandler {
            id: HandlerId(self.clock.new_id()),
            name: registration.name,
            event_types,
            function: registration.function,
            start: registration.start,
        };
        let registered = self.store.register_handler(&handler).await;
        if !registered.map_err(RegisterError::Write)? {
            return Err(RegisterError::TooMany);
        }
        let found = self.refreshed(&handler.name).await;
        found.map_err(RegisterError::Read)?.ok_or_else(|| {
            let removed = "somebody else has removed the handler at the same time";
            RegisterError::Read(StoreError::Inconsistent(removed.to_owned()))
        })
    }

    async fn check(&self, function: &HandlerFunction) -> Result<(), RegisterError> {
        let wrong = |message: String| Err(RegisterError::Function(message));
        match function {
            HandlerFunction::Log | HandlerFunction::Publish(_) => Ok(()),
            HandlerFunction::Webhook(url) => self
                .webhooks
                .check(url)
                .await
                .map_err(RegisterError::Function),
            HandlerFunction::Rust(name) if self.functions.has(name) => Ok(()),
            HandlerFunction::Rust(name) => {
                let known: Vec<&str> = self.functions.names().collect();
                let known = match known.as_slice() {
                    [] => String::new(),
                    known => format!(" (which are {})", known.join(", ")),
                };
                wrong(format!(
                    "{name} is none of this server's functions in Rust{known}: use one of them, log, publish:STREAM, \
                     http(s)://… or sql:FUNCTION (PostgreSQL only)"
                ))
            }
            HandlerFunction::Sql(function) => {
                let found = self.store.find_sql_function(function).await;
                match found.map_err(RegisterError::Read)? {
                    SqlFunctions::Found => Ok(()),
                    SqlFunctions::NotSupported => wrong(
                        "sql: calls a function in PostgreSQL, and this database is SQLite: use log, publish:STREAM or \
                         http(s)://…"
                            .to_owned(),
                    ),
                    SqlFunctions::Missing { others } => {
                        let others = match others.as_slice() {
                            [] => "there is none with these parameters yet: create it first".to_owned(),
                            others => format!("with these parameters there are: {}", others.join(", ")),
                        };
                        wrong(format!(
                            "the database has no function {function}(uuid, uuid, jsonb); {others}"
                        ))
                    }
                }
            }
        }
    }

    /// Whether a handler waits at its place because its endpoint failed many times in a row.
    #[must_use]
    pub fn is_paused(&self, handler: &EventHandler) -> bool {
        handler.is_paused(self.clock.now(), self.probe_time())
    }

    /// How long it may take from the end of a pause until what came of the probe is stored.
    #[must_use]
    pub fn probe_time(&self) -> Duration {
        self.config.time_out + PROBE_SLACK
    }

    /// All handlers, sorted by name, as they are stored.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn all(&self) -> Result<Registered, StoreError> {
        let stored = self.store.event_handlers().await?;
        Ok(Arc::new(stored.into_iter().map(Arc::new).collect()))
    }

    /// The same, and tells the dispatchers what has changed. Who only asks has no need of it, and waits for nobody.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn refresh(&self) -> Result<Registered, StoreError> {
        let _turn = self.refreshing.lock().await;
        let registered = self.all().await?;
        self.review_endpoints(&registered);
        self.known.send_if_modified(|known| {
            let is_new = *known != registered;
            if is_new {
                *known = registered.clone();
            }
            is_new
        });
        Ok(registered)
    }

    /// The handler of a name, as it is stored.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn find(&self, name: &HandlerName) -> Result<Option<Arc<EventHandler>>, StoreError> {
        let found = self.store.event_handler(name).await?;
        Ok(found.map(Arc::new))
    }

    /// The handler of a name, once the dispatchers know of it.
    async fn refreshed(&self, name: &HandlerName) -> Result<Option<Arc<EventHandler>>, StoreError> {
        let registered = self.refresh().await?;
        let found = registered.iter().find(|handler| handler.name == *name);
        Ok(found.cloned())
    }

    /// Makes a handler active, or not, and answers it; none where there is none of that name. One that becomes active goes on
    /// where it was.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_active(
        &self,
        name: &HandlerName,
        is_active: bool,
    ) -> Result<Option<Arc<EventHandler>>, StoreError> {
        self.store.set_handler_active(name, is_active).await?;
        self.refreshed(name).await
    }

    /// Removes a handler with all that is stored of it. False where there is none of that name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn remove(&self, name: &HandlerName) -> Result<bool, StoreError> {
        let Some(handler) = self.find(name).await? else {
            return Ok(false);
        };
        let removed = self.store.remove_handler(&handler).await?;
        self.refresh().await?;
        Ok(removed)
    }

    /// Puts dead deliveries of a handler back in line, all or some, and answers how many; none where there is no such handler.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn retry_dead(
        &self,
        name: &HandlerName,
        ids: Option<&[DeliveryId]>,
    ) -> Result<Option<u64>, StoreError> {
        let Some(handler) = self.find(name).await? else {
            return Ok(None);
        };
        let count = self.store.retry_dead(handler.id, ids).await?;
        self.refresh().await?;
        Ok(Some(count))
    }

    /// About so many bytes of events a task may have in hand now: those that are behind read history, each for itself.
    fn bytes_of_a_task(&self) -> usize {
        share_of(Arc::strong_count(&self.tasks))
    }

    /// The handlers as they are known, and each change.
    fn known(&self) -> watch::Receiver<Registered> {
        self.known.subscribe()
    }

    /// The endpoint of a handler, which its dispatchers in all partitions share.
    fn endpoint(&self, handler: &EventHandler) -> Arc<Endpoint> {
        let mut endpoints = self.lock_endpoints();
        if let Some((function, endpoint)) = endpoints.get(&handler.id)
            && *function == handler.function
        {
            return endpoint.clone();
        }
        let concurrency = match &handler.function {
            HandlerFunction::Sql(_) => self.config.concurrency.min(SQL_CALLS_OF_A_HANDLER),
            _ => self.config.concurrency,
        };
        let endpoint = Endpoint::new(
            concurrency,
            self.config.retry_delay,
            self.config.longest_delay,
        );
        if let Some(until) = handler.paused_until {
            endpoint.pause_for(until.since(self.clock.now()));
        }
        endpoints.insert(handler.id, (handler.function.clone(), endpoint.clone()));
        endpoint
    }

    /// Forgets the endpoints of handlers that are gone. Of one that somebody has changed the pause ends, unless it is stored: then
    /// the first call that succeeds ends it, on whichever server.
    fn review_endpoints(&self, registered: &[Arc<EventHandler>]) {
        let known = self.known.borrow().clone();
        let known: HashMap<HandlerId, i64> = known
            .iter()
            .map(|handler| (handler.id, handler.revision))
            .collect();
        let mut endpoints = self.lock_endpoints();
        endpoints.retain(|id, _| registered.iter().any(|handler| handler.id == *id));
        for handler in registered {
            let Some((_, endpoint)) = endpoints.get(&handler.id) else {
                continue;
            };
            if handler.paused_until.is_some() {
                // Another server may have stored it, and may be gone when the endpoint answers again.
                endpoint.pause_is_stored();
                continue;
            }
            let is_changed = known
                .get(&handler.id)
                .is_some_and(|revision| *revision != handler.revision);
            if is_changed {
                endpoint.resume();
            }
        }
    }

    fn lock_endpoints(
        &self,
    ) -> std::sync::MutexGuard<'_, HashMap<HandlerId, (HandlerFunction, Arc<Endpoint>)>> {
        self.endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls a webhook or a function in Rust, in the event's trace.
    async fn call(&self, handler: &EventHandler, event: Arc<Event>) -> Result<(), LastError> {
        let span = self.traces.handle(&handler.name, &event);
        let call = self.call_within(&span, handler, event);
        let outcome = span.within(call).await;
        if let Err(error) = &outcome {
            span.set_failed(error.as_str());
        }
        outcome
    }

    async fn call_within(
        &self,
        span: &Span,
        handler: &EventHandler,
        event: Arc<Event>,
    ) -> Result<(), LastError> {
        match &handler.function {
            HandlerFunction::Webhook(url) => {
                let post = Post {
                    handler: handler.id,
                    event: &event,
                    trace: span.parent(),
                    now: self.clock.now(),
                };
                self.webhooks.post(url, &post).await
            }
            HandlerFunction::Rust(name) => {
                let call = self.functions.call(name, event);
                timeout(self.config.time_out, call)
                    .await
                    .unwrap_or_else(|_| Err(LastError::new("the function was not done in time")))
            }
            HandlerFunction::Log | HandlerFunction::Publish(_) | HandlerFunction::Sql(_) => Ok(()),
        }
    }

    /// Writes an event to the server's log.
    fn log(&self, handler: &EventHandler, event: &Event) {
        tracing::info!(
            handler = handler.name.as_str(),
            event_id = %event.id,
            event_type = event.event_type.as_str(),
            aggregate_type = event.aggregate_type.as_str(),
            aggregate_id = %event.aggregate_id,
            version = event.version.0,
            data = event.data.as_str(),
            "event"
        );
    }
}

fn share_of(tasks: usize) -> usize {
    (BYTES_IN_HAND / tasks.max(1)).clamp(LEAST_BYTES_OF_A_TASK, MOST_BYTES_OF_A_TASK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_tasks_have_less_in_hand_each_and_not_more_together() {
        assert_eq!(share_of(0), MOST_BYTES_OF_A_TASK);
        assert_eq!(share_of(1), MOST_BYTES_OF_A_TASK);
        for tasks in [100, 1_000, 2_000] {
            assert!(share_of(tasks) * tasks <= BYTES_IN_HAND, "{tasks}");
        }
        assert_eq!(share_of(100_000), LEAST_BYTES_OF_A_TASK);
    }
}
