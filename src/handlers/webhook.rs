//! Posting events to where webhooks go. Floor 4.
//!
//! Names are resolved here, and only addresses that are allowed are connected to: a check of the name before would be of no use,
//! for it may stand for another address a moment later.

use std::{error::Error, net::SocketAddr, sync::Arc, time::Duration};

use reqwest::{
    Client,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::Policy,
};
use tokio::{net::lookup_host, time::timeout};

use super::{
    address::is_public,
    cloud_event::{document, traceparent},
    signature::sign,
};
use crate::{
    config::{self, WebhookSecret},
    domain::{DatabaseId, Event, HandlerId, LastError, Timestamp, TraceParent, WebhookUrl},
};

/// How long a registration waits for the name in a URL to be resolved.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection is kept for the next event.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How many connections are kept to one host.
const MOST_IDLE: usize = 8;

const NOT_ALLOWED: &str = "is a private, loopback or link-local address, and webhooks may only go to public ones unless the \
                           server is started with --webhook-allow-private (TIDINGS_WEBHOOK_ALLOW_PRIVATE=true)";
const NO_SECRET: &str = "webhooks are signed, and this server has no secret to sign them with: start it with --webhook-secret \
                         (TIDINGS_WEBHOOK_SECRET), such as the output of `echo whsec_$(openssl rand -base64 32)`";

/// An event as it is posted for a handler.
pub(super) struct Post<'p> {
    pub(super) handler: HandlerId,
    pub(super) event: &'p Event,
    /// The span of the post; none where it has none: then the receiver goes on with the trace that the event tells, if any.
    pub(super) trace: Option<TraceParent>,
    pub(super) now: Timestamp,
}

/// What posts events.
pub(super) struct Webhooks {
    /// None where no client can be made: the log says why.
    client: Option<Client>,
    secrets: Vec<WebhookSecret>,
    allow_private: bool,
    database: DatabaseId,
}

impl Webhooks {
    pub(super) fn new(config: &config::Handlers, database: DatabaseId) -> Self {
        // It is there already where another part of the program, or one that embeds this one, has chosen it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("tidings/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .no_proxy()
            .connect_timeout(config.time_out)
            .timeout(config.time_out)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(MOST_IDLE)
            .dns_resolver(Arc::new(Allowed {
                allow_private: config.allow_private,
            }))
            .build();
        let client = client
            .inspect_err(|error| {
                let error = error as &dyn Error;
                tracing::error!(error, "no webhook can be posted");
            })
            .ok();
        Self {
            client,
            secrets: config.webhook_secrets.clone(),
            allow_private: config.allow_private,
            database,
        }
    }

    /// Says what is wrong with a URL that somebody wants to have events posted to.
    pub(super) async fn check(&self, url: &WebhookUrl) -> Result<(), String> {
        if self.secrets.is_empty() {
            return Err(NO_SECRET.to_owned());
        }
        if self.allow_private {
            return Ok(());
        }
        if let Some(address) = url.address() {
            return if is_public(address) {
                Ok(())
            } else {
                Err(format!("{address} {NOT_ALLOWED}"))
            };
        }
        // A name that cannot be resolved now may be later; each delivery looks anyway.
        let host = url.host().unwrap_or_default();
        let Ok(Ok(addresses)) = timeout(RESOLVE_TIMEOUT, lookup_host((host.as_str(), 0))).await
        else {
            return Ok(());
        };
        let addresses: Vec<SocketAddr> = addresses.collect();
        match addresses.first() {
            Some(first) if !addresses.iter().any(|address| is_public(address.ip())) => Err(
                format!("{host} stands for {}, which {NOT_ALLOWED}", first.ip()),
            ),
            _ => Ok(()),
        }
    }

    /// Posts an event. It is delivered where the answer's status says so; what else is in the answer is not read.
    pub(super) async fn post(&self, url: &WebhookUrl, post: &Post<'_>) -> Result<(), LastError> {
        let Post {
            handler,
            event,
            trace,
            now,
        } = *post;
        let Some(client) = &self.client else {
            return Err(LastError::new(
                "the server can post nothing: its log says why",
            ));
        };
        if self.secrets.is_empty() {
            return Err(LastError::new(NO_SECRET));
        }
        if let Some(address) = url.address()
            && !self.allow_private
            && !is_public(address)
        {
            return Err(LastError::new(&format!("{address} {NOT_ALLOWED}")));
        }
        let body = document(event, self.database);
        // Two handlers may post the same event to one place: each posts one of its own.
        let id = format!("{}_{handler}", event.id);
        let timestamp = now.as_micros() / 1_000_000;
        let signature = sign(&self.secrets, &id, timestamp, &body);
        let mut request = client
            .post(url.as_str())
            .header(
                "content-type",
                "application/cloudevents+json; charset=utf-8",
            )
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature);
        let trace = trace.as_ref().map(ToString::to_string);
        if let Some(trace) = trace.or_else(|| traceparent(event)) {
            request = request.header("traceparent", trace);
        }
        let answer = request
            .body(body)
            .send()
            .await
            .map_err(|error| not_sent(&error))?;
        let status = answer.status();
        if status.is_success() {
            Ok(())
        } else if status.is_redirection() {
            Err(LastError::new(&format!(
                "the receiver answered {status}: redirects are not followed"
            )))
        } else {
            Err(LastError::new(&format!("the receiver answered {status}")))
        }
    }
}

/// Why nothing came of a request, without its URL.
fn not_sent(error: &reqwest::Error) -> LastError {
    if error.is_timeout() {
        return LastError::new("the receiver did not answer in time");
    }
    let mut cause: &dyn Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    LastError::new(&format!("the receiver cannot be reached: {cause}"))
}

/// Resolves names to addresses that are allowed.
struct Allowed {
    allow_private: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("{host} stands for {address}, which {NOT_ALLOWED}")]
struct NotAllowed {
    host: String,
    address: SocketAddr,
}

impl Resolve for Allowed {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let host = name.as_str();
            let all: Vec<SocketAddr> = lookup_host((host, 0)).await?.collect();
            let is_allowed = |address: &SocketAddr| allow_private || is_public(address.ip());
            let allowed: Vec<SocketAddr> = all.iter().copied().filter(is_allowed).collect();
            if let (Some(first), true) = (all.first(), allowed.is_empty()) {
                let (host, address) = (host.to_owned(), *first);
                return Err(NotAllowed { host, address }.into());
            }
            let addresses: Addrs = Box::new(allowed.into_iter());
            Ok(addresses)
        })
    }
}
