//! The whole mesh with a worker whose engine is on a device: the shim runs the CUDA kernels on this processor.

use crate::support::{Weft, tiny_adapter, tiny_model};

const NAMES: [&str; 4] = ["rank4", "rank16", "rank64", "mlp_only"];

/// Answers of the base and of each adapter, asked at once, with the digests that they came with.
async fn answers(up: &Weft) -> Vec<(String, String)> {
    let secret = up.tenant("harbour").await;
    let mut digests = vec![String::new()];
    for name in NAMES {
        digests.push(up.admin().publish("harbour", name, &tiny_adapter(name), Some("live")).await.unwrap().digest);
    }
    let (data, prompt) = (up.data(&secret), (60..76).collect::<Vec<u32>>());
    let models = || std::iter::once("base").chain(NAMES);
    let mut answers = Vec::new();
    for _ in 0..2 {
        let calls = models().map(|name| data.complete_tokens(name, &prompt, 10));
        for (answer, digest) in futures::future::try_join_all(calls).await.unwrap().into_iter().zip(&digests) {
            assert_eq!(answer.digest, *digest);
            answers.push((answer.digest, answer.text));
        }
    }
    answers
}

#[tokio::test]
async fn tenants_get_the_same_answers_from_a_device_as_from_a_processor() {
    let processor = Weft::up(&tiny_model(), &["--dtype", "f32"]);
    // Slots hold two of the four adapters at a time.
    let flags = "--dtype f32 --worker-device shim --worker-device-memory-fraction 0.0625 --worker-device-rank-max 64 \
                 --worker-adapter-memory-bytes 250000 --worker-adapter-prepared-bytes 0 --worker-running-requests-max 8 \
                 --worker-step-tokens-max 32";
    let device = Weft::up(&tiny_model(), &flags.split_whitespace().collect::<Vec<_>>());
    let (processor, device) = (answers(&processor).await, answers(&device).await);
    assert_eq!(device, processor);
    let base = &device[0].1;
    assert!(device[1..5].iter().all(|(_, text)| text != base), "adapters change the answer");
}
