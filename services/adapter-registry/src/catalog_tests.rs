use super::*;
use crate::records::Revocation;
use proptest::prelude::*;
use weft_types::{LimitKind, Limits};

fn tenant() -> TenantName {
    "harbour".parse().unwrap()
}

fn adapter() -> AdapterName {
    "org/pirate".parse().unwrap()
}

fn version(number: u64) -> (Place, Record, ETag) {
    let digest = Digest::of(&number.to_le_bytes());
    let record = VersionRecord {
        revision: 0,
        number,
        digest,
        bytes: number,
        rank_max: 8,
        target_modules: Vec::new(),
        config_sha256: digest,
        weights_sha256: digest,
        base_digest: digest,
        created_ms: 100 + number,
        actor: String::new(),
        warnings: Vec::new(),
        parameters: 0,
        signed_by: None,
        quarantined: false,
        again_ms: 0,
        lineage: None,
        origin: None,
        condemned: None,
        collected_ms: None,
    };
    (Place::Version(tenant(), adapter(), number), record.into(), ETag::new(format!("v{number}")))
}

fn alias(revision: u64, version: u64) -> (Place, Record, ETag) {
    let mut record = AliasRecord::moved(None, version, Digest::of(&version.to_le_bytes()), revision, "ada");
    record.revision = revision;
    (Place::Alias(tenant(), adapter(), AliasName::live()), record.into(), ETag::new(format!("a{revision}")))
}

fn key(revision: u64) -> (Place, Record, ETag) {
    let record = KeyRecord {
        revision,
        id: "0a".to_owned(),
        label: String::new(),
        created_ms: 1,
        actor: String::new(),
        secret_sha256: Digest::of(b"secret"),
        limits: Limits::default(),
        revoked: (revision > 1).then(|| Revocation { at_ms: 2, actor: String::new() }),
    };
    (Place::Key(tenant(), "0a".to_owned()), record.into(), ETag::new(format!("k{revision}")))
}

fn tenant_record() -> (Place, Record, ETag) {
    let record = TenantRecord {
        revision: 1,
        name: tenant(),
        created_ms: 1,
        actor: String::new(),
        salt: [1; 32],
        default_adapter: String::new(),
        weight: Default::default(),
        limits: Limits::default(),
        places: Default::default(),
        policy: Default::default(),
    };
    (Place::Tenant(tenant()), record.into(), ETag::new("t1"))
}

fn all() -> Vec<(Place, Record, ETag)> {
    vec![tenant_record(), version(1), version(2), version(3), alias(1, 1), alias(2, 3), alias(3, 2), key(1), key(2)]
}

fn directory_of(records: impl IntoIterator<Item = (Place, Record, ETag)>) -> pb::Directory {
    let mut catalog = Catalog::default();
    for (place, record, etag) in records {
        catalog.merge(&place, record, etag);
    }
    catalog.directory(1, "here")
}

#[test]
fn the_directory_shows_what_a_gateway_needs() {
    let directory = directory_of(all());
    let [tenant] = &directory.tenants[..] else { panic!("{directory:?}") };
    assert!(tenant.keys.is_empty(), "a revoked key is listed");
    let [adapter] = &tenant.adapters[..] else { panic!("{directory:?}") };
    assert_eq!((adapter.name.as_str(), adapter.created_ms, adapter.versions.len()), ("org/pirate", 101, 3));
    assert_eq!(adapter.aliases, [pb::DirectoryAlias { name: "live".to_owned(), version: 2 }]);
}

#[test]
fn what_is_half_known_is_not_shown() {
    assert!(directory_of([version(1), alias(1, 1), key(1)]).tenants.is_empty());
    let directory = directory_of([tenant_record(), alias(1, 1)]);
    assert!(directory.tenants[0].adapters.is_empty());
    let directory = directory_of([tenant_record(), version(1), alias(2, 3)]);
    assert!(directory.tenants[0].adapters[0].aliases.is_empty());
}

#[test]
fn a_state_that_was_merged_is_not_read_again_and_a_newer_one_is() {
    let mut catalog = Catalog::default();
    let (place, record, etag) = alias(2, 3);
    assert!(!catalog.has_seen(&place.key(), &etag));
    assert!(catalog.merge(&place, record.clone(), etag.clone()));
    assert!(catalog.has_seen(&place.key(), &etag));
    assert!(!catalog.merge(&place, record, etag.clone()), "merged twice");
    let (_, older, older_etag) = alias(1, 1);
    assert!(!catalog.merge(&place, older, older_etag));
    assert!(catalog.has_seen(&place.key(), &etag));
}

#[test]
fn selectors_mean_versions_of_this_adapter_only() {
    let mut catalog = Catalog::default();
    for (place, record, etag) in all() {
        catalog.merge(&place, record, etag);
    }
    let number = |text: &str| {
        let selector = text.parse().unwrap();
        catalog.resolve(&tenant(), &adapter(), &selector).map(|version| version.number)
    };
    assert_eq!(
        (number(""), number("live"), number("3"), number("4"), number("canary")),
        (Some(2), Some(2), Some(3), None, None)
    );
    assert_eq!(number(&Digest::of(&1u64.to_le_bytes()).to_string()), Some(1));
    assert_eq!(number(&Digest::of(b"other").to_string()), None);
    let other: AdapterName = "other".parse().unwrap();
    assert!(catalog.resolve(&tenant(), &other, &"1".parse().unwrap()).is_none());
}

