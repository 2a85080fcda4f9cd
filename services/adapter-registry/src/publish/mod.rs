//! From an upload, or from a merge of versions ([`merge`]), to a version: receive, check against the base, blob, version, alias.
//!
//! What is refused leaves nothing in the store but a blob, if what refuses it was not known here before: everything that can refuse comes before
//! the first write. A publish
//! that is broken off later leaves at most a blob or a version without its alias; the same publish again goes on there.
//!
//! **One version for the same bytes.** Numbers have no gaps: a publisher writes number n + 1 only after it has seen
//! that none of 1 to n has its digest (but for condemned ones), and only if n + 1 is not there. A loser looks again.

mod memory;
mod merge;
mod package;
mod signers;
mod spool;
mod upload;

pub(crate) use merge::Asked;
pub(crate) use signers::Signers;

use crate::Error;
use crate::admin::Expected;
use crate::core::{Change, Core, now_ms};
use crate::layout::{Place, adapter_prefix};
use crate::records::{BaseRecord, Lineage, VersionRecord};
use package::{Package, Source as Files};
use spool::{SMALL_BYTES_MAX, Spools};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinError;
use upload::Upload;
use weft_adapter_format::{Limits, Refusal, Resolved};
use weft_adapter_sources::{Source, Sources};
use weft_object_store::{Content, ETag, PutOutcome, keys};
use weft_proto::registry::v1 as pb;
use weft_types::{AdapterName, AliasName, MERGED_PREFIX, TenantName};

/// So that a directory with everything at its limit still fits one message.
pub(crate) const ADAPTERS_MAX: usize = 50_000;
pub(crate) const VERSIONS_MAX: usize = 200_000;
/// So that a list of versions fits one message.
const VERSIONS_PER_ADAPTER_MAX: usize = 4_096;
const WARNINGS_MAX: usize = 16;
const WARNING_BYTES_MAX: usize = 256;

/// What a publish came to.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// A version was made.
    Created(VersionRecord),
    /// These bytes were a version already.
    Existing(VersionRecord),
    /// The content was refused.
    Refused(Refusal),
}

/// The limits on publishes of one process.
#[derive(Clone)]
pub(crate) struct Publisher {
    core: Arc<Core>,
    sources: Arc<Sources>,
    signers: Arc<Signers>,
    spools: Spools,
    uploads: Arc<Semaphore>,
    checks: Arc<Semaphore>,
}

/// Where a package comes from.
struct Made {
    /// It was merged.
    lineage: Option<Lineage>,
    /// Somebody who is trusted signed it.
    signed_by: Option<String>,
}

/// What is published, checked as names.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) tenant: TenantName,
    pub(crate) adapter: AdapterName,
    pub(crate) alias: Option<AliasName>,
    pub(crate) actor: String,
    /// Where it was read from; none: it was uploaded.
    pub(crate) origin: Option<String>,
    /// Nobody is shown the version, and no alias moves.
    pub(crate) quarantined: bool,
}

/// Files that change what an adapter's prompts become: the base's template and vocabulary are the mesh's.
const NOT_HONOURED: [(&str, &str); 3] = [
    ("added_tokens.json", "it adds tokens to the vocabulary"),
    ("chat_template.jinja", "it has a chat template of its own"),
    ("chat_template.json", "it has a chat template of its own"),
];

fn refused_beside(files: &[String]) -> Option<Refusal> {
    let found = NOT_HONOURED.iter().filter(|(name, _)| files.iter().any(|file| file == name));
    let reasons: Vec<String> =
        found.map(|(name, why)| format!("the package has {name}: {why}, which is not honoured")).collect();
    (!reasons.is_empty()).then_some(Refusal { reasons })
}

impl Publisher {
    pub(crate) fn new(core: Arc<Core>, sources: Arc<Sources>, signers: Arc<Signers>) -> Self {
        let uploads = Arc::new(Semaphore::new(core.settings.publishes_max));
        let checks = Arc::new(Semaphore::new(core.settings.checks_max));
        let spools = Spools::new(&core.settings);
        Self { core, sources, signers, spools, uploads, checks }
    }

