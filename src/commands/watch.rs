//! Waiting for commands to be settled, on this server or another one. Floor 4.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{Command, CommandId, CommandStatus, append::CommandChange},
    store::{Store, StoreError},
    tail::Tail,
};

/// How often the watched commands are looked at where other servers settle them too: rings get lost.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// The pause after a fault of the database.
const PAUSE_AFTER_FAULT: Duration = Duration::from_millis(250);

/// The commands that somebody waits for.
pub struct Watch {
    store: Store,
    watched: Mutex<HashMap<CommandId, watch::Sender<bool>>>,
    begun: Notify,
}

/// Tells a command now, and again when it is settled.
pub struct CommandFollower {
    watch: Arc<Watch>,
    id: CommandId,
    settled: watch::Receiver<bool>,
    next: Next,
}

enum Next {
    Tell(Box<Command>),
    WaitUntilSettled,
    Nothing,
}

impl Watch {
    /// Makes the watch of a server.
    #[must_use]
    pub fn new(store: Store) -> Arc<Self> {
        Arc::new(Self {
            store,
            watched: Mutex::default(),
            begun: Notify::new(),
        })
    }

    /// Takes in what this server has committed.
    pub fn take_committed(&self, changes: &[CommandChange]) {
        let watched = self.lock();
        if watched.is_empty() {
            return;
        }
        for change in changes {
            if change.status != CommandStatus::Pending
                && let Some(settled) = watched.get(&change.id)
            {
                settled.send_replace(true);
            }
        }
    }

    /// Follows a command; none where there is no such command.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn follow(
        self: &Arc<Self>,
        id: CommandId,
    ) -> Result<Option<CommandFollower>, StoreError> {
        // First this, then the look: what happens in between is heard of.
        let mut follower = CommandFollower {
            watch: self.clone(),
            id,
            settled: self.subscribe(id),
            next: Next::Nothing,
        };
        let Some(command) = self.store.commands_by_id(&[id]).await?.remove(&id) else {
            return Ok(None);
        };
        follower.next = Next::Tell(Box::new(command));
        Ok(Some(follower))
    }

    /// Looks whether other servers have settled commands that somebody waits for, until it is stopped.
    pub async fn look(self: Arc<Self>, tail: Arc<Tail>, stop: CancellationToken) {
        if self.store.doorbell().is_none() {
            return;
        }
        let mut ticks = interval(POLL_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_idle = self.lock().is_empty();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.begun.notified(), if is_idle => {}
                () = tail.command_bell().settled_elsewhere(), if !is_idle => {}
                _ = ticks.tick(), if !is_idle => {}
            }
            let watched: Vec<CommandId> = self.lock().keys().copied().collect();
            if watched.is_empty() {
                continue;
            }
            match self.store.command_statuses(&watched).await {
                Ok(statuses) => {
                    let changes: Vec<CommandChange> = statuses
                        .into_iter()
                        .map(|(id, status)| CommandChange { id, status })
                        .collect();
                    self.take_committed(&changes);
                }
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the commands that are waited for cannot be read; trying again"
                    );
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = sleep(PAUSE_AFTER_FAULT) => {}
                    }
                }
            }
        }
    }

    fn subscribe(&self, id: CommandId) -> watch::Receiver<bool> {
        let mut watched = self.lock();
        if watched.is_empty() {
            self.begun.notify_one();
        }
        let settled = watched
            .entry(id)
            .or_insert_with(|| watch::Sender::new(false));
        settled.subscribe()
    }

    // Nothing panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<CommandId, watch::Sender<bool>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CommandFollower {
    /// The command now, and then as it was settled; none behind that.
    ///
    /// # Errors
    /// When the database fails in a way that does not pass.
    pub async fn next(&mut self) -> Result<Option<Command>, StoreError> {
        match mem::replace(&mut self.next, Next::Nothing) {
            Next::Tell(command) => {
                if command.status == CommandStatus::Pending {
                    self.next = Next::WaitUntilSettled;
                }
                Ok(Some(*command))
            }
            Next::WaitUntilSettled => {
                let _ = self.settled.wait_for(|settled| *settled).await;
                self.settled().await
            }
            Next::Nothing => Ok(None),
        }
    }

    async fn settled(&self) -> Result<Option<Command>, StoreError> {
        loop {
            match self.watch.store.commands_by_id(&[self.id]).await {
                Ok(mut found) => return Ok(found.remove(&self.id)),
                Err(error) if error.is_passing() => sleep(PAUSE_AFTER_FAULT).await,
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for CommandFollower {
    fn drop(&mut self) {
        let mut watched = self.watch.lock();
        // Its own receiver goes under the lock: of two that end at once, the second sees that nobody is left.
        self.settled = watch::channel(false).1;
        if watched
            .get(&self.id)
            .is_some_and(|settled| settled.receiver_count() == 0)
        {
            watched.remove(&self.id);
        }
    }
}
