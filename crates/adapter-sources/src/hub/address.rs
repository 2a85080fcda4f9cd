//! Which addresses are on the public internet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why nobody on the public internet has this address; `None` if somebody may. After the registries of special-purpose addresses, RFC 6890.
pub(super) fn not_public(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => not_public_v4(address),
        IpAddr::V6(address) => not_public_v6(address),
    }
}

fn not_public_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        [0, ..] => Some("unspecified"),
        [10, ..] | [192, 168, ..] => Some("private"),
        [172, second, ..] if second & 0xf0 == 16 => Some("private"),
        [100, second, ..] if second & 0xc0 == 64 => Some("shared by a provider"),
        [127, ..] => Some("loopback"),
        [169, 254, ..] => Some("link-local"),
        [192, 0, 0, _] | [192, 88, 99, _] => Some("reserved"),
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Some("for documentation"),
        [198, 18 | 19, ..] => Some("for benchmarks"),
        [224..=239, ..] => Some("multicast"),
        [240..=255, ..] => Some("reserved"),
        _ => None,
    }
}

fn not_public_v6(address: Ipv6Addr) -> Option<&'static str> {
    let segments = address.segments();
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("unspecified"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
        // The names of IPv4 addresses for programs, not for the wire.
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] => Some("an IPv4 address in IPv6"),
        // NAT64: what a network without IPv4 answers for hosts that have nothing else.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            not_public_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)))
        }
        [0xfc00..=0xfdff, ..] => Some("private"),
        [0xfe80..=0xfebf, ..] => Some("link-local"),
        [0xfec0..=0xfeff, ..] => Some("private"),
        [0xff00..=0xffff, ..] => Some("multicast"),
        [0x2001, 0x0db8, ..] | [0x3fff, 0..=0x0fff, ..] => Some("for documentation"),
        // IETF protocols, Teredo among them; 6to4. Both may lead to an IPv4 address.
        [0x2001, 0..=0x01ff, ..] | [0x2002, ..] => Some("reserved"),
        [0x2000..=0x3fff, ..] => None,
        _ => Some("reserved"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_inside_a_network_is_told_from_what_is_public() {
        for (text, class) in [
            ("0.0.0.0", "unspecified"),
            ("10.1.2.3", "private"),
            ("172.16.0.1", "private"),
            ("172.31.255.255", "private"),
            ("192.168.1.1", "private"),
            ("100.64.0.1", "shared by a provider"),
            ("127.0.0.1", "loopback"),
            ("169.254.169.254", "link-local"),
            ("192.0.0.8", "reserved"),
            ("203.0.113.7", "for documentation"),
            ("198.19.0.1", "for benchmarks"),
            ("224.0.0.1", "multicast"),
            ("255.255.255.255", "reserved"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::ffff:8.8.8.8", "an IPv4 address in IPv6"),
            ("::7f00:1", "an IPv4 address in IPv6"),
            ("64:ff9b::a9fe:a9fe", "link-local"),
            ("64:ff9b:1::1", "reserved"),
            ("fd00:ec2::254", "private"),
            ("fe80::1", "link-local"),
            ("fec0::1", "private"),
            ("ff02::1", "multicast"),
            ("2001:db8::1", "for documentation"),
            ("2001::1", "reserved"),
            ("2002:7f00:1::", "reserved"),
            ("100::1", "reserved"),
        ] {
            assert_eq!(not_public(text.parse().unwrap()), Some(class), "{text}");
        }
        for text in ["8.8.8.8", "172.32.0.1", "100.128.0.1", "192.0.1.1", "2600:9000::1", "64:ff9b::808:808", "2a00::1"]
        {
            assert_eq!(not_public(text.parse().unwrap()), None, "{text}");
        }
    }
}
