//! Whether the process lives and whether it can work, for whoever supervises it. Floor 7.

use std::collections::BTreeMap;

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use serde::Serialize;

use super::router::plain;
use crate::app::{App, Readiness};

/// `/healthz`: the process lives.
pub(super) fn alive() -> Response<Body> {
    plain(StatusCode::OK, "alive\n")
}

/// `/readyz`: 200 where the server can work, 503 where it cannot, with the state of its parts.
pub(super) async fn ready(app: &App) -> Response<Body> {
    let readiness = app.ready().await;
    let mut response = Response::new(Body::from(to_json(&readiness)));
    if !readiness.ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn to_json(readiness: &Readiness) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body<'a> {
        ready: bool,
        details: BTreeMap<&'a str, &'a str>,
    }
    let details = readiness
        .details
        .iter()
        .map(|(name, status)| (name.as_ref(), status.as_ref()))
        .collect();
    serde_json::to_vec(&Body {
        ready: readiness.ready,
        details,
    })
    .expect("texts and a truth value are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_is_told_by_part() {
        let details = vec![("database".to_owned(), "cannot be reached".to_owned())];
        let json = to_json(&Readiness {
            ready: false,
            details,
        });
        assert_eq!(
            json,
            br#"{"ready":false,"details":{"database":"cannot be reached"}}"#
        );
    }
}
