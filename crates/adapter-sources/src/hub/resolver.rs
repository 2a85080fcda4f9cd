//! Names to addresses, without those inside the network.
//!
//! The check is made on the very addresses that are then connected to, so that a name which answers differently the second time
//! gains nothing.

use super::address::not_public;
use super::hosts::Hosts;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The system's resolver; hosts that the operator did not name get public addresses only.
pub(super) struct Resolver(pub(super) Arc<Hosts>);

/// A name all of whose addresses are inside the network.
#[derive(Debug, thiserror::Error)]
#[error("{host} has the address {address}, which is {class}")]
pub(super) struct AddressRefused {
    pub(super) host: String,
    pub(super) address: IpAddr,
    pub(super) class: &'static str,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_owned();
        let is_named = self.0.is_named(&host);
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            if is_named {
                return Ok(Box::new(found.into_iter()) as Addrs);
            }
            let (refused, public): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|address| not_public(address.ip()).is_some());
            if let (Some(address), true) = (refused.first().map(SocketAddr::ip), public.is_empty()) {
                let class = not_public(address).unwrap_or_default();
                return Err(AddressRefused { host, address, class }.into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolver(entries: &[&str]) -> Resolver {
        let entries: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
        Resolver(Arc::new(Hosts::new("https://hub.test".parse().unwrap(), &entries)))
    }

    #[tokio::test]
    async fn a_name_inside_the_network_resolves_only_if_it_was_named() {
        let Err(error) = resolver(&["*"]).resolve("localhost".parse().unwrap()).await else {
            panic!("localhost was resolved")
        };
        let refused = error.downcast_ref::<AddressRefused>().expect("an address is refused");
        assert_eq!((refused.host.as_str(), refused.class), ("localhost", "loopback"));

        let mut found = resolver(&["localhost:9000"]).resolve("localhost".parse().unwrap()).await.unwrap();
        assert!(found.all(|address| address.ip().is_loopback()));
    }
}
