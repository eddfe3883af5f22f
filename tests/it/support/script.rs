//! Scripts in other languages, which succeed by ending with status 0.

use std::process::{Command, Stdio};
use std::time::Duration;

/// Beyond this a script hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs a script to its end. Its output goes where the test's goes, so one that hangs shows how far it came.
///
/// # Panics
///
/// Where it does not start, or fails, or has not ended within [`LIMIT`].
pub fn run(name: &str, mut command: Command) {
    command.stdin(Stdio::null());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made");
    runtime.block_on(async {
        let mut script = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let status = tokio::time::timeout(LIMIT, script.wait())
            .await
            .unwrap_or_else(|_| panic!("{name} has not ended after {LIMIT:?}"))
            .expect("a child can be waited for");
        assert!(
            status.success(),
            "{name} ended with {status}; its output is above"
        );
    });
}
