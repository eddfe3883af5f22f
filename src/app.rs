//! The event store as a whole: wires store, domain, appender and tail, starts and stops their tasks. Floor 5.

mod domain_watch;
mod measuring;
mod runner;
mod supervision;

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{domain_watch::DomainWatch, runner::Runner, supervision::Supervision};
use crate::{
    appender::{Appender, Hooks},
    commands::{Executor, Watch, Worker},
    config::{Config, DomainFileError},
    domain::{
        Clock, Domain, SystemClock, Timestamp,
        append::{BatchReport, Committed},
    },
    handlers::{HandlerFunctions, Handlers},
    metrics::Metrics,
    projections::{Projections, Rebuild},
    store::{OpenError, RebuildScope, RebuildSize, Store, StoreError},
    tail::Tail,
    traces::{Traces, TracesError},
};

/// How long the database may take to show that it is there.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// So many read models with a fault are named where the server says how it is.
const FAULTS_NAMED: u64 = 3;

/// Why the event store does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The domain file gives no domain.
    #[error(transparent)]
    Domain(#[from] DomainFileError),
    /// The domain is not the one that the servers run.
    #[error(
        "the domain is not the one in force in the database: name the file of the one that is, or start a server with this one \
         first"
    )]
    DomainNotInForce,
    /// The database cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The database has only a part of what it is to have.
    #[error(
        "an import into the database was begun and not finished: run `tidings import` again with the whole export, or serve \
         another database"
    )]
    ImportUnfinished,
    /// The database was opened and failed then.
    #[error("the database failed at the start")]
    Store(#[from] StoreError),
    /// Traces cannot be sent.
    #[error(transparent)]
    Traces(#[from] TracesError),
}

/// Whether the server can do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Whether it can.
    pub ready: bool,
    /// The state of each part.
    pub details: Vec<(String, String)>,
}

/// A running event store.
pub struct App {
    store: Store,
    domain: Arc<Domain>,
    domain_watch: Arc<DomainWatch>,
    appender: Arc<Appender>,
    tail: Arc<Tail>,
    executor: Arc<Executor>,
    watch: Arc<Watch>,
    projections: Arc<Projections>,
    metrics: Arc<Metrics>,
    traces: Traces,
    handlers: Arc<Handlers>,
    clock: Arc<dyn Clock>,
    database: String,
    started_at: Timestamp,
    stopping: CancellationToken,
    /// What runs in the background.
    tasks: TaskTracker,
}

impl App {
    /// Loads the domain of the configuration, opens its database, and starts.
    ///
    /// # Errors
    /// When the domain file is wrong or the database cannot be used; the error says what to do.
    pub async fn start(config: &Config) -> Result<Arc<Self>, StartError> {
        let domain = config.domain.load()?;
        Self::start_with(config, domain, Arc::new(SystemClock)).await
    }