    /// Runs one publish. Once the upload is complete it goes on even if the caller goes away.
    pub(crate) async fn publish(
        &self,
        parts: tonic::Streaming<pb::PublishRequest>,
    ) -> Result<(AdapterName, Outcome), Error> {
        let max = self.core.settings.publishes_max;
        let busy = |_| Error::Busy { what: "uploads", max, setting: "publishes_max" };
        let permit = Arc::clone(&self.uploads).try_acquire_owned().map_err(busy)?;
        let _running = self.core.metrics.upload_started();
        let (start, parts) = upload::start(parts, &self.core.settings).await?;
        let target = self.admit(start).await?;
        // What others published meanwhile is read while the upload comes.
        let cap = self.core.policy(&target.tenant).weights_bytes_max(&self.core.settings);
        let (upload, ()) = futures::future::try_join(parts.receive(&self.spools, cap), self.refresh(&target)).await?;
        self.core.metrics.uploaded(upload.bytes());
        if let Some(refusal) = refused_beside(&upload.others) {
            return Ok((target.adapter, Outcome::Refused(refusal)));
        }
        let (this, adapter) = (self.clone(), target.adapter.clone());
        let outcome = tokio::spawn(async move { this.commit(target, upload, permit).await }).await??;
        Ok((adapter, outcome))
    }

    /// Publishes a package from elsewhere. Also returns where exactly it came from.
    ///
    /// # Errors
    /// `invalid` for a source that is none, or that settings do not allow; what reading it came to.
    pub(crate) async fn import(&self, request: pb::ImportRequest) -> Result<(AdapterName, Outcome, String), Error> {
        let max = self.core.settings.publishes_max;
        let busy = |_| Error::Busy { what: "uploads and imports", max, setting: "publishes_max" };
        let permit = Arc::clone(&self.uploads).try_acquire_owned().map_err(busy)?;
        let source: Source = request.source.parse()?;
        let target = self.admit(request.start.unwrap_or_default()).await?;
        self.refresh(&target).await?;
        let opened = self.sources.open(&source).await?;
        let origin = opened.origin.clone();
        if let Some(refusal) = refused_beside(&opened.other_files) {
            return Ok((target.adapter, Outcome::Refused(refusal), origin));
        }
        let cap = self.core.policy(&target.tenant).weights_bytes_max(&self.core.settings);
        let upload = upload::import(opened, &self.spools, cap).await?;
        self.core.metrics.uploaded(upload.bytes());
        let target = Target { origin: Some(origin.clone()), ..target };
        let (this, adapter) = (self.clone(), target.adapter.clone());
        let outcome = tokio::spawn(async move { this.commit(target, upload, permit).await }).await??;
        Ok((adapter, outcome, origin))
    }

