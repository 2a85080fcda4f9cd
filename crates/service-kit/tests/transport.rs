//! The same tonic service answers over TCP, a Unix socket and memory.

use weft_service_kit::transport::{Address, Listener, connect};

async fn reaches(listener: Listener, channel: tonic::transport::Channel) {
    use http::{Request, Response};
    use tower::Service;
    // A routeless server answers every call with UNIMPLEMENTED: enough to see that bytes go both ways.
    let routes = tonic::service::Routes::default();
    let server =
        tokio::spawn(weft_service_kit::transport::server().add_routes(routes).serve_with_incoming(listener.incoming()));
    let mut channel = channel;
    futures::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    let request = Request::post("http://x/none.None/None").body(tonic::body::Body::empty()).unwrap();
    let answer: Response<_> = channel.call(request).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "12");
    server.abort();
}

#[tokio::test]
async fn over_tcp() {
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address: Address = listener.address().parse().unwrap();
    reaches(listener, connect(&address)).await;
}

#[tokio::test]
async fn over_a_unix_socket_even_if_a_stale_one_is_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let address = Address::Unix(folder.path().join("s.sock"));
    drop(Listener::bind(&address).await.unwrap());
    let listener = Listener::bind(&address).await.unwrap();
    reaches(listener, connect(&address)).await;
}

#[tokio::test]
async fn over_memory() {
    let (listener, channel) = Listener::memory();
    reaches(listener, channel).await;
}
