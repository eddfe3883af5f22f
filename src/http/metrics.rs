//! `/metrics`: what Prometheus reads. Floor 7.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
};

use super::{
    answer::{Media, Refusal},
    router::{Shared, plain},
};
use crate::metrics::CONTENT_TYPE;

/// All metrics, for whoever may read: names of event handlers are among them.
pub(super) async fn serve(shared: &Shared, headers: &HeaderMap) -> Response<Body> {
    if shared.gate.role_of_headers(headers).is_err() {
        return Refusal::unauthenticated().answer(Media::Json);
    }
    let connections = shared.open_connections();
    let mut response = plain(StatusCode::OK, shared.app.metrics_text(connections).await);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
