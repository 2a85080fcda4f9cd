//! What is refused is refused by name, and leaves nothing in the store.

use crate::support::{BASE_NAME, Package, Running, TENANT, World, parts, publish, send, start_part, try_publish};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use weft_adapter_registry::Settings;
use weft_fault::{Fault, Kind};
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::publish_request::Part;

async fn refused(registry: &Running, package: &Package) -> Vec<String> {
    let answer = try_publish(&registry.client, TENANT, "pirate", "live", package).await.unwrap();
    answer.expect_err("the package was taken")
}

async fn fault_of(registry: &Running, parts: Vec<Part>) -> Fault {
    send(&registry.client, parts).await.expect_err("the upload was taken").into()
}

#[tokio::test]
async fn bad_content_is_refused_with_every_reason_and_leaves_nothing() {
    let (world, registry) = World::ready().await;
    let before = world.objects().await;

    let good = Package::tiny(1);
    let cut = Package { weights: good.weights[..good.weights.len() - 1].to_vec(), ..good.clone() };
    assert!(!refused(&registry, &cut).await.is_empty());
    let pickle = Package { weights: b"\x80\x02}q\x00.".repeat(10), ..good.clone() };
    assert!(!refused(&registry, &pickle).await.is_empty());
    let mut nan = good.clone();
    let at = nan.weights.len() - 4;
    nan.weights[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(refused(&registry, &nan).await.iter().any(|reason| reason.to_lowercase().contains("nan")));
    let rank = Package { config: Package::q_proj(2, 1, 1).config, ..good.clone() };
    assert!(!refused(&registry, &rank).await.is_empty());

    // Several faults at once, in both files.
    let config = String::from_utf8(good.config.clone())
        .unwrap()
        .replace("\"bias\": \"none\"", "\"bias\": \"all\", \"use_qalora\": 7");
    let reasons = refused(&registry, &Package { config: config.into_bytes(), weights: nan.weights }).await;
    for part in ["bias", "use_qalora"] {
        assert!(reasons.iter().any(|reason| reason.contains(part)), "{part} in {reasons:?}");
    }
    assert!(reasons.len() >= 2, "{reasons:?}");

    let no_json = Package { config: b"{".to_vec(), ..good };
    assert!(!refused(&registry, &no_json).await.is_empty());

    assert_eq!(world.objects().await, before, "something was left behind");
    assert!(registry.directory().await.tenants[0].adapters.is_empty());
}

#[tokio::test]
async fn a_package_for_another_base_is_refused() {
    let world = World::new().await;
    let mut registry = world.start().await;
    registry.create_tenant(TENANT).await;
    let mut base = crate::support::smollm2();
    base.linears[0].out_features = 640;
    registry.client.announce_base(base).await.unwrap();
    let reasons = refused(&registry, &Package::tiny(1)).await;
    assert!(reasons.iter().any(|reason| reason.contains("q_proj") && reason.contains("640")), "{reasons:?}");
}

#[tokio::test]
async fn parts_over_their_cap_are_too_large() {
    let world = World::new().await;
    let mut registry = world.start_with(Settings { package_bytes_max: 100_000, ..Settings::default() }).await;
    registry.prepare().await;
    let before = world.objects().await;

    let fault = fault_of(&registry, parts(TENANT, "pirate", "live", &Package::q_proj(64, 1, 1), 1 << 20)).await;
    assert_eq!((fault.kind, fault.code.as_str()), (Kind::TooLarge, "package_too_large"));
    assert!(fault.message.contains("100000") && fault.message.contains("package_bytes_max"), "{}", fault.message);

    let config = vec![b' '; (1 << 20) + 1];
    let fault =
        fault_of(&registry, parts(TENANT, "pirate", "live", &Package { config, ..Package::tiny(1) }, 1 << 20)).await;
    assert_eq!(fault.kind, Kind::TooLarge);
    assert!(fault.message.contains("adapter_config.json") && fault.message.contains("1048576"), "{}", fault.message);

    let chunk = vec![start_part(TENANT, "pirate", "live"), Part::Config(vec![b' '; (1 << 20) + 1].into())];
    let fault = fault_of(&registry, chunk).await;
    assert_eq!(fault.kind, Kind::Invalid);
    assert!(fault.message.contains("chunk") && fault.message.contains("1048577"), "{}", fault.message);

    assert_eq!(world.objects().await, before);
    registry.publish("pirate", &Package::tiny(1)).await;
}

#[tokio::test]
async fn parts_out_of_order_or_missing_are_named() {
    let (world, registry) = World::ready().await;
    let before = world.objects().await;
    let Package { config, weights } = Package::tiny(1);
    let (start, config, weights) =
        (start_part(TENANT, "pirate", "live"), Part::Config(config.into()), Part::Weights(weights.into()));
    for (parts, message) in [
        (vec![], "empty"),
        (vec![config.clone(), weights.clone()], "first part must be the start"),
        (vec![start.clone()], "adapter_config.json is missing"),
        (vec![start.clone(), config.clone()], "adapter_model.safetensors is missing"),
        (vec![start.clone(), config.clone(), Part::Weights(Vec::new().into())], "adapter_model.safetensors is missing"),
        (vec![start.clone(), config, weights, start], "second start"),
    ] {
        let fault = fault_of(&registry, parts).await;
        assert_eq!(fault.kind, Kind::Invalid, "{fault:?}");
        assert!(fault.message.contains(message), "{message} in {}", fault.message);
    }
    let unknown = tokio_stream::iter([pb::PublishRequest { part: None }]);
    let fault = Fault::from(registry.client.clone().publish(unknown).await.unwrap_err());
    assert_eq!(fault.kind, Kind::Invalid);
    assert_eq!(world.objects().await, before);
}

#[tokio::test]
async fn wrong_and_reserved_names_are_refused_before_the_bytes() {
    let (world, registry) = World::ready().await;
    let before = world.objects().await;
    for (tenant, adapter, alias, kind, param) in [
        ("nobody", "pirate", "live", Kind::NotFound, None),
        ("No", "pirate", "live", Kind::Invalid, Some("tenant")),
        (TENANT, "base", "live", Kind::Invalid, Some("adapter")),
        (TENANT, "default", "live", Kind::Invalid, Some("adapter")),
        (TENANT, BASE_NAME, "live", Kind::Invalid, Some("adapter")),
        (TENANT, "../x", "live", Kind::Invalid, Some("adapter")),
        (TENANT, "a/b/c", "live", Kind::Invalid, Some("adapter")),
        (TENANT, "pirate", "7", Kind::Invalid, Some("alias")),
        (TENANT, "pirate", "LIVE", Kind::Invalid, Some("alias")),
    ] {
        let fault = publish(&registry.client, tenant, adapter, alias, &Package::tiny(1)).await.unwrap_err();
        assert_eq!((fault.kind, fault.param.as_deref()), (kind, param), "{tenant} {adapter} {alias}: {fault:?}");
    }
    assert_eq!(world.objects().await, before);
}

#[tokio::test]
async fn before_any_base_is_known_a_publish_is_told_to_wait() {
    let world = World::new().await;
    let mut registry = world.start().await;
    registry.create_tenant(TENANT).await;
    let fault = publish(&registry.client, TENANT, "pirate", "live", &Package::tiny(1)).await.unwrap_err();
    assert_eq!((fault.kind, fault.code.as_str()), (Kind::Unavailable, "base_unknown"));
    assert!(fault.message.contains("no worker has announced"), "{}", fault.message);
    // A base that is announced at one registry is known at the other, and after a restart.
    let other = world.start().await;
    other.client.clone().announce_base(crate::support::smollm2()).await.unwrap();
    registry.publish("pirate", &Package::tiny(1)).await;
    registry.stop().await;
    other.stop().await;
    world.start().await.publish("pirate", &Package::tiny(2)).await;
}

/// An upload that is under way until its sender is dropped.
async fn begin_upload(registry: &Running) -> (mpsc::Sender<pb::PublishRequest>, tokio::task::JoinHandle<Fault>) {
    let (sender, receiver) = mpsc::channel(4);
    let mut client = registry.client.clone();
    let call = tokio::spawn(async move {
        Fault::from(client.publish(ReceiverStream::new(receiver)).await.expect_err("the upload was taken"))
    });
    let mut parts = parts(TENANT, "pirate", "live", &Package::tiny(1), 1 << 20).into_iter();
    for part in parts.by_ref().take(2) {
        sender.send(pb::PublishRequest { part: Some(part) }).await.unwrap();
    }
    (sender, call)
}

fn gauge(registry: &Running, name: &str) -> f64 {
    let families = registry.metrics.gather();
    let family = families.iter().find(|family| family.name() == name).unwrap_or_else(|| panic!("no metric {name}"));
    family.get_metric()[0].get_gauge().get_value()
}

#[tokio::test]
async fn one_upload_more_than_allowed_is_told_to_come_back() {
    let world = World::new().await;
    let mut registry = world.start_with(Settings { publishes_max: 1, ..Settings::default() }).await;
    registry.prepare().await;
    let (sender, call) = begin_upload(&registry).await;
    while gauge(&registry, "registry_uploads") < 1.0 {
        tokio::task::yield_now().await;
    }
    let fault = publish(&registry.client, TENANT, "other", "live", &Package::tiny(2)).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Overloaded);
    assert!(fault.retry_after_ms.is_some() && fault.message.contains("publishes_max"), "{fault:?}");
    // The client ends its stream before the weights: that upload is refused and makes room.
    drop(sender);
    assert_eq!(call.await.unwrap().kind, Kind::Invalid);
    registry.publish("other", &Package::tiny(2)).await;
}

