//! Buses to test with.

use bytes::Bytes;
use prometheus::Registry;
use std::sync::Arc;
use std::time::Duration;
use weft_bus::{Bus, Heard, NatsSettings, State, Subject, Subscription};
use weft_nats_testkit::NatsServer;

pub(crate) const A: Subject = Subject::new("test.a");
pub(crate) const B: Subject = Subject::new("test.b");
/// Longer than anything here takes; a test that waits for it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Two ends of one bus: the same in memory, two connections over NATS.
pub(crate) struct Pair {
    pub(crate) near: Arc<dyn Bus>,
    pub(crate) far: Arc<dyn Bus>,
    _server: Option<NatsServer>,
}

pub(crate) async fn memory() -> Pair {
    let bus = weft_bus::connect(NatsSettings::default(), &Registry::new()).unwrap();
    Pair { near: Arc::clone(&bus), far: bus, _server: None }
}

pub(crate) async fn nats() -> Pair {
    let server = NatsServer::start();
    let (near, far) = (client(&server.url(), &Registry::new()), client(&server.url(), &Registry::new()));
    connected(&near).await;
    connected(&far).await;
    Pair { near, far, _server: Some(server) }
}

pub(crate) fn settings(url: &str) -> NatsSettings {
    NatsSettings {
        url: url.to_owned(),
        subject_prefix: "weft".to_owned(),
        client_name: "test".to_owned(),
        ..Default::default()
    }
}

pub(crate) fn client(url: &str, metrics: &Registry) -> Arc<dyn Bus> {
    weft_bus::connect(settings(url), metrics).unwrap()
}

pub(crate) async fn connected(bus: &Arc<dyn Bus>) {
    state(bus, |state| *state == State::Connected).await;
}

/// Waits for a state and returns it.
pub(crate) async fn state(bus: &Arc<dyn Bus>, wanted: impl Fn(&State) -> bool) -> State {
    let mut states = bus.state();
    let found = tokio::time::timeout(PATIENCE, states.wait_for(|state| wanted(state))).await;
    found.expect("the state comes").unwrap().clone()
}

/// A subscription whose beginning was heard.
pub(crate) async fn listen(bus: &Arc<dyn Bus>, subject: Subject, capacity: usize) -> Subscription {
    let mut subscription = bus.subscribe(subject, capacity);
    assert_eq!(next(&mut subscription).await, Heard::Missed { dropped: 0 });
    subscription
}

pub(crate) async fn next(subscription: &mut Subscription) -> Heard {
    tokio::time::timeout(PATIENCE, subscription.next()).await.expect("something is heard")
}

pub(crate) fn message(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_le_bytes())
}

/// The value of a counter or gauge, summed over its labels.
pub(crate) fn metric(registry: &Registry, name: &str) -> f64 {
    let families = registry.gather();
    let metrics = families.iter().filter(|family| family.name() == name).flat_map(|family| family.get_metric());
    metrics.map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value()).sum()
}
