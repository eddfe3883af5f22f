//! A websocket client that waits, but never for ever.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest, http::HeaderValue},
};

use super::PATIENCE;
use crate::support::in_process::TestServer;

pub struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Client {
    /// Connects with subprotocols and other headers.
    pub async fn open(
        server: &TestServer,
        protocols: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Error> {
        let mut request = server.ws_url.as_str().into_client_request()?;
        if !protocols.is_empty() {
            request.headers_mut().insert(
                "sec-websocket-protocol",
                HeaderValue::from_str(protocols).unwrap(),
            );
        }
        for (name, value) in headers {
            request
                .headers_mut()
                .insert(*name, HeaderValue::from_str(value).unwrap());
        }
        let (socket, _) = timeout(PATIENCE, connect_async(request)).await.unwrap()?;
        Ok(Self { socket })
    }

    /// Connects without beginning.
    pub async fn connect(server: &TestServer, protocol: &str) -> Self {
        Self::open(server, protocol, &[]).await.unwrap()
    }

    /// Connects and begins.
    pub async fn begin(server: &TestServer) -> Self {
        let mut client = Self::connect(server, "graphql-transport-ws").await;
        client.send(json!({ "type": "connection_init" })).await;
        client.expect(json!({ "type": "connection_ack" })).await;
        client
    }

    pub async fn send(&mut self, message: Value) {
        self.send_raw(Message::text(message.to_string())).await;
    }

    pub async fn send_raw(&mut self, message: Message) {
        timeout(PATIENCE, self.socket.send(message))
            .await
            .unwrap()
            .unwrap();
    }

    /// Sends without failing where the server has closed.
    pub async fn try_send(&mut self, message: Message) -> Result<(), Error> {
        timeout(PATIENCE, self.socket.send(message))
            .await
            .expect("the server reads or closes")
    }

    pub async fn subscribe(&mut self, id: &str, payload: Value) {
        self.send(json!({ "type": "subscribe", "id": id, "payload": payload }))
            .await;
    }

    async fn next_raw(&mut self) -> Option<Result<Message, Error>> {
        timeout(PATIENCE, self.socket.next())
            .await
            .expect("the server says something")
    }

    /// The next message of the protocol.
    pub async fn next(&mut self) -> Value {
        loop {
            match self.next_raw().await {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).unwrap(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("no message but {other:?}"),
            }
        }
    }

    pub async fn expect(&mut self, expected: Value) {
        assert_eq!(self.next().await, expected);
    }

    /// The next pong of the websocket itself.
    pub async fn next_pong(&mut self) -> Vec<u8> {
        loop {
            match self.next_raw().await {
                Some(Ok(Message::Pong(payload))) => return payload.to_vec(),
                Some(Ok(_)) => {}
                other => panic!("no pong but {other:?}"),
            }
        }
    }

    /// All messages up to the close frame, and its code.
    pub async fn rest(&mut self) -> (Vec<Value>, u16) {
        let mut messages = Vec::new();
        loop {
            match self.next_raw().await {
                Some(Ok(Message::Text(text))) => {
                    messages.push(serde_json::from_str(&text).unwrap())
                }
                Some(Ok(Message::Close(Some(frame)))) => return (messages, frame.code.into()),
                Some(Ok(_)) => {}
                other => panic!("no close frame but {other:?}"),
            }
        }
    }

    /// The code and the reason of the close frame; messages before it are skipped.
    pub async fn closed(&mut self) -> (u16, String) {
        loop {
            match self.next_raw().await {
                Some(Ok(Message::Close(Some(frame)))) => {
                    return (frame.code.into(), frame.reason.to_string());
                }
                Some(Ok(Message::Text(_) | Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("no close frame but {other:?}"),
            }
        }
    }

    /// Closes as a client does, and waits for the server's answer.
    pub async fn close(mut self) {
        timeout(PATIENCE, self.socket.close(None))
            .await
            .unwrap()
            .unwrap();
        while let Some(Ok(_)) = self.next_raw().await {}
    }
}
