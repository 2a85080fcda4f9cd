//! 300 random events through the whole mesh (publish, publish again, move an alias, generate, many at once) against a
//! sequential model of names, versions and answers. Invariant 1 from the API key down to the slot.

use crate::support::{Weft, tiny_adapter, tiny_model};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use tokio::task::JoinHandle;
use weft_cli::client::{Admin, Answer, Data};

const EVENTS: usize = 300;
const TOKENS: u32 = 10;
const PACKAGES: [&str; 8] = ["rank4", "rank8", "rank16", "rank64", "plain", "rslora", "mlp_only", "all_linear"];
const PROMPTS: [&[u32]; 3] = [&[72, 101, 108, 108, 111], &[119, 101, 102, 116, 32, 38], &[120]];
const TENANTS: [&str; 3] = ["harbour", "helpdesk", "analytics"];
/// The same names for every tenant: they must not meet.
const NAMES: [&str; 2] = ["voice", "org/voice"];
const ALIASES: [&str; 2] = ["live", "canary"];

/// Prompt and digest (empty: the base) to the text that a mesh at rest gives.
type Answers = HashMap<(usize, String), String>;
/// The versions an alias named so far and the one being set, as digests; the last is current.
type History = Arc<Mutex<Vec<String>>>;

/// What the registry should know.
#[derive(Default)]
struct Model {
    /// Digests of the versions of (tenant, name), number 1 first.
    versions: BTreeMap<(usize, usize), Vec<String>>,
    aliases: BTreeMap<(usize, usize, &'static str), History>,
}

struct Mesh {
    _weft: Weft,
    admin: Admin,
    tenants: Vec<Data>,
    answers: Arc<Answers>,
    digests: HashMap<&'static str, String>,
}

impl Mesh {
    /// A mesh whose slots hold about half of the packages, and the answers of each package asked one by one.
    async fn start() -> Self {
        let flags =
            ["--worker-adapter-memory-bytes", "200000", "--worker-running-requests-max", "12", "--dtype", "f32"];
        let weft = Weft::up(&tiny_model(), &flags);
        let admin = weft.admin();
        let reference = weft.data(&weft.tenant("reference").await);
        let (mut answers, mut digests) = (Answers::new(), HashMap::new());
        for package in PACKAGES {
            let published = admin.publish("reference", package, &tiny_adapter(package), Some("live")).await.unwrap();
            digests.insert(package, published.digest);
        }
        for package in PACKAGES.iter().copied().chain(["base"]) {
            for (n, prompt) in PROMPTS.iter().enumerate() {
                let answer = reference.complete_tokens(package, prompt, TOKENS).await.unwrap();
                assert_eq!(answer.digest, digests.get(package).cloned().unwrap_or_default());
                answers.insert((n, answer.digest), answer.text);
            }
        }
        for n in 0..PROMPTS.len() {
            let texts: HashSet<_> =
                answers.iter().filter(|((prompt, _), _)| *prompt == n).map(|(_, text)| text).collect();
            assert!(texts.len() > PACKAGES.len() / 2, "prompt {n} tells too few packages apart: {texts:?}");
        }
        let mut tenants = Vec::new();
        for tenant in TENANTS {
            tenants.push(weft.data(&weft.tenant(tenant).await));
        }
        Self { admin, tenants, answers: Arc::new(answers), digests, _weft: weft }
    }