    /// Everything that can be refused before the bytes are here.
    async fn admit(&self, start: pb::PublishStart) -> Result<Target, Error> {
        let name = |param, source| Error::Name { param, source };
        let tenant: TenantName = start.tenant.parse().map_err(|error| name("tenant", error))?;
        let adapter: AdapterName = start.adapter.parse().map_err(|error| name("adapter", error))?;
        let alias = match start.alias.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|error| name("alias", error))?),
        };
        crate::admin::check_actor(&start.actor)?;
        self.core.require_tenant(&tenant).await?;
        let base = self.core.require_base().await?;
        if adapter.is_merged() {
            let message = format!(
                "adapter {adapter}: names that begin with {MERGED_PREFIX} are those of merges made at request time"
            );
            return Err(Error::invalid("adapter", message));
        }
        if adapter.as_str() == base.served_name {
            return Err(Error::invalid("adapter", format!("adapter {adapter} is the name of the base model")));
        }
        let alias = alias.filter(|_| !start.quarantined);
        Ok(Target { tenant, adapter, alias, actor: start.actor, origin: None, quarantined: start.quarantined })
    }

    async fn commit(&self, target: Target, upload: Upload, _permit: OwnedSemaphorePermit) -> Result<Outcome, Error> {
        let base = self.core.require_base().await?;
        let is_required = self.core.policy(&target.tenant).signed;
        let (signers, upload) = (Arc::clone(&self.signers), Arc::new(upload));
        let of_check = Arc::clone(&upload);
        // A signature may be made to take long.
        let signature_bytes = if upload.signature.is_some() { usize::MAX } else { 0 };
        let signed = by_size(signature_bytes, move || signers.check(&of_check, is_required, now_ms())).await?;
        let signed_by = match signed {
            Ok(signed_by) => signed_by,
            Err(refusal) => return Ok(Outcome::Refused(refusal)),
        };
        // Its bytes may be on their way out, or gone with a collector that a publisher before did not outlive: then all is done again.
        // The very same two files against the same base: there is nothing to check again.
        let known = self.existing(&target, |version| {
            version.config_sha256 == upload.config_sha256
                && version.weights_sha256 == upload.weights_sha256
                && version.base_digest == base.digest
        });
        if let Some(version) = known?
            && self.core.blob_outlives_collection(&version.digest).await?
        {
            let version = self.note_again(&target, version, signed_by).await?;
            self.move_alias(&target, &version).await?;
            return Ok(Outcome::Existing(version));
        }
        let turn = Arc::clone(&self.checks).acquire_owned().await.expect("the semaphore is never closed");
        let limits = self.limits(&target.tenant);
        let base_of_check = base.clone();
        let package_bytes = upload.weights.len() + upload.config.len();
        let check = move || {
            let Upload { config, config_sha256, weights, weights_sha256, .. } = &*upload;
            let files = Files { config, config_sha256: *config_sha256, weights, weights_sha256: *weights_sha256 };
            Package::check(&files, &base_of_check, &limits)
        };
        let package = match by_size(package_bytes, check).await? {
            Ok(package) => package,
            Err(refusal) => return Ok(Outcome::Refused(refusal)),
        };
        // Storing waits for disks, and takes no memory that the upload does not have already.
        drop(turn);
        self.store(&target, package, &base, Made { lineage: None, signed_by }).await
    }

    /// Reads what others made of the adapter. Of one that is new here nothing need be known: if it is not new elsewhere, version 1 cannot be
    /// written, and whoever finds that reads all.
    async fn refresh(&self, target: &Target) -> Result<(), Error> {
        if self.core.catalog().known_adapter(&target.tenant, &target.adapter).is_none() {
            return Ok(());
        }
        self.core.refresh(&adapter_prefix(&target.tenant, &target.adapter)).await
    }

    /// What a version learns when its files are published again: who signed them, if nobody had before, and that somebody still wants it out of
    /// quarantine.
    async fn note_again(
        &self,
        target: &Target,
        version: VersionRecord,
        signed_by: Option<String>,
    ) -> Result<VersionRecord, Error> {
        let is_news = |record: &VersionRecord| record.signed_by.is_none() && signed_by.is_some() || record.quarantined;
        if !is_news(&version) {
            return Ok(version);
        }
        let place = Place::Version(target.tenant.clone(), target.adapter.clone(), version.number);
        let noted = self.core.update(&place, |found: Option<(&VersionRecord, &ETag)>| match found {
            Some((record, _)) if is_news(record) => {
                let signed_by = record.signed_by.clone().or_else(|| signed_by.clone());
                let again_ms = if record.quarantined { now_ms() } else { record.again_ms };
                let revision = record.revision + 1;
                Ok(Change::Write(VersionRecord { revision, signed_by, again_ms, ..record.clone() }))
            }
            Some((record, _)) => Ok(Change::Keep(record.clone())),
            None => Err(Error::NotFound(format!("version {} is gone", version.number))),
        });
        Ok(noted.await?.0)
    }

    /// What a package of this tenant may be.
    fn limits(&self, tenant: &TenantName) -> Limits {
        self.core.policy(tenant).limits(&self.core.settings)
    }

    /// A package that was checked becomes a version.
    async fn store(&self, target: &Target, package: Package, base: &BaseRecord, made: Made) -> Result<Outcome, Error> {
        self.check_room(target)?;
        let digest = package.blob.sha256();
        let described = describe(&package, base, target);
        let record = VersionRecord { lineage: made.lineage.map(Box::new), signed_by: made.signed_by, ..described };
        self.existing(target, |version| version.digest == digest)?;
        self.put_blob(package.blob.clone()).await?;
        let (config_sha256, weights_sha256) = (record.config_sha256, record.weights_sha256);
        let signed_by = record.signed_by.clone();
        let mut outcome = self.put_version(target, record).await?;
        if let Outcome::Existing(version) = &mut outcome
            && (version.config_sha256, version.weights_sha256) == (config_sha256, weights_sha256)
        {
            *version = self.note_again(target, version.clone(), signed_by).await?;
        }
        if let Outcome::Created(version) | Outcome::Existing(version) = &outcome {
            // Before traffic follows, whoever wrote the version.
            if !self.core.blob_outlives_collection(&digest).await? {
                // The clean-up took it for nobody's, before the version was there.
                self.put_blob(package.blob).await?;
            }
            self.move_alias(target, version).await?;
            let Target { tenant, adapter, actor, .. } = target;
            tracing::info!(%tenant, %adapter, version = version.number, %digest, bytes = version.bytes, actor, "published");
        }
        Ok(outcome)
    }

    /// The version that is the same already.
    ///
    /// # Errors
    /// It is in quarantine: what is there does not get out by being published once more.
    fn existing(
        &self,
        target: &Target,
        is_same: impl Fn(&VersionRecord) -> bool,
    ) -> Result<Option<VersionRecord>, Error> {
        let catalog = self.core.catalog();
        let adapter = catalog.known_adapter(&target.tenant, &target.adapter);
        let found = adapter.and_then(|adapter| adapter.existing(is_same));
        match found {
            Some(found) if found.quarantined && !target.quarantined => Err(Error::Conflict(format!(
                "version {} of {} has these bytes and is in quarantine: release it, or delete it first",
                found.number, target.adapter
            ))),
            found => Ok(found.cloned()),
        }
    }

    /// Before anything is put: a version without the alias that was asked for would be half a publish.
    fn check_room(&self, target: &Target) -> Result<(), Error> {
        if let Some(alias) = &target.alias {
            self.core.check_room_for_alias(&target.tenant, &target.adapter, alias)?;
            self.core.check_alias_is_free(&target.tenant, &target.adapter, alias)?;
        }
        let versions =
            self.core.catalog().known_adapter(&target.tenant, &target.adapter).map(|adapter| adapter.listed().count());
        let counts = self.core.counts();
        let adapters = if versions.is_some() { 0 } else { counts.adapters };
        for (what, count, max) in [
            (format!("versions of {}", target.adapter), versions.unwrap_or(0), VERSIONS_PER_ADAPTER_MAX),
            ("versions".to_owned(), counts.versions, VERSIONS_MAX),
            ("adapters".to_owned(), adapters, ADAPTERS_MAX),
        ] {
            if count >= max {
                return Err(Error::Full { what, max });
            }
        }
        Ok(())
    }

    async fn put_blob(&self, blob: Content) -> Result<(), Error> {
        let (key, bytes) = (keys::blob(&blob.sha256()), blob.bytes());
        if self.core.store.put_content_if_absent(&key, blob).await? == PutOutcome::Lost {
            // Somebody published the same adapter under another name. Content is checked when it is leased.
            let found = self.core.store.head(&key).await?.map(|found| found.bytes);
            if found.is_some_and(|found| found != bytes) {
                let problem = format!("it has {} bytes instead of {bytes}", found.unwrap_or(0));
                return Err(Error::Damaged { key, problem });
            }
        }
        Ok(())
    }

    async fn put_version(&self, target: &Target, mut record: VersionRecord) -> Result<Outcome, Error> {
        let prefix = adapter_prefix(&target.tenant, &target.adapter);
        // Ends: every turn but the last means that somebody else made a version, and their number is limited.
        loop {
            if let Some(existing) = self.existing(target, |version| version.digest == record.digest)? {
                return Ok(Outcome::Existing(existing));
            }
            let last = {
                let catalog = self.core.catalog();
                let adapter = catalog.known_adapter(&target.tenant, &target.adapter);
                adapter.map_or(0, |adapter| adapter.last_number())
            };
            self.check_room(target)?;
            record.number = last + 1;
            let place = Place::Version(target.tenant.clone(), target.adapter.clone(), record.number);
            if self.core.create(&place, &record).await?.is_some() {
                return Ok(Outcome::Created(record));
            }
            self.core.refresh(&prefix).await?;
            let is_known = |number: &u64| {
                let catalog = self.core.catalog();
                let adapter = catalog.known_adapter(&target.tenant, &target.adapter);
                adapter.is_some_and(|adapter| adapter.all().any(|version| version.number == *number))
            };
            if !is_known(&record.number) {
                // The object is there and is no record: without its digest nobody can tell what number comes next.
                let problem = "it stands where the next version belongs".to_owned();
                return Err(Error::Damaged { key: place.key(), problem });
            }
        }
    }

    async fn move_alias(&self, target: &Target, version: &VersionRecord) -> Result<(), Error> {
        let Some(alias) = target.alias.clone() else { return Ok(()) };
        let (tenant, adapter) = (target.tenant.clone(), target.adapter.clone());
        // Only forward: a publisher that is late must not take back a newer version.
        self.core.set_alias(tenant, adapter, alias, version.number, Expected::Older, &target.actor).await?;
        Ok(())
    }
}

