//! Publishes, alias moves and reads, of a few adapters at a time: so that many operations meet at one key, and a key's alias does not move more
//! often than it remembers.

use crate::check::{Final, History, Move, Publish, Read, Span, Time, check};
use crate::package::Package;
use crate::world::{Client, TENANT, World};
use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tonic::{Code, Status};
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::publish_request::Part;
use weft_proto::registry::v1::publish_response::Result as Published;

const ALIAS: &str = "live";
/// Operations on one adapter: of them at most [`MOVES_MAX`] moves.
const PER_ADAPTER: u64 = 180;
/// An alias remembers 100 moves.
const MOVES_MAX: usize = 90;
/// Adapters that are worked on at once.
const AT_ONCE: usize = 8;

/// What is done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In all.
    pub operations: u64,
    /// At once.
    pub clients: usize,
    /// Between two kills; zero: none.
    pub kill_every: Duration,
    /// Of everything that is drawn.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Operations that were answered, by kind: publishes, moves, reads.
    pub answered: [u64; 3],
    /// Without an answer: a registry was killed under them.
    pub unanswered: u64,
    /// Compare-and-swaps that somebody else won.
    pub conflicts: u64,
    /// Kills.
    pub kills: u64,
    /// Adapters.
    pub keys: usize,
    /// What took how long.
    pub took: Duration,
    /// What is wrong; empty: linearizable, and nothing acknowledged is lost.
    pub wrong: Vec<String>,
}

/// What clients know of an adapter.
#[derive(Clone, Default)]
struct Known {
    versions: Vec<u64>,
    /// The last state of the alias that was seen: its ETag and the move that made it.
    state: Option<(String, String)>,
}

/// An adapter that is worked on.
struct Key {
    name: String,
    history: Mutex<History>,
    known: Mutex<Known>,
}

struct Run {
    keys: Vec<Key>,
    began: Instant,
    next: AtomicU64,
    plan: Plan,
    counts: [AtomicU64; 5],
}

const PUBLISHES: usize = 0;
const MOVES: usize = 1;
const READS: usize = 2;
const UNANSWERED: usize = 3;
const CONFLICTS: usize = 4;

/// Runs the plan, then checks each adapter against what the store has.
///
/// # Errors
/// The processes cannot be handled, or the store not be read at the end.
pub async fn run(world: &mut World, plan: Plan) -> Result<Outcome> {
    let keys = plan.operations.div_ceil(PER_ADAPTER).max(1) as usize;
    let key = |at: usize| Key { name: format!("racer-{at}"), history: Mutex::default(), known: Mutex::default() };
    let run = Arc::new(Run {
        keys: (0..keys).map(key).collect(),
        began: Instant::now(),
        next: AtomicU64::new(0),
        plan: plan.clone(),
        counts: Default::default(),
    });
    let mut clients = Vec::new();
    for at in 0..world.registries() {
        clients.push(world.client(at)?);
    }
    let workers: Vec<_> = (0..plan.clients)
        .map(|worker| tokio::spawn(Arc::clone(&run).work(clients.clone(), plan.seed.wrapping_add(worker as u64))))
        .collect();
    let mut draw = StdRng::seed_from_u64(plan.seed);
    let mut kills = 0;
    while !plan.kill_every.is_zero() && run.next.load(Ordering::Relaxed) < plan.operations {
        tokio::time::sleep(plan.kill_every.mul_f64(draw.random_range(0.5..1.5))).await;
        let victim = draw.random_range(0..world.registries());
        world.kill(victim).await?;
        kills += 1;
        world.launch(victim).await?;
    }
    for worker in workers {
        worker.await?;
    }
    let took = run.began.elapsed();
    let mut wrong = Vec::new();
    for key in &run.keys {
        let last = last_of(&clients[0], &key.name).await.with_context(|| format!("reading {} at the end", key.name))?;
        let history = key.history.lock().expect("no panic holds it").clone();
        wrong.extend(check(&history, &last).into_iter().map(|problem| format!("{}: {problem}", key.name)));
    }
    let count = |at: usize| run.counts[at].load(Ordering::Relaxed);
    Ok(Outcome {
        answered: [count(PUBLISHES), count(MOVES), count(READS)],
        unanswered: count(UNANSWERED),
        conflicts: count(CONFLICTS),
        kills,
        keys: run.keys.len(),
        took,
        wrong,
    })
}

/// What the store has of an adapter now.
async fn last_of(client: &Client, adapter: &str) -> Result<Final> {
    let mut client = client.clone();
    let request = pb::ListVersionsRequest { tenant: TENANT.to_owned(), adapter: adapter.to_owned() };
    let versions = match client.list_versions(request).await {
        Ok(versions) => versions.into_inner().versions,
        Err(status) if status.code() == Code::NotFound => Vec::new(),
        Err(status) => return Err(status.into()),
    };
    let versions = versions.into_iter().map(|version| (version.number, shown(&version.digest))).collect();
    let moves = match client.list_alias_moves(moves_of(adapter)).await {
        Ok(moves) => moves.into_inner(),
        Err(status) if status.code() == Code::NotFound => return Ok(Final { moves: Vec::new(), versions }),
        Err(status) => return Err(status.into()),
    };
    let now = moves.alias.map(|alias| (alias.actor, alias.version));
    let earlier = moves.earlier.into_iter().map(|earlier| (earlier.actor, earlier.version));
    let mut moves: Vec<_> = now.into_iter().chain(earlier).collect();
    moves.reverse();
    Ok(Final { moves, versions })
}

