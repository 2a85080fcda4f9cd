//! Experiments: records that split an alias, what gateways report, guardrails, and ends that survive whoever began them.

use crate::support::{Package, Running, TENANT, World, publish};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use weft_adapter_registry::Settings;
use weft_experiments::{Experiment, Statistics};
use weft_fault::{Fault, Kind};
use weft_object_store::ObjectStore;
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::change_experiment_request::Change;

fn description(id: &str) -> Value {
    json!({
        "id": id, "adapter": "pirate", "primary": "feedback",
        "arms": [{"name": "v1", "version": 1, "role": "control", "weight": 9}, {"name": "v2", "version": "2", "weight": 1}],
        "metrics": [
            {"name": "feedback", "kind": "binary", "better": "higher"},
            {"name": "error", "kind": "binary", "better": "lower"},
        ],
        "guardrails": [{"metric": "error", "rule": {"limit": 0.05}, "observations_min": 20}],
    })
}

async fn create(registry: &Running, description: &Value, start: bool) -> Result<Experiment, Fault> {
    let request = pb::CreateExperimentRequest {
        tenant: TENANT.to_owned(),
        description: serde_json::to_vec(description).unwrap().into(),
        start,
        actor: "ada".to_owned(),
    };
    let answer = registry.client.clone().create_experiment(request).await;
    answer.map(|answer| parsed(&answer.into_inner())).map_err(Fault::from)
}

fn parsed(answer: &pb::ExperimentResponse) -> Experiment {
    Experiment::parse(&answer.experiment.as_ref().unwrap().description).unwrap()
}

async fn change(registry: &Running, id: &str, change: Change) -> Result<pb::ExperimentResponse, Fault> {
    let request = pb::ChangeExperimentRequest {
        tenant: TENANT.to_owned(),
        id: id.to_owned(),
        actor: "grace".to_owned(),
        change: Some(change),
    };
    registry.client.clone().change_experiment(request).await.map(|answer| answer.into_inner()).map_err(Fault::from)
}

async fn shown(registry: &Running, id: &str) -> pb::ExperimentResponse {
    let request = pb::GetExperimentRequest { tenant: TENANT.to_owned(), id: id.to_owned() };
    registry.client.clone().get_experiment(request).await.unwrap().into_inner()
}

async fn report(
    registry: &Running,
    id: &str,
    gateway: &str,
    sequence: u64,
    statistics: &Statistics,
) -> Result<(), Fault> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let request = pb::ReportObservationsRequest {
        tenant: TENANT.to_owned(),
        experiment: id.to_owned(),
        gateway: gateway.to_owned(),
        sequence,
        statistics: serde_json::to_vec(statistics).unwrap().into(),
        exposures: format!("{{\"from\":\"{gateway}\",\"sequence\":{sequence}}}\n").into(),
        at_ms: now,
    };
    registry.client.clone().report_observations(request).await.map(drop).map_err(Fault::from)
}

/// A registry with versions 1, 2 and 3 of `pirate`, and `live` at version 1.
async fn ready(settings: Settings) -> (World, Running) {
    let world = World::new().await;
    let mut registry = world.start_with(settings).await;
    registry.prepare().await;
    for seed in 1..=3 {
        publish(&registry.client, TENANT, "pirate", if seed == 1 { "live" } else { "" }, &Package::tiny(seed))
            .await
            .unwrap();
    }
    (world, registry)
}

fn start() -> Change {
    Change::Start(pb::StartExperiment {})
}

fn stop() -> Change {
    Change::Stop(pb::StopExperiment {})
}

fn promote(arm: &str) -> Change {
    Change::Promote(pb::PromoteArm { arm: arm.to_owned() })
}

/// What gateways are told of the tenant.
async fn split(registry: &Running) -> Vec<Experiment> {
    let directory = registry.directory().await;
    directory.tenants[0].experiments.iter().map(|json| Experiment::parse(json).unwrap()).collect()
}

async fn move_live(registry: &Running, version: u64) -> Result<pb::Alias, Fault> {
    let request = pb::SetAliasRequest {
        tenant: TENANT.to_owned(),
        adapter: "pirate".to_owned(),
        alias: "live".to_owned(),
        version,
        actor: "grace".to_owned(),
        ..Default::default()
    };
    let moved = registry.client.clone().set_alias(request).await;
    moved.map(|moved| moved.into_inner().alias.unwrap()).map_err(Fault::from)
}

