//! Versions of a tenant's adapters, merged into a new one: resolved, read and hashed, merged off the event loop, then checked and
//! stored as any other package is. `docs/merging.md` says what a merge is.
//!
//! A version keeps its lineage: the recipe, whose parents are digests, and what these were called. A recipe gives the same bytes
//! whenever and wherever it is followed, so that the same merge again is the version that it was.

use super::{Files, Made, Outcome, Package, Publisher, Target};
use crate::Error;
use crate::layout::adapter_prefix;
use crate::records::{BaseRecord, Lineage, LineageParent, VersionRecord};
use bytes::Bytes;
use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use weft_adapter_format::Refusal;
use weft_adapter_merge::{self as merging, CheckedRecipe, Component, Method, OutputDtype, Parent, Recipe, Space};
use weft_object_store::keys;
use weft_proto::registry::v1 as pb;
use weft_types::{AdapterName, Digest, Selector, TenantName};

/// A merge as it was asked for: the words of a recipe, with names in the place of digests.
pub(crate) struct Asked {
    pub(crate) start: pb::PublishStart,
    pub(crate) parents: Vec<pb::MergeParent>,
    pub(crate) method: Method,
    pub(crate) target_rank: Option<u32>,
    pub(crate) space: Space,
    pub(crate) dtype: OutputDtype,
    /// For a request that waits.
    pub(crate) at_request: bool,
}

/// # Errors
/// `invalid`, naming the field.
fn method_of(words: serde_json::Map<String, serde_json::Value>) -> Result<Method, Error> {
    let kind = words.get("kind").map(ToString::to_string).unwrap_or_default();
    serde_json::from_value(words.into()).map_err(|error| {
        let said = error.to_string();
        let missing =
            ["density", "seed"].into_iter().find(|field| said.starts_with(&format!("missing field `{field}`")));
        match missing {
            Some("density") => Error::invalid(
                "density",
                format!("density is missing: the method {kind} needs it, over 0 and at most 1"),
            ),
            Some(field) => Error::invalid(field, format!("{field} is missing: the method {kind} needs it")),
            None => Error::invalid("method", format!("method: {said}")),
        }
    })
}

impl Asked {
    /// Reads a request's words.
    ///
    /// # Errors
    /// `invalid`, naming the field.
    pub(crate) fn read(request: pb::MergeRequest) -> Result<Self, Error> {
        let pb::MergeRequest { tenant, adapter, alias, actor, parents, target_rank, .. } = &request;
        let start = pb::PublishStart {
            tenant: tenant.clone(),
            adapter: adapter.clone(),
            alias: alias.clone(),
            actor: actor.clone(),
            quarantined: false,
        };
        let mut method = serde_json::Map::from_iter([("kind".to_owned(), request.method.clone().into())]);
        let mut set = |name: &str, value: Option<serde_json::Value>| {
            value.map(|value| method.insert(name.to_owned(), value));
        };
        set("density", request.density.map(Into::into));
        set("seed", request.seed.map(Into::into));
        set("majority_sign", word(&request.majority_sign));
        let wrong =
            |param: &'static str| move |error: serde_json::Error| Error::invalid(param, format!("{param}: {error}"));
        Ok(Self {
            method: method_of(method)?,
            space: word(&request.space).map_or(Ok(Space::default()), serde_json::from_value).map_err(wrong("space"))?,
            dtype: word(&request.dtype)
                .map_or(Ok(OutputDtype::default()), serde_json::from_value)
                .map_err(wrong("dtype"))?,
            target_rank: *target_rank,
            parents: parents.clone(),
            at_request: request.at_request,
            start,
        })
    }

    fn recipe(&self, parents: &[LineageParent]) -> Recipe {
        let component = |parent: &LineageParent| Component { digest: parent.digest, weight: parent.weight };
        Recipe {
            parents: parents.iter().map(component).collect(),
            method: self.method,
            target_rank: self.target_rank,
            space: self.space,
            dtype: self.dtype,
        }
    }
}

fn word(text: &str) -> Option<serde_json::Value> {
    (!text.is_empty()).then(|| text.into())
}

/// What a merge came to.
pub(crate) struct Merge {
    pub(crate) adapter: AdapterName,
    pub(crate) outcome: Outcome,
    pub(crate) lineage: Lineage,
}

