//! A TCP proxy that can fall silent: what is sent goes nowhere, and nothing is closed, as where a cable is cut.

use tokio::io::{self, AsyncReadExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use url::Url;

/// Forwards connections to a database. Dropping it takes no more of them.
pub struct Proxy {
    /// The URL of the database by way of the proxy.
    pub url: String,
    /// How often it fell silent.
    silences: watch::Sender<u32>,
    fate: watch::Receiver<Fate>,
    task: JoinHandle<()>,
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
        let (silences, silence) = watch::channel(0);
        let (told, fate) = watch::channel(Fate::default());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mut silence = silence.clone();
                silence.mark_unchanged();
                tokio::spawn(serve(client, database.clone(), silence, told.clone()));
            }
        });
        Proxy {
            url: url.into(),
            silences,
            fate,
            task,
        }
    }

    /// What is connected now falls silent for ever. Whoever connects from now on is served.
    pub fn fall_silent(&self) {
        self.silences.send_modify(|silences| *silences += 1);
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

async fn serve(
    mut client: TcpStream,
    database: (String, u16),
    mut silence: watch::Receiver<u32>,
    fate: watch::Sender<Fate>,
) {
    let mut server = TcpStream::connect(database).await.unwrap();
    tokio::select! {
        _ = io::copy_bidirectional(&mut client, &mut server) => return,
        fell = silence.changed() => if fell.is_err() { return },
    }
    let mut void = [0; 4096];
    let mut is_asked = false;
    while client.read(&mut void).await.is_ok_and(|count| count > 0) {
        if !is_asked {
            is_asked = true;
            fate.send_modify(|fate| fate.asked += 1);
        }
    }
    if is_asked {
        fate.send_modify(|fate| fate.given_up += 1);
    }
}
