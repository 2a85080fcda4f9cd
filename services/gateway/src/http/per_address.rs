//! How many requests an address may send, before anybody asks who they are from.

use super::errors::{LoraxError, OpenAiError};
use super::is_lorax;
use crate::address::{Origin, client, networks};
use crate::app::Gateway;
use crate::error::{BuildError, Error};
use crate::settings::Settings;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use governor::middleware::NoOpMiddleware;
use ipnet::IpNet;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tower_governor::GovernorError;
use tower_governor::governor::{GovernorConfig, GovernorConfigBuilder};
use tower_governor::key_extractor::KeyExtractor;
use weft_fault::Fault;

/// Origins are spread over so many buckets, so that memory stays bounded whoever comes. Two origins that meet in one share
/// its rate; the spread differs from start to start, so nobody can aim at another's.
const BUCKETS: u64 = 1 << 18;
/// Buckets that are full again are forgotten this often.
const RETAIN: Duration = Duration::from_secs(10);
const FORWARDED_FOR: &str = "x-forwarded-for";

/// The address of the other end of a request's connection; none over a Unix socket.
#[derive(Clone, Copy)]
pub(crate) struct Peer(pub(crate) Option<SocketAddr>);

/// Rates of addresses.
pub(crate) struct Addresses {
    rates: Option<GovernorConfig<Sender, NoOpMiddleware>>,
    sender: Sender,
    /// Milliseconds after which one more request is allowed.
    pause_ms: u64,
    loopback: bool,
}

/// Finds the bucket of whoever sent a request.
#[derive(Clone)]
struct Sender {
    trusted: Arc<[IpNet]>,
    spread: std::hash::RandomState,
}

impl Sender {
    /// The sender's address, and whether the connection is this machine's own.
    fn address<T>(&self, request: &http::Request<T>) -> (IpAddr, bool) {
        let peer = request.extensions().get::<Peer>().and_then(|peer| peer.0);
        // Whoever comes over a Unix socket comes from this machine.
        let peer = peer.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| peer.ip().to_canonical());
        let forwarded = request.headers().get_all(FORWARDED_FOR).iter().map(http::HeaderValue::as_bytes);
        (client(peer, forwarded, &self.trusted), peer.is_loopback())
    }

    fn bucket(&self, address: IpAddr) -> u64 {
        self.spread.hash_one(Origin::of(address)) % BUCKETS
    }
}

impl KeyExtractor for Sender {
    type Key = u64;

    fn extract<T>(&self, request: &http::Request<T>) -> Result<u64, GovernorError> {
        Ok(self.bucket(self.address(request).0))
    }
}

impl Addresses {
    pub(crate) fn new(settings: &Settings) -> Result<Self, BuildError> {
        let wrong = |name, problem| BuildError::Setting { name, problem };
        let trusted = networks(&settings.trusted_proxies).map_err(|problem| wrong("trusted_proxies", problem))?;
        let rate = u64::from(settings.address_requests_per_second);
        let sender = Sender { trusted: trusted.into(), spread: std::hash::RandomState::new() };
        let rates = match 1_000_000_000u64.checked_div(rate) {
            None => None,
            Some(pause_ns) => {
                let mut builder = GovernorConfigBuilder::default();
                builder.period(Duration::from_nanos(pause_ns.max(1))).burst_size(settings.address_burst);
                let config = builder.key_extractor(sender.clone()).finish();
                Some(config.ok_or_else(|| wrong("address_burst", "0 would refuse everybody".to_owned()))?)
            }
        };
        let pause_ms = 1000u64.div_ceil(rate.max(1));
        Ok(Self { rates, sender, pause_ms, loopback: settings.address_limit_loopback })
    }

    /// Whether one more request of this address is allowed; counts it if so.
    fn allow(&self, request: &Request) -> Result<(), Error> {
        let Some(rates) = &self.rates else { return Ok(()) };
        let (address, is_local) = self.sender.address(request);
        if !self.loopback && is_local && address.is_loopback() {
            return Ok(());
        }
        rates
            .limiter()
            .check_key(&self.sender.bucket(address))
            .map_err(|_| Error::AddressTooFast { pause_ms: self.pause_ms })
    }

    /// Forgets addresses that could send a whole burst again. Never ends.
    pub(crate) async fn forget(&self) {
        loop {
            tokio::time::sleep(RETAIN).await;
            self.forget_now();
        }
    }

    fn forget_now(&self) {
        if let Some(rates) = &self.rates {
            rates.limiter().retain_recent();
            rates.limiter().shrink_to_fit();
        }
    }
}

