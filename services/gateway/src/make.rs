//! Adapters that are made because a request asks for them: merges of the tenant's own (LoRAX's `merged_adapters`), and imports from where the
//! tenant's policy says that an `adapter_source` is.
//!
//! Whatever is made is a version like any other, so nothing behind this knows of it. What several requests ask for is made once; requests wait
//! for it for `make_wait_ms` and are then told to come back, while it goes on. What could not be made is not tried again for a few seconds.

use crate::app::Gateway;
use crate::directory::Snapshot;
use crate::error::code;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use weft_adapter_merge::{Component, Method, OutputDtype, Recipe, Space};
use weft_fault::{Fault, Kind};
use weft_proto::registry::v1 as pb;
use weft_types::{AdapterName, Digest};

/// Adapters being made at once, of all tenants and of one.
const MAKES_MAX: usize = 64;
const MAKES_PER_TENANT_MAX: usize = 8;
/// The same with the failures that are remembered.
const ENTRIES_MAX: usize = 1_024;
/// What could not be made is not tried again for so long.
const FAILURE_KEPT: Duration = Duration::from_secs(10);
/// Who it is, in records.
const ACTOR: &str = "request";

type Made = Result<(), Fault>;

struct Making {
    done: Shared<BoxFuture<'static, Made>>,
    ended: Arc<OnceLock<Instant>>,
}

/// What is being made, by tenant and adapter.
pub(crate) struct Makes {
    running: Mutex<HashMap<(String, String), Making>>,
    failures_kept: Duration,
}

impl Default for Makes {
    fn default() -> Self {
        Self::new(FAILURE_KEPT)
    }
}

impl Makes {
    fn new(failures_kept: Duration) -> Self {
        Self { running: Mutex::default(), failures_kept }
    }

    /// Waits for the adapter, begun here unless it was begun before.
    ///
    /// # Errors
    /// What the making came to; `unavailable` while it goes on after `wait`, or when too much is made at once.
    async fn make(
        &self,
        tenant: &str,
        adapter: &str,
        wait: Duration,
        work: impl Future<Output = Made> + Send + 'static,
    ) -> Made {
        let done = {
            let mut makes = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            makes.retain(|_, making| match making.done.peek() {
                Some(Ok(())) => false,
                Some(Err(_)) => making.ended.get().is_none_or(|ended| ended.elapsed() < self.failures_kept),
                None => true,
            });
            let key = (tenant.to_owned(), adapter.to_owned());
            let running = makes.iter().filter(|(_, making)| making.done.peek().is_none()).map(|((owner, _), _)| owner);
            let (all, own) = running.fold((0, 0), |(all, own), owner| (all + 1, own + usize::from(owner == tenant)));
            let is_full = all >= MAKES_MAX || own >= MAKES_PER_TENANT_MAX || makes.len() >= ENTRIES_MAX;
            match makes.get(&key) {
                Some(making) => making.done.clone(),
                None if is_full => {
                    let message = format!(
                        "{all} adapters are being made for requests, {own} of them this tenant's: the limits are {MAKES_MAX} and {MAKES_PER_TENANT_MAX}"
                    );
                    return Err(in_the_making(message));
                }
                None => {
                    // Goes on when nobody waits any more: the next request finds it.
                    let task = tokio::spawn(work);
                    let ended = Arc::new(OnceLock::new());
                    let end = Arc::clone(&ended);
                    let done = async move {
                        let made = task.await.unwrap_or_else(|error| Err(Fault::internal(error.to_string())));
                        let _ = end.set(Instant::now());
                        made
                    };
                    let done = done.boxed().shared();
                    // Its end is seen although nobody waits for it.
                    tokio::spawn(done.clone());
                    makes.insert(key, Making { done: done.clone(), ended });
                    done
                }
            }
        };
        match tokio::time::timeout(wait, done).await {
            Ok(made) => made,
            Err(_) => Err(in_the_making(format!("adapter {adapter} is being made and takes longer"))),
        }
    }
}

fn in_the_making(message: String) -> Fault {
    let mut fault = Fault::unavailable(message).with_code(code::ADAPTER_IN_THE_MAKING);
    fault.retry_after_ms = Some(2_000);
    fault
}

/// A merge that a request asks for; its parents are versions of the tenant's adapters.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Merge {
    /// Name, digest and weight of each.
    pub(crate) parents: Vec<(String, Digest, f64)>,
    pub(crate) method: Method,
    pub(crate) target_rank: Option<u32>,
    pub(crate) space: Space,
}

