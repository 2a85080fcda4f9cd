//! What is counted of the other ends of connections.

use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

/// Shared by everything that a process listens and connects with.
#[derive(Clone, Debug)]
pub(super) struct PeerMetrics {
    refused: IntCounterVec,
    /// Unix time in seconds.
    pub(super) expires: IntGauge,
    reads: IntCounterVec,
}

/// Why the other end was refused.
#[derive(Clone, Copy, Debug)]
pub(super) enum Why {
    /// No certificate, none of our authority, an expired one, or no TLS at all.
    Handshake,
    /// The certificate names no service, or another one than is expected there.
    Identity,
    /// The service may not make this call.
    Call,
    /// The address is beyond this machine, and there is no TLS.
    Plaintext,
}

impl Why {
    fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Identity => "identity",
            Self::Call => "call",
            Self::Plaintext => "plaintext",
        }
    }
}

impl PeerMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            refused: IntCounterVec::new(
                Opts::new(
                    "peer_refusals_total",
                    "Callers and servers refused, by side (caller, server) and why (handshake, identity, call, plaintext)",
                ),
                &["side", "why"],
            )?,
            expires: IntGauge::new("peer_certificate_expires_seconds", "Unix time at which our certificate expires")?,
            reads: IntCounterVec::new(
                Opts::new(
                    "peer_certificate_reads_total",
                    "Times that the certificate files were read because they had changed, by outcome (ok, failed)",
                ),
                &["outcome"],
            )?,
        };
        registry.register(Box::new(metrics.refused.clone()))?;
        registry.register(Box::new(metrics.expires.clone()))?;
        registry.register(Box::new(metrics.reads.clone()))?;
        Ok(metrics)
    }

    pub(super) fn refused_caller(&self, why: Why) {
        self.refused.with_label_values(&["caller", why.as_str()]).inc();
    }

    pub(super) fn refused_server(&self, why: Why) {
        self.refused.with_label_values(&["server", why.as_str()]).inc();
    }

    pub(super) fn read(&self, outcome: bool) {
        self.reads.with_label_values(&[if outcome { "ok" } else { "failed" }]).inc();
    }
}
