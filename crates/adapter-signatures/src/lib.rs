//! Who signed an adapter package: bundles of OpenSSF Model Signing (OMS) v1.0, verified against trusted keys and authorities.
//!
//! A signer hashes the files of a folder and signs the list: an in-toto statement v1 in a DSSE envelope in a Sigstore bundle v0.3, as
//! JSON. That is what the tool `model-signing` 1.x writes to `model.sig`. This room says whether such a bundle covers the two files of a
//! package, and by whom it is. It must not know where bytes come from, what they mean, or what a clock says: digests, time and
//! trust are handed over, and nothing is read or asked.
//!
//! 1. [`Trust`]: public keys and authorities, from PEM texts, each with a name.
//! 2. [`verify`]: a bundle, the digests of the two files, [`Trust`] and a time to [`Signed`], or to the [`Error`] that says which field holds
//!    what and what was wanted. Within:
//!    - the bundle is read (media type v0.3, one signature, a key or a certificate chain);
//!    - a chain is followed to an authority at that time (RFC 5280);
//!    - the signature is checked over the DSSE pre-authentication encoding;
//!    - only then is the statement read: its types, its subject against its resources, the two files among them.
//!
//! # What is trusted
//!
//! The bundle comes from anybody. A key in it is never trusted; a certificate only as far as it leads to an authority. A signed statement
//! comes from somebody trusted who may have signed something else, so everything in it is checked too. What the signature
//! does not cover and what is not needed (`keyid`, `rawBytes`) is not looked at.
//!
//! # What is not done
//!
//! Keyless signatures (Fulcio, Rekor) are refused: they need Sigstore's root of trust and its log. So are log entries and timestamps
//! beside a key, sharded digests, and digests other than SHA-256. There is no revocation: an authority or key that is no longer good is taken
//! out of [`Trust`].
//!
//! # Where we are stricter than `model-signing`
//!
//! | | `model-signing` 1.1 | here |
//! |---|---|---|
//! | time of a certificate | its own `notBefore`, so it never expires | the time that is handed over, as OMS 8.2 has it |
//! | uses of a certificate | `digitalSignature` or code signing | both as far as present (RFC 5280 4.2.1.12), at least one present |
//! | a signer's certificate with `CA:TRUE` | taken (also in OMS' test vectors) | refused: it could make further signers |
//! | names of files | normalised | as OMS 6.1.2 has them, or refused |
//! | signatures of 0.2 (`Digests/v0.1`, another encoding) | taken | refused |
//!
//! # Limits
//!
//! A bundle has at most [`BUNDLE_BYTES_MAX`] bytes and nests [`DEPTH_MAX`] deep, a statement has at most [`RESOURCES_MAX`] resources, a chain
//! at most [`CHAIN_MAX`] certificates, trust at most [`KEYS_MAX`] keys and [`AUTHORITIES_MAX`] authorities.
//!
//! Sources: OMS v1.0 (`ossf/model-signing-spec`, `spec/v1.0.md`), DSSE v1.0, in-toto Statement v1, Sigstore's `sigstore_bundle.proto`, RFC 5280.

mod bundle;
mod chain;
mod error;
mod json;
mod key;
mod name;
mod statement;
mod trust;
mod verify;

pub use bundle::{BUNDLE_BYTES_MAX, CHAIN_MAX};
pub use error::Error;
pub use json::DEPTH_MAX;
pub use statement::RESOURCES_MAX;
pub use trust::{AUTHORITIES_MAX, KEYS_MAX, PEM_BYTES_MAX, Trust};
pub use verify::{CONFIG, Method, PackageDigests, Signed, WEIGHTS, verify};
