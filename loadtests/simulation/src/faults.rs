//! What fails, when, and for how long: drawn from the seed, brought about between two steps of the simulation.

use crate::machine;
use crate::random::{between_ms, one_of, stream};
use crate::s3::{self, Mood};
use crate::stage::Stage;
use crate::world::{GATEWAYS, REGISTRIES, TENANTS, WORKERS, World};
use rand::Rng;
use rand::rngs::SmallRng;
use std::sync::atomic::Ordering;
use std::time::Duration;
use turmoil::Sim;

/// How long faults come and go.
const FAULTS_LAST: Duration = Duration::from_secs(45);
/// At once.
const FAULTS_MAX: usize = 4;
/// As the links are when nothing ails them.
pub(crate) const LATENCY_MIN: Duration = Duration::from_millis(1);
/// Likewise, the longest.
pub(crate) const LATENCY_MAX: Duration = Duration::from_millis(15);
const LATENCY_SLOW_MAX: Duration = Duration::from_millis(1500);
/// Of the messages of a lossy link.
const LOSS: f64 = 0.03;

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The process is killed; another one starts.
    GatewayKilled,
    /// Likewise.
    RegistryKilled,
    /// Likewise.
    WorkerKilled,
    /// Likewise. What it stored stays.
    S3Killed,
    /// The process is told to end, and another one starts.
    GatewayEnded,
    /// Likewise.
    RegistryEnded,
    /// The worker takes nothing new and hands on what runs, then it is another process.
    WorkerDrained,
    /// The worker says nothing for a while.
    WorkerStopped,
    /// The worker computes with other bytes than it was asked for, and its slots say so.
    WorkerConfused,
    /// Nothing goes over the link. Connections over it are dead from then on.
    LinkCut,
    /// What is sent over the link arrives when it is over.
    LinkHeld,
    /// What is sent over the link takes up to seconds, and overtakes.
    LinkSlow,
    /// Some of what is sent over the link is lost, and with it the connection, in silence.
    LinkLossy,
    /// A registry is cut off from S3 alone, for long.
    RegistryCutFromS3,
    /// S3 refuses most requests.
    S3Storm,
    /// S3 answers late.
    S3Slow,
    /// S3 does what it is asked, and the answers are lost.
    S3Forgetful,
    /// S3 does not answer.
    S3Hung,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::GatewayKilled,
        Self::RegistryKilled,
        Self::WorkerKilled,
        Self::S3Killed,
        Self::GatewayEnded,
        Self::RegistryEnded,
        Self::WorkerDrained,
        Self::WorkerStopped,
        Self::WorkerConfused,
        Self::LinkCut,
        Self::LinkHeld,
        Self::LinkSlow,
        Self::LinkLossy,
        Self::RegistryCutFromS3,
        Self::S3Storm,
        Self::S3Slow,
        Self::S3Forgetful,
        Self::S3Hung,
    ];

    /// For counts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::GatewayKilled => "fault: gateway killed",
            Self::RegistryKilled => "fault: registry killed",
            Self::WorkerKilled => "fault: worker killed",
            Self::S3Killed => "fault: s3 killed",
            Self::GatewayEnded => "fault: gateway told to end",
            Self::RegistryEnded => "fault: registry told to end",
            Self::WorkerDrained => "fault: worker drained",
            Self::WorkerStopped => "fault: worker stopped",
            Self::WorkerConfused => "fault: worker with wrong bytes",
            Self::LinkCut => "fault: link cut",
            Self::LinkHeld => "fault: link held",
            Self::LinkSlow => "fault: link slow",
            Self::LinkLossy => "fault: link lossy",
            Self::RegistryCutFromS3 => "fault: registry cut off from s3",
            Self::S3Storm => "fault: s3 refuses",
            Self::S3Slow => "fault: s3 slow",
            Self::S3Forgetful => "fault: s3 loses answers",
            Self::S3Hung => "fault: s3 hangs",
        }
    }

    fn lasts(self, random: &mut SmallRng) -> Duration {
        match self {
            Self::RegistryCutFromS3 => between_ms(random, 10_000, 45_000),
            Self::WorkerConfused => between_ms(random, 500, 4000),
            Self::GatewayEnded | Self::RegistryEnded => between_ms(random, 2000, 14_000),
            Self::LinkCut | Self::S3Hung => between_ms(random, 1000, 25_000),
            _ => between_ms(random, 500, 12_000),
        }
    }

    /// Whom it hits: one host, or the two ends of a link.
    fn aims(self, random: &mut SmallRng) -> Vec<&'static str> {
        match self {
            Self::GatewayKilled | Self::GatewayEnded => vec![*one_of(random, &GATEWAYS)],
            Self::RegistryKilled | Self::RegistryEnded => vec![*one_of(random, &REGISTRIES)],
            Self::WorkerKilled | Self::WorkerDrained | Self::WorkerStopped | Self::WorkerConfused => {
                vec![*one_of(random, &WORKERS)]
            }
            Self::S3Killed | Self::S3Storm | Self::S3Slow | Self::S3Forgetful | Self::S3Hung => vec![s3::HOST],
            Self::RegistryCutFromS3 => vec![*one_of(random, &REGISTRIES), s3::HOST],
            Self::LinkCut | Self::LinkHeld | Self::LinkSlow | Self::LinkLossy => {
                let (gateway, registry) = (*one_of(random, &GATEWAYS), *one_of(random, &REGISTRIES));
                match random.random_range(0..10) {
                    0..=1 => vec![TENANTS, gateway],
                    2..=4 => vec![gateway, registry],
                    5..=7 => vec![gateway, *one_of(random, &WORKERS)],
                    8 => vec![registry, s3::HOST],
                    _ => vec![*one_of(random, &WORKERS), registry],
                }
            }
        }
    }
}

