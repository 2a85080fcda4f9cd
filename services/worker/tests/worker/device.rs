//! A worker whose engine is on a device: the shim, which runs the very kernels on this processor and checks every order of its streams.

use std::time::Duration;

use crate::support::{ADAPTERS, Answer, HELLO, TestWorker, blob, golden_greedy, request, settings};
use tokio::time::timeout;
use weft_fault::{Fault, Kind};
use weft_proto::worker::v1 as pb;
use weft_service_kit::transport::Listener;
use weft_types::Digest;
use weft_worker::{App, Components, Error, Settings};

/// Far longer than anything here takes; a test that hangs fails.
const PATIENCE: Duration = Duration::from_secs(120);

/// A device of 64 MiB, exact. Kernels run thread by thread: small steps.
fn on_device() -> Settings {
    Settings {
        device: "shim".into(),
        device_memory_fraction: 0.0625,
        device_rank_max: 64,
        kv_memory_bytes: 4 << 20,
        adapter_memory_bytes: 8 << 20,
        running_requests_max: 8,
        step_tokens_max: 32,
        ..settings()
    }
}

async fn ask(worker: &TestWorker, asked: &[(Option<&'static str>, Option<Digest>)], tokens: u32) -> Vec<pb::Finished> {
    let calls: Vec<_> = asked
        .iter()
        .map(|&(name, digest)| {
            let mut client = worker.client.clone();
            tokio::spawn(async move {
                let stream = client.generate(request(digest, HELLO, tokens)).await.unwrap().into_inner();
                let answer = Answer::read(stream).await.unwrap();
                assert_eq!(answer.ids(), golden_greedy(name)[..tokens as usize], "{name:?}");
                let wanted = digest.map_or(Vec::new(), |digest| digest.to_vec());
                assert_eq!(answer.started.adapter_digest, wanted, "{name:?}");
                answer.finished
            })
        })
        .collect();
    let mut finished = Vec::new();
    for call in calls {
        finished.push(timeout(PATIENCE, call).await.unwrap().unwrap());
    }
    finished
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mixed_batch_on_a_device_answers_as_transformers_and_peft_do() {
    answer_a_mixed_batch(on_device(), "sm_80 (shim)").await;
}

/// The same memory in two halves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mixed_batch_on_two_devices_answers_as_transformers_and_peft_do() {
    let two = Settings { device: "shim*2".into(), device_memory_fraction: 0.0625 / 2.0, ..on_device() };
    answer_a_mixed_batch(two, "sm_80 (2 x shim)").await;
}

async fn answer_a_mixed_batch(settings: Settings, isa: &str) {
    let worker = TestWorker::start(Settings { adapter_loads_max: 8, ..settings }).await;
    let names = ["rank4", "rank64", "patterns", "mlp_only", "one_layer", "dora"];
    let mut asked = vec![(None, None)];
    asked.extend(names.map(|name| (Some(name), Some(worker.shelf.put(&blob(name))))));
    // All adapters come at once, so that their requests start together.
    worker.shelf.hold();
    let (finished, ()) = tokio::join!(ask(&worker, &asked, 16), async {
        worker.load_when(|load| load.loading_requests == names.len() as u32).await;
        worker.shelf.let_go();
    });
    let most = finished.iter().map(|finished| finished.adapters_in_step_max).max();
    assert!(most >= Some(4), "most adapters in one step: {most:?}");
    let described = worker.client.clone().describe(pb::DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!((described.dtype.as_str(), described.isa.as_str()), ("f32", isa));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_adapters_than_a_device_has_slots_take_turns_in_its_memory() {
    // The largest takes two thirds of the slots.
    let settings = Settings { adapter_memory_bytes: 288 << 10, adapter_prepared_bytes: 100 << 10, ..on_device() };
    let worker = TestWorker::start(settings).await;
    let asked: Vec<_> = ADAPTERS.iter().map(|name| (Some(*name), Some(worker.shelf.put(&blob(name))))).collect();
    for round in 0..2 {
        let mut turn = asked.clone();
        turn.rotate_left(5 * round);
        ask(&worker, &turn, 4).await;
        let residency = worker.residency().await;
        assert!(residency.slot_bytes_used <= residency.slot_bytes_max, "{residency:?}");
        assert!(residency.prepared_bytes_used <= residency.prepared_bytes_max, "{residency:?}");
        assert!(residency.adapters.len() < ADAPTERS.len(), "{residency:?}");
    }
    let again: usize = asked.iter().filter_map(|(_, digest)| Some(worker.shelf.asked(digest.as_ref()?))).sum();
    assert!(again > ADAPTERS.len(), "nothing was ever evicted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_values_get_what_a_device_has_left() {
    let blocks = async |worker: &TestWorker| worker.load_when(|load| load.kv_blocks_max > 0).await.kv_blocks_max;
    let limited = blocks(&TestWorker::start(on_device()).await).await;
    let worker = TestWorker::start(Settings { kv_memory_bytes: 0, ..on_device() }).await;
    let all = blocks(&worker).await;
    // 64 MiB less some for the base and steps; a block of the tiny model is 16 tokens of 3 layers of 2 * 32 numbers. While there are no adapters, requests
    // may have the 8 MiB that those may take.
    let block_bytes = 16 * 3 * 2 * 32 * 4;
    let of_adapters = (8 << 20) / block_bytes;
    assert_eq!(limited, (4 << 20) / block_bytes + of_adapters);
    assert!((48 << 20..64 << 20).contains(&(all * block_bytes)), "{all} blocks");
    ask(&worker, &[(None, None)], 8).await;
    let few = TestWorker::start(Settings { kv_memory_bytes: 0, kv_tokens_max: 320, ..on_device() }).await;
    assert_eq!(blocks(&few).await, 20 + of_adapters);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_device_fails_ends_and_says_unavailable() {
    end_where_a_device_fails("shim").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_one_of_whose_devices_fails_ends_and_says_unavailable() {
    end_where_a_device_fails("shim*2").await;
}

async fn end_where_a_device_fails(device: &str) {
    let failing = |at: u64| Settings { device: format!("{device}:{at}"), ..on_device() };
    // Past the start and its warm-up, within the first steps.
    let operations = {
        let mut fails_at = 1;
        loop {
            fails_at *= 2;
            match build(failing(fails_at)).await {
                Err(Error::Start { problem, .. }) => assert!(problem.contains("made to fail"), "{problem}"),
                Err(other) => panic!("{other}"),
                Ok(_) => break fails_at,
            }
        }
    };
    let worker = TestWorker::start(failing(operations)).await;
    let fault = loop {
        match timeout(PATIENCE, worker.generate(request(None, HELLO, 64))).await.unwrap() {
            Ok(_) => {}
            Err(fault) => break fault,
        }
    };
    assert_eq!(fault.kind, Kind::Unavailable, "another worker can go on: {fault:?}");
    let mut worker = worker;
    let running = std::mem::replace(&mut worker.running, tokio::spawn(async { Ok(()) }));
    assert!(matches!(timeout(PATIENCE, running).await.unwrap().unwrap(), Err(Error::LoopEnded)));
}

async fn build(settings: Settings) -> Result<App, Error> {
    let (_listener, cache_daemon) = Listener::memory();
    App::build(settings, Components { cache_daemon, registry: None }, &prometheus::Registry::new()).await
}

#[tokio::test]
async fn what_does_not_fit_a_device_is_said_at_the_start() {
    let says = async |settings: Settings| build(settings).await.err().unwrap().to_string();
    let slots = says(Settings { adapter_memory_bytes: 1 << 30, ..on_device() }).await;
    assert!(slots.contains("adapter_memory_bytes") && slots.contains("device_memory_fraction"), "{slots}");
    let kv = build(Settings { kv_memory_bytes: 1 << 30, ..on_device() }).await.err().unwrap();
    let kv = Fault::from(kv).message;
    assert!(kv.contains("out of device memory"), "{kv}");
    let rank = says(Settings { device_rank_max: 1000, ..on_device() }).await;
    assert!(rank.contains("device_rank_max is 1000, allowed on a device is 1 to 768"), "{rank}");

    // An adapter of a larger rank than the device was set up for is refused by name; others are served.
    let worker = TestWorker::start(Settings { device_rank_max: 8, ..on_device() }).await;
    let fault = worker.generate(request(Some(worker.shelf.put(&blob("rank16"))), HELLO, 4)).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Refused);
    assert_eq!(fault.code, "adapter_too_large");
    assert!(fault.message.contains("rank is 16, the device takes up to 8"), "{fault:?}");
    ask(&worker, &[(Some("rank8"), Some(worker.shelf.put(&blob("rank8"))))], 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapters_that_find_no_pinned_memory_wait_for_others_and_are_served() {
    // One slot, and far more adapters packed at once than there is pinned memory for.
    let worker = TestWorker::start(Settings {
        // 20 blocks.
        adapter_memory_bytes: 240 << 10,
        adapter_prepared_bytes: 400 << 10,
        adapter_loads_max: 64,
        ..on_device()
    })
    .await;
    // The lowest bits of one number make another adapter of the same answers.
    let other = |number: u8| {
        let mut bytes = blob("rank64");
        let low = bytes.len() - 4;
        bytes[low] = number;
        (Some("rank64"), Some(worker.shelf.put(&bytes)))
    };
    let asked: Vec<_> = (0..48).map(other).collect();
    worker.shelf.hold();
    tokio::join!(ask(&worker, &asked, 2), async {
        worker.load_when(|load| load.loading_requests == 48).await;
        worker.shelf.let_go();
    });
    assert!(out_of_memory(&worker) > 0.0, "memory was enough for all of them");
    let residency = worker.residency().await;
    assert!(residency.prepared_bytes_used <= residency.prepared_bytes_max, "{residency:?}");
}

fn out_of_memory(worker: &TestWorker) -> f64 {
    let families = worker.metrics.gather();
    let told = families.iter().find(|family| family.name() == "worker_out_of_memory_total").unwrap();
    told.get_metric()[0].get_counter().get_value()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_that_is_larger_than_all_slots_is_refused_and_costs_nobody_a_place() {
    let worker = TestWorker::start(Settings { adapter_memory_bytes: 120 << 10, ..on_device() }).await;
    let small = [("rank4", worker.shelf.put(&blob("rank4")))].map(|(name, digest)| (Some(name), Some(digest)));
    ask(&worker, &small, 4).await;
    let before = worker.residency().await.adapters;
    let fault = worker.generate(request(Some(worker.shelf.put(&blob("rank64"))), HELLO, 4)).await.unwrap_err();
    assert_eq!((fault.kind, fault.code.as_str()), (Kind::Refused, "adapter_too_large"), "{fault:?}");
    assert_eq!(worker.residency().await.adapters, before);
    assert_eq!(out_of_memory(&worker), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_chooses_the_tokens_that_a_processor_chooses() {
    let regex = pb::grammar::Source::Regex("[a-z]{3,8}( [A-Z]{2,5}){1,2}[.]".into());
    let drawn = |number: u64| {
        let mut asked = request(None, HELLO, 14);
        let even = number.is_multiple_of(2);
        asked.sampling = Some(pb::Sampling {
            temperature: 0.7 + 0.1 * number as f32,
            seed: Some(number),
            top_k: if even { 0 } else { 20 },
            top_p: if even { 0.9 } else { 0.0 },
            repetition_penalty: if number > 3 { 1.3 } else { 0.0 },
            frequency_penalty: if number > 5 { 0.4 } else { 0.0 },
            ..Default::default()
        });
        asked.logprobs = (number.is_multiple_of(3)).then_some(pb::Logprobs { top: 4, prompt: number == 3 });
        if number % 4 == 1 {
            asked.grammar = Some(pb::Grammar { source: Some(regex.clone()) });
        }
        asked
    };
    let answers = async |settings: Settings| {
        let worker = TestWorker::start(settings).await;
        let calls = (0..8).map(|number| {
            let (mut client, asked) = (worker.client.clone(), drawn(number));
            async move { Answer::read(client.generate(asked).await.unwrap().into_inner()).await.unwrap() }
        });
        timeout(PATIENCE, futures::future::join_all(calls)).await.unwrap()
    };
    let (processor, device) = (answers(settings()).await, answers(on_device()).await);
    for (number, (processor, device)) in processor.iter().zip(&device).enumerate() {
        assert_eq!(device.ids(), processor.ids(), "request {number}");
        assert_eq!(device.reason(), processor.reason(), "request {number}");
        for (device, processor) in device.tokens.iter().zip(&processor.tokens) {
            assert!((device.logprob - processor.logprob).abs() < 1e-3, "request {number}");
            let tops = |token: &pb::TokenOut| token.top.iter().map(|top| top.id).collect::<Vec<_>>();
            assert_eq!(tops(device), tops(processor), "request {number}");
        }
    }
    assert!(device[3].finished.prompt.len() == HELLO.len(), "prompts still give their logits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn formats_of_a_device_serve_mixed_batches_and_tell_what_they_are() {
    for (dtype, kv_dtype, adapter_dtype) in [("int8", "auto", "int8"), ("q4", "fp8", "bf16"), ("fp8", "fp8", "fp8")] {
        let [dtype_, kv_dtype, adapter_dtype] = [dtype, kv_dtype, adapter_dtype].map(str::to_owned);
        let worker = TestWorker::start(Settings { dtype: dtype_, kv_dtype, adapter_dtype, ..on_device() }).await;
        let adapters = ["rank8", "dora", "rank64"].map(|name| Some(worker.shelf.put(&blob(name))));
        let asked: Vec<_> = std::iter::once(None).chain(adapters).collect();
        let mut rounds = Vec::new();
        for _ in 0..2 {
            let calls = asked.iter().map(|digest| worker.generate(request(*digest, HELLO, 6)));
            let answers = timeout(PATIENCE, futures::future::join_all(calls)).await.unwrap();
            let answers = answers.into_iter().map(|answer| answer.unwrap());
            rounds
                .push(answers.map(|answer| (answer.started.adapter_digest.clone(), answer.ids())).collect::<Vec<_>>());
        }
        // Rounding may change an answer; what shares the step may not, nor who it belongs to.
        assert_eq!(rounds[0], rounds[1], "{dtype}");
        for ((found, _), wanted) in rounds[0].iter().zip(&asked) {
            assert_eq!(found[..], wanted.map_or(Vec::new(), |digest| digest.to_vec())[..], "{dtype}");
        }
        let described = worker.client.clone().describe(pb::DescribeRequest {}).await.unwrap().into_inner();
        assert_eq!(described.dtype, dtype);
    }
}
