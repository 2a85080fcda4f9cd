//! One connection to one server, from the first byte to whatever ends it.

use super::settings::Checked;
use super::{Outgoing, Shared, Wanted};
use crate::memory::deliver;
use crate::queue::Queue;
use async_nats::{Client, Event, ServerAddr};
use bytes::Bytes;
use futures::StreamExt;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

/// A server that does not greet us in this time is away: one that is stopped still accepts connections.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A silent server is given up after three of these.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// Commands in the client before its callers wait.
const CLIENT_MESSAGES_MAX: usize = 64;
/// Messages of one subscription in the client. They wait only for a task that moves them into the subscriber's queue.
const SUBSCRIPTION_MESSAGES_MAX: usize = 1024;
/// Until the client tries by itself to connect again; this session has ended by then.
const OWN_RECONNECT_PAUSE: Duration = Duration::from_secs(60);
/// Word of the subjects on which a connection is tried out.
const ECHO: &str = "echo";
/// What is wanted is looked through so often, for subscriptions that nobody holds any more.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// Why it ended, in words.
pub(super) enum Ended {
    NotConnected(String),
    Broken(String),
}

pub(super) async fn run(
    shared: &Shared,
    settings: &Checked,
    server: &ServerAddr,
    outgoing: &mut mpsc::Receiver<Outgoing>,
) -> Ended {
    let (events_in, mut events) = mpsc::channel(64);
    let client = match connect(settings, server, events_in).await {
        Ok(client) => client,
        Err(why) => return Ended::NotConnected(why),
    };
    tracing::info!(server = super::settings::shown(server), "connected to NATS");
    let mut subscriptions = Subscriptions { client: client.clone(), known: Vec::new(), pumps: JoinSet::new() };
    if let Err(why) = subscriptions.begin(shared, &settings.prefix).await {
        return Ended::NotConnected(why);
    }
    shared.connected();
    let why = tokio::select! {
        why = watch(shared, &mut events) => why,
        why = send(&client, &settings.prefix, outgoing) => why,
        why = subscriptions.follow(shared, &settings.prefix) => why,
    };
    Ended::Broken(why)
}

async fn connect(settings: &Checked, server: &ServerAddr, events: mpsc::Sender<Event>) -> Result<Client, String> {
    let is_first = AtomicBool::new(true);
    let options = settings
        .options(server)
        .await?
        .connection_timeout(CONNECT_TIMEOUT)
        .ping_interval(PING_INTERVAL)
        .client_capacity(CLIENT_MESSAGES_MAX)
        .subscription_capacity(SUBSCRIPTION_MESSAGES_MAX)
        .ignore_discovered_servers()
        .max_reconnects(1)
        .reconnect_delay_callback(move |_| {
            if is_first.swap(false, Ordering::Relaxed) { Duration::ZERO } else { OWN_RECONNECT_PAUSE }
        })
        .event_callback(move |event| {
            let events = events.clone();
            // A full channel holds events that end the session anyhow, or make everybody list again.
            async move { drop(events.try_send(event)) }
        });
    match tokio::time::timeout(CONNECT_TIMEOUT * 2, options.connect(server)).await {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(error)) => Err(chain(&error)),
        Err(_) => Err(format!("no answer for {} s", (CONNECT_TIMEOUT * 2).as_secs())),
    }
}

/// The error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

/// Returns when the connection is gone.
async fn watch(shared: &Shared, events: &mut mpsc::Receiver<Event>) -> String {
    while let Some(event) = events.recv().await {
        match event {
            Event::Disconnected | Event::Closed => return "the connection broke".to_owned(),
            Event::LameDuckMode => return "the server is shutting down".to_owned(),
            // The client names a subscription by a number that it tells nobody.
            Event::SlowConsumer(_) => shared.miss_all(),
            Event::ServerError(error) => tracing::warn!(%error, "NATS reports an error"),
            Event::ClientError(error) => tracing::warn!(%error, "the NATS client reports an error"),
            Event::Connected | Event::Draining => {}
        }
    }
    "the client ended".to_owned()
}

