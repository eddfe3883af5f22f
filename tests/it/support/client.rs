//! A GraphQL client: requests over HTTP, and operations over the `graphql-transport-ws` protocol.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use reqwest::StatusCode;
use serde_json::{Map, Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::header::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async, connect_async};

use super::server::TestServer;

/// How long a test waits for something that is to come.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Sends operations to one server. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    ws_url: String,
    token: Option<String>,
}

/// An answer over HTTP, whatever its status.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Value,
}

/// The errors of an answer, or that there was none.
#[derive(Debug, Clone)]
pub enum Failure {
    Errors(Vec<Value>),
    /// No GraphQL answer: the connection failed, or what came back is not one.
    Transport(String),
}

/// Every HTTP client needs it, also one that only speaks to this machine.
pub fn install_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl Client {
    pub fn new(server: &TestServer) -> Client {
        Client::to(&server.graphql_url(), &server.ws_url())
    }

    /// A client of a server elsewhere: its URLs for HTTP and for websockets.
    pub fn to(url: &str, ws_url: &str) -> Client {
        install_tls();
        let http = reqwest::Client::builder()
            .no_proxy()
            .build()
            .expect("an HTTP client can be made");
        Client {
            http,
            url: url.to_owned(),
            ws_url: ws_url.to_owned(),
            token: None,
        }
    }

    /// The same client with a bearer token, over HTTP as a header and over websockets in `connection_init`.
    pub fn with_token(&self, token: &str) -> Client {
        Client {
            token: Some(token.to_owned()),
            ..self.clone()
        }
    }

    /// The `data` of an operation.
    ///
    /// # Errors
    ///
    /// The errors of the answer, also where it has data beside them.
    pub async fn query(&self, query: &str, variables: Value) -> Result<Value, Failure> {
        let mut answer = self.send(query, variables).await?;
        match answer.body.get_mut("errors").map(Value::take) {
            Some(Value::Array(errors)) => Err(Failure::Errors(errors)),
            _ if answer.body.get("data").is_some() => Ok(answer.body["data"].take()),
            _ => Err(Failure::Transport(format!(
                "status {}: {}",
                answer.status, answer.body
            ))),
        }
    }

    /// The whole answer to an operation.
    ///
    /// # Errors
    ///
    /// Where no JSON comes back.
    pub async fn send(&self, query: &str, variables: Value) -> Result<Answer, Failure> {
        let mut request = self
            .http
            .post(&self.url)
            .json(&json!({ "query": query, "variables": variables }));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let transport = |error: reqwest::Error| Failure::Transport(format!("{error:?}"));
        let response = request.send().await.map_err(transport)?;
        let status = response.status();
        let body = response.json().await.map_err(transport)?;
        Ok(Answer { status, body })
    }

    /// Opens a websocket and sends one subscription on it.
    pub async fn subscribe(&self, query: &str, variables: Value) -> Subscription {
        let mut socket = Socket::connect(&self.ws_url, self.token.as_deref()).await;
        socket.start("1", query, variables).await;
        Subscription { socket }
    }

    /// The same, where the server may be away.
    pub async fn try_subscribe(&self, query: &str, variables: Value) -> Option<Subscription> {
        let mut socket = Socket::open(&self.ws_url, "graphql-transport-ws", &[])
            .await
            .ok()?;
        let init = tokio::time::timeout(LIMIT, socket.init()).await;
        init.ok()?.ok()?;
        socket.start("1", query, variables).await;
        Some(Subscription { socket })
    }

    /// Opens a websocket for several operations.
    pub async fn socket(&self) -> Socket {
        Socket::connect(&self.ws_url, self.token.as_deref()).await
    }
}

impl Failure {
    /// `extensions.code` of the first error.
    pub fn code(&self) -> &str {
        self.first()["extensions"]["code"]
            .as_str()
            .unwrap_or_default()
    }

