//! A receiver of webhooks: it takes what is posted, and answers as the test says.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

/// One thing that was posted.
#[derive(Clone, Debug)]
pub struct Posted {
    /// By names in small letters.
    pub headers: HashMap<String, String>,
    pub body: Value,
    /// What was answered.
    pub status: u16,
}

impl Posted {
    pub fn aggregate(&self) -> String {
        self.body["subject"].as_str().unwrap().to_owned()
    }
}

/// How many requests there were.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    begun: usize,
    running: usize,
    most: usize,
    /// Of which the client did not wait for the answer.
    hung_up: usize,
}

type Answer = Arc<dyn Fn(usize, &Value) -> (u16, Duration) + Send + Sync>;

/// Listens until it is dropped.
pub struct Receiver {
    pub url: String,
    posted: Arc<Mutex<Vec<Posted>>>,
    answer: Arc<Mutex<Answer>>,
    counts: Arc<Mutex<Counts>>,
    task: AbortHandle,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Receiver {
    /// One that answers each with a status.
    pub async fn answering(status: u16) -> Self {
        Self::start(move |_, _| (status, Duration::ZERO)).await
    }

    /// One that answers the n-th (from 0) as the test says: with a status, after a time.
    pub async fn start(
        answer: impl Fn(usize, &Value) -> (u16, Duration) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let posted = Arc::new(Mutex::new(Vec::new()));
        let answer: Arc<Mutex<Answer>> = Arc::new(Mutex::new(Arc::new(answer)));
        let counts: Arc<Mutex<Counts>> = Arc::default();
        let (seen, answers, counted) = (posted.clone(), answer.clone(), counts.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, answers, counts) = (seen.clone(), answers.clone(), counted.clone());
                tokio::spawn(async move {
                    let _ = serve(stream, &seen, &answers, &counts).await;
                });
            }
        });
        Self {
            url,
            posted,
            answer,
            counts,
            task: task.abort_handle(),
        }
    }

    /// Answers otherwise from now on.
    pub fn answer(
        &self,
        answer: impl Fn(usize, &Value) -> (u16, Duration) + Send + Sync + 'static,
    ) {
        *self.answer.lock().unwrap() = Arc::new(answer);
    }

    /// How many were posted until now, answered or not.
    pub fn begun(&self) -> usize {
        self.counts.lock().unwrap().begun
    }

    /// How many were in hand at the same time, at most.
    pub fn most_at_a_time(&self) -> usize {
        self.counts.lock().unwrap().most
    }

    /// How often the client did not wait for the answer.
    pub fn hung_up(&self) -> usize {
        self.counts.lock().unwrap().hung_up
    }

    /// What was posted and answered until now.
    pub fn posted(&self) -> Vec<Posted> {
        self.posted.lock().unwrap().clone()
    }

    /// What was taken with success until now.
    pub fn taken(&self) -> Vec<Posted> {
        let mut posted = self.posted();
        posted.retain(|posted| posted.status == 200);
        posted
    }
}

async fn serve(
    mut stream: TcpStream,
    seen: &Mutex<Vec<Posted>>,
    answers: &Mutex<Answer>,
    counts: &Mutex<Counts>,
) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        let (headers, body) = loop {
            if let Some(request) = parse(&mut bytes) {
                break request;
            }
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        };
        let no = {
            let mut counts = counts.lock().unwrap();
            counts.begun += 1;
            counts.running += 1;
            counts.most = counts.most.max(counts.running);
            counts.begun - 1
        };
        let answer = answers.lock().unwrap().clone();
        let (status, delay) = answer(no, &body);
        if !delay.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                // Nobody sends more before the answer.
                _ = stream.readable() => {
                    let mut counts = counts.lock().unwrap();
                    counts.running -= 1;
                    counts.hung_up += 1;
                    return Ok(());
                }
            }
        }
        counts.lock().unwrap().running -= 1;
        seen.lock().unwrap().push(Posted {
            headers,
            body,
            status,
        });
        let text =
            format!("HTTP/1.1 {status} X\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(text.as_bytes()).await?;
    }
}

/// Takes one whole request from what was read.
fn parse(bytes: &mut Vec<u8>) -> Option<(HashMap<String, String>, Value)> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(head) = request.parse(bytes).unwrap() else {
        return None;
    };
    assert_eq!(request.method, Some("POST"));
    let headers: HashMap<String, String> = request
        .headers
        .iter()
        .map(|header| {
            let value = String::from_utf8(header.value.to_vec()).unwrap();
            (header.name.to_lowercase(), value)
        })
        .collect();
    let length: usize = headers["content-length"].parse().unwrap();
    if bytes.len() < head + length {
        return None;
    }
    let body = serde_json::from_slice(&bytes[head..head + length]).unwrap();
    bytes.drain(..head + length);
    Some((headers, body))
}
