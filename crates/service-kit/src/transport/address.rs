//! Where a service listens or is reached, and whether that is this machine.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use tonic::transport::Uri;

/// Where a service listens or is reached: `127.0.0.1:7001`, `http://host:7001` or `unix:/run/weft/worker.sock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Host name or address, and port.
    Tcp(String),
    /// Path of a Unix socket.
    Unix(PathBuf),
}

/// The text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("address {0:?} must be host:port, http://host:port or unix:/path")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError(text.chars().take(200).collect());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(wrong()) } else { Ok(Self::Unix(path.into())) };
        }
        let host_port = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let (host, port) = host_port.rsplit_once(':').ok_or_else(wrong)?;
        if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
            return Err(wrong());
        }
        format!("http://{host_port}").parse::<Uri>().map_err(|_| wrong())?;
        Ok(Self::Tcp(host_port.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host_port) => write!(f, "http://{host_port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Address {
    /// Whether nobody outside this machine is reached there: a Unix socket, `localhost`, 127.0.0.0/8 or `::1`. Any other name counts as
    /// beyond, whatever it resolves to.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let Self::Tcp(host_port) = self else { return true };
        let host = host_of(host_port);
        match host.parse::<IpAddr>() {
            Ok(address) => address.to_canonical().is_loopback(),
            Err(_) => host.eq_ignore_ascii_case("localhost"),
        }
    }
}

/// The host before the port, an IPv6 address without its brackets.
pub(super) fn host_of(host_port: &str) -> &str {
    host_port.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']'])
}

/// Whether others can reach a service by what it advertises; empty stands for `listen`, the value of the setting named `setting`.
///
/// # Errors
/// What is wrong, naming the setting.
pub fn check_advertise(advertise: &str, setting: &str, listen: &str) -> Result<(), String> {
    if advertise.is_empty() {
        let is_everywhere = listen.parse::<Address>().is_ok_and(|listen| is_every_interface(&listen));
        return if is_everywhere {
            Err(format!(
                "advertise is not set, and {setting} is {listen}, every interface: say at which address others reach it"
            ))
        } else {
            Ok(())
        };
    }
    let address: Address = advertise.parse().map_err(|error: AddressError| format!("advertise: {error}"))?;
    let has_port = !matches!(&address, Address::Tcp(host_port) if host_port.ends_with(":0"));
    if has_port && !is_every_interface(&address) {
        return Ok(());
    }
    Err(format!(
        "advertise is {advertise}, where nobody can be called: say the host and the port at which others reach it"
    ))
}

fn is_every_interface(address: &Address) -> bool {
    let Address::Tcp(host_port) = address else { return false };
    host_of(host_port).parse::<IpAddr>().is_ok_and(|host| host.to_canonical().is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn addresses_are_read_and_written() {
        assert_eq!("127.0.0.1:80".parse(), Ok(Address::Tcp("127.0.0.1:80".into())));
        assert_eq!("http://host:80/".parse(), Ok(Address::Tcp("host:80".into())));
        assert_eq!("unix:/run/x".parse(), Ok(Address::Unix("/run/x".into())));
        for wrong in ["", "host", "host:", ":80", "host:99999", "https://host:1", "unix:", "a b:1", "h/x:1"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_advertised_can_be_dialled() {
        for (advertise, listen) in [("", "10.0.0.1:1"), ("", "unix:/a"), ("h:10", "0.0.0.0:1"), ("", "host:1")] {
            assert_eq!(check_advertise(advertise, "listen", listen), Ok(()), "{advertise} {listen}");
        }
        for (advertise, listen, named) in [
            ("", "0.0.0.0:1", "where is 0.0.0.0:1"),
            ("", "[::]:1", "where is [::]:1"),
            ("h", "10.0.0.1:1", "\"h\""),
            ("0.0.0.0:1", "0.0.0.0:1", "advertise is 0.0.0.0:1"),
            ("[::]:1", "0.0.0.0:1", "advertise is [::]:1"),
            ("[::ffff:0.0.0.0]:1", "0.0.0.0:1", "advertise is [::ffff:0.0.0.0]:1"),
            ("h:0", "0.0.0.0:1", "advertise is h:0"),
        ] {
            let problem = check_advertise(advertise, "where", listen).unwrap_err();
            assert!(problem.contains("advertise") && problem.contains(named), "{problem}");
        }
    }

    #[test]
    fn only_sockets_loopback_and_localhost_are_of_this_machine() {
        let local = ["unix:/a", "127.0.0.1:1", "127.255.3.4:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "LocalHost:1"];
        for address in local {
            assert!(address.parse::<Address>().unwrap().is_local(), "{address}");
        }
        let beyond = [
            "0.0.0.0:1",
            "[::]:1",
            "10.0.0.1:1",
            "[::ffff:10.0.0.1]:1",
            "worker:1",
            "localhost.example:1",
            "127.0.0.1.example:1",
            "2130706433:1",
            "127.1:1",
            "localhost.:1",
        ];
        for address in beyond {
            assert!(!address.parse::<Address>().unwrap().is_local(), "{address}");
        }
    }

    proptest! {
        #[test]
        fn an_ip_address_is_local_exactly_if_it_is_loopback(v4: [u8; 4], v6: [u8; 16], port: u16) {
            let (v4, v6) = (Ipv4Addr::from(v4), Ipv6Addr::from(v6));
            let local = |address: String| address.parse::<Address>().unwrap().is_local();
            prop_assert_eq!(local(format!("{v4}:{port}")), v4.octets()[0] == 127);
            prop_assert_eq!(local(format!("[{v6}]:{port}")), v6.to_canonical().is_loopback());
            prop_assert_eq!(local(format!("[{}]:{port}", v4.to_ipv6_mapped())), v4.octets()[0] == 127);
        }

        #[test]
        fn no_text_makes_the_reading_of_an_address_panic(text: String) {
            let _ = text.parse::<Address>().map(|address| address.is_local());
        }
    }
}
