//! A server with an operator: users come with a file of credentials, and may use the mesh's subjects only.

use crate::support::{A, connected, listen, message, next, settings, state};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use prometheus::Registry;
use serde_json::{Value, json};
use weft_bus::{Heard, NatsSettings, State};
use weft_nats_testkit::NatsServer;

/// A token as `nsc` makes it.
fn jwt(issuer: &KeyPair, subject: &KeyPair, name: &str, nats: &Value) -> String {
    let claims = json!({
        "jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "name": name, "sub": subject.public_key(), "nats": nats,
    });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({"typ": "JWT", "alg": "ed25519-nkey"})), part(&claims));
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credentials_file_lets_in_with_leave_for_the_meshs_subjects_only() {
    let (operator, account, user) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
    let without_limits = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1});
    let operator_jwt = jwt(&operator, &operator, "operator", &json!({"type": "operator", "version": 2}));
    let account_claims = json!({"limits": without_limits, "type": "account", "version": 2});
    let account_jwt = jwt(&operator, &account, "mesh", &account_claims);
    let leave = json!({"allow": ["weft.>"]});
    let user_claims =
        json!({"pub": leave, "sub": leave, "subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2});
    let user_jwt = jwt(&account, &user, "service", &user_claims);

    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "operator: {operator_jwt}\nresolver: MEMORY\nresolver_preload: {{ {}: {account_jwt} }}\n",
        account.public_key()
    );
    let (config_file, credentials) = (folder.path().join("nats.conf"), folder.path().join("service.creds"));
    std::fs::write(&config_file, config).unwrap();
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        user.seed().unwrap()
    );
    std::fs::write(&credentials, text).unwrap();
    let server = NatsServer::start_with(&["--config", config_file.to_str().unwrap()]);
    let with = |change: &dyn Fn(&mut NatsSettings)| {
        let mut settings = NatsSettings { credentials_file: Some(credentials.clone()), ..settings(&server.url()) };
        change(&mut settings);
        weft_bus::connect(settings, &Registry::new()).unwrap()
    };
    let bus = with(&|_| {});
    connected(&bus).await;
    let mut heard = listen(&bus, A, 4).await;
    bus.publish(A, message(1)).unwrap();
    assert_eq!(next(&mut heard).await, Heard::Message(message(1)));

    let why = |bus| async move {
        let refused = |state: &State| matches!(state, State::Away { why } if !why.contains("not yet connected"));
        match state(&bus, refused).await {
            State::Away { why } => why,
            State::Connected => unreachable!("waited for"),
        }
    };
    let without = why(with(&|settings| settings.credentials_file = None)).await;
    assert!(without.contains("authorization"), "{without}");
    // It is let in, and hears nothing: it says so instead of being deaf.
    let elsewhere = why(with(&|settings| settings.subject_prefix = "other".to_owned())).await;
    assert!(elsewhere.contains("other.>") && elsewhere.contains("not permitted"), "{elsewhere}");
}
