//! S3 as the registries see it: a real server of its protocol over objects in memory, with faults of its own.
//!
//! - `objects.rs`: the objects and their operations; they survive the host, as a disk does.
//! - `mood.rs`: how the server misbehaves now.

mod mood;
mod objects;

pub(crate) use mood::{Mood, Moods};
pub(crate) use objects::Objects;

use crate::record::Record;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mood::Turn;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use turmoil::net::TcpListener;
use weft_object_store::S3Settings;

/// Its host.
pub(crate) const HOST: &str = "s3";
const PORT: u16 = 9000;
const ACCESS_KEY: &str = "simulation";
const SECRET_KEY: &str = "not-a-secret";

/// What reaches it.
#[must_use]
pub(crate) fn settings() -> S3Settings {
    S3Settings {
        endpoint: Some(format!("http://{HOST}:{PORT}")),
        bucket: "weft".to_owned(),
        prefix: String::new(),
        region: "us-east-1".to_owned(),
        access_key_id: Some(ACCESS_KEY.to_owned()),
        secret_access_key: Some(SECRET_KEY.to_owned()),
        path_style: true,
    }
}

/// Serves the objects on the host that this runs on, for ever.
///
/// # Errors
/// The port is taken.
pub(crate) async fn serve(objects: Arc<Objects>, moods: Arc<Moods>, record: Arc<Record>) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
    let mut builder = S3ServiceBuilder::new(objects::Operations(objects));
    builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    let s3 = builder.build();
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => accepted?,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        let (s3, moods, record) = (s3.clone(), Arc::clone(&moods), Arc::clone(&record));
        let service = service_fn(move |request: http::Request<Incoming>| {
            let (s3, turn, request) = (s3.clone(), moods.turn(), request.map(s3s::Body::from));
            if turn != Turn::Plain {
                record.count(turn.name());
            }
            async move {
                match turn {
                    Turn::Plain => answered(s3.call(request).await),
                    Turn::Late(by) => {
                        tokio::time::sleep(by).await;
                        answered(s3.call(request).await)
                    }
                    Turn::Refused => Ok(unavailable()),
                    // The write, if it is one, has happened.
                    Turn::Lost => {
                        answered(s3.call(request).await)?;
                        Err(io::Error::other("the answer is lost"))
                    }
                    Turn::Never => std::future::pending().await,
                }
            }
        });
        connections.spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(120))
                .serve_connection(TokioIo::new(stream), service);
            // A connection that breaks is its client's loss.
            let _ = connection.await;
        });
    }
}

fn answered(answer: Result<s3s::HttpResponse, s3s::HttpError>) -> io::Result<s3s::HttpResponse> {
    answer.map_err(|error| io::Error::other(format!("{error:?}")))
}

fn unavailable() -> s3s::HttpResponse {
    let body =
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>SlowDown</Code><Message>simulated</Message></Error>";
    let mut answer = http::Response::new(s3s::Body::from(body.to_owned()));
    *answer.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
    answer.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/xml"));
    answer
}