struct Fault {
    kind: Kind,
    hosts: Vec<&'static str>,
    until: Duration,
    trouble: usize,
}

/// All that fails in one simulation.
pub(crate) struct Faults {
    random: SmallRng,
    active: Vec<Fault>,
    /// Of the next fault. None: the mesh is not set up yet.
    next: Option<Duration>,
    /// From then on nothing fails.
    over: Duration,
}

impl Faults {
    /// Nothing fails yet.
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: stream(seed, "faults"), active: Vec::new(), next: None, over: Duration::MAX }
    }

    /// What ends now ends, what begins now begins.
    pub(crate) fn step(&mut self, sim: &mut Sim<'_>, world: &World) {
        if world.stage() != Stage::Faults {
            return;
        }
        let now = machine::elapsed();
        let next = *self.next.get_or_insert_with(|| {
            self.over = now + FAULTS_LAST;
            now
        });
        let is_over = now >= self.over;
        let (ended, active) =
            std::mem::take(&mut self.active).into_iter().partition(|fault| is_over || fault.until <= now);
        self.active = active;
        for fault in ended {
            end(sim, world, &fault);
        }
        if is_over {
            world.enter(Stage::Healed);
            return;
        }
        if next <= now {
            self.next = Some(now + between_ms(&mut self.random, 200, 4500));
            self.begin(sim, world, now);
        }
    }

    fn begin(&mut self, sim: &mut Sim<'_>, world: &World, now: Duration) {
        let kind = *one_of(&mut self.random, &Kind::ALL);
        let (hosts, lasts) = (kind.aims(&mut self.random), kind.lasts(&mut self.random));
        // One fault at a time for each host and each link, so that the end of one does not heal another.
        if self.active.len() >= FAULTS_MAX || self.active.iter().any(|other| other.hosts == hosts) {
            return;
        }
        world.record.event("FAULT", format!("{kind:?} {} for {} ms", hosts.join(" - "), lasts.as_millis()));
        world.record.count(kind.name());
        let trouble = world.troubles.begin(&hosts);
        let fault = Fault { kind, hosts, until: now + lasts, trouble };
        begin(sim, world, &fault);
        self.active.push(fault);
    }
}

fn worker(world: &World, name: &str) -> usize {
    let found = WORKERS.iter().position(|worker| *worker == name);
    let number = found.expect("faults of workers hit workers");
    debug_assert!(number < world.workers.len());
    number
}

fn begin(sim: &mut Sim<'_>, world: &World, fault: &Fault) {
    let host = fault.hosts[0];
    let link = || (fault.hosts[0], fault.hosts[1]);
    match fault.kind {
        Kind::GatewayKilled | Kind::RegistryKilled | Kind::WorkerKilled | Kind::S3Killed => sim.crash(host),
        Kind::GatewayEnded | Kind::RegistryEnded => world.end(host),
        Kind::WorkerDrained => world.workers[worker(world, host)].draining.store(true, Ordering::Relaxed),
        Kind::WorkerStopped => world.workers[worker(world, host)].stopped.store(true, Ordering::Relaxed),
        Kind::WorkerConfused => world.workers[worker(world, host)].confused.store(true, Ordering::Relaxed),
        Kind::LinkCut | Kind::RegistryCutFromS3 => sim.partition(link().0, link().1),
        Kind::LinkHeld => sim.hold(link().0, link().1),
        Kind::LinkSlow => sim.set_link_max_message_latency(link().0, link().1, LATENCY_SLOW_MAX),
        Kind::LinkLossy => sim.set_link_fail_rate(link().0, link().1, LOSS),
        Kind::S3Storm => world.moods.set(Mood::Storm),
        Kind::S3Slow => world.moods.set(Mood::Slow),
        Kind::S3Forgetful => world.moods.set(Mood::Forgetful),
        Kind::S3Hung => world.moods.set(Mood::Hung),
    }
}

fn end(sim: &mut Sim<'_>, world: &World, fault: &Fault) {
    let host = fault.hosts[0];
    let link = || (fault.hosts[0], fault.hosts[1]);
    match fault.kind {
        Kind::GatewayKilled
        | Kind::RegistryKilled
        | Kind::WorkerKilled
        | Kind::S3Killed
        | Kind::GatewayEnded
        | Kind::RegistryEnded => sim.bounce(host),
        Kind::WorkerDrained => {
            world.workers[worker(world, host)].draining.store(false, Ordering::Relaxed);
            sim.bounce(host);
        }
        Kind::WorkerStopped => world.workers[worker(world, host)].stopped.store(false, Ordering::Relaxed),
        Kind::WorkerConfused => world.workers[worker(world, host)].confused.store(false, Ordering::Relaxed),
        Kind::LinkCut | Kind::RegistryCutFromS3 => sim.repair(link().0, link().1),
        Kind::LinkHeld => sim.release(link().0, link().1),
        Kind::LinkSlow => sim.set_link_max_message_latency(link().0, link().1, LATENCY_MAX),
        Kind::LinkLossy => {
            sim.set_link_fail_rate(link().0, link().1, 0.0);
            // A link that lost its last message is repaired by the next one only.
            sim.repair(link().0, link().1);
        }
        Kind::S3Storm | Kind::S3Slow | Kind::S3Forgetful | Kind::S3Hung => world.moods.set(Mood::Well),
    }
    world.troubles.end(fault.trouble);
    world.record.event("FAULT", format!("{:?} {} is over", fault.kind, fault.hosts.join(" - ")));
}