fn moves_of(adapter: &str) -> pb::ListAliasMovesRequest {
    pb::ListAliasMovesRequest { tenant: TENANT.to_owned(), adapter: adapter.to_owned(), alias: ALIAS.to_owned() }
}

fn shown(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether nobody knows what became of a call.
fn is_unanswered(status: &Status) -> bool {
    !matches!(
        status.code(),
        Code::NotFound | Code::Aborted | Code::InvalidArgument | Code::FailedPrecondition | Code::AlreadyExists
    )
}

impl Run {
    fn now(&self) -> Time {
        self.began.elapsed().as_nanos() as Time
    }

    fn count(&self, what: usize) {
        self.counts[what].fetch_add(1, Ordering::Relaxed);
    }

    async fn work(self: Arc<Self>, clients: Vec<Client>, seed: u64) {
        let mut draw = StdRng::seed_from_u64(seed);
        loop {
            let operation = self.next.fetch_add(1, Ordering::Relaxed);
            if operation >= self.plan.operations {
                return;
            }
            // A window of adapters that moves on.
            let first = (operation / PER_ADAPTER) as usize;
            let key = &self.keys[(first / AT_ONCE * AT_ONCE + draw.random_range(0..AT_ONCE)).min(self.keys.len() - 1)];
            let client = clients[draw.random_range(0..clients.len())].clone();
            let Known { versions, state } = key.known.lock().expect("no panic holds it").clone();
            let may_move = key.history.lock().expect("no panic holds it").moves.len() < MOVES_MAX;
            match draw.random_range(0..10) {
                0..3 => self.publish(client, key, operation).await,
                3..7 if may_move && !versions.is_empty() => {
                    let version = versions[draw.random_range(0..versions.len())];
                    let expected = state.filter(|_| draw.random_bool(0.5));
                    self.move_alias(client, key, operation, version, expected).await;
                }
                _ => self.read(client, key).await,
            }
        }
    }

    async fn publish(&self, mut client: Client, key: &Key, operation: u64) {
        let package = Package::of(512, operation + 1).expect("a small package");
        let start = pb::PublishStart { tenant: TENANT.to_owned(), adapter: key.name.clone(), ..Default::default() };
        let parts = [Part::Start(start), Part::Config(package.config.into()), Part::Weights(package.weights.into())];
        let parts = parts.map(|part| pb::PublishRequest { part: Some(part) });
        let began = self.now();
        let answer = client.publish(tokio_stream::iter(parts)).await;
        let ended = self.now();
        let published = match answer.map(|answer| answer.into_inner().result) {
            Ok(Some(Published::Published(published))) => published,
            Ok(_) => panic!("a package that is made here is refused"),
            Err(_) => {
                // The same bytes are never published again, so that nothing more can be said of it.
                self.count(UNANSWERED);
                return;
            }
        };
        self.count(PUBLISHES);
        key.known.lock().expect("no panic holds it").versions.push(published.version);
        let span = Span { began, ended: Some(ended) };
        let publish = Publish { digest: shown(&published.digest), version: Some(published.version), span };
        key.history.lock().expect("no panic holds it").publishes.push(publish);
    }

    async fn move_alias(
        &self,
        mut client: Client,
        key: &Key,
        operation: u64,
        version: u64,
        expected: Option<(String, String)>,
    ) {
        let name = format!("move-{operation}");
        let (etag, before) = expected.unzip();
        let request = pb::SetAliasRequest {
            tenant: TENANT.to_owned(),
            adapter: key.name.clone(),
            alias: ALIAS.to_owned(),
            version,
            expected_etag: etag.unwrap_or_default(),
            actor: name.clone(),
        };
        let began = self.now();
        // Before it is asked for: what is asked for may be seen by others at once.
        let at = {
            let mut history = key.history.lock().expect("no panic holds it");
            let span = Span { began, ended: None };
            history.moves.push(Move { name: name.clone(), version, expected: before, span });
            history.moves.len() - 1
        };
        let answer = client.set_alias(request).await;
        let ended = self.now();
        let span = Span { began, ended: Some(ended) };
        let mut history = key.history.lock().expect("no panic holds it");
        match answer {
            Ok(answer) => {
                let alias = answer.into_inner().alias.expect("a registry answers with the alias");
                self.count(MOVES);
                if alias.actor == name {
                    history.moves[at].span = span;
                } else {
                    // It was there already: nothing was written, and this was a read.
                    history.reads.push(Read { saw: Some(alias.actor.clone()), span });
                }
                key.known.lock().expect("no panic holds it").state = Some((alias.etag, alias.actor));
            }
            Err(status) if is_unanswered(&status) => self.count(UNANSWERED),
            Err(_) => self.count(CONFLICTS),
        }
    }

    async fn read(&self, mut client: Client, key: &Key) {
        let began = self.now();
        let answer = client.list_alias_moves(moves_of(&key.name)).await;
        let span = Span { began, ended: Some(self.now()) };
        let saw = match answer {
            Ok(answer) => answer.into_inner().alias.map(|alias| (alias.etag, alias.actor)),
            Err(status) if status.code() == Code::NotFound => None,
            Err(_) => {
                self.count(UNANSWERED);
                return;
            }
        };
        self.count(READS);
        let actor = saw.as_ref().map(|(_, actor)| actor.clone());
        if saw.is_some() {
            key.known.lock().expect("no panic holds it").state = saw;
        }
        key.history.lock().expect("no panic holds it").reads.push(Read { saw: actor, span });
    }
}