impl Merge {
    /// The recipe's digest.
    ///
    /// # Errors
    /// A value is out of bounds.
    fn recipe(&self) -> Result<Digest, weft_adapter_merge::Error> {
        let recipe = Recipe {
            parents: self
                .parents
                .iter()
                .map(|(_, digest, weight)| Component { digest: *digest, weight: *weight })
                .collect(),
            method: self.method,
            target_rank: self.target_rank,
            space: self.space,
            dtype: OutputDtype::default(),
        };
        Ok(recipe.check()?.digest())
    }

    /// What the adapter is called that is this merge.
    ///
    /// # Errors
    /// `invalid`: a value is out of bounds.
    pub(crate) fn name(&self) -> Result<AdapterName, Fault> {
        let recipe = self.recipe().map_err(|error| Fault::invalid("merged_adapters", error.to_string()))?;
        Ok(AdapterName::of_recipe(&recipe))
    }

    fn request(&self, tenant: &str) -> pb::MergeRequest {
        let parent = |(adapter, digest, weight): &(String, Digest, f64)| pb::MergeParent {
            adapter: adapter.clone(),
            selector: digest.to_string(),
            weight: *weight,
        };
        let (method, density, seed, majority_sign) = match self.method {
            Method::Linear {} => ("linear", None, None, None),
            Method::Svd {} => ("svd", None, None, None),
            Method::Ties { density, majority_sign } => ("ties", Some(density), None, Some(majority_sign)),
            Method::DareLinear { density, seed } => ("dare_linear", Some(density), Some(seed), None),
            Method::DareTies { density, seed, majority_sign } => {
                ("dare_ties", Some(density), Some(seed), Some(majority_sign))
            }
        };
        pb::MergeRequest {
            tenant: tenant.to_owned(),
            actor: ACTOR.to_owned(),
            parents: self.parents.iter().map(parent).collect(),
            method: method.to_owned(),
            density,
            seed,
            majority_sign: majority_sign.map(word).unwrap_or_default(),
            target_rank: self.target_rank,
            space: word(self.space),
            at_request: true,
            ..pb::MergeRequest::default()
        }
    }
}

