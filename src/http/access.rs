//! Who may come in: the Host and Origin of a request, and its token. Floor 7.
//!
//! A server on localhost is within reach of every web page that a browser on the machine shows. A page of another origin is told by its
//! `Origin`, and one whose name was pointed at this machine (DNS rebinding) by its `Host`.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use sha2::{Digest, Sha256};

use super::answer::BAD_USER_INPUT;
use crate::{config, domain::access::Role};

/// Why a request is not let in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// There is no Host, or more than one, or it cannot be read.
    BadHost,
    /// The Host names another server.
    UnknownHost(String),
    /// The request comes from a web page of another origin.
    ForeignOrigin(String),
    /// No token, or an unknown one.
    Unauthenticated,
}

impl Refused {
    /// The code that it counts as.
    pub(super) const fn code(&self) -> &'static str {
        match self {
            Self::BadHost => BAD_USER_INPUT,
            Self::UnknownHost(_) | Self::ForeignOrigin(_) => "FORBIDDEN",
            Self::Unauthenticated => "UNAUTHENTICATED",
        }
    }
}

/// The rules, ready for use.
pub(super) struct Gate {
    allow_origins: Vec<String>,
    allow_hosts: Vec<String>,
    tokens: Vec<config::Token>,
}

impl Gate {
    pub(super) fn new(access: &config::Access) -> Self {
        Self {
            allow_origins: access
                .allow_origins
                .iter()
                .map(|origin| origin.to_ascii_lowercase())
                .collect(),
            allow_hosts: access
                .allow_hosts
                .iter()
                .map(|host| host.to_ascii_lowercase())
                .collect(),
            tokens: access.tokens.clone(),
        }
    }

    /// Checks the Host and the Origin. Answers the origin's header value where it is one that needs CORS headers.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn admit<B>(&self, request: &Request<B>) -> Result<Option<HeaderValue>, Refused> {
        let headers = request.headers();
        let host = match request.uri().authority() {
            // An absolute target overrides Host (RFC 9112, 3.2.2).
            Some(authority) => authority.as_str(),
            None => single(headers, &header::HOST)
                .ok()
                .flatten()
                .ok_or(Refused::BadHost)?,
        };
        self.check_host(host)?;
        match single(headers, &header::ORIGIN) {
            Ok(None) => Ok(None),
            Ok(Some(origin)) => self.check_origin(origin, host),
            Err(NotSingle) => Err(Refused::ForeignOrigin("an unreadable Origin".to_owned())),
        }
    }

    fn check_host(&self, host: &str) -> Result<(), Refused> {
        let name = host_name(host).ok_or(Refused::BadHost)?;
        let is_address = name
            .strip_prefix('[')
            .map_or(name, |rest| rest.trim_end_matches(']'))
            .parse::<IpAddr>()
            .is_ok();
        if is_address {
            return Ok(());
        }
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if name == "localhost" || name.ends_with(".localhost") || self.allow_hosts.contains(&name) {
            return Ok(());
        }
        Err(Refused::UnknownHost(name))
    }

    fn check_origin(&self, origin: &str, host: &str) -> Result<Option<HeaderValue>, Refused> {
        if is_same_origin(origin, host) {
            return Ok(None);
        }
        let origin = origin.to_ascii_lowercase();
        if !self.allow_origins.contains(&origin) {
            return Err(Refused::ForeignOrigin(origin));
        }
        HeaderValue::from_str(&origin)
            .map(Some)
            .map_err(|_| Refused::ForeignOrigin(origin))
    }

    /// The role of whoever sends these headers.
    ///
    /// # Errors
    /// `Unauthenticated` where tokens are set and none of them is there.
    pub(super) fn role_of_headers(&self, headers: &HeaderMap) -> Result<Role, Refused> {
        if self.tokens.is_empty() {
            return Ok(Role::Admin);
        }
        let value = single(headers, &header::AUTHORIZATION)
            .ok()
            .flatten()
            .ok_or(Refused::Unauthenticated)?;
        self.role_of_token(bearer(value).ok_or(Refused::Unauthenticated)?)
    }

    /// The role that a token gives. Takes the same time whichever token it is.
    ///
    /// # Errors
    /// `Unauthenticated` for an unknown token.
    pub(super) fn role_of_token(&self, secret: &str) -> Result<Role, Refused> {
        if self.tokens.is_empty() {
            return Ok(Role::Admin);
        }
        let digest: [u8; 32] = Sha256::digest(secret).into();
        let roles = self
            .tokens
            .iter()
            .map(|token| token.has_digest(&digest).then(|| token.role()));
        roles
            .fold(None, Option::max)
            .ok_or(Refused::Unauthenticated)
    }

    /// Whether anything but the server's own pages may be a client in a browser.
    pub(super) fn allows_origins(&self) -> bool {
        !self.allow_origins.is_empty()
    }
}

/// The token in the value of an `Authorization` header.
pub(super) fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

struct NotSingle;