proptest! {
    #[test]
    fn order_and_repetition_do_not_matter(
        order in Just(all()).prop_shuffle(),
        again in proptest::collection::vec(0..9usize, 0..20),
    ) {
        let repeated: Vec<_> = order.iter().cloned().chain(again.into_iter().map(|i| all()[i].clone())).collect();
        let mut catalog = Catalog::default();
        for (place, record, etag) in repeated {
            catalog.merge(&place, record, etag);
        }
        prop_assert_eq!(catalog.directory(1, "here"), directory_of(all()));
        let counts = Counts { tenants: 1, keys: 0, adapters: 1, versions: 3, aliases: 1 };
        prop_assert_eq!(catalog.counts(), counts);
        catalog.forget_key(&tenant(), "0a");
        prop_assert_eq!(catalog.counts(), counts, "a revoked key is counted off twice");
    }
}

#[test]
fn only_live_keys_count_and_the_oldest_revoked_go_first() {
    let mut catalog = Catalog::default();
    let (place, record, etag) = tenant_record();
    catalog.merge(&place, record, etag);
    for (id, revoked_at) in [("a", None), ("b", Some(7)), ("c", Some(3)), ("d", None), ("e", Some(5))] {
        let Record::Key(record) = key(1).1 else { unreachable!("a key") };
        let revoked = revoked_at.map(|at_ms| Revocation { at_ms, actor: String::new() });
        let record = KeyRecord { id: id.to_owned(), revoked, ..record };
        catalog.merge(&Place::Key(tenant(), id.to_owned()), record.into(), ETag::new(id));
    }
    assert_eq!(catalog.counts().keys, 2);
    let found = catalog.tenant(&tenant()).unwrap();
    assert_eq!(
        (found.live_keys(), found.revoked_beyond(1), found.revoked_beyond(3)),
        (2, vec!["c".into(), "e".into()], vec![])
    );
    assert_eq!(catalog.keys_below("registry/tenants/harbour/").len(), 5);
    assert_eq!(catalog.keys_below("registry/tenants/harbour/adapters/").len(), 0);
    assert!(catalog.forget_key(&tenant(), "c") && !catalog.forget_key(&tenant(), "c"));
    assert!(!catalog.has_seen(&Place::Key(tenant(), "c".to_owned()).key(), &ETag::new("c")));
}

/// Names as long as names may be, all different.
fn long(prefix: &str, number: usize, bytes: usize) -> String {
    format!("{prefix}{number:0width$}", width = bytes - prefix.len())
}

#[test]
fn a_directory_with_everything_at_its_limit_fits_one_message() {
    use crate::admin::{ALIASES_MAX, KEYS_MAX, TENANTS_MAX};
    use crate::publish::{ADAPTERS_MAX, VERSIONS_MAX};
    use prost::Message;
    use weft_service_kit::transport::MESSAGE_BYTES_MAX;

    let mut catalog = Catalog::default();
    let (digest, etag) = (Digest::of(b""), || ETag::new("e"));
    let limits = Limits::default().changed(&LimitKind::ALL.map(|kind| (kind, Limits::MAX))).unwrap();
    let tenants: Vec<TenantName> = (0..TENANTS_MAX).map(|n| long("t", n, 63).parse().unwrap()).collect();
    for name in &tenants {
        let Record::Tenant(record) = tenant_record().1 else { unreachable!("a tenant") };
        let record = TenantRecord { name: name.clone(), default_adapter: long("a", 0, 128), limits, ..record };
        catalog.merge(&Place::Tenant(name.clone()), record.into(), etag());
    }
    for n in 0..KEYS_MAX {
        let Record::Key(record) = key(1).1 else { unreachable!("a key") };
        let record = KeyRecord { id: format!("{n:016x}"), limits, ..record };
        catalog.merge(&Place::Key(tenants[n % TENANTS_MAX].clone(), record.id.clone()), record.into(), etag());
    }
    for n in 0..ADAPTERS_MAX {
        let (tenant, adapter) = (&tenants[n % TENANTS_MAX], long("a", n, 128).parse::<AdapterName>().unwrap());
        for number in 1..=(VERSIONS_MAX / ADAPTERS_MAX) as u64 {
            let Record::Version(record) = version(number).1 else { unreachable!("a version") };
            // Large enough for every field to take its most bytes; blobs are far smaller than a TiB.
            let record = VersionRecord { number, digest, bytes: 1 << 40, created_ms: 1 << 42, ..record };
            catalog.merge(&Place::Version(tenant.clone(), adapter.clone(), number), record.into(), etag());
        }
        for alias in 0..ALIASES_MAX / ADAPTERS_MAX {
            let record = AliasRecord::moved(None, 4, digest, 1, "");
            let alias = long("l", alias, 63).parse().unwrap();
            catalog.merge(&Place::Alias(tenant.clone(), adapter.clone(), alias), record.into(), etag());
        }
    }
    let counts = catalog.counts();
    let expected = (TENANTS_MAX, KEYS_MAX, ADAPTERS_MAX, VERSIONS_MAX, ALIASES_MAX);
    assert_eq!((counts.tenants, counts.keys, counts.adapters, counts.versions, counts.aliases), expected);
    let bytes = catalog.directory(u64::MAX, &"0".repeat(36)).encoded_len();
    assert!(bytes <= MESSAGE_BYTES_MAX, "{bytes} bytes, a message has {MESSAGE_BYTES_MAX}");
}
