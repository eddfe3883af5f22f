//! Time that passes at once.

use std::time::Duration;

/// Lets so much time pass for all that waits in this runtime, which must be of one thread, as `#[tokio::test]` makes it.
/// What comes from outside (answers of a database, of a socket) takes its real time as ever.
pub async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}
