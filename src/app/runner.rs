//! The lease of each partition, and what runs under it on the one server that has it. Floor 5.
//!
//! A lease keeps two servers from doing the same work; what keeps a server that has lost it from doing harm is the token that
//! guards all it writes.

use std::{error::Error, sync::Arc, time::Duration};

use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::supervision::Supervision;
use crate::{
    commands::{Worker, run_worker},
    domain::{FencingToken, Partition},
    handlers::{Handlers, run_dispatcher},
    metrics::Metrics,
    projections::{Ended, Projections, run_projector, run_publisher},
    store::{LeaseGrant, Store, StoreError},
};

/// How often it is looked at most whether a lease that another server has was given back.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// What is added to the time for which another server has a lease, so that it has run out then.
const SLACK: Duration = Duration::from_millis(5);
/// The pause after a fault of the database, or of what runs.
const PAUSE_AFTER_FAULT: Duration = Duration::from_millis(250);

/// What runs under the leases of a server.
#[derive(Clone)]
pub(super) struct Runner {
    pub(super) store: Store,
    pub(super) projections: Arc<Projections>,
    pub(super) handlers: Arc<Handlers>,
    pub(super) worker: Arc<Worker>,
    pub(super) metrics: Arc<Metrics>,
    /// What tells this server's leases from those of others.
    pub(super) owner: Uuid,
    /// How long a lease lasts.
    pub(super) lease: Duration,
    /// Whether it takes each lease once from whoever has it: the server that brings another domain does, so that what is in
    /// force is what works. Tokens keep the others from doing harm until they find out.
    pub(super) takes_over: bool,
}

/// A lease that this server has.
struct Lease {
    name: String,
    token: FencingToken,
    /// Until then nobody else can have it: counted from before it was asked for.
    lasts_until: Instant,
}

impl Runner {
    /// Starts a task for each partition, which tries for its lease until the server stops.
    pub(super) fn start(self, background: &Supervision) {
        for partition in self.store.partitions().iter() {
            let runner = self.clone();
            background.start("lease", move |stop| runner.clone().run(partition, stop));
        }
    }

    /// Starts all that runs under the lease of a partition. Each has a line here; it ends when `stop` is cancelled, or by
    /// itself when it finds that another server has taken its place.
    fn begin(
        &self,
        partition: Partition,
        token: FencingToken,
        stop: &CancellationToken,
    ) -> JoinSet<Ended> {
        let mut running = JoinSet::new();
        let projections = || self.projections.clone();
        running.spawn(run_projector(projections(), partition, token, stop.clone()));
        // Also where nothing is published, for the checkpoint to move: what is published one day begins then.
        running.spawn(run_publisher(projections(), partition, token, stop.clone()));
        let dispatch = run_dispatcher(self.handlers.clone(), partition, token, stop.clone());
        running.spawn(async move {
            dispatch.await;
            Ended::Stopped
        });
        let work = run_worker(self.worker.clone(), partition, stop.clone());
        running.spawn(async move {
            work.await;
            Ended::Stopped
        });
        running
    }

    async fn run(mut self, partition: Partition, stopping: CancellationToken) {
        let name = format!("partition-{partition}");
        while let Some(mut lease) = self.acquire(&name, &stopping).await {
            self.takes_over = false;
            tracing::debug!(%partition, token = lease.token.0, "this server works on the partition");
            let held = self.metrics.lease();
            let stop = CancellationToken::new();
            let mut running = self.begin(partition, lease.token, &stop);
            self.hold(&mut lease, &mut running, &stopping).await;
            stop.cancel();
            while let Some(ended) = running.join_next().await {
                report(&name, ended);
            }
            drop(held);
            if let Err(error) = self.store.release_lease(&name, lease.token).await {
                let error = &error as &dyn Error;
                tracing::debug!(name, error, "a lease was not given back; it runs out");
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                () = sleep(PAUSE_AFTER_FAULT) => {}
            }
        }
    }

    /// Waits until this server has the lease; none when it stops.
    async fn acquire(&self, name: &str, stopping: &CancellationToken) -> Option<Lease> {
        loop {
            let asked = Instant::now();
            let granted = tokio::select! {
                () = stopping.cancelled() => return None,
                granted = self.ask(name) => granted,
            };
            let pause = match granted {
                Ok(LeaseGrant::Granted(token)) => {
                    return Some(Lease {
                        name: name.to_owned(),
                        token,
                        lasts_until: asked + self.lease,
                    });
                }
                Ok(LeaseGrant::Held(remaining)) => LOOK_EVERY.min(remaining + SLACK),
                Err(error) => {
                    let error = &error as &dyn Error;
                    tracing::warn!(name, error, "the lease cannot be asked for; trying again");
                    PAUSE_AFTER_FAULT
                }
            };
            tokio::select! {
                () = stopping.cancelled() => return None,
                () = sleep(pause) => {}
            }
        }
    }

    async fn ask(&self, name: &str) -> Result<LeaseGrant, StoreError> {
        if self.takes_over {
            return self.store.take_lease(name, self.owner, self.lease).await;
        }
        self.store.acquire_lease(name, self.owner, self.lease).await
    }

    /// Renews the lease until it is lost, something that runs under it has ended, or the server stops.
    async fn hold(
        &self,
        lease: &mut Lease,
        running: &mut JoinSet<Ended>,
        stopping: &CancellationToken,
    ) {
        let mut pause = self.lease / 3;
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                Some(ended) = running.join_next() => return report(&lease.name, ended),
                () = sleep(pause) => {}
            }
            let asked = Instant::now();
            let renewal = self.store.renew_lease(&lease.name, lease.token, self.lease);
            let renewed = tokio::select! {
                () = stopping.cancelled() => return,
                renewed = timeout_at(lease.lasts_until, renewal) => renewed,
            };
            match renewed {
                Ok(Ok(true)) => {
                    lease.lasts_until = asked + self.lease;
                    pause = self.lease / 3;
                }
                Ok(Ok(false)) => {
                    return tracing::warn!(name = lease.name, "another server has the lease now");
                }
                Ok(Err(error)) => {
                    let error = &error as &dyn Error;
                    tracing::warn!(name = lease.name, error, "the lease was not renewed");
                    pause = PAUSE_AFTER_FAULT.min(self.lease / 10);
                }
                Err(_) => return tracing::warn!(name = lease.name, "the lease has run out"),
            }
        }
    }
}

fn report(name: &str, ended: Result<Ended, JoinError>) {
    match ended {
        Ok(Ended::Stopped) => {}
        Ok(Ended::FencedOff) => tracing::warn!(name, "another server has taken over"),
        Err(error) => tracing::error!(
            name,
            error = &error as &dyn Error,
            "what runs under the lease has ended with a fault; it is started again"
        ),
    }
}
