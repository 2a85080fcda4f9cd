//! A client that goes away ends its generation at the worker.

use crate::support::worker::{FakeWorker, Step, echoed, started, token, tokens};
use crate::support::{Mesh, chat_body, mesh_with, settings};
use serde_json::json;

async fn endless() -> Mesh {
    let worker = FakeWorker::playing("endless", |request| {
        let digest = echoed(request);
        vec![started(digest.clone()), tokens(digest, vec![token(1, "x")]), Step::Hang]
    });
    mesh_with(settings(), vec![worker]).await
}

async fn ended(mesh: &Mesh, dropped: usize) {
    mesh.until("cancelled at the worker", async || {
        mesh.workers[0].dropped() == dropped && mesh.workers[0].running() == 0
    })
    .await;
    mesh.until("counted", async || mesh.metric("gateway_generations_in_flight").await == 0.0).await;
}

#[tokio::test]
async fn hanging_up_a_stream_cancels_it() {
    let mesh = endless().await;
    for (count, path, body) in [
        (1, "/v1/chat/completions", json!({"messages": [{"role": "user", "content": "x"}], "stream": true})),
        (2, "/v1/completions", json!({"prompt": "x", "stream": true})),
        (3, "/generate_stream", json!({"inputs": "x"})),
    ] {
        let mut response = mesh.post(path, &body).send().await.unwrap();
        response.chunk().await.unwrap().unwrap();
        assert_eq!(mesh.workers[0].running(), 1);
        drop(response);
        ended(&mesh, count).await;
    }
    assert_eq!(mesh.metric("gateway_generations_total{end=\"cancelled\"}").await, 3.0);
}

#[tokio::test]
async fn hanging_up_before_a_whole_answer_cancels_all_of_it() {
    let mesh = endless().await;
    let mut body = chat_body("pirate");
    body["n"] = json!(3);
    let asking = tokio::spawn(mesh.post("/v1/chat/completions", &body).send());
    mesh.until("three running", async || mesh.workers[0].running() == 3).await;
    asking.abort();
    ended(&mesh, 3).await;
}
