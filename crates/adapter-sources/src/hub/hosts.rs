//! Where the hub may send us.
//!
//! Three kinds of hosts: the hub itself, hosts that the operator names one by one, and hosts that are allowed in bulk (`*.domain`, `*`).
//! The first two are trusted to have any address. The last are not: who writes their DNS entries may be anybody.

use super::address::not_public;
use crate::Error;
use crate::error::cut;
use std::net::IpAddr;
use url::{Host, Url};

const ORIGIN_BYTES_MAX: usize = 256;

/// The hub and the hosts that it may redirect to.
#[derive(Debug)]
pub(super) struct Hosts {
    endpoint: Url,
    entries: Vec<Entry>,
}

#[derive(Debug, PartialEq, Eq)]
enum Entry {
    /// Every host.
    Any,
    /// Every host whose name ends with this, which begins with a dot.
    Below(String),
    /// This host, as URLs write it, on this port or on its scheme's own.
    Named { host: String, port: Option<u16> },
}

impl Entry {
    fn parse(text: &str) -> Result<Self, &'static str> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let (is_below, authority) = match text.strip_prefix("*.") {
            Some(domain) => (true, domain),
            None => (false, text),
        };
        let Ok(url) = Url::parse(&format!("https://{authority}/")) else { return Err("is no host") };
        if authority.contains('*') {
            return Err("may have * alone or at its beginning, as *.domain");
        }
        let is_bare = url.username().is_empty() && url.password().is_none() && url.path() == "/";
        let (true, None, None, Some(host)) = (is_bare, url.query(), url.fragment(), url.host_str()) else {
            return Err("must be a host, host:port or *.domain");
        };
        // A URL forgets a port that is its scheme's own.
        let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        match (is_below, url.host(), port) {
            (false, _, port) => Ok(Self::Named { host: host.to_owned(), port }),
            (true, Some(Host::Domain(domain)), None) => Ok(Self::Below(format!(".{domain}"))),
            (true, ..) => Err("must have a domain without a port behind *."),
        }
    }
}

/// What is wrong with an entry of `hub_redirect_hosts`.
pub(crate) fn host_problem(entry: &str) -> Option<&'static str> {
    Entry::parse(entry).err()
}

impl Hosts {
    /// From entries that were checked; others allow nothing.
    pub(super) fn new(endpoint: Url, entries: &[String]) -> Self {
        Self { endpoint, entries: entries.iter().filter_map(|entry| Entry::parse(entry).ok()).collect() }
    }

    pub(super) fn endpoint(&self) -> &Url {
        &self.endpoint
    }

    /// Whether this is the hub itself: the only one that gets the token.
    pub(super) fn is_endpoint(&self, url: &Url) -> bool {
        self.endpoint.origin() == url.origin()
    }

    /// Whether the operator named the host, so that its addresses may be any.
    pub(super) fn is_named(&self, host: &str) -> bool {
        self.endpoint.host_str() == Some(host)
            || self.entries.iter().any(|entry| matches!(entry, Entry::Named { host: named, .. } if named == host))
    }

    /// Whether a redirect to this URL is followed. Names are not resolved here.
    pub(super) fn check(&self, url: &Url) -> Result<(), Error> {
        if self.is_endpoint(url) {
            return Ok(());
        }
        let refuse = |problem: &str| {
            tracing::warn!(to = origin(url), problem, "a redirect of the hub is not followed");
            Err(Error::Redirect { to: shown(url), problem: problem.to_owned() })
        };
        let Some(host) = url.host_str() else { return refuse("it has no host") };
        if self.is_named(host) {
            let is_scheme_allowed =
                url.scheme() == "https" || (url.scheme(), self.endpoint.scheme()) == ("http", "http");
            return match is_scheme_allowed {
                true if self.is_port_named(host, url) => Ok(()),
                true => refuse("hub_redirect_hosts has this host, but not with this port"),
                false => refuse("it is not https"),
            };
        }
        if let Some(address) = literal(url)
            && let Some(class) = not_public(address)
        {
            tracing::warn!(%address, class, "a redirect of the hub leads into the network");
            return Err(Error::Address { host: shown(url), class });
        }
        let is_allowed = self.entries.iter().any(|entry| match entry {
            Entry::Any => true,
            Entry::Below(suffix) => host.ends_with(suffix),
            Entry::Named { .. } => false,
        });
        match (is_allowed, url.scheme(), url.port()) {
            (false, ..) => refuse("its host is not in hub_redirect_hosts"),
            (true, "https", None) => Ok(()),
            (true, "https", Some(_)) => refuse("a host that is not named in hub_redirect_hosts must be at port 443"),
            (true, ..) => refuse("it is not https"),
        }
    }

