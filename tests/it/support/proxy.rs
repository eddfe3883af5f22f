//! A TCP proxy that can fall silent: what is sent goes nowhere, and nothing is closed, as where a cable is cut.

use std::sync::Arc;

use tokio::io::{self, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use url::Url;

/// Forwards connections to a database. Dropping it takes no more of them.
pub struct Proxy {
    /// The URL of the database by way of the proxy.
    pub url: String,
    silence: Arc<watch::Sender<Silence>>,
    fate: watch::Receiver<Fate>,
    task: JoinHandle<()>,
}

/// What is not to be answered.
#[derive(Clone, Debug, Default)]
struct Silence {
    /// Grows where all that is connected falls silent.
    count: u32,
    /// Whether those who connect are served no more either.
    is_for_all: bool,
    /// What nobody may send: it is not passed on, and all falls silent instead.
    at: Option<(String, Reach)>,
}

/// Who is not served any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Who is connected.
    Connected,
    /// Whoever connects later, too.
    All,
}

/// What became of the connections that fell silent.
#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    /// On so many of them something was sent into the void …
    asked: usize,
    /// … and so many of those were closed then by the one who had sent it.
    given_up: usize,
}

impl Proxy {
    pub async fn to(database_url: &str) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let mut url: Url = database_url.parse().unwrap();
        let database = (
            url.host_str().unwrap().to_owned(),
            url.port().unwrap_or(5432),
        );
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(listener.local_addr().unwrap().port()))
            .unwrap();
        let silence = Arc::new(watch::Sender::new(Silence::default()));
        let (told, fate) = watch::channel(Fate::default());
        let silences = silence.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (database, told) = (database.clone(), told.clone());
                tokio::spawn(serve(client, database, silences.clone(), told));
            }
        });
        Proxy {
            url: url.into(),
            silence,
            fate,
            task,
        }
    }

    /// What is connected now falls silent for ever. Whoever connects from now on is served.
    pub fn fall_silent(&self) {
        fall_silent(&self.silence, Reach::Connected);
    }

    /// From now on nobody is answered, whoever connects.
    pub fn vanish(&self) {
        fall_silent(&self.silence, Reach::All);
    }

    /// Falls silent where somebody sends this.
    pub fn fall_silent_at(&self, text: &str, reach: Reach) {
        self.silence
            .send_modify(|silence| silence.at = Some((text.to_owned(), reach)));
    }

    /// On how many silent connections something was sent until now.
    pub fn asked(&self) -> usize {
        self.fate.borrow().asked
    }

    /// Waits until something was sent on so many silent connections.
    pub async fn until_asked(&self, count: usize) {
        let enough = |fate: &Fate| fate.asked >= count;
        self.until(&format!("{count} that are asked"), enough).await;
    }

    /// Waits until every silent connection on which something was sent is closed by the one who sent it.
    pub async fn until_all_asked_are_given_up(&self) {
        let all = |fate: &Fate| fate.given_up == fate.asked;
        self.until("the silent connections to be given up", all)
            .await;
    }

    async fn until(&self, what: &str, reached: impl Fn(&Fate) -> bool) {
        let mut fate = self.fate.clone();
        let waited =
            tokio::time::timeout(super::client::LIMIT, fate.wait_for(|fate| reached(fate))).await;
        assert!(
            waited.is_ok(),
            "waited in vain for {what}: {:?}",
            *self.fate.borrow()
        );
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn fall_silent(silence: &watch::Sender<Silence>, reach: Reach) {
    silence.send_modify(|silence| {
        silence.count += 1;
        silence.is_for_all |= reach == Reach::All;
    });
}

async fn serve(
    mut client: TcpStream,
    database: (String, u16),
    silence: Arc<watch::Sender<Silence>>,
    fate: watch::Sender<Fate>,
) {
    let mut silences = silence.subscribe();
    let Silence {
        count, is_for_all, ..
    } = *silences.borrow_and_update();
    // Open for as long as the client's: nobody tells the database either.
    let mut server = None;
    let mut is_asked = false;
    if !is_for_all {
        let server = server.insert(TcpStream::connect(database).await.unwrap());
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let asking = async {
            let mut asked = vec![0; 64 << 10];
            loop {
                let length = from_client.read(&mut asked).await.unwrap_or(0);
                if length == 0 {
                    return false;
                }
                let asked = &asked[..length];
                let at = silence.borrow().at.clone();
                if let Some((text, reach)) = at
                    && asked
                        .windows(text.len())
                        .any(|part| part == text.as_bytes())
                {
                    fall_silent(&silence, reach);
                    return true;
                }
                if to_server.write_all(asked).await.is_err() {
                    return false;
                }
            }
        };
        tokio::select! {
            biased;
            _ = silences.wait_for(|silence| silence.count > count) => {}
            was_last = asking => match was_last {
                true => is_asked = true,
                false => return,
            },
            _ = io::copy(&mut from_server, &mut to_client) => return,
        }
    }
    if is_asked {
        fate.send_modify(|fate| fate.asked += 1);
    }
    let mut void = [0; 4096];
    while client.read(&mut void).await.is_ok_and(|count| count > 0) {
        if !is_asked {
            is_asked = true;
            fate.send_modify(|fate| fate.asked += 1);
        }
    }
    if is_asked {
        fate.send_modify(|fate| fate.given_up += 1);
    }
    drop(server);
}