    /// Asks in the background. The answer must be that of a version which the alias named at some time between the
    /// question and its end.
    fn ask(&self, tenant: usize, name: usize, alias: &'static str, prompt: usize, history: History) -> JoinHandle<()> {
        let (data, answers) = (self.tenants[tenant].clone(), Arc::clone(&self.answers));
        let current = history.lock().unwrap().len() - 1;
        tokio::spawn(async move {
            let model = format!("{}@{alias}", NAMES[name]);
            let answer = data.complete_tokens(&model, PROMPTS[prompt], TOKENS).await.unwrap();
            let possible = history.lock().unwrap()[current..].to_vec();
            assert!(possible.contains(&answer.digest), "{model} was never {} meanwhile", answer.digest);
            check(&answers, &answer, prompt, TENANTS[tenant], NAMES[name]);
        })
    }
}

fn check(answers: &Answers, answer: &Answer, prompt: usize, tenant: &str, name: &str) {
    assert_eq!(answers[&(prompt, answer.digest.clone())], answer.text, "{} answered as another", answer.adapter);
    assert!(answer.adapter.starts_with(&format!("{tenant}/{name}@")), "{} for {tenant}/{name}", answer.adapter);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_random_events_through_the_mesh_agree_with_a_sequential_model() {
    let seed = std::env::var("WEFT_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    println!("seed {seed}: run again with WEFT_TEST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mesh = Mesh::start().await;
    let mut model = Model::default();
    let mut background = Vec::new();
    let (mut republished, mut moved, mut asked) = (0, 0, 0);
    for _ in 0..EVENTS {
        let (tenant, name) = (rng.random_range(0..TENANTS.len()), rng.random_range(0..NAMES.len()));
        let alias = *ALIASES.choose(&mut rng).unwrap();
        let prompt = rng.random_range(0..PROMPTS.len());
        let versions = model.versions.entry((tenant, name)).or_default();
        let known: Vec<_> = model.aliases.keys().copied().collect();
        match rng.random_range(0..100) {
            // Publish: a package that is a version already makes none, and the alias never goes back.
            0..20 => {
                let package = *PACKAGES.choose(&mut rng).unwrap();
                let digest = mesh.digests[package].clone();
                let number = versions.iter().position(|known| *known == digest).map(|at| at as u64 + 1);
                republished += usize::from(number.is_some());
                if number.is_none() {
                    versions.push(digest.clone());
                }
                let number = number.unwrap_or(versions.len() as u64);
                let history = model.aliases.entry((tenant, name, alias)).or_default();
                let current = history.lock().unwrap().last().cloned();
                let current = current.and_then(|digest| versions.iter().position(|known| *known == digest));
                if current.is_none_or(|at| (at as u64) < number) {
                    history.lock().unwrap().push(digest.clone());
                }
                let folder = tiny_adapter(package);
                let published = mesh.admin.publish(TENANTS[tenant], NAMES[name], &folder, Some(alias)).await.unwrap();
                assert_eq!((published.version, published.digest), (number, digest));
            }
            // Move an alias, back or forth.
            20..35 if !versions.is_empty() => {
                let number = rng.random_range(1..=versions.len());
                let history = model.aliases.entry((tenant, name, alias)).or_default();
                history.lock().unwrap().push(versions[number - 1].clone());
                mesh.admin.set_alias(TENANTS[tenant], NAMES[name], alias, number as u64, None).await.unwrap();
                moved += 1;
            }
            // A number always means the same bytes, whatever the aliases do.
            35..50 if !versions.is_empty() => {
                let number = rng.random_range(1..=versions.len());
                let asked_for = format!("{}@{number}", NAMES[name]);
                let answer = mesh.tenants[tenant].complete_tokens(&asked_for, PROMPTS[prompt], TOKENS).await.unwrap();
                assert_eq!(answer.digest, versions[number - 1]);
                assert_eq!(answer.adapter, format!("{}/{asked_for}", TENANTS[tenant]));
                check(&mesh.answers, &answer, prompt, TENANTS[tenant], NAMES[name]);
            }
            // With nothing else being written, an alias means what was set last, also right after it was set.
            50..65 if model.aliases.contains_key(&(tenant, name, alias)) => {
                let current = model.aliases[&(tenant, name, alias)].lock().unwrap().last().cloned().unwrap();
                let asked_for = format!("{}@{alias}", NAMES[name]);
                let answer = mesh.tenants[tenant].complete_tokens(&asked_for, PROMPTS[prompt], TOKENS).await.unwrap();
                assert_eq!(answer.digest, current);
                check(&mesh.answers, &answer, prompt, TENANTS[tenant], NAMES[name]);
            }
            // A name that is no adapter of this tenant, or not yet, is unknown, whoever else has it.
            65..70 => {
                let asked_for = format!("{}@{}", NAMES[name], versions.len() + 1);
                let refused =
                    mesh.tenants[tenant].complete_tokens(&asked_for, PROMPTS[prompt], TOKENS).await.unwrap_err();
                assert!(refused.to_string().contains("404"), "{refused:#}");
            }
            // Many at once, while the next events go on.
            _ => {
                for _ in 0..rng.random_range(1..8) {
                    let prompt = rng.random_range(0..PROMPTS.len());
                    match known.choose(&mut rng) {
                        Some(key @ (tenant, name, alias)) => {
                            let history = Arc::clone(&model.aliases[key]);
                            background.push(mesh.ask(*tenant, *name, alias, prompt, history));
                        }
                        None => {
                            let (data, answers) = (mesh.tenants[tenant].clone(), Arc::clone(&mesh.answers));
                            background.push(tokio::spawn(async move {
                                let answer = data.complete_tokens("base", PROMPTS[prompt], TOKENS).await.unwrap();
                                assert_eq!(answers[&(prompt, String::new())], answer.text);
                            }));
                        }
                    }
                    asked += 1;
                }
            }
        }
        // Bounded, so that the queue is not what is tested.
        while background.len() > 64 {
            background.remove(0).await.unwrap();
        }
    }
    for answer in background {
        answer.await.unwrap();
    }
    // What the registry lists is what the model has.
    for ((tenant, name), versions) in &model.versions {
        if versions.is_empty() {
            continue;
        }
        let listed = mesh.admin.versions(TENANTS[*tenant], NAMES[*name]).await.unwrap().to_string();
        assert!(versions.iter().all(|digest| listed.contains(digest)), "{listed}");
        assert_eq!(listed.matches("\"digest\"").count(), versions.len(), "{listed}");
    }
    println!("{republished} published again, {moved} moves, {asked} asked at once");
    assert!(republished > 0 && moved > 5 && asked > 50);
}
