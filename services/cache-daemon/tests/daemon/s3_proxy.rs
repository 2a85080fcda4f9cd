//! Stands between a daemon and the S3 server and makes trouble: what a network or an overloaded service does to the bytes of
//! real answers.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What happens to one answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    /// The connection breaks after so many bytes of the body.
    Cut { after: usize },
    /// Nothing comes after so many bytes of the body, and the connection stays.
    Silence { after: usize },
    /// The server is not asked; this status and S3 code are answered.
    Refuse { status: u16, code: &'static str },
    /// One bit of this byte of the body is another.
    Flip { at: usize },
    /// So many bytes, then a pause.
    Trickle { bytes: usize, pause_ms: u64 },
    /// Nothing is answered before [`Proxy::open`].
    Hold,
}

#[derive(Default)]
struct Plan {
    /// For the next requests, one each.
    next: VecDeque<Trouble>,
    /// For all others.
    always: Option<Trouble>,
    /// What was asked for.
    ranges: Vec<(u64, u64)>,
}

/// A proxy on a loopback port. Dropped, it is away.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    plan: Arc<Mutex<Plan>>,
    gate: Arc<tokio::sync::Semaphore>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    pub(crate) async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let plan: Arc<Mutex<Plan>> = Arc::default();
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let (planned, gated) = (plan.clone(), gate.clone());
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (plan, gate) = (planned.clone(), gated.clone());
                open.spawn(async move {
                    // A connection that breaks is what this is for.
                    let _ = serve(client, server, plan, gate).await;
                });
            }
        });
        Self { address, plan, gate, task }
    }

    /// Trouble for the next requests, one each.
    pub(crate) fn next(&self, troubles: &[Trouble]) {
        self.plan.lock().unwrap().next.extend(troubles);
    }

    /// Trouble for all requests without one of their own, or no more.
    pub(crate) fn always(&self, trouble: Option<Trouble>) {
        self.plan.lock().unwrap().always = trouble;
    }

    /// Lets requests on that are held, for good.
    pub(crate) fn open(&self) {
        self.gate.add_permits(1 << 20);
    }

    /// First and last byte of each range that was asked for, in the order of the requests.
    pub(crate) fn ranges(&self) -> Vec<(u64, u64)> {
        self.plan.lock().unwrap().ranges.clone()
    }
}

async fn serve(
    client: TcpStream,
    server: SocketAddr,
    plan: Arc<Mutex<Plan>>,
    gate: Arc<tokio::sync::Semaphore>,
) -> std::io::Result<()> {
    let mut client = BufReader::new(client);
    let mut upstream = BufReader::new(TcpStream::connect(server).await?);
    while let Some(request) = head(&mut client).await? {
        let trouble = {
            let mut plan = plan.lock().unwrap();
            plan.ranges.extend(range(&request));
            plan.next.pop_front().or(plan.always)
        };
        match trouble {
            Some(Trouble::Refuse { status, code }) => {
                let body = format!("<Error><Code>{code}</Code><Message>on purpose</Message></Error>");
                let head = format!(
                    "HTTP/1.1 {status} Trouble\r\ncontent-type: application/xml\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                client.write_all(head.as_bytes()).await?;
                client.write_all(body.as_bytes()).await?;
                continue;
            }
            Some(Trouble::Hold) => gate.acquire().await.unwrap().forget(),
            _ => {}
        }
        upstream.write_all(request.as_bytes()).await?;
        let Some(answer) = head(&mut upstream).await? else { return Ok(()) };
        client.write_all(answer.as_bytes()).await?;
        let mut left =
            if request.starts_with("HEAD") { 0 } else { field(&answer, "content-length").unwrap_or(0) as usize };
        let mut at = 0;
        let mut piece = vec![0; 64 << 10];
        while left > 0 {
            let most = match trouble {
                Some(Trouble::Trickle { bytes, .. }) => bytes.min(piece.len()),
                Some(Trouble::Cut { after } | Trouble::Silence { after }) if after > at => {
                    (after - at).min(piece.len())
                }
                _ => piece.len(),
            };
            let most = most.min(left);
            let got = upstream.read(&mut piece[..most]).await?;
            if got == 0 {
                return Ok(());
            }
            match trouble {
                Some(Trouble::Cut { after }) if at >= after => return Ok(()),
                Some(Trouble::Silence { after }) if at >= after => return std::future::pending().await,
                Some(Trouble::Flip { at: wrong }) if (at..at + got).contains(&wrong) => piece[wrong - at] ^= 1,
                Some(Trouble::Trickle { pause_ms, .. }) => tokio::time::sleep(Duration::from_millis(pause_ms)).await,
                _ => {}
            }
            client.write_all(&piece[..got]).await?;
            client.flush().await?;
            (at, left) = (at + got, left - got);
        }
    }
    Ok(())
}

/// The head of a request or an answer, with its last empty line. None: the connection ended before it.
async fn head(from: &mut BufReader<TcpStream>) -> std::io::Result<Option<String>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match from.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(String::from_utf8(head).expect("heads are ASCII")))
}

fn line<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

fn field(head: &str, name: &str) -> Option<u64> {
    line(head, name)?.parse().ok()
}

fn range(head: &str) -> Option<(u64, u64)> {
    let (first, last) = line(head, "range")?.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}
