//! Whether the domain that this server runs is still the one in force. Floor 5.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::Domain,
    store::{Store, StoreError},
};

/// How often it is looked whether another server has brought another domain.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long the database may take to say.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// Looks which domain is in force, and says so where it is another one.
pub(super) struct DomainWatch {
    store: Store,
    domain: Arc<Domain>,
    superseded: AtomicBool,
}

impl DomainWatch {
    pub(super) fn new(store: Store, domain: Arc<Domain>) -> Arc<Self> {
        Arc::new(Self {
            store,
            domain,
            superseded: AtomicBool::new(false),
        })
    }

    /// Looks now and then, until the server stops.
    pub(super) async fn run(self: Arc<Self>, stopping: CancellationToken) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first one is at once, and the domain was put in force just now.
        ticks.tick().await;
        let looking = async {
            loop {
                ticks.tick().await;
                self.is_in_force().await;
            }
        };
        tokio::select! {
            () = looking => {}
            () = stopping.cancelled() => {}
        }
    }

    /// Looks whether the domain is in force. Where the database does not say, nothing has changed.
    pub(super) async fn is_in_force(&self) -> bool {
        match timeout(LOOK_TIMEOUT, self.look()).await {
            Ok(Ok(in_force)) => in_force,
            Ok(Err(_)) | Err(_) => !self.superseded.load(Ordering::Relaxed),
        }
    }

    async fn look(&self) -> Result<bool, StoreError> {
        let newest = self.store.domain_in_force().await?;
        let in_force = newest
            .as_ref()
            .is_none_or(|newest| newest.fingerprint == self.domain.fingerprint());
        let was_superseded = self.superseded.swap(!in_force, Ordering::Relaxed);
        match newest {
            Some(newest) if !in_force && !was_superseded => tracing::warn!(
                since = %newest.since,
                in_force = newest.fingerprint,
                own = self.domain.fingerprint(),
                "another server has brought another domain into force: this one goes on with its own until it is started again"
            ),
            _ if in_force && was_superseded => {
                tracing::info!("the domain of this server is in force again");
            }
            _ => {}
        }
        Ok(in_force)
    }
}