/// Lets a request pass, or refuses it in the shape of its route. Health is always told.
pub(super) async fn limit(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if matches!(path, "/livez" | "/readyz") {
        return next.run(request).await;
    }
    match gateway.addresses.allow(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => {
            gateway.mesh.metrics.addresses_refused.inc();
            let fault = Fault::from(error);
            if is_lorax(path) { LoraxError(fault).into_response() } else { OpenAiError(fault).into_response() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    fn addresses(change: impl FnOnce(&mut Settings)) -> Addresses {
        let mut settings = Settings { address_requests_per_second: 1, address_burst: 3, ..Settings::default() };
        change(&mut settings);
        Addresses::new(&settings).unwrap()
    }

    fn allowed(addresses: &Addresses, peer: &str, forwarded: &str, times: usize) -> usize {
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(Peer(Some(SocketAddr::new(peer.parse().unwrap(), 1))));
        if !forwarded.is_empty() {
            request.headers_mut().insert(FORWARDED_FOR, forwarded.parse().unwrap());
        }
        (0..times).filter(|_| addresses.allow(&request).is_ok()).count()
    }

    #[test]
    fn an_address_has_a_burst_and_others_are_not_concerned() {
        let addresses = addresses(|_| {});
        assert_eq!(allowed(&addresses, "203.0.113.1", "", 10), 3);
        assert_eq!(allowed(&addresses, "203.0.113.2", "", 10), 3);
        assert_eq!(
            allowed(&addresses, "203.0.113.1", "198.51.100.5", 5),
            0,
            "who is no proxy cannot change its address"
        );
        assert_eq!(allowed(&addresses, "2001:db8::1", "", 10), 3);
        assert_eq!(allowed(&addresses, "2001:db8::2", "", 10), 0, "the same customer");
        assert_eq!(allowed(&addresses, "127.0.0.1", "", 10), 3);
    }

    #[test]
    fn behind_a_trusted_proxy_each_client_has_its_own() {
        let addresses = addresses(|settings| settings.trusted_proxies = vec!["10.0.0.0/8".into()]);
        assert_eq!(allowed(&addresses, "10.0.0.1", "198.51.100.5", 10), 3);
        assert_eq!(allowed(&addresses, "10.0.0.1", "198.51.100.6", 10), 3);
        assert_eq!(allowed(&addresses, "10.0.0.2", "9.9.9.9, 198.51.100.6", 10), 0);
    }

    #[test]
    fn loopback_and_everybody_can_be_exempt() {
        let exempt = addresses(|settings| {
            settings.address_limit_loopback = false;
            settings.trusted_proxies = vec!["127.0.0.1".into()];
        });
        assert_eq!(allowed(&exempt, "127.0.0.1", "", 50), 50);
        assert_eq!(allowed(&exempt, "::1", "", 50), 50);
        assert_eq!(allowed(&exempt, "127.0.0.1", "198.51.100.6", 10), 3, "a proxy on this machine speaks for others");
        assert_eq!(allowed(&exempt, "203.0.113.1", "127.0.0.1", 10), 3);
        let off = addresses(|settings| settings.address_requests_per_second = 0);
        assert_eq!(allowed(&off, "203.0.113.1", "", 50), 50);
    }

    #[test]
    fn wrong_settings_are_named() {
        for (change, name) in [
            ((|settings: &mut Settings| settings.address_burst = 0) as fn(&mut Settings), "address_burst"),
            (|settings| settings.trusted_proxies = vec!["x".into()], "trusted_proxies"),
        ] {
            let mut settings = Settings::default();
            change(&mut settings);
            let Err(BuildError::Setting { name: told, .. }) = Addresses::new(&settings) else { panic!("{name}") };
            assert_eq!(told, name);
        }
    }

    #[test]
    fn memory_is_bounded_however_many_come() {
        let addresses = addresses(|settings| settings.address_burst = 1);
        let limiter = addresses.rates.as_ref().unwrap().limiter();
        for number in 0..2 * BUCKETS as u32 {
            let _ = limiter.check_key(&addresses.sender.bucket(IpAddr::from(number.to_be_bytes())));
        }
        assert!(limiter.len() <= BUCKETS as usize);
        let quick = self::addresses(|settings| settings.address_requests_per_second = 1_000_000_000);
        assert_eq!(allowed(&quick, "203.0.113.1", "", 1), 1);
        quick.forget_now();
        assert_eq!(quick.rates.as_ref().unwrap().limiter().len(), 0, "who could send a whole burst again is forgotten");
    }
}
