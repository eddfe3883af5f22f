//! Time and new ids, handed in wherever they are needed; the ambient ones are banned elsewhere. Floor 0.

use uuid::Uuid;

use super::Timestamp;

/// Where instants and new ids come from.
pub trait Clock: Send + Sync + 'static {
    /// The instant now.
    fn now(&self) -> Timestamp;

    /// A new id that sorts by the time it was made (UUIDv7).
    fn new_id(&self) -> Uuid;
}

/// The machine's clock and random numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the machine's clock and random numbers"
)]
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        chrono::Utc::now().into()
    }

    fn new_id(&self) -> Uuid {
        Uuid::now_v7()
    }
}
