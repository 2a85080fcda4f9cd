//! Everybody who asks, on one host: tenants' programs and an operator's scripts. They do what such do, remember what they were told, and
//! hold every answer to the rules.
//!
//! - `ask.rs`: completions, streamed and whole.
//! - `publish.rs`, `aliases.rs`, `keys.rs`: writes, and whether they are seen.
//! - `audit.rs`: everything that was acknowledged is there, during the faults and after them.

mod aliases;
mod ask;
mod audit;
mod keys;
mod publish;

use crate::checks::{NOTICED_WITHIN, Rule};
use crate::http::{Broken, Whole, call};
use crate::ledger::Adapter;
use crate::machine;
use crate::random::{between_ms, one_of, stream};
use crate::s3;
use crate::stage::Stage;
use crate::world::{ADMIN_KEY, ADMIN_PORT, DATA_PORT, GATEWAYS, REGISTRIES, TENANTS, World};
use rand::rngs::SmallRng;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// The adapters that are published, by tenant.
pub(crate) const ADAPTERS: [Adapter; 3] = [("harbour", "pirate"), ("harbour", "org/tuned"), ("helpdesk", "triage")];
/// The tenants.
pub(crate) const NAMES: [&str; 2] = ["harbour", "helpdesk"];
const ASKING: usize = 6;

/// One of them.
pub(crate) struct Client {
    world: Arc<World>,
    who: String,
    random: SmallRng,
}

impl Client {
    fn new(world: &Arc<World>, who: impl Into<String>) -> Self {
        let who = who.into();
        Self { world: Arc::clone(world), random: stream(world.seed, &who), who }
    }

    fn gateway(&mut self) -> &'static str {
        let gateway: &&str = one_of(&mut self.random, &GATEWAYS);
        gateway
    }

    async fn pause(&mut self, least_ms: u64, most_ms: u64) {
        tokio::time::sleep(between_ms(&mut self.random, least_ms, most_ms)).await;
    }

    fn say(&self, what: impl AsRef<str>) {
        self.world.record.event(&self.who, what);
    }

    fn violated(&self, rule: Rule, seen: impl AsRef<str>) {
        self.world.record.violated(rule, format!("{}: {}", self.who, seen.as_ref()));
    }

    /// One call of the admin API.
    async fn operate(&self, gateway: &'static str, method: &str, path: &str, body: &Value) -> Result<Whole, Broken> {
        let began = machine::elapsed();
        let answer = call(gateway, ADMIN_PORT, method, &format!("/admin/v1{path}"), ADMIN_KEY, body).await;
        let shown = answer.as_ref().map_or_else(|broken| format!("{broken:?}"), |answer| answer.status.to_string());
        self.say(format!("{method} {path} at {gateway}: {shown}"));
        if let Err(broken) = answer {
            self.broke(gateway, began, broken, &format!("{method} {path}"));
        }
        answer
    }

    /// Whether a tenant's key is good at this gateway. None: nobody can say now.
    async fn is_accepted(&self, gateway: &'static str, secret: &str) -> Option<bool> {
        let began = machine::elapsed();
        match call(gateway, DATA_PORT, "GET", "/v1/models", secret, &Value::Null).await {
            Ok(answer) => match answer.status {
                200 => Some(true),
                401 => Some(false),
                status => {
                    self.refused(&answer, &format!("/v1/models at {gateway}, status {status}"));
                    None
                }
            },
            Err(broken) => {
                self.broke(gateway, began, broken, "/v1/models");
                None
            }
        }
    }

    /// Judges a connection to a gateway that broke: without a fault between the two it must not.
    fn broke(&self, gateway: &'static str, began: Duration, broken: Broken, what: &str) {
        self.world.record.count("connections broken");
        if self.world.troubles.touched(&[TENANTS, gateway], began) {
            return;
        }
        match broken {
            Broken::Connection => self.violated(Rule::OneEnd, format!("{what} at {gateway}: the connection broke")),
            Broken::Silence => self.violated(Rule::NoHang, format!("{what} at {gateway}: no end")),
        }
    }

    /// Judges an answer that is a refusal. None: it is none that the documentation has, which is a violation.
    fn refused(&self, answer: &Whole, what: &str) -> Option<crate::checks::Refusal> {
        let has_retry_after = answer.headers.contains_key("retry-after");
        match crate::checks::refusal(answer.status, &answer.json, has_retry_after) {
            Ok(refusal) => Some(refusal),
            Err(problem) => {
                self.violated(Rule::KnownErrors, format!("{what}: {problem}"));
                None
            }
        }
    }

    /// Whether a gateway's way to what S3 holds was undisturbed for the last `within`, and long enough before for connections to be whole.
    fn sees_all(&self, gateway: &str, within: Duration) -> bool {
        let from = machine::elapsed().saturating_sub(within + NOTICED_WITHIN);
        let [one, two] = REGISTRIES;
        !self.world.troubles.touched(&[gateway, one, two, s3::HOST], from)
    }

    fn is_over(&self) -> bool {
        self.world.stage() >= Stage::Healed
    }
}

fn path_of(adapter: Adapter) -> String {
    format!("/tenants/{}/adapters/{}", adapter.0, adapter.1.replace('/', "%2F"))
}

/// Sets the mesh up, asks while it fails, looks at it when it has healed.
///
/// # Errors
/// Never; what is wrong is in the record.
pub(crate) async fn run(world: Arc<World>) -> anyhow::Result<()> {
    set_up(&world).await;
    world.enter(Stage::Faults);
    let mut all = tokio::task::JoinSet::new();
    for number in 1..=ASKING {
        all.spawn(ask::run(Client::new(&world, format!("asking-{number}"))));
    }
    for (number, adapter) in ADAPTERS.into_iter().enumerate() {
        all.spawn(publish::run(Client::new(&world, format!("publish-{}", number + 1)), adapter));
        all.spawn(aliases::run(Client::new(&world, format!("alias-{}", number + 1)), adapter));
    }
    for tenant in NAMES {
        all.spawn(keys::run(Client::new(&world, format!("keys-{tenant}")), tenant));
    }
    all.spawn(audit::run(Client::new(&world, "audit")));
    while let Some(ended) = all.join_next().await {
        if let Err(error) = ended {
            world.record.violated(Rule::NoHang, format!("a client of the simulation failed: {error}"));
        }
    }
    audit::recovered(Client::new(&world, "recovery")).await;
    world.enter(Stage::Over);
    Ok(())
}

/// Without faults: tenants, a key each, a version of each adapter.
async fn set_up(world: &Arc<World>) {
    let client = Client::new(world, "set-up");
    for tenant in NAMES {
        loop {
            let made = client.operate(GATEWAYS[0], "POST", "/tenants", &json!({"name": tenant})).await;
            if made.is_ok_and(|made| matches!(made.status, 200 | 201)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    for tenant in NAMES {
        while keys::create(&client, GATEWAYS[0], tenant).await.is_none() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    for (number, adapter) in ADAPTERS.into_iter().enumerate() {
        let mut client = Client::new(world, format!("set-up-{}", number + 1));
        publish::until_acked(&mut client, adapter, number as u64).await;
    }
    client.say("the mesh is set up");
}