/// The value of a header that may be there once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, NotSingle> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| NotSingle),
        (Some(_), Some(_)) => Err(NotSingle),
    }
}

/// The host of `host[:port]`, with the brackets of an IPv6 address.
fn host_name(host: &str) -> Option<&str> {
    let (name, port) = match host.rfind(']') {
        Some(end) => host.split_at(end + 1),
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port_is_number = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    (!name.is_empty() && port_is_number).then_some(name)
}

/// Whether a page of this origin came from this server, which speaks http itself. Behind a proxy that speaks TLS the origin
/// is to be allowed by its name: another program may serve https on this host.
fn is_same_origin(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else {
        return false;
    };
    let without_default_port = |authority: &'_ str| {
        authority
            .strip_suffix(":80")
            .unwrap_or(authority)
            .to_ascii_lowercase()
    };
    scheme.eq_ignore_ascii_case("http")
        && without_default_port(authority) == without_default_port(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate {
        Gate::new(&config::Access {
            allow_origins: vec!["https://app.example".to_owned()],
            allow_hosts: vec!["events.example".to_owned()],
            tokens: vec![
                "read=reader".parse().unwrap(),
                "write=writer".parse().unwrap(),
            ],
        })
    }

    fn admit(host: &str, origin: Option<&str>) -> Result<Option<HeaderValue>, Refused> {
        let mut request = Request::builder()
            .uri("/graphql")
            .header(header::HOST, host);
        if let Some(origin) = origin {
            request = request.header(header::ORIGIN, origin);
        }
        gate().admit(&request.body(()).unwrap())
    }

    #[test]
    fn hosts_that_can_only_be_this_server_are_known() {
        for host in [
            "localhost",
            "localhost:8080",
            "LOCALHOST.",
            "a.localhost:1",
            "127.0.0.1:80",
            "192.168.1.7",
            "[::1]:8080",
            "[::1]",
            "events.example",
            "Events.Example:443",
        ] {
            assert_eq!(admit(host, None), Ok(None), "{host}");
        }
    }

    #[test]
    fn other_hosts_are_refused() {
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "notlocalhost",
            "127.0.0.1.evil.example",
            "events.example.evil",
        ] {
            assert!(
                matches!(admit(host, None), Err(Refused::UnknownHost(_))),
                "{host}"
            );
        }
        for host in ["", ":80", "localhost:x", "localhost:1@evil.example"] {
            assert_eq!(admit(host, None), Err(Refused::BadHost), "{host}");
        }
        let twice = Request::builder()
            .header(header::HOST, "localhost")
            .header(header::HOST, "localhost")
            .body(())
            .unwrap();
        assert_eq!(gate().admit(&twice), Err(Refused::BadHost));
        let absolute = Request::builder()
            .uri("http://evil.example/graphql")
            .header(header::HOST, "localhost")
            .body(())
            .unwrap();
        assert!(matches!(
            gate().admit(&absolute),
            Err(Refused::UnknownHost(_))
        ));
    }

    #[test]
    fn the_same_origin_is_let_in_without_cors() {
        for (host, origin) in [
            ("localhost:8080", "http://localhost:8080"),
            ("127.0.0.1", "http://127.0.0.1"),
            ("localhost:80", "http://localhost"),
            ("localhost", "http://localhost:80"),
            ("[::1]:8080", "http://[::1]:8080"),
        ] {
            assert_eq!(admit(host, Some(origin)), Ok(None), "{origin}");
        }
    }

    #[test]
    fn an_allowed_origin_is_answered_with_its_name() {
        assert_eq!(
            admit("localhost", Some("https://app.example")),
            Ok(Some(HeaderValue::from_static("https://app.example")))
        );
    }

    #[test]
    fn other_origins_are_foreign() {
        for origin in [
            "null",
            "",
            "http://evil.example",
            "http://localhost:3000",
            "https://localhost:8080",
            "http://127.0.0.1:8080",
            "http://app.example",
            "https://app.example:8443",
            "https://app.example.evil",
            "file://",
        ] {
            assert!(
                matches!(
                    admit("localhost:8080", Some(origin)),
                    Err(Refused::ForeignOrigin(_))
                ),
                "{origin}"
            );
        }
    }

    #[test]
    fn a_token_gives_its_role() {
        let role = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            gate().role_of_headers(&headers)
        };
        assert_eq!(role("Bearer reader"), Ok(Role::Read));
        assert_eq!(role("bearer  writer"), Ok(Role::Write));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer write",
            "Basic reader",
            "reader",
            "Bearer reader writer",
        ] {
            assert_eq!(role(wrong), Err(Refused::Unauthenticated), "{wrong}");
        }
        assert_eq!(
            gate().role_of_headers(&HeaderMap::new()),
            Err(Refused::Unauthenticated)
        );
    }

    #[test]
    fn without_tokens_everybody_may_do_everything() {
        let open = Gate::new(&config::Access::default());
        assert_eq!(open.role_of_headers(&HeaderMap::new()), Ok(Role::Admin));
    }
}
