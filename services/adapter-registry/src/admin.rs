//! Tenants, keys, aliases and the announced base.

use crate::Error;
use crate::core::{Change, Core, now_ms};
use crate::layout::{Place, adapter_prefix, tenant_prefix};
use crate::places::PlacesAsked;
use crate::policy::Policy;
use crate::records::{
    AliasRecord, BaseRecord, KeyRecord, LinearRecord, Places, Revocation, SALT_BYTES, TenantRecord, VersionRecord,
};
use crate::wire;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use weft_object_store::ETag;
use weft_proto::registry::v1 as pb;
use weft_types::{
    AdapterName, AliasName, Digest, LimitChange, LimitError, Limits, Selector, TenantName, VersionNumber, Weight,
};

/// So that a directory with everything at its limit still fits one message; a test adds it up.
pub(crate) const TENANTS_MAX: usize = 10_000;
/// Keys that are not revoked.
pub(crate) const KEYS_MAX: usize = 80_000;
const KEYS_PER_TENANT_MAX: usize = 1_000;
/// Records of revoked keys that are kept, so that a list can say when and by whom; the oldest go first.
const REVOKED_KEYS_PER_TENANT_MAX: usize = 1_000;
pub(crate) const ALIASES_MAX: usize = 100_000;
const ALIASES_PER_ADAPTER_MAX: usize = 100;
/// Labels, actors and other free text of people.
const TEXT_BYTES_MAX: usize = 128;
const SERVED_NAME_BYTES_MAX: usize = 256;
const LINEARS_MAX: usize = 64;
/// Generous: the largest Llama has 126 layers.
const LAYERS_MAX: u32 = 4096;
const FEATURES_MAX: u32 = 1 << 20;

/// What an alias must be for a move to happen.
pub(crate) enum Expected {
    /// Whatever it is.
    Any,
    /// It must exist.
    Present,
    /// It must not exist.
    Absent,
    /// It must be in this state.
    State(ETag),
    /// It must not name a newer version: then it stays there. What a publish wants.
    Older,
}

impl Expected {
    /// From `SetAliasRequest.expected_etag`.
    pub(crate) fn from_wire(text: &str) -> Self {
        match text {
            "" => Self::Any,
            "*" => Self::Present,
            "none" => Self::Absent,
            etag => Self::State(ETag::new(etag)),
        }
    }
}