impl Publisher {
    /// Runs one merge. Takes a turn among the package checks, and goes on even if the caller goes away.
    ///
    /// # Errors
    /// `invalid`, naming the field; `not_found` for a parent that there is not; `refused` for parents that do not go together.
    pub(crate) async fn merge(&self, asked: Asked, lately: &HashSet<Digest>) -> Result<Merge, Error> {
        let max = self.core.settings.publishes_max;
        let busy = |_| Error::Busy { what: "uploads and merges", max, setting: "publishes_max" };
        let permit = Arc::clone(&self.uploads).try_acquire_owned().map_err(busy)?;
        let tenant: TenantName =
            asked.start.tenant.parse().map_err(|source| Error::Name { param: "tenant", source })?;
        // What is named wrongly is said before anything is read.
        let named = if asked.at_request { None } else { Some(self.admit(asked.start.clone()).await?) };
        self.core.require_tenant(&tenant).await?;
        let base = self.core.require_base().await?;
        let versions = self.parents(&tenant, &asked.parents, &base).await?;
        let recipe = asked.recipe(&versions.iter().map(|(parent, _)| parent.clone()).collect::<Vec<_>>());
        let recipe = recipe.check().map_err(not_mergeable)?;
        let target = named.unwrap_or_else(|| Target {
            adapter: AdapterName::of_recipe(&recipe.digest()),
            tenant,
            alias: None,
            actor: asked.start.actor.clone(),
            origin: None,
            quarantined: false,
        });
        self.core.refresh(&adapter_prefix(&target.tenant, &target.adapter)).await?;
        if asked.at_request && self.known_merge(&target, recipe.digest(), &base).is_none() {
            self.core.make_room_for_merge(&target.tenant, lately).await?;
        }
        let this = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            this.follow(target, recipe, versions, base).await
        })
        .await?
    }

    /// The versions that are named, each of the base that is served.
    async fn parents(
        &self,
        tenant: &TenantName,
        asked: &[pb::MergeParent],
        base: &BaseRecord,
    ) -> Result<Vec<(LineageParent, u64)>, Error> {
        let mut parents = Vec::with_capacity(asked.len().min(merging::recipe::PARENTS_MAX));
        if asked.len() > merging::recipe::PARENTS_MAX {
            let (given, max) = (asked.len(), merging::recipe::PARENTS_MAX);
            return Err(Error::invalid("parents", format!("parents are {given}, at most {max} are allowed")));
        }
        for pb::MergeParent { adapter, selector, weight } in asked {
            let name = |source| Error::Name { param: "parents", source };
            let adapter: AdapterName = adapter.parse().map_err(name)?;
            let selector: Selector = selector.parse().map_err(name)?;
            self.core.refresh(&adapter_prefix(tenant, &adapter)).await?;
            let version: VersionRecord = self.core.resolve(tenant, &adapter, &selector).await?;
            if version.base_digest != base.digest {
                let number = version.number;
                let message = format!("version {number} of {adapter} is of another base than {}", base.served_name);
                return Err(Error::invalid("parents", message));
            }
            if self.core.policy(tenant).signed && version.signed_by.is_none() {
                let number = version.number;
                let message = format!("version {number} of {adapter} is not signed, and the tenant's policy wants it");
                return Err(Error::invalid("parents", message));
            }
            let bytes = version.bytes;
            let parent = LineageParent { adapter, version: version.number, digest: version.digest, weight: *weight };
            parents.push((parent, bytes));
        }
        Ok(parents)
    }

    async fn follow(
        &self,
        target: Target,
        recipe: CheckedRecipe,
        parents: Vec<(LineageParent, u64)>,
        base: BaseRecord,
    ) -> Result<Merge, Error> {
        let recipe_digest = recipe.digest();
        let adapter = target.adapter.clone();
        if let Some(version) = self.known_merge(&target, recipe_digest, &base)
            && self.core.blob_outlives_collection(&version.digest).await?
        {
            self.move_alias(&target, &version).await?;
            let lineage = version.lineage.as_deref().cloned().ok_or_else(|| {
                Error::NotFound(format!("version {} of {adapter} has lost its lineage", version.number))
            })?;
            return Ok(Merge { adapter, outcome: Outcome::Existing(version), lineage });
        }
        let limits = self.limits(&target.tenant);
        let of_merge = merging::Limits {
            rank_max: limits.rank_max,
            package_bytes_max: limits.weights_bytes_max,
            parents_bytes_max: limits.weights_bytes_max.saturating_mul(2),
            work_bytes_max: limits.weights_bytes_max,
            threads: NonZeroUsize::MIN,
            ..merging::Limits::default()
        };
        let bytes = parents.iter().map(|(_, bytes)| bytes).sum::<u64>();
        if bytes > of_merge.parents_bytes_max {
            let max = of_merge.parents_bytes_max;
            let message =
                format!("parents have {bytes} bytes together, at most {max} (twice package_bytes_max) can be merged");
            return Err(Error::invalid("parents", message));
        }
        let _check = Arc::clone(&self.checks).acquire_owned().await.expect("the semaphore is never closed");
        let mut blobs = Vec::with_capacity(parents.len());
        for (parent, _) in &parents {
            blobs.push(self.blob(&parent.digest).await?);
        }
        let of_check = base.clone();
        let work = move || -> Result<(Result<Package, Refusal>, merging::Merged), merging::Error> {
            let opened = blobs.iter().map(|blob| Parent::open(blob)).collect::<Result<Vec<_>, _>>()?;
            let mut merged = merging::merge(&recipe, &opened, &of_check.shape(), &of_merge)?;
            let weights = Bytes::from(std::mem::take(&mut merged.weights));
            let (config_sha256, weights_sha256) = (Digest::of(&merged.config), Digest::of(&weights));
            let files = Files { config: &merged.config, config_sha256, weights: &weights, weights_sha256 };
            Ok((Package::check(&files, &of_check, &limits), merged))
        };
        let done = tokio::task::spawn_blocking(work).await?;
        let (checked, merged) =
            done.map_err(|error| unfit_by_name(&error, &parents).unwrap_or_else(|| not_mergeable(error)))?;
        let parents = parents.into_iter().map(|(parent, _)| parent).collect();
        let lineage = Lineage { recipe_digest, recipe: merged.recipe, parents, error: merged.report.error };
        let outcome = match checked {
            Ok(package) => {
                let made = Made { lineage: Some(lineage.clone()), signed_by: None };
                self.store(&target, package, &base, made).await?
            }
            Err(refusal) => Outcome::Refused(refusal),
        };
        Ok(Merge { adapter, outcome, lineage })
    }

    /// The version that this very recipe made against the same base.
    fn known_merge(&self, target: &Target, recipe: Digest, base: &BaseRecord) -> Option<VersionRecord> {
        let catalog = self.core.catalog();
        let mut versions = catalog.adapter(&target.tenant, &target.adapter)?.versions();
        let same = |version: &&VersionRecord| {
            version.base_digest == base.digest
                && version.lineage.as_ref().is_some_and(|lineage| lineage.recipe_digest == recipe)
        };
        versions.find(same).cloned()
    }

    /// The bytes of a version. They are hashed when they are opened.
    async fn blob(&self, digest: &Digest) -> Result<Bytes, Error> {
        let key = keys::blob(digest);
        let found = self.core.store.get(&key).await?;
        found.map(|object| object.bytes).ok_or_else(|| Error::Damaged { key, problem: "it is not there".to_owned() })
    }
}

/// What the merge refuses is wrong with what was asked for; bytes that are not what they should be are the store's fault.
/// A parent that cannot be merged, as the version that the caller asked for: `crates/adapter-merge` knows its digest only.
fn unfit_by_name(error: &merging::Error, parents: &[(LineageParent, u64)]) -> Option<Error> {
    let merging::Error::Unfit { digest, what } = error else { return None };
    let (parent, _) = parents.iter().find(|(parent, _)| parent.digest == *digest)?;
    Some(Error::invalid("parents", format!("version {} of {}: {what}", parent.version, parent.adapter)))
}

fn not_mergeable(error: merging::Error) -> Error {
    match &error {
        merging::Error::Blob { digest, .. } => Error::Damaged { key: keys::blob(digest), problem: error.to_string() },
        merging::Error::Parents { .. } => {
            Error::Damaged { key: "a parent's blob".to_owned(), problem: error.to_string() }
        }
        _ => Error::invalid("recipe", error.to_string()),
    }
}