#[tokio::test]
async fn a_running_experiment_holds_its_alias_until_an_arm_is_promoted() {
    let (_world, registry) = ready(Settings::default()).await;
    let draft = create(&registry, &description("first"), false).await.unwrap();
    assert_eq!(
        draft.arms[1].digest,
        registry.resolve("pirate", "2").await.unwrap().digest.as_ref().try_into().unwrap()
    );
    assert_eq!(create(&registry, &description("first"), false).await.unwrap(), draft, "the same again is the same");
    assert_eq!(split(&registry).await, [], "a draft splits nothing");

    change(&registry, "first", start()).await.unwrap();
    let running = split(&registry).await;
    assert_eq!((running.len(), running[0].id.as_str()), (1, "first"));
    assert_eq!(change(&registry, "first", start()).await.map(|again| parsed(&again)).unwrap(), running[0]);

    // Nothing else moves or splits the alias meanwhile.
    let moved = move_live(&registry, 3).await.unwrap_err();
    assert_eq!(moved.kind, Kind::Conflict);
    assert!(moved.message.contains("experiment first"), "{}", moved.message);
    let late = publish(&registry.client, TENANT, "pirate", "live", &Package::tiny(4)).await.unwrap_err();
    assert!(late.message.contains("publish without an alias"), "{}", late.message);
    assert_eq!(registry.versions("pirate").await.len(), 3, "a refused publish leaves no version");
    publish(&registry.client, TENANT, "pirate", "", &Package::tiny(4)).await.unwrap();
    create(&registry, &description("second"), false).await.unwrap();
    let second = change(&registry, "second", start()).await.unwrap_err();
    assert!(second.message.contains("split by experiment first"), "{}", second.message);

    let weigh = |weight| Change::Weigh(pb::WeighArm { arm: "v2".to_owned(), weight });
    let weighed = change(&registry, "first", weigh(5)).await.unwrap();
    assert_eq!((parsed(&weighed).phase(), parsed(&weighed).arms[1].weight), (1, 5));
    assert_eq!(parsed(&change(&registry, "first", weigh(5)).await.unwrap()).phase(), 1, "asked again: nothing more");
    assert_eq!(change(&registry, "first", weigh(10_001)).await.unwrap_err().kind, Kind::Invalid);

    assert_eq!(
        change(&registry, "first", promote("v1")).await.unwrap_err().kind,
        Kind::Invalid,
        "the control cannot win"
    );
    let promoted = change(&registry, "first", promote("v2")).await.unwrap();
    assert_eq!(parsed(&promoted).state.as_str(), "promoted");
    assert_eq!(change(&registry, "first", promote("v2")).await.unwrap(), promoted);
    assert_eq!(change(&registry, "first", stop()).await.unwrap_err().kind, Kind::Conflict);
    assert_eq!(registry.resolve("pirate", "live").await.unwrap().number, 2);
    assert_eq!(split(&registry).await, []);
    let told: Vec<String> =
        promoted.experiment.unwrap().changes.iter().map(|change| format!("{} {}", change.actor, change.what)).collect();
    assert_eq!(told, ["grace started", "grace arm v2 has weight 5", "grace arm v2 is promoted"]);

    // The control of the second one is version 1, and the alias is not there any more.
    let second = change(&registry, "second", start()).await.unwrap_err();
    assert!(second.message.contains("is version 2, which is not the control"), "{}", second.message);
    assert_eq!(parsed(&change(&registry, "second", stop()).await.unwrap()).state.as_str(), "stopped");
    assert_eq!(move_live(&registry, 3).await.unwrap().version, 3);
}

#[tokio::test]
async fn an_alias_rolls_back_to_what_it_meant_before() {
    let (_world, registry) = ready(Settings::default()).await;
    let back = async |expected: &str| {
        let request = pb::RollBackAliasRequest {
            tenant: TENANT.to_owned(),
            adapter: "pirate".to_owned(),
            alias: "live".to_owned(),
            expected_etag: expected.to_owned(),
            actor: "grace".to_owned(),
        };
        let answer = registry.client.clone().roll_back_alias(request).await;
        answer.map(|answer| answer.into_inner().alias.unwrap()).map_err(Fault::from)
    };
    assert_eq!(back("").await.unwrap_err().kind, Kind::Conflict, "there is nothing to go back to");
    let second = move_live(&registry, 2).await.unwrap();
    move_live(&registry, 3).await.unwrap();
    assert_eq!(back(&second.etag).await.unwrap_err().kind, Kind::Conflict);
    assert_eq!(back("").await.unwrap().version, 2);
    assert_eq!(back("*").await.unwrap().version, 3, "twice is forth again");
    let request =
        pb::ListAliasMovesRequest { tenant: TENANT.to_owned(), adapter: "pirate".to_owned(), alias: "live".to_owned() };
    let moves = registry.client.clone().list_alias_moves(request).await.unwrap().into_inner();
    let versions: Vec<u64> = moves.earlier.iter().map(|earlier| earlier.version).collect();
    assert_eq!((moves.alias.unwrap().version, versions), (3, vec![2, 3, 2, 1]));
}

