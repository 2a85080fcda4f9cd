//! What networks and stores do to those who use them: a wire to a service that can be cut, or left hanging with everything that is on
//! it; and a store that refuses, takes long, or answers with other bytes.

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// What happens to the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    Carries,
    /// Connections stay open, and nothing comes through: what a network that drops packets looks like.
    Hangs,
    /// Connections break, and new ones do too.
    IsCut,
}

/// A wire to one service. It ends when this is dropped.
pub struct Cable {
    state: watch::Sender<Wire>,
    accepting: AbortHandle,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

enum Near {
    Tcp(TcpListener),
    Unix(UnixListener),
}

#[derive(Clone)]
enum Far {
    Tcp(String),
    Unix(PathBuf),
}

impl Cable {
    /// From one Unix socket to another.
    pub fn between(near: &Path, far: &Path) -> Self {
        Self::start(Near::Unix(UnixListener::bind(near).expect("a free path")), Far::Unix(far.to_owned()))
    }

    /// From a free port, which it returns too as `host:port`.
    pub async fn to(far: &str) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let near = listener.local_addr().expect("bound").to_string();
        (Self::start(Near::Tcp(listener), Far::Tcp(far.to_owned())), near)
    }

    fn start(near: Near, far: Far) -> Self {
        let (state, seen) = watch::channel(Wire::Carries);
        let accepting = tokio::spawn(async move {
            loop {
                let stream: Box<dyn Stream> = match &near {
                    Near::Tcp(listener) => Box::new(listener.accept().await.expect("accepts").0),
                    Near::Unix(listener) => Box::new(listener.accept().await.expect("accepts").0),
                };
                tokio::spawn(carry(stream, far.clone(), seen.clone()));
            }
        });
        Self { state, accepting: accepting.abort_handle() }
    }

    pub fn set(&self, wire: Wire) {
        self.state.send_replace(wire);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn carry(near: Box<dyn Stream>, far: Far, mut state: watch::Receiver<Wire>) {
    if *state.borrow() == Wire::IsCut {
        return;
    }
    let far: Box<dyn Stream> = match far {
        Far::Tcp(address) => match TcpStream::connect(address).await {
            Ok(stream) => Box::new(stream),
            Err(_) => return,
        },
        Far::Unix(path) => match UnixStream::connect(path).await {
            Ok(stream) => Box::new(stream),
            Err(_) => return,
        },
    };
    let (near_read, near_write) = tokio::io::split(near);
    let (far_read, far_write) = tokio::io::split(far);
    let (there, back) = (pump(near_read, far_write, state.clone()), pump(far_read, near_write, state.clone()));
    tokio::select! {
        () = there => {}
        () = back => {}
        _ = state.wait_for(|wire| *wire == Wire::IsCut) => {}
    }
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut state: watch::Receiver<Wire>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await;
        // Also what ends does so unseen while the wire hangs.
        if state.wait_for(|wire| *wire != Wire::Hangs).await.is_err() {
            return;
        }
        let Ok(count @ 1..) = read else { return };
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// What a store does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// About every other request is answered with this status and this S3 error code, and has no effect.
    Refuses(u16, &'static str),
    /// Each request takes so much longer.
    Slow(Duration),
    /// The first byte of every blob that is read is another one.
    Lies,
}

/// An S3 store in front of a real one.
pub struct MoodyStore {
    mood: Arc<Mutex<Mood>>,
    pub endpoint: String,
    serving: AbortHandle,
}

#[derive(Clone)]
struct Front {
    mood: Arc<Mutex<Mood>>,
    turn: Arc<std::sync::atomic::AtomicUsize>,
    upstream: String,
    http: reqwest::Client,
}

impl MoodyStore {
    pub async fn before(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let mood = Arc::new(Mutex::new(Mood::Well));
        let front = Front {
            mood: Arc::clone(&mood),
            turn: Arc::default(),
            upstream: upstream.to_owned(),
            http: reqwest::Client::new(),
        };
        let router = Router::new().fallback(answer).with_state(front);
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
        Self { mood, endpoint, serving: serving.abort_handle() }
    }

    pub fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }
}

impl Drop for MoodyStore {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(State(front): State<Front>, request: Request) -> Response {
    let mood = *front.mood.lock().unwrap();
    let turn = front.turn.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    match mood {
        // Not every second one: what is tried again at once would always meet the same.
        Mood::Refuses(status, code) if (turn.wrapping_mul(0x9e37_79b9) >> 13) & 1 == 0 => {
            let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>later</Message></Error>");
            return (StatusCode::from_u16(status).unwrap(), body).into_response();
        }
        Mood::Slow(more) => tokio::time::sleep(more).await,
        _ => {}
    }
    let is_blob = request.method() == Method::GET && request.uri().path().contains("/blobs/");
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    // The signature covers the host that the client named: it is passed on as it is.
    let url = format!("{}{}", front.upstream, parts.uri);
    let sent = front.http.request(parts.method, url).headers(parts.headers).body(body).send().await;
    let Ok(received) = sent else { return StatusCode::BAD_GATEWAY.into_response() };
    let mut response = Response::builder().status(received.status());
    let headers = response.headers_mut().unwrap();
    *headers = received.headers().clone();
    headers.remove(axum::http::header::TRANSFER_ENCODING);
    let mut bytes = received.bytes().await.unwrap_or_default().to_vec();
    if mood == Mood::Lies && is_blob && !bytes.is_empty() {
        bytes[0] ^= 1;
    }
    response.body(Body::from(Bytes::from(bytes))).unwrap()
}
