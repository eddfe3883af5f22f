//! Stub of the playground.

use axum::{Router, routing::get};

/// The playground's pages.
pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/", get(|| async { "The playground is not built." }))
}