#[tokio::test]
async fn a_description_that_breaks_rules_is_told_all_of_them() {
    let (_world, registry) = ready(Settings::default()).await;
    let with = |change: &dyn Fn(&mut Value)| {
        let mut description = description("wrong");
        change(&mut description);
        description
    };
    for (wrong, parts) in [
        (with(&|it| it["alpha"] = json!(0.9)), vec!["alpha", "0.9"]),
        (
            with(&|it| {
                it["alpha"] = json!(0.9);
                it["primary"] = json!("none");
            }),
            vec!["alpha", "primary"],
        ),
        (with(&|it| it["state"] = json!("running")), vec!["state"]),
        (with(&|it| it["tenant"] = json!("other")), vec!["tenant"]),
        (with(&|it| it["arms"][1]["version"] = json!(9)), vec!["pirate@9"]),
        (with(&|it| it["arms"][1]["version"] = json!(1)), vec!["arms[1].digest", "another arm's"]),
        (with(&|it| it["arms"][1]["version"] = json!([])), vec!["arms[1].version"]),
        (with(&|it| it["adapter"] = json!("https://x")), vec!["https"]),
        (with(&|it| it["nonsense"] = json!(1)), vec!["nonsense"]),
        (with(&|it| it["id"] = json!("../../tenant")), vec!["id"]),
        (json!({"id": "x"}), vec!["adapter"]),
        (json!({"id": "x".repeat(9000)}), vec!["8192"]),
    ] {
        let fault = create(&registry, &wrong, false).await.unwrap_err();
        for part in parts {
            assert!(fault.message.contains(part), "{part}: {}", fault.message);
        }
    }
    assert_eq!(create(&registry, &json!([1]), false).await.unwrap_err().kind, Kind::Invalid);
    let request = pb::GetExperimentRequest { tenant: TENANT.to_owned(), id: "../../tenant".to_owned() };
    let fault = Fault::from(registry.client.clone().get_experiment(request).await.unwrap_err());
    assert_eq!(fault.kind, Kind::NotFound);
}

/// So many requests to each arm, of which the second one's share `bad` failed.
fn observed(experiment: &Experiment, each: u64, bad: u64) -> Statistics {
    let mut statistics = Statistics::new(experiment);
    for n in 0..each {
        for arm in 0..2 {
            statistics.expose(experiment, 0, arm, true).unwrap();
            let error = f64::from(u8::from(arm == 1 && n < bad));
            statistics.record(experiment, 0, arm, 1, error).unwrap();
        }
    }
    statistics
}

#[tokio::test]
async fn reports_count_once_and_add_up_over_gateways_and_registries() {
    let (world, registry) = ready(Settings::default()).await;
    let experiment = create(&registry, &description("sums"), true).await.unwrap();
    let (one, more, other) = (observed(&experiment, 10, 0), observed(&experiment, 15, 1), observed(&experiment, 7, 0));
    report(&registry, "sums", "gateway-a", 1, &one).await.unwrap();
    report(&registry, "sums", "gateway-a", 1, &one).await.unwrap();
    report(&registry, "sums", "gateway-a", 2, &more).await.unwrap();
    report(&registry, "sums", "gateway-a", 1, &one).await.unwrap();
    let second = world.start().await;
    report(&second, "sums", "gateway-b", 1, &other).await.unwrap();
    for registry in [&registry, &second] {
        let answer: Value = serde_json::from_slice(&shown(registry, "sums").await.report).unwrap();
        let exposures: Vec<u64> =
            answer["arms"].as_array().unwrap().iter().map(|arm| arm["exposures"].as_u64().unwrap()).collect();
        assert_eq!(exposures, [22, 22], "15 of the one gateway and 7 of the other");
    }
    let logs: Vec<String> = world.keys().await.into_iter().filter(|key| key.contains("/exposures/")).collect();
    assert_eq!(logs.len(), 3, "{logs:?}");
    let day = logs[0].split('/').nth(4).unwrap().to_owned();
    let request = pb::ReadExposuresRequest { tenant: TENANT.to_owned(), experiment: "sums".to_owned(), day };
    let mut stream = registry.client.clone().read_exposures(request.clone()).await.unwrap().into_inner();
    let mut lines = String::new();
    while let Some(piece) = stream.message().await.unwrap() {
        lines.push_str(std::str::from_utf8(&piece.lines).unwrap());
    }
    assert_eq!(lines.lines().count(), 3, "{lines}");
    let wrong = pb::ReadExposuresRequest { day: "../x".to_owned(), ..request };
    assert_eq!(Fault::from(registry.client.clone().read_exposures(wrong).await.unwrap_err()).kind, Kind::Invalid);

    // What is of another experiment, or of none, is refused.
    let other = Experiment { id: "other".to_owned(), ..experiment.clone() };
    for (id, statistics) in [("sums", Statistics::new(&other)), ("none", Statistics::new(&other))] {
        let fault = report(&registry, id, "gateway-a", 9, &statistics).await.unwrap_err();
        assert!(matches!(fault.kind, Kind::Invalid | Kind::NotFound), "{fault}");
    }
    assert_eq!(report(&registry, "sums", "../x", 9, &one).await.unwrap_err().kind, Kind::Invalid);
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..1000 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what}: not within 20 s");
}

