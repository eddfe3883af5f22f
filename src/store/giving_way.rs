//! How long a transaction is tried again that the database ended in favour of another one. Floor 2.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// By time and not by a number of tries: whoever began to wait last is the one that the database ends, so a client that
/// waits for long makes one victim after the other, until it has its turn. Longer where more is allowed for a lock.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(64);

/// The tries of one transaction.
pub struct GivingWay {
    began: Instant,
    give_up_after: Duration,
    next_pause: Duration,
}

impl GivingWay {
    /// Before the first try.
    #[must_use]
    pub fn begin(lock_timeout: Duration) -> Self {
        Self {
            began: Instant::now(),
            give_up_after: GIVE_UP_AFTER.max(lock_timeout),
            next_pause: FIRST_PAUSE,
        }
    }

    /// Leaves the locks to the other transaction for a moment. False where it has been tried for long enough.
    pub async fn pause(&mut self) -> bool {
        if self.began.elapsed() > self.give_up_after {
            return false;
        }
        sleep(self.next_pause).await;
        self.next_pause = LONGEST_PAUSE.min(self.next_pause * 2);
        true
    }
}
