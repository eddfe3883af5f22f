//! The event store inside a program of your own: it serves the API and prints each event that anybody appends.

use std::sync::Arc;

use tidings::{app::App, config::Config, domain::EventFilter, graphql::Graphql, http};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut config = Config::default();
    config.database.url = "sqlite://embedded.db".parse().map_err(anyhow::Error::msg)?;
    config.listen.address = "127.0.0.1:8090".parse()?;
    config.check()?;

    let listener = http::bind(&config).await?;
    let app = App::start(&config).await?;
    let graphql = Graphql::new(Arc::clone(&app), &config.limits);
    let server = http::serve(listener, graphql, Arc::clone(&app), &config)?;
    println!("GraphQL is at http://{}/graphql", server.local_addr());

    let mut follower = app
        .tail()
        .follow_events(None, EventFilter::default(), false)
        .await?;
    loop {
        tokio::select! {
            step = follower.next() => {
                if let Some(event) = step?.event {
                    println!("{} {} {}", event.aggregate_id, event.version, event.event_type);
                }
            }
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    server.stop().await;
    app.stop().await;
    Ok(())
}