    /// One of the extensions of the first error.
    pub fn extension(&self, name: &str) -> Value {
        self.first()["extensions"][name].clone()
    }

    pub fn message(&self) -> &str {
        match self {
            Failure::Errors(_) => self.first()["message"].as_str().unwrap_or_default(),
            Failure::Transport(text) => text,
        }
    }

    fn first(&self) -> &Value {
        match self {
            Failure::Errors(errors) => errors.first().unwrap_or(&Value::Null),
            Failure::Transport(_) => &Value::Null,
        }
    }
}

/// What comes over a websocket.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// The payload of a `next` message: `{"data": …}`, perhaps with errors.
    Next(Value),
    /// The payload of an `error` message: the errors for which the operation was refused or ended.
    Errors(Value),
    /// The operation has ended.
    Complete,
    /// The connection is closed; without a close frame the code is 1006.
    Closed { code: u16, reason: String },
}

/// One operation on a websocket of its own. Dropping it cuts the connection.
pub struct Subscription {
    socket: Socket,
}

impl Subscription {
    /// What comes next.
    ///
    /// # Panics
    ///
    /// Where nothing comes within [`LIMIT`].
    pub async fn next(&mut self) -> Step {
        tokio::time::timeout(LIMIT, self.socket.next())
            .await
            .expect("the subscription delivers something")
            .1
    }

    /// What comes next, however long that takes.
    pub async fn next_whenever(&mut self) -> Step {
        self.socket.next().await.1
    }

    /// What comes within this time, if anything does.
    pub async fn next_within(&mut self, limit: Duration) -> Option<Step> {
        Some(
            tokio::time::timeout(limit, self.socket.next())
                .await
                .ok()?
                .1,
        )
    }

    /// The `data` that comes next.
    ///
    /// # Panics
    ///
    /// Where something else comes, or nothing within [`LIMIT`].
    pub async fn next_data(&mut self) -> Value {
        match self.next().await {
            Step::Next(mut payload) if payload.get("errors").is_none() => payload["data"].take(),
            step => panic!("data was to come, and this did: {step:?}"),
        }
    }

    /// The value of one field of the `data` of the next `count` steps.
    pub async fn take(&mut self, field: &str, count: usize) -> Vec<Value> {
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(self.next_data().await[field].take());
        }
        values
    }

    /// Ends the operation and closes the websocket in order.
    pub async fn close(mut self) {
        self.socket
            .send(json!({ "id": "1", "type": "complete" }))
            .await;
        let _ = self.socket.stream.close(None).await;
    }
}

