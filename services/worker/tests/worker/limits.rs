//! Each limit of a request, and the answer one beyond it.

use crate::support::{HELLO, TestWorker, request, settings};
use weft_fault::{Fault, Kind};
use weft_proto::worker::v1 as pb;
use weft_proto::worker::v1::generate_request::Prompt;
use weft_worker::Settings;

fn with_stop(stop: String) -> pb::GenerateRequest {
    let mut asked = request(None, HELLO, 2);
    asked.stopping.as_mut().unwrap().stop = vec![stop];
    asked
}

fn chat(messages_json: String) -> pb::GenerateRequest {
    let mut asked = request(None, "", 2);
    asked.prompt = Some(Prompt::Chat(pb::ChatPrompt { messages_json, ..Default::default() }));
    asked
}

#[tokio::test]
async fn a_stop_string_may_have_stop_bytes_max_and_not_one_more() {
    let worker = TestWorker::start(Settings { stop_bytes_max: 20, ..settings() }).await;
    worker.generate(with_stop("~".repeat(20))).await.unwrap();
    let fault = worker.generate(with_stop("~".repeat(21))).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Invalid);
    for part in ["stop", "21 bytes", "at most 20 bytes (stop_bytes_max)"] {
        assert!(fault.message.contains(part), "{part} in {fault}");
    }
}

#[tokio::test]
async fn a_prompt_may_have_prompt_bytes_max_and_not_one_more() {
    let worker = TestWorker::start(Settings { prompt_bytes_max: 100, ..settings() }).await;
    let messages = |bytes: usize| {
        let around = r#"[{"role":"user","content":""}]"#.len();
        format!(r#"[{{"role":"user","content":"{}"}}]"#, "m".repeat(bytes - around))
    };
    let tokenize = |bytes: usize| {
        let mut client = worker.client.clone();
        let asked = pb::TokenizeRequest { text: "t".repeat(bytes), add_special_tokens: false };
        async move { client.tokenize(asked).await.map_err(Fault::from) }
    };
    worker.generate(request(None, &"t".repeat(100), 2)).await.unwrap();
    worker.generate(chat(messages(100))).await.unwrap();
    tokenize(100).await.unwrap();
    let refused = [
        worker.generate(request(None, &"t".repeat(101), 2)).await.unwrap_err(),
        worker.generate(chat(messages(101))).await.unwrap_err(),
        tokenize(101).await.unwrap_err(),
    ];
    for fault in refused {
        assert_eq!(fault.kind, Kind::TooLarge);
        assert!(fault.message.contains("101") && fault.message.contains("prompt_bytes_max of 100"), "{fault}");
    }
}

#[tokio::test]
async fn a_prompt_that_cannot_fit_is_refused_without_being_tokenized() {
    let worker = TestWorker::start(settings()).await;
    // The longest token is `<|endoftext|>`, 13 bytes: 255 tokens stand for 3315 bytes at most.
    let long = |bytes: usize| "x".repeat(bytes);
    let fault = worker.generate(request(None, &long(3315), 1)).await.unwrap_err();
    assert_eq!(fault.code, "context_length_exceeded");
    assert!(fault.message.contains("prompt of 3315 tokens"), "counted: {fault}");
    let text = worker.generate(request(None, &long(3316), 1)).await.unwrap_err();
    let chat = worker.generate(chat(format!(r#"[{{"role":"user","content":"{}"}}]"#, long(3316)))).await.unwrap_err();
    for fault in [text, chat] {
        assert_eq!((fault.kind, fault.code.as_str()), (Kind::Invalid, "context_length_exceeded"));
        assert!(
            fault.message.contains("has at least 25") && fault.message.contains("the limit of 255 tokens"),
            "{fault}"
        );
    }
    // One that asks to be cut is read whole: only its end must fit.
    let mut cut = request(None, &long(5000), 1);
    let Some(Prompt::Text(prompt)) = &mut cut.prompt else { unreachable!("a text prompt") };
    prompt.truncate = 12;
    assert_eq!(worker.generate(cut).await.unwrap().started.prompt_tokens, 12);
}