async fn send(client: &Client, prefix: &str, outgoing: &mut mpsc::Receiver<Outgoing>) -> String {
    while let Some(next) = outgoing.recv().await {
        let sent = match next {
            Outgoing::Message(subject, message) => {
                client.publish(format!("{prefix}.{subject}"), message).await.map_err(|error| chain(&error))
            }
            Outgoing::Flush(done) => client.flush().await.map_err(|error| chain(&error)).map(|()| {
                // Whoever asked may have given up.
                let _ = done.send(());
            }),
        };
        if let Err(why) = sent {
            return why;
        }
    }
    "the bus ended".to_owned()
}

/// What is subscribed to on this connection, with a task each that moves messages into the subscriber's queue.
struct Subscriptions {
    client: Client,
    known: Vec<(Weak<Queue>, AbortHandle)>,
    pumps: JoinSet<()>,
}

impl Subscriptions {
    async fn begin(&mut self, shared: &Shared, prefix: &str) -> Result<(), String> {
        self.echo(prefix).await?;
        self.add_wanted(shared, prefix).await
    }

    async fn follow(&mut self, shared: &Shared, prefix: &str) -> String {
        loop {
            tokio::select! {
                () = shared.more_wanted.notified() => {}
                () = tokio::time::sleep(SWEEP_INTERVAL) => {}
            }
            if let Err(why) = self.add_wanted(shared, prefix).await {
                return why;
            }
        }
    }

    async fn add_wanted(&mut self, shared: &Shared, prefix: &str) -> Result<(), String> {
        while self.pumps.try_join_next().is_some() {}
        self.known.retain(|(queue, pump)| {
            let is_held = queue.strong_count() > 0;
            if !is_held {
                // Drops the subscriber, which unsubscribes.
                pump.abort();
            }
            is_held
        });
        let mut added = Vec::new();
        for Wanted { subject, queue } in shared.all_wanted() {
            if self.known.iter().any(|(known, _)| known.ptr_eq(&queue)) {
                continue;
            }
            let subscriber =
                self.client.subscribe(format!("{prefix}.{subject}")).await.map_err(|error| chain(&error))?;
            let metrics = shared.metrics.clone();
            let kept = queue.clone();
            let pump = self.pumps.spawn(async move {
                let mut subscriber = subscriber;
                while let Some(message) = subscriber.next().await {
                    let Some(queue) = queue.upgrade() else { return };
                    deliver(&queue, subject, message.payload, &metrics);
                }
            });
            added.push(kept.clone());
            self.known.push((kept, pump));
        }
        if added.is_empty() {
            return Ok(());
        }
        self.echo(prefix).await?;
        for queue in added.iter().filter_map(Weak::upgrade) {
            queue.miss();
        }
        Ok(())
    }

    /// Hears itself, and so knows that the server has all subscriptions made before: whoever lists from now on misses nothing. It shows
    /// too that messages get through, permissions included.
    async fn echo(&self, prefix: &str) -> Result<(), String> {
        let subject = format!("{prefix}.{ECHO}.{:016x}", rand::random::<u64>());
        let heard = async {
            let mut echo = self.client.subscribe(subject.clone()).await.map_err(|error| chain(&error))?;
            self.client.publish(subject.clone(), Bytes::new()).await.map_err(|error| chain(&error))?;
            echo.next().await.map(drop).ok_or_else(|| "the connection broke".to_owned())
        };
        let nothing = |_| format!("nothing is heard on {prefix}.>: it may be slow, or not permitted");
        tokio::time::timeout(CONNECT_TIMEOUT, heard).await.map_err(nothing)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errors_causes_are_told_once() {
        let inner = std::io::Error::other("refused");
        assert_eq!(chain(&inner), "refused");
    }
}
