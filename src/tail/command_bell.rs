//! Wakes those who work on commands: the workers of the partitions, and who waits for commands to be settled. Floor 3.

use std::{
    fmt,
    sync::atomic::{AtomicU32, Ordering},
};

use tokio::sync::Notify;

use crate::domain::{CommandStatus, Partition, PartitionCount, append::CommandChange};

/// Rung by this server's commits and by other servers. A ring may get lost, so everybody who hears it looks by himself too.
#[derive(Debug)]
pub struct CommandBell {
    workers: Vec<Notify>,
    settled: Notify,
    /// What other servers have not been told yet: bits of [`CommandNews`].
    untold: AtomicU32,
}

/// In which partitions there is something new: one bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CommandNews {
    /// Commands that are to be processed.
    pub(super) pending: u16,
    /// Commands that are processed, rejected or failed.
    pub(super) settled: u16,
}

impl CommandBell {
    pub(super) fn new(partitions: PartitionCount) -> Self {
        Self {
            workers: partitions.iter().map(|_| Notify::new()).collect(),
            settled: Notify::new(),
            untold: AtomicU32::new(0),
        }
    }

    /// Waits until there may be a pending command in a partition: for the one worker of it.
    pub async fn pending(&self, partition: Partition) {
        self.workers[partition.index()].notified().await;
    }

    /// Waits until another server may have settled a command: for one who waits for all.
    pub async fn settled_elsewhere(&self) {
        self.settled.notified().await;
    }

    /// Wakes the worker of a partition.
    pub fn wake_worker(&self, partition: Partition) {
        self.workers[partition.index()].notify_one();
    }

    /// Takes in what this server has committed.
    pub(super) fn take_committed(&self, partition: Partition, changes: &[CommandChange]) {
        let is_pending = |change: &CommandChange| change.status == CommandStatus::Pending;
        let bit = |is_set: bool| u16::from(is_set) << partition.index();
        let news = CommandNews {
            pending: bit(changes.iter().any(is_pending)),
            settled: bit(!changes.iter().all(is_pending)),
        };
        if news.pending != 0 {
            self.wake_worker(partition);
        }
        self.untold.fetch_or(news.to_bits(), Ordering::Relaxed);
    }

    /// What is to be told to other servers, once.
    pub(super) fn take_untold(&self) -> CommandNews {
        CommandNews::from_bits(self.untold.swap(0, Ordering::Relaxed))
    }

    /// Takes in what another server tells.
    pub(super) fn hear(&self, news: CommandNews) {
        for (index, worker) in self.workers.iter().enumerate() {
            if news.pending >> index & 1 == 1 {
                worker.notify_one();
            }
        }
        if news.settled != 0 {
            self.settled.notify_one();
        }
    }
}

impl CommandNews {
    /// As if there were something new everywhere.
    pub(super) const ALL: Self = Self {
        pending: u16::MAX,
        settled: u16::MAX,
    };

    fn to_bits(self) -> u32 {
        u32::from(self.settled) << 16 | u32::from(self.pending)
    }

    fn from_bits(bits: u32) -> Self {
        Self {
            pending: (bits & 0xffff) as u16,
            settled: (bits >> 16) as u16,
        }
    }

    /// Reads what [`fmt::Display`] writes.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (pending, settled) = text.split_once(':')?;
        Some(Self {
            pending: pending.parse().ok()?,
            settled: settled.parse().ok()?,
        })
    }
}

impl fmt::Display for CommandNews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.pending, self.settled)
    }
}
