//! Sends spans to a collector: OTLP in Protobuf over HTTP. Floor 2.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use reqwest::redirect::Policy;
use tokio::runtime::Handle;
use url::Url;

/// How long a collector may take for a batch of spans.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes what sends spans to a collector.
pub(super) fn exporter(endpoint: &Url) -> Result<SpanExporter, Box<dyn Error + Send + Sync>> {
    // The process has one of them; where another part has installed it already, that one does as well.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let client = reqwest::Client::builder()
        .timeout(SEND_TIMEOUT)
        .redirect(Policy::none())
        .build()?;
    let sender = Sender {
        client,
        runtime: Handle::try_current()?,
        is_failing: Arc::default(),
    };
    let address = format!("{}/v1/traces", endpoint.as_str().trim_end_matches('/'));
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(sender)
        .with_endpoint(address)
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(SEND_TIMEOUT)
        .build()?;
    Ok(exporter)
}

/// The library sends from a thread of its own, and what it sends with needs the runtime.
#[derive(Debug)]
struct Sender {
    client: reqwest::Client,
    runtime: Handle,
    /// Whether the last batch was not taken: that is said once, and not for each.
    is_failing: Arc<AtomicBool>,
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let sent = self
            .runtime
            .spawn(async move { send(client, request).await });
        let answer = sent.await.map_err(HttpError::from).flatten();
        let failure = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("the collector answers {}", answer.status())),
            Err(error) => Some(error.to_string()),
        };
        let was_failing = self.is_failing.swap(failure.is_some(), Ordering::Relaxed);
        if let Some(error) = failure.filter(|_| !was_failing) {
            tracing::warn!(
                error,
                "spans cannot be sent, and are lost until that passes"
            );
        }
        answer
    }
}

async fn send(
    client: reqwest::Client,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, HttpError> {
    let response = client.execute(request.try_into()?).await?;
    let status = response.status();
    // What it answers is of no use here.
    let mut answer = Response::new(Bytes::new());
    *answer.status_mut() = status;
    Ok(answer)
}