fn describe(package: &Package, base: &BaseRecord, target: &Target) -> VersionRecord {
    let warnings = package.warnings.iter().take(WARNINGS_MAX).map(|warning| cut(warning, WARNING_BYTES_MAX));
    VersionRecord {
        revision: 0,
        number: 0,
        digest: package.blob.sha256(),
        bytes: package.blob.bytes(),
        parameters: parameters(package, base),
        signed_by: None,
        quarantined: target.quarantined,
        again_ms: 0,
        rank_max: u32::try_from(package.rank_max).unwrap_or(u32::MAX),
        target_modules: package.modules.clone(),
        config_sha256: package.config_sha256,
        weights_sha256: package.weights_sha256,
        base_digest: base.digest,
        created_ms: now_ms(),
        actor: target.actor.clone(),
        warnings: warnings.collect(),
        lineage: None,
        origin: target.origin.clone(),
        condemned: None,
        collected_ms: None,
    }
}

/// Elements of all low-rank factors together.
fn parameters(package: &Package, base: &BaseRecord) -> u64 {
    let of = |one: &Resolved| {
        let linear = base.linears.iter().find(|linear| linear.module == one.module.as_str());
        linear.map_or(0, |linear| one.rank as u64 * (linear.in_features + linear.out_features) as u64)
    };
    package.resolved.iter().map(of).sum()
}

/// At most so many bytes of the text, cut between characters.
pub(crate) fn cut(text: &str, bytes_max: usize) -> String {
    text[..text.floor_char_boundary(bytes_max)].to_owned()
}

/// Work over a file of so many bytes: at once if it takes less than the way to another thread, so that a small publish takes the same course
/// every time.
async fn by_size<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    if bytes <= SMALL_BYTES_MAX { Ok(work()) } else { tokio::task::spawn_blocking(work).await }
}