fn often() -> Settings {
    Settings { experiment_evaluate_ms: 50, ..Settings::default() }
}

#[tokio::test]
async fn a_guardrail_stops_an_arm_and_then_the_experiment_by_itself() {
    let (_world, registry) = ready(often()).await;
    let experiment = create(&registry, &description("guarded"), true).await.unwrap();
    report(&registry, "guarded", "gateway-a", 1, &observed(&experiment, 200, 0)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(split(&registry).await[0].arms[1].weight, 1, "it keeps its guardrail");
    report(&registry, "guarded", "gateway-a", 2, &observed(&experiment, 400, 120)).await.unwrap();
    let ended = until("ended", async || {
        let answer = shown(&registry, "guarded").await;
        (parsed(&answer).state.as_str() == "stopped").then_some(answer)
    })
    .await;
    assert_eq!(parsed(&ended).arms[1].weight, 0);
    let changes = &ended.experiment.unwrap().changes;
    let actors: Vec<&str> = changes.iter().map(|change| change.actor.as_str()).collect();
    assert_eq!(actors, ["ada", "guardrail", "schedule"]);
    assert!(changes[1].what.contains("arm v2 is stopped: error"), "{}", changes[1].what);
    assert_eq!(registry.metric("registry_experiment_arms_stopped_total"), 1.0);
    // Its alias is free, and means what it meant.
    assert_eq!(registry.resolve("pirate", "live").await.unwrap().number, 1);
    assert_eq!(move_live(&registry, 3).await.unwrap().version, 3);
}

#[tokio::test]
async fn time_ends_an_experiment() {
    let (_world, registry) = ready(often()).await;
    let mut timed = description("timed");
    timed["ends_ms"] = json!(1);
    create(&registry, &timed, true).await.unwrap();
    let is_stopped = async || parsed(&shown(&registry, "timed").await).state.as_str() == "stopped";
    until("stopped", async || is_stopped().await.then_some(())).await;
    assert_eq!(split(&registry).await, []);
}

#[tokio::test]
async fn an_end_that_was_begun_is_finished_by_another_registry() {
    let (world, registry) = ready(Settings { experiment_evaluate_ms: 3_600_000, ..Settings::default() }).await;
    create(&registry, &description("torn"), true).await.unwrap();
    // As a registry leaves it that dies after its first write.
    let key = format!("registry/tenants/{TENANT}/experiments/torn.json");
    let object = world.store.get(&key).await.unwrap().unwrap();
    let mut record: Value = serde_json::from_slice(&object.bytes).unwrap();
    record["ending"] = json!({"promoted": {"arm": "v2"}});
    record["revision"] = json!(record["revision"].as_u64().unwrap() + 1);
    world.store.put(&key, serde_json::to_vec(&record).unwrap().into()).await.unwrap();
    let second = world.start_with(often()).await;
    until("promoted", async || (parsed(&shown(&second, "torn").await).state.as_str() == "promoted").then_some(()))
        .await;
    assert_eq!(second.resolve("pirate", "live").await.unwrap().number, 2);
    assert_eq!(split(&second).await, []);
    let again = change(&registry, "torn", promote("v2")).await.unwrap();
    assert_eq!(parsed(&again).state.as_str(), "promoted");
}

#[tokio::test]
async fn an_alias_that_names_an_ended_experiment_is_let_go() {
    let (world, registry) = ready(often()).await;
    create(&registry, &description("ghost"), false).await.unwrap();
    change(&registry, "ghost", stop()).await.unwrap();
    // As a start leaves it that raced the stop: it claims the alias after the stop found it free.
    let key = format!("registry/tenants/{TENANT}/adapters/pirate/aliases/live.json");
    let object = world.store.get(&key).await.unwrap().unwrap();
    let mut alias: Value = serde_json::from_slice(&object.bytes).unwrap();
    alias["experiment"] = json!("ghost");
    alias["revision"] = json!(alias["revision"].as_u64().unwrap() + 1);
    world.store.put(&key, serde_json::to_vec(&alias).unwrap().into()).await.unwrap();
    assert_eq!(move_live(&registry, 3).await.unwrap_err().kind, Kind::Conflict);
    until("let go", async || move_live(&registry, 3).await.ok()).await;
}