    fn is_port_named(&self, host: &str, url: &Url) -> bool {
        self.entries.iter().any(|entry| match entry {
            Entry::Named { host: named, port: None } => named == host && url.port().is_none(),
            Entry::Named { host: named, port } => named == host && url.port_or_known_default() == *port,
            Entry::Any | Entry::Below(_) => false,
        })
    }
}

/// Where a URL leads, without its path, which may hold a signature.
fn origin(url: &Url) -> String {
    cut(&url.origin().ascii_serialization(), ORIGIN_BYTES_MAX)
}

/// The same for whoever asked: addresses are the operator's, who has them in the log.
pub(super) fn shown(url: &Url) -> String {
    if literal(url).is_some() { format!("{}://(an address)", url.scheme()) } else { origin(url) }
}

fn literal(url: &Url) -> Option<IpAddr> {
    match url.host() {
        Some(Host::Ipv4(address)) => Some(address.into()),
        Some(Host::Ipv6(address)) => Some(address.into()),
        Some(Host::Domain(_)) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(endpoint: &str, entries: &[&str]) -> Hosts {
        let entries: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
        for entry in &entries {
            assert_eq!(host_problem(entry), None, "{entry}");
        }
        Hosts::new(endpoint.parse().unwrap(), &entries)
    }

    fn answer(hosts: &Hosts, url: &str) -> String {
        hosts.check(&url.parse().unwrap()).map_or_else(|error| error.to_string(), |()| "followed".to_owned())
    }

    #[test]
    fn only_listed_hosts_are_followed() {
        let hosts =
            hosts("https://hub.test", &["*.cdn.test", "store.test", "10.0.0.7:9000", "[fd00::7]:9000", "s.test:443"]);
        for followed in [
            "https://hub.test/x",
            "https://a.cdn.test/x?signature=1",
            "https://a.b.cdn.test",
            "https://A.CDN.test",
            "https://store.test",
            "https://10.0.0.7:9000/x",
            "https://0x0a000007:9000/x",
            "https://[fd00::7]:9000/x",
            "https://s.test",
        ] {
            assert_eq!(answer(&hosts, followed), "followed", "{followed}");
        }
        for (refused, why) in [
            ("http://hub.test/x", "not with this port"),
            ("https://hub.test:8443/x", "not with this port"),
            ("https://cdn.test", "not in hub_redirect_hosts"),
            ("https://evilcdn.test", "not in hub_redirect_hosts"),
            ("https://a.cdn.test.", "not in hub_redirect_hosts"),
            ("https://a.cdn.test.evil.test", "not in hub_redirect_hosts"),
            ("https://a.cdn.test:8443", "must be at port 443"),
            ("http://a.cdn.test", "not https"),
            ("http://store.test", "not https"),
            ("https://store.test:22", "not with this port"),
            ("https://10.0.0.7", "not with this port"),
            ("https://10.0.0.8:9000", "is private"),
            ("https://127.0.0.1", "is loopback"),
            ("https://2130706433", "is loopback"),
            ("https://[::ffff:169.254.169.254]", "an IPv4 address in IPv6"),
            ("https://8.8.8.8", "not in hub_redirect_hosts"),
            ("file:///etc/passwd", "no host"),
            ("data:text/plain,x", "no host"),
        ] {
            let answer = answer(&hosts, refused);
            let is_expected =
                answer.contains(why) || refused.starts_with("http://hub.test") && answer.contains("not https");
            assert!(is_expected, "{refused}: {answer}");
        }
    }

    #[test]
    fn a_hub_without_tls_may_use_named_hosts_without_tls_and_no_others() {
        let hosts = hosts("http://10.0.0.1:8080", &["*", "store.test"]);
        assert_eq!(answer(&hosts, "http://10.0.0.1:8080/a"), "followed");
        assert_eq!(answer(&hosts, "http://store.test/a"), "followed");
        assert_eq!(answer(&hosts, "https://anything.test/a"), "followed");
        assert!(answer(&hosts, "http://anything.test/a").contains("not https"));
        assert!(answer(&hosts, "http://169.254.169.254/latest").contains("link-local"));
        assert!(answer(&hosts, "http://10.0.0.1:22/").contains("not with this port"));
    }

    #[test]
    fn entries_that_are_no_hosts_are_refused() {
        for entry in [
            "",
            "*.",
            "*.*",
            "a b",
            "u@host",
            "host/path",
            "host?x",
            "https://host",
            "*.host:443",
            "*.10.0.0.1",
            "h:99999",
        ] {
            assert!(host_problem(entry).is_some(), "{entry}");
        }
    }
}
