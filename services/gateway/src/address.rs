//! Whose address counts for a request: the peer's, or what a trusted proxy says of whom it speaks for. Pure.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Entries of `x-forwarded-for` that are looked at, from the right.
const HOPS_MAX: usize = 32;

/// What rates are kept by: an IPv4 address, or the /64 of an IPv6 address, which is what one customer has at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Origin(u64, bool);

impl Origin {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self(u64::from(address.to_bits()), false),
            IpAddr::V6(address) => Self((address.to_bits() >> 64) as u64, true),
        }
    }
}

/// The address of whoever sent the request. `forwarded` are the values of its `x-forwarded-for` headers, in order.
///
/// Each proxy appends the address that it saw, so only the right end can be believed, and only as far as the proxies are
/// ours: the answer is the right-most entry that is no trusted proxy's. What is left of it anybody may have written. An
/// entry that is no address ends the search: then the answer is the last proxy that is known for sure.
pub(crate) fn client<'a>(peer: IpAddr, forwarded: impl IntoIterator<Item = &'a [u8]>, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(&address));
    let mut nearest = plain(peer);
    if !is_trusted(nearest) {
        return nearest;
    }
    let values: Vec<&[u8]> = forwarded.into_iter().collect();
    let entries = values.into_iter().rev().flat_map(|value| value.rsplit(|byte| *byte == b','));
    for entry in entries.take(HOPS_MAX) {
        let Some(address) = parse(entry) else { return nearest };
        if !is_trusted(address) {
            return address;
        }
        nearest = address;
    }
    nearest
}

/// An address as proxies write it: bare, or with a port, IPv6 then in brackets.
fn parse(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?.trim();
    let bare = text.parse::<IpAddr>().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    bare.or_else(with_port).or_else(bracketed).map(plain)
}

/// IPv4 within IPv6 is IPv4: a listener on `::` sees IPv4 peers so.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Reads `trusted_proxies`: networks, or single addresses.
///
/// # Errors
/// The first entry that is neither.
pub(crate) fn networks(entries: &[String]) -> Result<Vec<IpNet>, String> {
    let read = |entry: &String| {
        let net = entry.parse::<IpNet>().or_else(|_| entry.parse::<IpAddr>().map(IpNet::from));
        net.map_err(|_| format!("{entry:?} is neither a network like 10.0.0.0/8 nor an address"))
    };
    entries.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn trusted() -> Vec<IpNet> {
        networks(&["10.0.0.0/8".to_owned(), "fd00::/8".to_owned(), "192.0.2.7".to_owned()]).unwrap()
    }

    fn found(peer: &str, forwarded: &[&str]) -> String {
        client(address(peer), forwarded.iter().map(|value| value.as_bytes()), &trusted()).to_string()
    }

    #[test]
    fn a_peer_that_is_no_proxy_speaks_for_itself() {
        assert_eq!(found("203.0.113.9", &["198.51.100.1", "10.0.0.1"]), "203.0.113.9");
        assert_eq!(found("::ffff:203.0.113.9", &["198.51.100.1"]), "203.0.113.9");
    }

    #[test]
    fn behind_proxies_the_right_most_stranger_counts() {
        for (forwarded, expected) in [
            (&["198.51.100.1"][..], "198.51.100.1"),
            (&["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
            (&["1.1.1.1, 198.51.100.1, 10.9.9.9, 192.0.2.7"], "198.51.100.1"),
            (&["1.1.1.1", "198.51.100.1 ,10.9.9.9"], "198.51.100.1"),
            (&["198.51.100.1:4711"], "198.51.100.1"),
            (&["[2001:db8::1]:4711, fd00::2"], "2001:db8::1"),
            (&["[2001:db8::1]"], "2001:db8::1"),
            (&["::ffff:10.1.1.1, 198.51.100.1"], "198.51.100.1"),
            (&["198.51.100.1, ::ffff:10.1.1.1"], "198.51.100.1"),
            // Only proxies: the outermost of them.
            (&["10.2.2.2, 10.3.3.3"], "10.2.2.2"),
            (&[], "10.0.0.1"),
            // What is no address ends the search at the last proxy that is known.
            (&["198.51.100.1, unknown"], "10.0.0.1"),
            (&["198.51.100.1, nonsense, 10.4.4.4"], "10.4.4.4"),
            (&[""], "10.0.0.1"),
            (&["198.51.100.1,"], "10.0.0.1"),
        ] {
            assert_eq!(found("10.0.0.1", forwarded), expected, "{forwarded:?}");
        }
    }

    #[test]
    fn one_customer_of_ipv6_has_one_origin() {
        let of = |text| Origin::of(address(text));
        assert_eq!(of("2001:db8:1:2:3::"), of("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(of("2001:db8:1:2::"), of("2001:db8:1:3::"));
        assert_ne!(of("1.2.3.4"), of("1.2.3.5"));
        assert_ne!(of("0.0.0.1"), of("0:0:0:1::"));
    }

    #[test]
    fn what_is_no_network_is_named() {
        assert!(networks(&["10.0.0.0/33".to_owned()]).unwrap_err().contains("10.0.0.0/33"));
        assert!(networks(&["proxy.example".to_owned()]).is_err());
    }

    fn entry() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::from(bits.to_be_bytes()).to_string()),
            any::<u8>().prop_map(|last| format!("10.0.0.{last}")),
            any::<u128>().prop_map(|bits| IpAddr::from(bits.to_be_bytes()).to_string()),
            "[ -~]{0,20}",
            Just(String::new()),
        ]
    }

    proptest! {
        /// Whatever a client writes, what our own proxy appends decides.
        #[test]
        fn nobody_chooses_its_own_address(lies in proptest::collection::vec(entry(), 0..40), real in any::<u32>(), hops in 0usize..4) {
            let real = IpAddr::from(real.to_be_bytes());
            prop_assume!(!trusted().iter().any(|net| net.contains(&real)));
            let mut entries = lies;
            entries.push(real.to_string());
            entries.extend((0..hops).map(|hop| format!("10.0.1.{hop}")));
            let value = entries.join(",");
            prop_assert_eq!(client(address("10.0.0.1"), [value.as_bytes()], &trusted()), real);
        }

        /// A stranger's own headers change nothing.
        #[test]
        fn a_strangers_headers_change_nothing(values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..5)) {
            let values = values.iter().map(Vec::as_slice);
            prop_assert_eq!(client(address("203.0.113.9"), values, &trusted()), address("203.0.113.9"));
        }

        /// No bytes panic, and the answer is the peer or was written in a header.
        #[test]
        fn no_bytes_panic(values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..5)) {
            let _ = client(address("10.0.0.1"), values.iter().map(Vec::as_slice), &trusted());
        }
    }
}