/// As the wire spells it.
fn word(value: impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

impl Gateway {
    /// The adapter that is this merge, made first if the tenant has it not. Answers with its name, and with the directory that has it.
    ///
    /// # Errors
    /// The merge is refused, or not ready in time.
    pub(crate) async fn merged(
        self: &Arc<Self>,
        tenant: &str,
        merge: Merge,
    ) -> Result<(AdapterName, Arc<Snapshot>), Fault> {
        let name = merge.name()?;
        if let Some(snapshot) = self.has_version(tenant, name.as_str())? {
            return Ok((name, snapshot));
        }
        let (gateway, owner, adapter) = (Arc::clone(self), tenant.to_owned(), name.clone());
        let work = async move {
            gateway.ask_merge(merge.request(&owner)).await?;
            gateway.show_made(&owner, adapter.as_str()).await;
            Ok(())
        };
        self.make(tenant, name.as_str(), work).await?;
        self.after_making(tenant, name)
    }

    /// The adapter with this name, imported first from behind this beginning. Answers with the directory that has it.
    ///
    /// # Errors
    /// The import fails, or is not ready in time.
    pub(crate) async fn sourced(
        self: &Arc<Self>,
        tenant: &str,
        name: AdapterName,
        beginning: &str,
    ) -> Result<Arc<Snapshot>, Fault> {
        let start = pb::PublishStart {
            tenant: tenant.to_owned(),
            adapter: name.to_string(),
            alias: weft_types::AliasName::live().to_string(),
            actor: ACTOR.to_owned(),
            quarantined: false,
        };
        let request = pb::ImportRequest { start: Some(start), source: format!("{beginning}{name}") };
        let there = pb::ListVersionsRequest { tenant: tenant.to_owned(), adapter: name.to_string() };
        let (gateway, owner, adapter) = (Arc::clone(self), tenant.to_owned(), name.clone());
        let work = async move {
            // Versions that the directory does not show are in quarantine: nobody gets round that by asking.
            let unknown = || Err(crate::error::Error::UnknownModel(adapter.to_string()).into());
            match gateway.ask(gateway.registry.clone().list_versions(there)).await {
                Ok(found) if !found.versions.is_empty() => return unknown(),
                Err(fault) if fault.kind != Kind::NotFound => return Err(fault),
                Ok(_) | Err(_) => {}
            }
            match gateway.ask_import(request).await {
                Err(fault) if fault.kind == Kind::Conflict => return unknown(),
                imported => imported.map(drop)?,
            }
            gateway.show_made(&owner, adapter.as_str()).await;
            Ok(())
        };
        self.make(tenant, name.as_str(), work).await?;
        Ok(self.after_making(tenant, name)?.1)
    }

    async fn make(&self, tenant: &str, adapter: &str, work: impl Future<Output = Made> + Send + 'static) -> Made {
        self.makes.make(tenant, adapter, Duration::from_millis(self.settings.make_wait_ms), work).await
    }

    async fn show_made(&self, tenant: &str, adapter: &str) {
        self.show(|snapshot| snapshot.newest(tenant, adapter).is_some()).await;
    }

    fn has_version(&self, tenant: &str, adapter: &str) -> Result<Option<Arc<Snapshot>>, Fault> {
        let snapshot = self.directory.snapshot()?;
        Ok(snapshot.newest(tenant, adapter).is_some().then_some(snapshot))
    }

    fn after_making(&self, tenant: &str, name: AdapterName) -> Result<(AdapterName, Arc<Snapshot>), Fault> {
        // Gone again, or this gateway's registry does not see it yet.
        let missing = || in_the_making(format!("adapter {name} is not in the directory yet"));
        let snapshot = self.has_version(tenant, name.as_str())?.ok_or_else(missing)?;
        Ok((name, snapshot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(20);

    fn counted(times: &Arc<AtomicU32>, takes: Duration, made: Made) -> impl Future<Output = Made> + Send + 'static {
        let times = Arc::clone(times);
        async move {
            times.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(takes).await;
            made
        }
    }

    #[tokio::test]
    async fn what_many_ask_for_is_made_once_and_goes_on_without_them() {
        let (makes, times) = (Makes::new(LONG), Arc::new(AtomicU32::new(0)));
        let ask = |wait| makes.make("t", "a", wait, counted(&times, Duration::from_millis(500), Ok(())));
        let (first, second) = tokio::join!(ask(SHORT), ask(LONG));
        let fault = first.unwrap_err();
        assert_eq!((fault.code.as_str(), fault.retry_after_ms), (code::ADAPTER_IN_THE_MAKING, Some(2_000)));
        second.unwrap();
        assert_eq!(times.load(Ordering::SeqCst), 1);
        // Done with: what is asked for again is gone again.
        ask(LONG).await.unwrap();
        assert_eq!(times.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_failure_is_told_to_all_and_not_tried_again_at_once() {
        let times = Arc::new(AtomicU32::new(0));
        let fail = || counted(&times, Duration::ZERO, Err(Fault::internal("no")));
        let makes = Makes::new(LONG);
        for _ in 0..3 {
            assert_eq!(makes.make("t", "a", LONG, fail()).await.unwrap_err().message, "no");
        }
        assert_eq!(times.load(Ordering::SeqCst), 1);
        let forgetful = Makes::new(Duration::ZERO);
        for _ in 0..3 {
            forgetful.make("t", "a", LONG, fail()).await.unwrap_err();
        }
        assert_eq!(times.load(Ordering::SeqCst), 4);
    }

    #[tokio::test]
    async fn no_more_than_the_limit_is_made_at_once() {
        let (makes, times) = (Makes::new(LONG), Arc::new(AtomicU32::new(0)));
        for n in 0..=MAKES_MAX {
            let tenant = format!("t{}", n / MAKES_PER_TENANT_MAX);
            let fault = makes.make(&tenant, &n.to_string(), SHORT, counted(&times, LONG, Ok(()))).await.unwrap_err();
            assert_eq!(fault.message.contains("the limits are"), n == MAKES_MAX, "{n}: {fault}");
        }
        assert_eq!(times.load(Ordering::SeqCst) as usize, MAKES_MAX);
    }

    #[tokio::test]
    async fn one_tenant_does_not_take_all_and_what_nobody_waits_for_makes_room_when_it_ends() {
        let (makes, times) = (Makes::new(LONG), Arc::new(AtomicU32::new(0)));
        let ask =
            |n: usize| makes.make("t", if n == 0 { "first" } else { "other" }, SHORT, counted(&times, LONG, Ok(())));
        for n in 0..MAKES_PER_TENANT_MAX {
            let work = counted(&times, Duration::from_millis(300), Ok(()));
            makes.make("t", &n.to_string(), SHORT, work).await.unwrap_err();
        }
        assert!(ask(0).await.unwrap_err().message.contains("the limits are"));
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert!(!ask(1).await.unwrap_err().message.contains("the limits are"));
        assert_eq!(makes.running.lock().unwrap().len(), 1, "what has ended is forgotten");
    }
}
