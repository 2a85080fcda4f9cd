//! Packages that are signed: who did is in the version, what does not count is refused, and a policy may want it.

use crate::support::{Package, Running, TENANT, World, send, start_part};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, SigningKey};
use serde_json::json;
use weft_adapter_registry::Settings;
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::publish_request::Part;
use weft_proto::registry::v1::publish_response::Result as Published;
use weft_types::Digest;

/// A `model.sig` of the package by this key, as `model-signing` writes it.
fn sign(key: &KeyPair, package: &Package) -> Vec<u8> {
    let files = [("adapter_config.json", &package.config), ("adapter_model.safetensors", &package.weights)];
    let digests = files.map(|(name, bytes)| (name, Digest::of(bytes)));
    let all: Vec<u8> = digests.iter().flat_map(|(_, digest)| digest.to_vec()).collect();
    let resources = digests.map(|(name, digest)| json!({"name": name, "algorithm": "sha256", "digest": digest.hex()}));
    let payload = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "adapter", "digest": {"sha256": Digest::of(&all).hex()}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": false, "ignore_paths": []},
            "resources": resources,
        },
    })
    .to_string();
    let message = format!("DSSEv1 28 application/vnd.in-toto+json {} {payload}", payload.len());
    let signature = STANDARD.encode(key.sign(message.as_bytes()).unwrap());
    let bundle = json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {}},
        "dsseEnvelope": {
            "payload": STANDARD.encode(payload),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": signature, "keyid": ""}],
        },
    });
    bundle.to_string().into_bytes()
}

/// Who signed the version; or the reasons of the refusal.
async fn publish(
    registry: &Running,
    adapter: &str,
    package: &Package,
    signature: Option<Vec<u8>>,
) -> Result<String, String> {
    let mut parts = vec![start_part(TENANT, adapter, "live"), Part::Config(package.config.clone().into())];
    parts.extend(signature.map(|bundle| Part::Signature(bundle.into())));
    parts.push(Part::Weights(package.weights.clone().into()));
    match send(&registry.client, parts).await.unwrap().result.unwrap() {
        Published::Published(published) => Ok(published.signed_by),
        Published::Refusal(refusal) => Err(refusal.reasons.join("; ")),
    }
}

#[tokio::test]
async fn who_signed_is_in_the_version_and_a_wrong_signature_is_refused() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let stranger = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("release.pem");
    std::fs::write(&file, key.public_key_pem()).unwrap();
    let world = World::new().await;
    let settings = || Settings { signature_key_files: vec![file.display().to_string()], ..Settings::default() };
    let mut registry = world.start_with(settings()).await;
    registry.prepare().await;
    let (package, other) = (Package::tiny(1), Package::tiny(2));

    let signed_by = publish(&registry, "pirate", &package, Some(sign(&key, &package))).await.unwrap();
    assert!(signed_by.contains("release.pem"), "{signed_by}");
    assert_eq!(registry.versions("pirate").await[0].signed_by, signed_by);
    for (wrong, part) in [
        (sign(&stranger, &package), "model.sig"),
        (sign(&key, &other), "adapter_model.safetensors"),
        (b"{}".to_vec(), "model.sig"),
    ] {
        let refused = publish(&registry, "clerk", &package, Some(wrong)).await.unwrap_err();
        assert!(refused.contains(part), "{part}: {refused}");
    }
    assert_eq!(publish(&registry, "clerk", &package, None).await.unwrap(), "", "nobody has to sign");

    // Where the policy wants it, everything that becomes a version is signed, merges of it included.
    let policy = Some(pb::PolicyChange { signed: Some(true), ..Default::default() });
    let request = pb::UpdateTenantRequest { name: TENANT.to_owned(), policy, ..Default::default() };
    registry.client.update_tenant(request).await.unwrap();
    let refused = publish(&registry, "singer", &other, None).await.unwrap_err();
    assert!(refused.contains("no model.sig"), "{refused}");
    publish(&registry, "singer", &other, Some(sign(&key, &other))).await.unwrap();
    let merge = |adapter: &str| pb::MergeRequest {
        tenant: TENANT.to_owned(),
        adapter: "both".to_owned(),
        method: "linear".to_owned(),
        parents: ["pirate", adapter]
            .map(|adapter| pb::MergeParent { adapter: adapter.to_owned(), selector: String::new(), weight: 0.5 })
            .to_vec(),
        ..Default::default()
    };
    let refused = registry.client.merge(merge("clerk")).await.unwrap_err();
    assert!(refused.message().contains("is not signed"), "{refused}");
    registry.client.merge(merge("singer")).await.unwrap();
    // What was published before is signed by bringing the signature.
    let signed_by = publish(&registry, "clerk", &package, Some(sign(&key, &package))).await.unwrap();
    assert!(signed_by.contains("release.pem"), "{signed_by}");

    // A registry that trusts nobody takes nothing that has to be signed.
    let nobody = world.start().await;
    let third = Package::tiny(3);
    let refused = publish(&nobody, "third", &third, Some(sign(&key, &third))).await.unwrap_err();
    assert!(refused.contains("no key is trusted"), "{refused}");
}

#[tokio::test]
async fn files_that_are_no_keys_are_named_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wrong.pem");
    std::fs::write(&file, "no key").unwrap();
    let settings = Settings {
        signature_key_files: vec![file.display().to_string(), "/nonexistent.pem".to_owned()],
        signature_authority_files: vec![file.display().to_string()],
        ..Settings::default()
    };
    let text = settings.check().unwrap_err().to_string();
    for part in ["signature_key_files", "wrong.pem", "/nonexistent.pem", "signature_authority_files"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
