use super::*;
use crate::records::Revocation;
use proptest::prelude::*;

fn tenant() -> TenantName {
    "harbour".parse().unwrap()
}

fn adapter() -> AdapterName {
    "org/pirate".parse().unwrap()
}

fn version(number: u64) -> (Place, Record, ETag) {
    let digest = Digest::of(&number.to_le_bytes());
    let record = VersionRecord {
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
        prop_assert_eq!(directory_of(repeated), directory_of(all()));
    }
}
