//! Versions merged into new ones: lineage, once for the same recipe, and what is refused.

use crate::support::{Package, Running, TENANT, World};
use weft_fault::{Fault, Kind};
use weft_object_store::ObjectStore;
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::merge_response::Result as Merged;

fn parent(adapter: &str, selector: &str, weight: f64) -> pb::MergeParent {
    pb::MergeParent { adapter: adapter.to_owned(), selector: selector.to_owned(), weight }
}

fn linear(parents: Vec<pb::MergeParent>) -> pb::MergeRequest {
    pb::MergeRequest {
        tenant: TENANT.to_owned(),
        adapter: "both".to_owned(),
        alias: "live".to_owned(),
        actor: "ada".to_owned(),
        method: "linear".to_owned(),
        parents,
        ..Default::default()
    }
}

async fn merge(registry: &Running, request: pb::MergeRequest) -> Result<(pb::Published, pb::Lineage), Fault> {
    let answer = registry.client.clone().merge(request).await.map_err(Fault::from)?.into_inner();
    match answer.result.unwrap() {
        Merged::Published(published) => Ok((published, answer.lineage.unwrap())),
        Merged::Refusal(refusal) => panic!("refused: {:?}", refusal.reasons),
    }
}

async fn two() -> (World, Running) {
    let (world, registry) = World::ready().await;
    registry.publish("pirate", &Package::tiny(1)).await;
    registry.publish("clerk", &Package::tiny(2)).await;
    (world, registry)
}

#[tokio::test]
async fn a_merge_is_a_version_with_its_lineage_and_the_same_merge_is_the_same_version() {
    let (world, registry) = two().await;
    let parents = vec![parent("pirate", "", 0.75), parent("clerk", "1", 0.25)];
    let (published, lineage) = merge(&registry, linear(parents.clone())).await.unwrap();
    assert_eq!((published.version, published.created, &*published.adapter), (1, true, "both"));
    assert_eq!(lineage.error, 0.0, "linear is exact");
    let names: Vec<_> =
        lineage.parents.iter().map(|parent| (&*parent.adapter, parent.version, parent.weight)).collect();
    assert_eq!(names, [("pirate", 1, 0.75), ("clerk", 1, 0.25)]);
    let resolved = registry.resolve("both", "").await.unwrap();
    assert_eq!((resolved.number, &resolved.digest), (1, &published.digest), "live follows");
    assert_eq!(resolved.lineage.as_ref(), Some(&lineage));
    let mut rank = 0;
    for part in ["pirate", "clerk"] {
        rank += registry.resolve(part, "").await.unwrap().rank_max;
    }
    assert_eq!(resolved.rank_max, rank, "ranks add up");

    // The other way round it is the same recipe: nothing is made anew, here or after a restart.
    let before = world.keys().await;
    let turned: Vec<_> = parents.into_iter().rev().collect();
    let (again, same) = merge(&registry, linear(turned.clone())).await.unwrap();
    assert_eq!((again.version, again.created, &same.recipe_digest), (1, false, &lineage.recipe_digest));
    registry.stop().await;
    let registry = world.start().await;
    let (again, _) = merge(&registry, linear(turned)).await.unwrap();
    assert_eq!((again.version, again.created), (1, false));
    assert_eq!(world.keys().await, before);

    // Another weight is another merge; cutting it says what was lost.
    let cut = pb::MergeRequest {
        method: "ties".to_owned(),
        density: Some(0.5),
        target_rank: Some(2),
        ..linear(vec![parent("pirate", "live", 1.0), parent("clerk", "live", 1.0)])
    };
    let (third, lineage) = merge(&registry, cut).await.unwrap();
    assert_eq!((third.version, third.created), (2, true));
    assert!(lineage.error > 0.0 && lineage.error < 1.0, "{}", lineage.error);
    assert_eq!(registry.resolve("both", "2").await.unwrap().rank_max, 2);
}

#[tokio::test]
async fn what_cannot_be_merged_is_named_and_leaves_nothing() {
    let (world, registry) = two().await;
    let before = world.keys().await;
    let both = || vec![parent("pirate", "", 1.0), parent("clerk", "", 1.0)];
    let with = |change: fn(&mut pb::MergeRequest)| {
        let mut request = linear(both());
        change(&mut request);
        request
    };
    let cases: Vec<(pb::MergeRequest, Kind, &str)> = vec![
        (linear(Vec::new()), Kind::Invalid, "parents"),
        (linear(vec![parent("nobody", "", 1.0)]), Kind::NotFound, "nobody"),
        (linear(vec![parent("pirate", "9", 1.0)]), Kind::NotFound, "9"),
        (linear(vec![parent("../x", "", 1.0)]), Kind::Invalid, "../x"),
        (linear(vec![parent("pirate", "", f64::NAN)]), Kind::Invalid, "weight"),
        (linear(vec![parent("pirate", "", 1.0), parent("pirate", "1", 1.0)]), Kind::Invalid, "parents"),
        (linear(vec![parent("pirate", "", 1.0); 33]), Kind::Invalid, "33"),
        (with(|request| request.method = "average".into()), Kind::Invalid, "average"),
        (with(|request| request.method = "ties".into()), Kind::Invalid, "density"),
        (with(|request| request.density = Some(0.5)), Kind::Invalid, "density"),
        (with(|request| request.method = "svd".into()), Kind::Invalid, "target_rank"),
        (with(|request| request.space = "sideways".into()), Kind::Invalid, "sideways"),
        (with(|request| request.dtype = "F8".into()), Kind::Invalid, "F8"),
        (with(|request| request.tenant = "stranger".into()), Kind::NotFound, "stranger"),
        (with(|request| request.adapter = crate::support::BASE_NAME.into()), Kind::Invalid, "base"),
    ];
    for (request, kind, word) in cases {
        let shown = format!("{request:?}");
        let fault = merge(&registry, request).await.expect_err(&shown);
        assert_eq!(fault.kind, kind, "{fault} for {shown}");
        assert!(fault.message.contains(word), "{fault} does not say {word}");
    }
    assert_eq!(world.keys().await, before);
}

#[tokio::test]
async fn a_parent_whose_bytes_have_changed_is_not_merged() {
    let (world, registry) = two().await;
    let blob = world.keys().await.into_iter().find(|key| key.contains("blob")).unwrap();
    world.store.put(&blob, bytes::Bytes::from_static(b"other bytes")).await.unwrap();
    let fault = merge(&registry, linear(vec![parent("pirate", "", 1.0), parent("clerk", "", 1.0)])).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Corrupt, "{fault}");
    assert!(registry.resolve("both", "").await.is_err());
}
