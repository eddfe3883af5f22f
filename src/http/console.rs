//! The playground at `/`: the files of `console/dist` as `build.rs` embedded them, compressed with gzip. Floor 7.

use std::io::Read as _;

use axum::{
    Router,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{
            ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY,
            CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
        },
    },
    middleware::map_response,
    response::{Html, IntoResponse, Response},
    routing::get,
};
use flate2::read::GzDecoder;

struct Asset {
    path: &'static str,
    content_type: &'static str,
    etag: &'static str,
    gzip: &'static [u8],
}

static ASSETS: &[Asset] = include!(concat!(env!("OUT_DIR"), "/console_assets.rs"));

/// Nothing from another host. The editor writes style attributes and has pictures in its style sheet; `'self'` includes the
/// websocket of the same host and port.
const CONTENT_POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'";

const MISSING_PAGE: &str = "<!doctype html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<title>Tidings</title>
<h1>Tidings is running without its playground</h1>
<p>This server was built before the playground was. To add it, run <code>make console</code> (it needs Node.js and npm) in the
source folder, then build and start the server again, or do all of it with <code>make run</code>.</p>
<p>The API works without it: send GraphQL to <code>/graphql</code>; its schema is at <a href=\"/schema.graphql\">/schema.graphql</a>.</p>
</html>
";

/// Serves the playground at `/`, its files at `/assets/…`, its icon, and the licenses of what it is made of; without an embedded
/// playground, a page at `/` that says how to get it.
pub fn router<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    let mut router = Router::new();
    if ASSETS.is_empty() {
        router = router.route(
            "/",
            get(async || ([(CACHE_CONTROL, "no-cache")], Html(MISSING_PAGE))),
        );
    }
    for asset in ASSETS {
        router = router.route(
            asset.path,
            get(async move |request: HeaderMap| answer(asset, &request)),
        );
    }
    router.layer(map_response(protect))
}

fn answer(asset: &'static Asset, request: &HeaderMap) -> Response {
    // The name of a file in /assets/ changes with its content.
    let caching = if asset.path.starts_with("/assets/") {
        "public, max-age=31536000, immutable"
    } else {
        "no-cache"
    };
    let headers = [
        (CONTENT_TYPE, asset.content_type),
        (ETAG, asset.etag),
        (CACHE_CONTROL, caching),
        (VARY, "accept-encoding"),
    ];
    if has_current(asset.etag, request) {
        (StatusCode::NOT_MODIFIED, headers).into_response()
    } else if accepts_gzip(request) {
        (headers, [(CONTENT_ENCODING, "gzip")], asset.gzip).into_response()
    } else {
        (headers, unpack(asset.gzip)).into_response()
    }
}

async fn protect(mut response: Response) -> Response {
    let headers: [(HeaderName, &str); 3] = [
        (CONTENT_SECURITY_POLICY, CONTENT_POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in headers {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether the client has this version already. Source: RFC 9110, 13.1.2 (weak comparison).
fn has_current(etag: &str, request: &HeaderMap) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    list_of(request, &IF_NONE_MATCH).any(|tag| tag.trim() == "*" || opaque(tag) == opaque(etag))
}

/// Whether the client takes gzip. Source: RFC 9110, 12.5.3.
fn accepts_gzip(request: &HeaderMap) -> bool {
    let is_accepted = |wanted: &str| {
        list_of(request, &ACCEPT_ENCODING).find_map(|entry| {
            let (coding, weight) = entry.split_once(';').unwrap_or((entry, ""));
            let refused = weight
                .trim()
                .strip_prefix("q=")
                .is_some_and(|weight| weight.trim().parse() == Ok(0.0));
            coding
                .trim()
                .eq_ignore_ascii_case(wanted)
                .then_some(!refused)
        })
    };
    is_accepted("gzip")
        .or_else(|| is_accepted("*"))
        .unwrap_or(false)
}

fn list_of<'a>(request: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    request
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
}

fn unpack(gzip: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    GzDecoder::new(gzip)
        .read_to_end(&mut content)
        .expect("the build of the console wrote gzip files");
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn gzip_is_sent_to_those_who_take_it() {
        for value in [
            "gzip",
            "deflate, gzip;q=0.5",
            "br, GZIP",
            "*",
            "identity;q=0.1, *;q=0.2",
        ] {
            assert!(accepts_gzip(&request(ACCEPT_ENCODING, value)), "{value}");
        }
        for value in ["", "identity", "br", "gzip;q=0", "gzip; q=0.0, *", "*;q=0"] {
            assert!(!accepts_gzip(&request(ACCEPT_ENCODING, value)), "{value}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    #[test]
    fn a_client_that_has_the_current_version_is_told_so() {
        for value in ["\"1f\"", "W/\"1f\"", "\"0\", W/\"1f\"", "*"] {
            assert!(
                has_current("W/\"1f\"", &request(IF_NONE_MATCH, value)),
                "{value}"
            );
        }
        assert!(!has_current("W/\"1f\"", &request(IF_NONE_MATCH, "W/\"1\"")));
        assert!(!has_current("W/\"1f\"", &HeaderMap::new()));
    }

    #[test]
    fn every_embedded_file_can_be_unpacked() {
        for asset in ASSETS {
            assert!(!unpack(asset.gzip).is_empty(), "{}", asset.path);
        }
    }
}
