//! Other cache daemons of the mesh, as far as the bus tells: whom to ask for a blob before the object store.

mod view;

pub(crate) use view::Fault;

use crate::cache::Cache;
use crate::prefetch::Queue;
use prost::Message;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use view::View;
use weft_bus::residency::Held;
use weft_bus::{Bus, Heard, subjects};
use weft_proto::cache::v1 as proto;
use weft_proto::cache::v1::cache_daemon_client::CacheDaemonClient;
use weft_proto::mesh::v1 as mesh;
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::transport::{Peers, Service};
use weft_types::Digest;

/// Messages that wait to be heard.
const QUEUE_MESSAGES_MAX: usize = 1024;
/// A list that does not come in this time does not come.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a list: `HELD_MAX` entries of some 50 bytes.
const LIST_BYTES_MAX: usize = 8 << 20;

/// The neighbours of one daemon.
pub(crate) struct Neighbours {
    view: Mutex<View>,
    channels: Mutex<HashMap<String, Channel>>,
    peers: Peers,
    started: Instant,
}

impl Neighbours {
    /// Knows nobody yet. `own` is our incarnation on the bus.
    pub(crate) fn new(own: String, neighbours_max: usize, peers: Peers) -> Self {
        let view = Mutex::new(View::new(own, neighbours_max));
        Self { view, channels: Mutex::default(), peers, started: Instant::now() }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn view(&self) -> MutexGuard<'_, View> {
        // Every change is whole before anything that could panic.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Addresses of those that have this blob, the best to ask first; equals in an order drawn anew each time.
    pub(crate) fn holders(&self, digest: &Digest) -> Vec<String> {
        self.view().holders(digest, self.now_ms(), |_| rand::random())
    }

    pub(crate) fn did_well(&self, address: &str) {
        self.view().did_well(address);
    }

    pub(crate) fn failed(&self, address: &str, fault: Fault) {
        let now_ms = self.now_ms();
        self.view().failed(address, fault, now_ms);
    }

    fn show(&self, cache: &Cache) {
        let (neighbours, blobs) = self.view().count(self.now_ms());
        cache.0.metrics.neighbours.set(neighbours as i64);
        cache.0.metrics.neighbour_blobs.set(blobs as i64);
    }

    /// A client of the daemon at this address.
    ///
    /// # Errors
    /// That is no address, or one to which nothing is sent.
    pub(crate) fn client(&self, address: &str) -> Result<CacheDaemonClient<Channel>, String> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.view();
        let known = known.addresses();
        channels.retain(|address, _| known.contains(address.as_str()));
        if let Some(channel) = channels.get(address) {
            return Ok(CacheDaemonClient::new(channel.clone()));
        }
        let channel = self.peers.connect_heard(address, Service::CacheDaemon)?;
        channels.insert(address.to_owned(), channel.clone());
        Ok(CacheDaemonClient::new(channel))
    }
}

/// Follows what other daemons tell, until shutdown.
pub(crate) async fn follow(bus: Arc<dyn Bus>, neighbours: Arc<Neighbours>, cache: Cache, shutdown: Shutdown) {
    let mut messages = bus.subscribe(subjects::CACHE_RESIDENCY, QUEUE_MESSAGES_MAX);
    let mut listings = JoinSet::new();
    loop {
        let message = tokio::select! {
            heard = messages.next() => match heard {
                Heard::Message(message) => message,
                // What was missed shows in the next message of each: it has a gap.
                Heard::Missed { .. } => continue,
            },
            Some(_) = listings.join_next(), if !listings.is_empty() => {
                neighbours.show(&cache);
                continue;
            }
            () = shutdown.wait() => return,
        };
        let Ok(message) = mesh::CacheResidency::decode(message) else { continue };
        let now_ms = neighbours.now_ms();
        let asks = neighbours.view().hear(&message, now_ms);
        neighbours.show(&cache);
        if asks {
            listings.spawn(list(neighbours.clone(), message.address));
        }
    }
}

async fn list(neighbours: Arc<Neighbours>, address: String) {
    let listed = async {
        let mut client = neighbours.client(&address).ok()?.max_decoding_message_size(LIST_BYTES_MAX);
        let answer = tokio::time::timeout(LIST_TIMEOUT, client.list_residency(proto::ListResidencyRequest {})).await;
        match answer {
            Ok(Ok(answer)) => Some(answer.into_inner()),
            Ok(Err(status)) => {
                tracing::debug!(address, problem = status.message(), "cannot list a neighbour");
                None
            }
            Err(_) => None,
        }
    };
    match listed.await {
        Some(list) => {
            let list_of = (list.incarnation.as_str(), list.generation, held(&list));
            neighbours.view().listed(&address, Some(list_of));
        }
        None => neighbours.view().listed(&address, None),
    }
}

fn held(list: &proto::ListResidencyResponse) -> Held {
    let mut held = Held::new();
    for row in &list.adapters {
        let Ok(digest) = Digest::try_from(&row.digest[..]) else { continue };
        match row.tier() {
            proto::Tier::Memory => drop(held.insert(digest, mesh::Tier::Memory)),
            proto::Tier::Disk => drop(held.entry(digest).or_insert(mesh::Tier::Disk)),
            _ => {}
        }
    }
    held
}

/// Prefetches what an alias means now if what it meant before is here, until shutdown: whoever asked for the old bytes at this node
/// will ask for the new ones.
pub(crate) async fn follow_aliases(bus: Arc<dyn Bus>, cache: Cache, prefetches: Queue, shutdown: Shutdown) {
    let mut moves = bus.subscribe(subjects::ALIAS_MOVED, QUEUE_MESSAGES_MAX);
    loop {
        let message = tokio::select! {
            heard = moves.next() => match heard {
                Heard::Message(message) => message,
                // A hint that is lost costs the time of a fetch.
                Heard::Missed { .. } => continue,
            },
            () = shutdown.wait() => return,
        };
        let Ok(moved) = mesh::AliasMoved::decode(message) else { continue };
        let digests = (Digest::try_from(&moved.from[..]), Digest::try_from(&moved.to[..]));
        let (Ok(from), Ok(to)) = digests else { continue };
        if cache.is_near_or_coming(&from) {
            let asked = prefetches.ask(to);
            tracing::debug!(%from, %to, ?asked, "an alias moved");
        }
    }
}