/// Free text of people: bounded, one line.
pub(crate) fn check_text(param: &'static str, text: &str, bytes_max: usize) -> Result<(), Error> {
    if text.len() > bytes_max {
        return Err(Error::invalid(param, format!("{param} has {} bytes, the limit is {bytes_max}", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err(Error::invalid(param, format!("{param} has a control character")));
    }
    Ok(())
}

pub(crate) fn check_actor(actor: &str) -> Result<(), Error> {
    check_text("actor", actor, TEXT_BYTES_MAX)
}

fn checked_weight(weight: f64) -> Result<Weight, Error> {
    Weight::new(weight).map_err(|error| Error::invalid("weight", error.to_string()))
}

fn wrong_limit(error: LimitError) -> Error {
    Error::invalid(error.kind.as_str(), error.to_string())
}

/// Only ids that we make: anything else could name another object.
fn is_key_id(id: &str) -> bool {
    id.len() == 16 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn unknown_key(tenant: &TenantName) -> Error {
    Error::NotFound(format!("tenant {tenant} has no such key"))
}

impl Core {
    /// The tenant must exist; asks the store if it is not known here.
    pub(crate) async fn require_tenant(&self, tenant: &TenantName) -> Result<(), Error> {
        if self.catalog().tenant(tenant).is_some() {
            return Ok(());
        }
        self.refresh(&tenant_prefix(tenant)).await?;
        if self.catalog().tenant(tenant).is_some() {
            return Ok(());
        }
        Err(Error::NotFound(format!("there is no tenant {tenant}")))
    }

    /// Makes the tenant, with its salt, unless it is there. Returns whether it was made. A weight of 0 stands for 1.
    pub(crate) async fn create_tenant(
        &self,
        name: TenantName,
        weight: f64,
        limits: &[LimitChange],
        actor: &str,
    ) -> Result<(TenantRecord, bool), Error> {
        check_actor(actor)?;
        let limits = Limits::default().changed(limits).map_err(wrong_limit)?;
        let weight = if weight == 0.0 { Weight::default() } else { checked_weight(weight)? };
        if self.counts().tenants >= TENANTS_MAX && self.require_tenant(&name).await.is_err() {
            return Err(Error::Full { what: "tenants".to_owned(), max: TENANTS_MAX });
        }
        let salt: [u8; SALT_BYTES] = rand::random();
        let mut created = false;
        let place = Place::Tenant(name.clone());
        let updated = self.update(&place, |found: Option<(&TenantRecord, &ETag)>| {
            created = found.is_none();
            Ok(match found {
                Some((record, _)) => Change::Keep(record.clone()),
                None => Change::Write(TenantRecord {
                    revision: 1,
                    name: name.clone(),
                    created_ms: now_ms(),
                    actor: actor.to_owned(),
                    salt,
                    default_adapter: String::new(),
                    weight,
                    limits,
                    places: Places::default(),
                    policy: Policy::default(),
                }),
            })
        });
        let (record, _) = updated.await?;
        if created {
            tracing::info!(tenant = %name, actor, "created a tenant");
        }
        Ok((record, created))
    }

    /// Gives the tenant what is set, and leaves the rest.
    pub(crate) async fn update_tenant(&self, change: pb::UpdateTenantRequest) -> Result<TenantRecord, Error> {
        let pb::UpdateTenantRequest { name, actor, weight, limits, places, policy, default_adapter } = change;
        let name: TenantName = name.parse().map_err(|source| Error::Name { param: "name", source })?;
        check_actor(&actor)?;
        let asked = match &places {
            Some(asked) => self.checked_places(&name, asked).await?,
            None => PlacesAsked::default(),
        };
        let weight = weight.map(checked_weight).transpose()?;
        let limits = wire::changes(limits);
        Limits::default().changed(&limits).map_err(wrong_limit)?;
        let policy = policy.unwrap_or_default();
        if let Some(adapter) = default_adapter.as_deref().filter(|adapter| !adapter.is_empty()) {
            self.require_adapter(&name, adapter).await?;
        }
        let place = Place::Tenant(name.clone());
        let updated = self.update(&place, |found: Option<(&TenantRecord, &ETag)>| {
            let Some((record, _)) = found else { return Err(Error::NotFound(format!("there is no tenant {name}"))) };
            let changed = TenantRecord {
                weight: weight.unwrap_or(record.weight),
                limits: record.limits.changed(&limits).map_err(wrong_limit)?,
                places: asked.changed(&record.places)?,
                policy: record.policy.changed(&policy)?,
                default_adapter: default_adapter.clone().unwrap_or_else(|| record.default_adapter.clone()),
                ..record.clone()
            };
            if changed == *record {
                return Ok(Change::Keep(changed));
            }
            Ok(Change::Write(TenantRecord { revision: record.revision + 1, ..changed }))
        });
        let (record, _) = updated.await?;
        self.revive_pinned(&name, &asked.pinned()).await?;
        tracing::info!(
            tenant = %name, weight = record.weight.value(), limits = ?record.limits, floor = record.places.floor,
            ceiling = record.places.ceiling, pins = record.places.pins.len(), policy = ?record.policy,
            default_adapter = record.default_adapter, actor, "updated a tenant"
        );
        Ok(record)
    }

    /// The tenant has this adapter, perhaps since a moment ago.
    async fn require_adapter(&self, tenant: &TenantName, adapter: &str) -> Result<(), Error> {
        let name = adapter.parse().map_err(|source| Error::Name { param: "default_adapter", source })?;
        self.refresh(&adapter_prefix(tenant, &name)).await?;
        match self.catalog().adapter(tenant, &name) {
            Some(_) => Ok(()),
            None => Err(Error::NotFound(format!("tenant {tenant} has no adapter {name}"))),
        }
    }

    /// Makes a key. The secret is in the answer and nowhere else.
    pub(crate) async fn create_key(
        &self,
        tenant: TenantName,
        label: &str,
        limits: &[LimitChange],
        actor: &str,
    ) -> Result<(String, String), Error> {
        check_actor(actor)?;
        let limits = Limits::default().changed(limits).map_err(wrong_limit)?;
        check_text("label", label, TEXT_BYTES_MAX)?;
        self.require_tenant(&tenant).await?;
        let here = self.catalog().tenant(&tenant).map_or(0, |tenant| tenant.live_keys());
        for (what, count, max) in [
            (format!("keys of tenant {tenant}"), here, KEYS_PER_TENANT_MAX),
            ("keys".to_owned(), self.counts().keys, KEYS_MAX),
        ] {
            if count >= max {
                return Err(Error::Full { what, max });
            }
        }
        loop {
            // Hex, so that no `_` blurs where the id ends in the secret.
            let id = hex::encode(rand::random::<[u8; 8]>());
            let secret = format!("weft_{id}_{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()));
            let record = KeyRecord {
                revision: 1,
                id: id.clone(),
                label: label.to_owned(),
                created_ms: now_ms(),
                actor: actor.to_owned(),
                secret_sha256: Digest::of(secret.as_bytes()),
                limits,
                revoked: None,
            };
            if self.create(&Place::Key(tenant.clone(), id.clone()), &record).await?.is_some() {
                tracing::info!(%tenant, key = id, actor, "created a key");
                return Ok((id, secret));
            }
        }
    }

    /// Gives a key what is set, and leaves the rest. A revoked key is as good as none.
    pub(crate) async fn update_key(
        &self,
        tenant: TenantName,
        id: &str,
        limits: &[LimitChange],
        actor: &str,
    ) -> Result<KeyRecord, Error> {
        check_actor(actor)?;
        Limits::default().changed(limits).map_err(wrong_limit)?;
        let unknown = || unknown_key(&tenant);
        if !is_key_id(id) {
            return Err(unknown());
        }
        let place = Place::Key(tenant.clone(), id.to_owned());
        let updated = self.update(&place, |found: Option<(&KeyRecord, &ETag)>| {
            let (record, _) = found.filter(|(record, _)| record.revoked.is_none()).ok_or_else(unknown)?;
            let limits = record.limits.changed(limits).map_err(wrong_limit)?;
            if limits == record.limits {
                return Ok(Change::Keep(record.clone()));
            }
            Ok(Change::Write(KeyRecord { revision: record.revision + 1, limits, ..record.clone() }))
        });
        let (record, _) = updated.await?;
        tracing::info!(%tenant, key = id, limits = ?record.limits, actor, "updated a key");
        Ok(record)
    }

    /// Revokes a key; again is the same as once.
    pub(crate) async fn revoke_key(&self, tenant: TenantName, id: &str, actor: &str) -> Result<(), Error> {
        check_actor(actor)?;
        let unknown = || unknown_key(&tenant);
        if !is_key_id(id) {
            return Err(unknown());
        }
        let place = Place::Key(tenant.clone(), id.to_owned());
        let revoked = self.update(&place, |found: Option<(&KeyRecord, &ETag)>| {
            let (record, _) = found.ok_or_else(unknown)?;
            if record.revoked.is_some() {
                return Ok(Change::Keep(record.clone()));
            }
            let revoked = Some(Revocation { at_ms: now_ms(), actor: actor.to_owned() });
            Ok(Change::Write(KeyRecord { revision: record.revision + 1, revoked, ..record.clone() }))
        });
        revoked.await?;
        tracing::info!(%tenant, key = id, actor, "revoked a key");
        self.drop_revoked_keys(&tenant, REVOKED_KEYS_PER_TENANT_MAX).await;
        Ok(())
    }

    /// The version that the selector means; asks the store if it is not known here.
    pub(crate) async fn resolve(
        &self,
        tenant: &TenantName,
        adapter: &AdapterName,
        selector: &Selector,
    ) -> Result<VersionRecord, Error> {
        if let Some(found) = self.catalog().resolve(tenant, adapter, selector) {
            return Ok(found.clone());
        }
        self.require_tenant(tenant).await?;
        self.refresh(&adapter_prefix(tenant, adapter)).await?;
        let found = self.catalog().resolve(tenant, adapter, selector).cloned();
        found.ok_or_else(|| Error::NotFound(format!("tenant {tenant} has no adapter {adapter}@{selector}")))
    }

    /// The version, if an operator is shown it.
    ///
    /// # Errors
    /// `not_found`.
    pub(crate) fn require_listed(
        &self,
        tenant: &TenantName,
        adapter: &AdapterName,
        number: VersionNumber,
    ) -> Result<VersionRecord, Error> {
        let catalog = self.catalog();
        let known = catalog.tenant(tenant).and_then(|tenant| tenant.adapters.get(adapter));
        let found = known.and_then(|adapter| adapter.listed().find(|version| version.number == number));
        found.cloned().ok_or_else(|| Error::NotFound(format!("tenant {tenant} has no adapter {adapter}@{number}")))
    }

    /// Ends a version's quarantine, then moves the alias forward to it. A version that is in none keeps none.
    pub(crate) async fn release_version(&self, request: &pb::ReleaseVersionRequest) -> Result<VersionRecord, Error> {
        let name = |param, source| Error::Name { param, source };
        let tenant: TenantName = request.tenant.parse().map_err(|error| name("tenant", error))?;
        let adapter: AdapterName = request.adapter.parse().map_err(|error| name("adapter", error))?;
        let alias: Option<AliasName> = match request.alias.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|error| name("alias", error))?),
        };
        check_actor(&request.actor)?;
        let known = self.catalog().resolve(&tenant, &adapter, &Selector::Version(request.version)).cloned();
        if known.is_none() {
            self.refresh(&adapter_prefix(&tenant, &adapter)).await?;
            self.require_listed(&tenant, &adapter, request.version)?;
        }
        if let Some(alias) = &alias {
            // A version that nothing keeps from being asked for, and an alias that does not move, would be half a release.
            self.check_room_for_alias(&tenant, &adapter, alias)?;
            self.check_alias_is_free(&tenant, &adapter, alias)?;
        }
        let record = match known {
            Some(record) => record,
            None => self.end_quarantine(&tenant, &adapter, request).await?,
        };
        if let Some(alias) = alias {
            self.set_alias(tenant, adapter, alias, record.number, Expected::Older, &request.actor).await?;
        }
        Ok(record)
    }

    async fn end_quarantine(
        &self,
        tenant: &TenantName,
        adapter: &AdapterName,
        request: &pb::ReleaseVersionRequest,
    ) -> Result<VersionRecord, Error> {
        let place = Place::Version(tenant.clone(), adapter.clone(), request.version);
        let released = self.update(&place, |found: Option<(&VersionRecord, &ETag)>| match found {
            Some((record, _)) if record.condemned.is_some() => {
                Err(Error::Conflict(format!("version {} of {adapter} is condemned", record.number)))
            }
            Some((record, _)) if record.quarantined => {
                let revision = record.revision + 1;
                Ok(Change::Write(VersionRecord { revision, quarantined: false, ..record.clone() }))
            }
            Some((record, _)) => Ok(Change::Keep(record.clone())),
            None => Err(Error::NotFound(format!("version {} of {adapter} is gone", request.version))),
        });
        let (record, _) = released.await?;
        tracing::info!(%tenant, %adapter, version = record.number, actor = request.actor, "a version is released");
        Ok(record)
    }

    /// Whether the adapter may have this alias: it has it, or there is room for one more.
    pub(crate) fn check_room_for_alias(
        &self,
        tenant: &TenantName,
        adapter: &AdapterName,
        alias: &AliasName,
    ) -> Result<(), Error> {
        let catalog = self.catalog();
        let here = catalog.adapter(tenant, adapter).map(|adapter| &adapter.aliases);
        if here.is_some_and(|aliases| aliases.contains_key(alias)) {
            return Ok(());
        }
        for (what, count, max) in [
            (format!("aliases of {adapter}"), here.map_or(0, |aliases| aliases.len()), ALIASES_PER_ADAPTER_MAX),
            ("aliases".to_owned(), catalog.counts().aliases, ALIASES_MAX),
        ] {
            if count >= max {
                return Err(Error::Full { what, max });
            }
        }
        Ok(())
    }

    /// Moves an alias to a version that exists.
    pub(crate) async fn set_alias(
        &self,
        tenant: TenantName,
        adapter: AdapterName,
        alias: AliasName,
        version: VersionNumber,
        expected: Expected,
        actor: &str,
    ) -> Result<(AliasRecord, ETag), Error> {
        check_actor(actor)?;
        let target = self.resolve(&tenant, &adapter, &Selector::Version(version)).await?;
        self.check_room_for_alias(&tenant, &adapter, &alias)?;
        let conflict = |is: String| Err(Error::Conflict(format!("alias {alias} of {adapter} {is}")));
        let place = Place::Alias(tenant.clone(), adapter.clone(), alias.clone());
        let mut before = None;
        let moved = self.update(&place, |found: Option<(&AliasRecord, &ETag)>| {
            before = found.map(|(record, _)| record.digest);
            match (&expected, found) {
                (Expected::Present | Expected::State(_), None) => return conflict("does not exist".to_owned()),
                (Expected::Absent, Some((record, _))) => {
                    return conflict(format!("is version {} already", record.version));
                }
                (Expected::State(etag), Some((record, now))) if etag != now => {
                    return conflict(format!("was moved to version {} meanwhile", record.version));
                }
                (Expected::Older, Some((record, _))) if record.version > version => {
                    return Ok(Change::Keep(record.clone()));
                }
                (_, Some((record, _))) if record.version == version => return Ok(Change::Keep(record.clone())),
                (_, Some((AliasRecord { experiment: Some(experiment), .. }, _))) => {
                    let why = "promote an arm or stop it first";
                    return Err(Error::Split {
                        alias: alias.to_string(),
                        adapter: adapter.to_string(),
                        experiment: experiment.clone(),
                        why,
                    });
                }
                _ => {}
            }
            let earlier = found.map(|(record, _)| record);
            Ok(Change::Write(AliasRecord::moved(earlier, version, target.digest, now_ms(), actor)))
        });
        let (record, etag) = moved.await?;
        self.revive(&tenant, &adapter, record.version).await?;
        tracing::info!(%tenant, %adapter, %alias, version = record.version, actor, "alias is set");
        if let Some(before) = before.filter(|before| *before != record.digest) {
            self.tell_alias_moved(&before, &record.digest);
        }
        Ok((record, etag))
    }

    /// Moves an alias back to what it meant before its last move.
    pub(crate) async fn roll_back_alias(
        &self,
        tenant: TenantName,
        adapter: AdapterName,
        alias: AliasName,
        expected: Expected,
        actor: &str,
    ) -> Result<(AliasRecord, ETag), Error> {
        let (record, etag) = self.fresh_alias(&tenant, &adapter, &alias).await?;
        let earlier = record.history.iter().find(|earlier| earlier.version != record.version);
        let Some(earlier) = earlier else {
            return Err(Error::Conflict(format!(
                "alias {alias} of {adapter} meant nothing before version {}",
                record.version
            )));
        };
        let expected = match expected {
            // What is rolled back is the state that was looked at.
            Expected::Any | Expected::Present => Expected::State(etag),
            expected => expected,
        };
        self.set_alias(tenant, adapter, alias, earlier.version, expected, actor).await
    }

    /// An alias as the store has it.
    pub(crate) async fn fresh_alias(
        &self,
        tenant: &TenantName,
        adapter: &AdapterName,
        alias: &AliasName,
    ) -> Result<(AliasRecord, ETag), Error> {
        self.require_tenant(tenant).await?;
        self.refresh(&adapter_prefix(tenant, adapter)).await?;
        let catalog = self.catalog();
        let found = catalog.adapter(tenant, adapter).and_then(|adapter| adapter.aliases.get(alias));
        found.cloned().ok_or_else(|| Error::NotFound(format!("tenant {tenant} has no alias {adapter}@{alias}")))
    }

    /// Refuses a move of an alias that an experiment splits.
    pub(crate) fn check_alias_is_free(
        &self,
        tenant: &TenantName,
        adapter: &AdapterName,
        alias: &AliasName,
    ) -> Result<(), Error> {
        let catalog = self.catalog();
        let found = catalog.adapter(tenant, adapter).and_then(|adapter| adapter.aliases.get(alias));
        match found.and_then(|(record, _)| record.experiment.as_ref()) {
            Some(experiment) => Err(Error::Split {
                alias: alias.to_string(),
                adapter: adapter.to_string(),
                experiment: experiment.clone(),
                why: "publish without an alias, or stop it first",
            }),
            None => Ok(()),
        }
    }

    /// Keeps what a worker serves, so that packages can be checked while no worker runs. The base of the mesh is that of most workers
    /// that are up, as for gateways: one with another base does not change it. `workers_with` counts those that are heard of.
    pub(crate) async fn announce_base(
        &self,
        request: pb::AnnounceBaseRequest,
        workers_with: impl Fn(&Digest) -> usize + Send + Sync,
    ) -> Result<(), Error> {
        let announced = read_base(request)?;
        // Workers announce again and again: nearly always there is nothing to do.
        if self.catalog().base.as_ref().is_some_and(|known| known.is_same_base(&announced)) {
            return Ok(());
        }
        let is_outvoted = |known: &BaseRecord| {
            let with_known = if known.digest == announced.digest { 0 } else { workers_with(&known.digest) };
            with_known > 0 && with_known >= workers_with(&announced.digest)
        };
        let updated = self.update(&Place::Base, |found: Option<(&BaseRecord, &ETag)>| {
            Ok(match found {
                Some((known, _)) if known.is_same_base(&announced) => Change::Keep(known.clone()),
                Some((known, _)) if is_outvoted(known) => {
                    tracing::warn!(
                        base = %known.digest, other = %announced.digest, worker = announced.worker,
                        "a worker serves another base than the mesh: it gets no requests"
                    );
                    Change::Keep(known.clone())
                }
                Some((known, _)) => {
                    if known.digest != announced.digest {
                        tracing::warn!(was = %known.digest, is = %announced.digest, worker = announced.worker, "the base changed");
                    }
                    Change::Write(BaseRecord { revision: known.revision + 1, ..announced.clone() })
                }
                None => Change::Write(announced.clone()),
            })
        });
        let (known, _) = updated.await?;
        tracing::info!(base = %known.digest, served_name = known.served_name, "the base is known");
        Ok(())
    }

    /// The base that packages are checked against.
    pub(crate) async fn require_base(&self) -> Result<BaseRecord, Error> {
        if let Some(base) = self.catalog().base.clone() {
            return Ok(base);
        }
        self.refresh(&Place::Base.key()).await?;
        self.catalog().base.clone().ok_or(Error::NoBase)
    }
}

fn read_base(request: pb::AnnounceBaseRequest) -> Result<BaseRecord, Error> {
    let digest = Digest::try_from(&request.base_digest[..]);
    let digest = digest.map_err(|error| Error::invalid("base_digest", format!("base_digest: {error}")))?;
    check_text("served_name", &request.served_name, SERVED_NAME_BYTES_MAX)?;
    check_text("worker", &request.worker, SERVED_NAME_BYTES_MAX)?;
    if request.served_name.is_empty() {
        return Err(Error::invalid("served_name", "served_name must not be empty"));
    }
    if !(1..=LAYERS_MAX).contains(&request.layers) {
        return Err(Error::invalid("layers", format!("layers is {}, allowed are 1 to {LAYERS_MAX}", request.layers)));
    }
    if request.linears.is_empty() || request.linears.len() > LINEARS_MAX {
        let count = request.linears.len();
        return Err(Error::invalid("linears", format!("linears has {count} entries, allowed are 1 to {LINEARS_MAX}")));
    }
    let mut linears = Vec::new();
    for linear in request.linears {
        check_text("linears", &linear.module, TEXT_BYTES_MAX)?;
        check_text("linears", &linear.parent, TEXT_BYTES_MAX)?;
        let sizes = [linear.in_features, linear.out_features];
        if !sizes.iter().all(|size| (1..=FEATURES_MAX).contains(size)) {
            let message = format!("linears: {} is {sizes:?}, allowed are 1 to {FEATURES_MAX}", linear.module);
            return Err(Error::invalid("linears", message));
        }
        linears.push(LinearRecord {
            module: linear.module,
            parent: linear.parent,
            in_features: linear.in_features as usize,
            out_features: linear.out_features as usize,
        });
    }
    Ok(BaseRecord {
        revision: 1,
        digest,
        served_name: request.served_name,
        layers: request.layers as usize,
        vocabulary_size: request.vocabulary_size,
        hidden_size: request.hidden_size,
        linears,
        announced_ms: now_ms(),
        worker: request.worker,
    })
}