#[tokio::test]
async fn an_upload_that_stalls_or_breaks_off_ends_and_leaves_nothing() {
    let world = World::new().await;
    let mut registry =
        world.start_with(Settings { upload_idle_timeout_ms: 50, publishes_max: 1, ..Settings::default() }).await;
    registry.prepare().await;
    let before = world.objects().await;
    let (_sender, call) = begin_upload(&registry).await;
    let fault = call.await.unwrap();
    assert_eq!(fault.kind, Kind::Timeout);
    assert!(fault.message.contains("50 ms"), "{}", fault.message);

    let (_sender, call) = begin_upload(&registry).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    while gauge(&registry, "registry_uploads") > 0.0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.objects().await, before);
    registry.publish("pirate", &Package::tiny(1)).await;
}

#[tokio::test]
async fn a_spool_folder_that_cannot_be_used_is_unavailable_for_all_but_small_packages() {
    let world = World::new().await;
    let spool = tempfile::tempdir().unwrap();
    let spool_dir = Some(spool.path().to_owned());
    let settings = Settings { spool_dir, upload_memory_bytes_max: 0, ..Settings::default() };
    let mut registry = world.start_with(settings).await;
    registry.prepare().await;
    // 288 KiB of weights.
    let spooled = |seed| Package::q_proj(64, 1, seed);
    registry.publish("pirate", &spooled(1)).await;
    assert_eq!(std::fs::read_dir(spool.path()).unwrap().count(), 0);
    drop(spool);
    let fault = publish(&registry.client, TENANT, "pirate", "live", &spooled(2)).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Unavailable);
    assert!(fault.message.contains("spool"), "{}", fault.message);
    registry.publish("pirate", &Package::tiny(3)).await;
}

#[tokio::test]
async fn a_base_that_cannot_be_is_refused() {
    let (_world, mut registry) = World::ready().await;
    let good = crate::support::smollm2();
    let mut zero = good.clone();
    zero.linears[3].in_features = 0;
    for (request, param) in [
        (pb::AnnounceBaseRequest { base_digest: vec![1; 31].into(), ..good.clone() }, "base_digest"),
        (pb::AnnounceBaseRequest { served_name: String::new(), ..good.clone() }, "served_name"),
        (pb::AnnounceBaseRequest { served_name: "a\nb".to_owned(), ..good.clone() }, "served_name"),
        (pb::AnnounceBaseRequest { layers: 0, ..good.clone() }, "layers"),
        (pb::AnnounceBaseRequest { layers: u32::MAX, ..good.clone() }, "layers"),
        (pb::AnnounceBaseRequest { linears: Vec::new(), ..good.clone() }, "linears"),
        (zero, "linears"),
    ] {
        let fault = Fault::from(registry.client.announce_base(request).await.unwrap_err());
        assert_eq!((fault.kind, fault.param.as_deref()), (Kind::Invalid, Some(param)), "{fault:?}");
    }
}
