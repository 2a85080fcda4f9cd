//! The bus over the simulated network: every host sends to every other one, at most once, and nobody hears of what is lost. Within a host
//! it is the memory bus.

use bytes::Bytes;
use futures::future::BoxFuture;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use tokio::sync::watch;
use turmoil::net::UdpSocket;
use weft_bus::{Bus, Error, MESSAGE_BYTES_MAX, MemoryBus, Metrics, State, Subject, Subscription, subjects};

const PORT: u16 = 4222;
/// Those that parts of the simulation listen to.
const SUBJECTS: [Subject; 6] = [
    subjects::WORKER_HEARTBEAT,
    subjects::WORKER_RESIDENCY,
    subjects::REGISTRY_CHANGE,
    subjects::ALIAS_MOVED,
    subjects::GATEWAY_DEMAND,
    subjects::PLACEMENT_EPOCH,
];

/// One host's.
pub(crate) struct NetworkBus {
    local: MemoryBus,
    socket: Arc<UdpSocket>,
    others: Vec<&'static str>,
}

impl NetworkBus {
    /// Joins on the host `name`, which runs this; `all`: the hosts of the bus. Hears as long as its host runs.
    ///
    /// # Errors
    /// The port is taken, or the registry has a bus already.
    pub(crate) async fn join(
        name: &'static str,
        all: impl IntoIterator<Item = &'static str>,
        metrics: &prometheus::Registry,
    ) -> anyhow::Result<Arc<Self>> {
        let socket = Arc::new(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?);
        let others = all.into_iter().filter(|other| *other != name).collect();
        let bus = Arc::new(Self { local: MemoryBus::new(Metrics::new(metrics)?), socket, others });
        tokio::spawn(Arc::clone(&bus).hear());
        Ok(bus)
    }

    async fn hear(self: Arc<Self>) -> io::Result<()> {
        let mut frame = vec![0; MESSAGE_BYTES_MAX + 100];
        loop {
            let (length, _) = self.socket.recv_from(&mut frame).await?;
            let mut parts = frame[..length].splitn(2, |byte| *byte == b'\n');
            let (Some(subject), Some(message)) = (parts.next(), parts.next()) else { continue };
            if let Some(subject) = SUBJECTS.iter().find(|known| known.as_str().as_bytes() == subject) {
                // What is too large was not sent.
                let _ = self.local.publish(*subject, Bytes::copy_from_slice(message));
            }
        }
    }
}

impl Bus for NetworkBus {
    fn publish(&self, subject: Subject, message: Bytes) -> Result<(), Error> {
        let frame = [subject.as_str().as_bytes(), b"\n", &message].concat();
        self.local.publish(subject, message)?;
        for other in &self.others {
            // Lost is lost.
            let _ = self.socket.try_send_to(&frame, (*other, PORT));
        }
        Ok(())
    }

    fn flush(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }

    fn subscribe(&self, subject: Subject, capacity: usize) -> Subscription {
        self.local.subscribe(subject, capacity)
    }

    fn state(&self) -> watch::Receiver<State> {
        self.local.state()
    }
}