/// A websocket that speaks `graphql-transport-ws`, after its handshake.
pub struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Socket {
    /// Connects and goes through `connection_init`.
    pub async fn connect(ws_url: &str, token: Option<&str>) -> Socket {
        let mut socket = Socket::open(ws_url, "graphql-transport-ws", &[])
            .await
            .expect("the websocket opens");
        let mut payload = Map::new();
        if let Some(token) = token {
            payload.insert("authorization".to_owned(), format!("Bearer {token}").into());
        }
        socket
            .send(json!({ "type": "connection_init", "payload": payload }))
            .await;
        let answer = tokio::time::timeout(LIMIT, socket.receive())
            .await
            .expect("connection_init is answered");
        assert_eq!(
            answer.expect("the connection is accepted")["type"],
            "connection_ack"
        );
        socket
    }

    /// Opens a websocket with this subprotocol and these headers, and sends nothing.
    ///
    /// # Errors
    ///
    /// Where the server refuses the handshake: `tungstenite::Error::Http` holds its answer.
    pub async fn open(
        ws_url: &str,
        protocol: &str,
        headers: &[(&str, &str)],
    ) -> Result<Socket, Box<tungstenite::Error>> {
        let mut request = ws_url.into_client_request()?;
        let protocol = HeaderValue::from_str(protocol).expect("a subprotocol is a header value");
        request
            .headers_mut()
            .insert("sec-websocket-protocol", protocol);
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("this is a header name");
            request.headers_mut().insert(
                name,
                HeaderValue::from_str(value).expect("this is a header value"),
            );
        }
        let (stream, _) = connect_async(request).await?;
        Ok(Socket { stream })
    }

    /// Opens a websocket that takes little at a time: its receive buffer is as small as the system makes it, so that what
    /// the server sends soon backs up.
    ///
    /// # Errors
    ///
    /// Where the server refuses the handshake.
    pub async fn open_narrow(
        ws_url: &str,
        protocol: &str,
    ) -> Result<Socket, Box<tungstenite::Error>> {
        let mut request = ws_url.into_client_request()?;
        let authority = request.uri().authority().expect("a URL names its host");
        let address = authority.as_str().parse().expect("an address and a port");
        let protocol = HeaderValue::from_str(protocol).expect("a subprotocol is a header value");
        request
            .headers_mut()
            .insert("sec-websocket-protocol", protocol);
        let connect = async {
            let socket = TcpSocket::new_v4()?;
            socket.set_recv_buffer_size(1)?;
            socket.connect(address).await
        };
        let stream = connect.await.map_err(tungstenite::Error::Io)?;
        let (stream, _) = client_async(request, MaybeTlsStream::Plain(stream)).await?;
        Ok(Socket { stream })
    }

    /// Goes through `connection_init`.
    ///
    /// # Errors
    ///
    /// Where the connection is closed instead.
    pub async fn init(&mut self) -> Result<(), Step> {
        self.send(json!({ "type": "connection_init" })).await;
        let answer = self.receive().await?;
        assert_eq!(answer["type"], "connection_ack");
        Ok(())
    }

    /// Sends a `subscribe` message.
    pub async fn start(&mut self, id: &str, query: &str, variables: Value) {
        let payload = json!({ "query": query, "variables": variables });
        self.send(json!({ "id": id, "type": "subscribe", "payload": payload }))
            .await;
    }

    /// Sends one JSON message. That a closed connection takes it no more shows in what comes next.
    pub async fn send(&mut self, message: Value) {
        self.send_text(&message.to_string()).await;
    }

    /// Sends any text, JSON or not.
    pub async fn send_text(&mut self, text: &str) {
        let _ = self.stream.send(Message::Text(Utf8Bytes::from(text))).await;
    }

    /// The next step and the id of the operation that it belongs to (empty where the connection closed).
    pub async fn next(&mut self) -> (String, Step) {
        loop {
            let mut message = match self.receive().await {
                Ok(message) => message,
                Err(closed) => return (String::new(), closed),
            };
            let id = message["id"].as_str().unwrap_or_default().to_owned();
            match message["type"].as_str() {
                Some("next") => return (id, Step::Next(message["payload"].take())),
                Some("error") => return (id, Step::Errors(message["payload"].take())),
                Some("complete") => return (id, Step::Complete),
                Some("ping") => self.send(json!({ "type": "pong" })).await,
                Some("pong") => {}
                _ => panic!("not a message of graphql-transport-ws: {message}"),
            }
        }
    }

    /// The next message as JSON, whatever its type; [`Step::Closed`] where the connection has ended.
    pub async fn receive(&mut self) -> Result<Value, Step> {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Text(text))) => {
                    return Ok(serde_json::from_str(&text).expect("messages are JSON"));
                }
                Some(Ok(Message::Close(Some(frame)))) => {
                    return Err(Step::Closed {
                        code: frame.code.into(),
                        reason: frame.reason.to_string(),
                    });
                }
                Some(Ok(Message::Close(None))) | None => {
                    return Err(Step::Closed {
                        code: 1006,
                        reason: String::new(),
                    });
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Binary(_))) => {
                    panic!("a binary message is not of graphql-transport-ws")
                }
                Some(Err(error)) => {
                    return Err(Step::Closed {
                        code: 1006,
                        reason: error.to_string(),
                    });
                }
            }
        }
    }
}