    /// Starts with a domain and a clock of the caller's own, whatever domain file the configuration names.
    ///
    /// # Errors
    /// As [`App::start`].
    pub async fn start_with(
        config: &Config,
        domain: Domain,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, StartError> {
        Self::start_with_functions(config, domain, HandlerFunctions::new(), clock).await
    }

    /// Starts as [`App::start_with`] does, with functions in Rust that event handlers can be registered with.
    ///
    /// # Errors
    /// As [`App::start`].
    pub async fn start_with_functions(
        config: &Config,
        domain: Domain,
        functions: HandlerFunctions,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, StartError> {
        let domain = Arc::new(domain);
        let endpoint = config.observability.otlp_endpoint.as_ref();
        let traces = Traces::start(endpoint, clock.clone())?;
        let store = Store::open(&config.database, config.background.lease, clock.clone()).await?;
        refuse_unfinished(&store).await?;
        let brings_domain = store.put_in_force(&domain).await?;
        store
            .keep_event_limit(config.limits.max_event_bytes)
            .await?;
        // An import that begins just now has seen this domain, or its mark is seen here.
        refuse_unfinished(&store).await?;
        let tail = Tail::start(store.clone(), &config.limits).await?;
        let metrics = Metrics::new(&store, clock.clone(), &config.observability);
        let watch = Watch::new(store.clone());
        let on_commit = {
            let (tail, watch) = (tail.clone(), watch.clone());
            Arc::new(move |committed| {
                if let Committed::Commands(_, changes) = &committed {
                    watch.take_committed(changes);
                }
                tail.take_committed(committed);
            })
        };
        let on_batch = {
            let metrics = metrics.clone();
            Arc::new(move |batch: &BatchReport<'_>| metrics.count_batch(batch))
        };
        let hooks = Hooks {
            on_commit,
            on_batch,
            traces: traces.clone(),
        };
        let appender = Arc::new(Appender::start(store.clone(), &config.limits, hooks));
        let handlers = Handlers::start(
            store.clone(),
            tail.clone(),
            appender.clone(),
            clock.clone(),
            functions,
            metrics.deliveries().clone(),
            &config.handlers,
        );
        let handlers = match handlers.await {
            Ok(handlers) => handlers,
            Err(error) => {
                // Whoever embeds this may try again in the same process.
                appender.stop().await;
                tail.stop().await;
                traces.stop().await;
                return Err(error.into());
            }
        };
        let background = Supervision {
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        };
        let domain_watch = DomainWatch::new(store.clone(), domain.clone());
        // On SQLite there is one server, and so one domain.
        if store.doorbell().is_some() {
            let watch = domain_watch.clone();
            background.start("domain-watch", move |stop| watch.clone().run(stop));
        }
        let executor = Arc::new(Executor::new(
            store.clone(),
            appender.clone(),
            tail.clone(),
            domain.clone(),
            clock.clone(),
            config,
        ));
        let projections =
            Projections::new(store.clone(), tail.clone(), domain.clone(), traces.clone());
        let (looked, tail_of_looks) = (watch.clone(), tail.clone());
        background.start("command-watch", move |stop| {
            looked.clone().look(tail_of_looks.clone(), stop)
        });
        let counted = metrics.clone();
        background.start("metrics", move |stop| {
            measuring::keep_counts(counted.clone(), stop)
        });
        if config.background.enabled {
            let removing = metrics.clone();
            background.start("old-metrics", move |stop| {
                measuring::remove_old_counts(removing.clone(), stop)
            });
            let worker = Worker::new(store.clone(), executor.clone(), tail.clone());
            let poller = worker.clone();
            background.start("command-poll", move |stop| poller.clone().poll(stop));
            // Also on SQLite: other programs may write to the file.
            let watching = handlers.clone();
            background.start("handler-registry", move |stop| {
                watching.clone().watch_registry(stop)
            });
            let runner = Runner {
                store: store.clone(),
                projections: projections.clone(),
                handlers: handlers.clone(),
                worker,
                metrics: metrics.clone(),
                owner: clock.new_id(),
                lease: config.background.lease,
                takes_over: brings_domain,
            };
            runner.start(&background);
        }
        let Supervision { tasks, stopping } = background;
        tasks.close();
        Ok(Arc::new(Self {
            store,
            domain,
            domain_watch,
            appender,
            tail,
            executor,
            watch,
            projections,
            metrics,
            traces,
            handlers,
            started_at: clock.now(),
            clock,
            database: config.database.url.to_string(),
            stopping,
            tasks,
        }))
    }

    /// Brings the tables of the database up to date.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn migrate(config: &Config) -> Result<(), StartError> {
        let mut database = config.database.clone();
        database.migrate = true;
        Store::open(&database, config.background.lease, Arc::new(SystemClock))
            .await?
            .close()
            .await;
        Ok(())
    }

    /// Folds read models of a database anew, beside the servers that run on it or without any. Answers how many; `on_size` is told
    /// before how much there is to fold, `on_progress` how many events were folded since it was told last.
    ///
    /// # Errors
    /// When the domain file is wrong, or the database cannot be used.
    pub async fn rebuild(
        config: &Config,
        scope: &RebuildScope,
        on_size: impl FnOnce(RebuildSize),
        on_progress: &(dyn Fn(u64) + Sync),
    ) -> Result<u64, StartError> {
        let domain = config.domain.load()?;
        let lease = config.background.lease;
        let store = Store::open(&config.database, lease, Arc::new(SystemClock)).await?;
        refuse_unfinished(&store).await?;
        let in_force = store.domain_in_force().await?;
        if in_force.is_some_and(|in_force| in_force.fingerprint != domain.fingerprint()) {
            return Err(StartError::DomainNotInForce);
        }
        on_size(store.rebuild_size(scope).await?);
        let rebuild = Rebuild {
            store: &store,
            domain: &domain,
            on_commit: &|_| {},
            on_progress,
        };
        let count = rebuild.run(scope).await?;
        store.close().await;
        Ok(count)
    }

    /// The store, for reading.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The domain: what there is to command, and how events make states.
    #[must_use]
    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    /// The appender: the way to write to the logs.
    #[must_use]
    pub fn appender(&self) -> &Appender {
        &self.appender
    }

    /// The executor: the way to give commands.
    #[must_use]
    pub fn executor(&self) -> &Arc<Executor> {
        &self.executor
    }

    /// The watch: the way to wait for commands.
    #[must_use]
    pub fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// The tail: the way to follow the logs.
    #[must_use]
    pub fn tail(&self) -> &Arc<Tail> {
        &self.tail
    }

    /// The projections: all that has to do with read models.
    #[must_use]
    pub fn projections(&self) -> &Arc<Projections> {
        &self.projections
    }

    /// The metrics: the way to count what is done.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The traces: the way to follow what is done.
    #[must_use]
    pub fn traces(&self) -> &Traces {
        &self.traces
    }

    /// The event handlers: the registry, and giving events again.
    #[must_use]
    pub fn handlers(&self) -> &Arc<Handlers> {
        &self.handlers
    }

    /// Where instants and ids come from.
    #[must_use]
    pub fn clock(&self) -> &dyn Clock {
        self.clock.as_ref()
    }

    /// When the server started.
    #[must_use]
    pub fn started_at(&self) -> Timestamp {
        self.started_at
    }

    /// Whether the server can do its work now. One whose domain is no longer in force can, and says so.
    pub async fn ready(&self) -> Readiness {
        let database = self.store.ping(PING_TIMEOUT).await;
        let in_force = self.domain_watch.is_in_force().await;
        let projection = self.describe_faults().await;
        let stopping = self.stopping.is_cancelled();
        let describe = |ready: bool, not_ready: &str| {
            if ready {
                "ok".to_owned()
            } else {
                not_ready.to_owned()
            }
        };
        Readiness {
            ready: database.is_ok() && !stopping && !self.store.lost().is_cancelled(),
            details: vec![
                (
                    "database".to_owned(),
                    describe(database.is_ok(), "cannot be reached"),
                ),
                (
                    "domain".to_owned(),
                    describe(
                        in_force,
                        "another server has brought another domain into force: this one goes on with its own until it is \
                         started again",
                    ),
                ),
                ("projection".to_owned(), projection),
                ("server".to_owned(), describe(!stopping, "is stopping")),
            ],
        }
    }

    /// Whether all read models follow their aggregates, for people. Why one does not is in the log and in the read model.
    async fn describe_faults(&self) -> String {
        let faulted = self.projections.faulted(FAULTS_NAMED);
        match timeout(PING_TIMEOUT, faulted).await {
            Ok(Ok((0, _))) => "ok".to_owned(),
            Ok(Ok((count, first))) => {
                let more = if count > first.len() as u64 {
                    ", …"
                } else {
                    ""
                };
                let first: Vec<String> = first.iter().map(ToString::to_string).collect();
                format!(
                    "read models that stand still behind an event that cannot be folded: {count} ({}{more})",
                    first.join(", ")
                )
            }
            Ok(Err(_)) | Err(_) => "not known".to_owned(),
        }
    }

    /// The database, for people: no password.
    #[must_use]
    pub fn describe_database(&self) -> String {
        let partitions = self.store.partitions().get();
        let unit = if partitions == 1 {
            "partition"
        } else {
            "partitions"
        };
        format!("{} ({partitions} {unit})", self.database)
    }

    /// Cancelled when the server begins to stop.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Cancelled where the database has gone back behind what this server has read from it, as after a failover to a standby
    /// that was behind. What is held in memory is not true any more: stop, and start again.
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.store.lost()
    }

    /// Finishes what was accepted and ends all tasks.
    pub async fn stop(&self) {
        self.stopping.cancel();
        self.tasks.wait().await;
        self.projections.stop().await;
        self.appender.stop().await;
        if let Some(counts) = self.metrics.event_counts() {
            // Nothing is appended any more: what is counted now is all.
            counts.finish().await;
        }
        self.tail.stop().await;
        self.traces.stop().await;
        self.store.close().await;
    }
}

async fn refuse_unfinished(store: &Store) -> Result<(), StartError> {
    match store.is_import_unfinished().await? {
        true => Err(StartError::ImportUnfinished),
        false => Ok(()),
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App")
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}
