//! The outer two layers: a Sigstore bundle v0.3 (`sigstore_bundle.proto`, as JSON) with a DSSE envelope v1.0.

use crate::error::Error;
use crate::json;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Most bytes of a bundle: about 5,000 files.
pub const BUNDLE_BYTES_MAX: usize = 1 << 20;
/// Most certificates of a chain, the signer's among them.
pub const CHAIN_MAX: usize = 8;

const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// A bundle whose parts are all there. Nothing of it is verified.
#[derive(Debug)]
pub(crate) struct Bundle {
    pub(crate) material: Material,
    /// The statement's text.
    pub(crate) payload: Vec<u8>,
    /// In DER.
    pub(crate) signature: Vec<u8>,
}

/// Which key a bundle says it is signed with.
#[derive(Debug)]
pub(crate) enum Material {
    /// `model-signing sign key`. Before 1.1 it wrote no hint.
    Key { hint: Option<String> },
    /// `model-signing sign certificate`: certificates in DER, the signer's first. 1 to [`CHAIN_MAX`].
    Chain(Vec<Vec<u8>>),
}

// Where OMS' schemas (`schemas/v1.0/bundle.schema.json`, `envelope.schema.json`) close an object, unknown fields are refused; elsewhere they are skipped.

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BundleWire {
    media_type: String,
    verification_material: MaterialWire,
    dsse_envelope: Option<EnvelopeWire>,
    message_signature: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MaterialWire {
    public_key: Option<PublicKeyWire>,
    x509_certificate_chain: Option<ChainWire>,
    certificate: Option<IgnoredAny>,
    tlog_entries: Option<Vec<IgnoredAny>>,
    timestamp_verification_data: Option<TimestampsWire>,
}

#[derive(Deserialize)]
struct PublicKeyWire {
    hint: Option<String>,
}

#[derive(Deserialize)]
struct ChainWire {
    certificates: Vec<CertificateWire>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CertificateWire {
    raw_bytes: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TimestampsWire {
    rfc3161_timestamps: Option<Vec<IgnoredAny>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EnvelopeWire {
    payload: String,
    payload_type: String,
    signatures: Vec<SignatureWire>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignatureWire {
    sig: String,
    /// A hint that the signature does not cover: any text, null or nothing (OMS 4.1).
    #[serde(rename = "keyid")]
    _keyid: Option<String>,
}

impl Bundle {
    /// Reads a bundle's text.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, Error> {
        if text.len() > BUNDLE_BYTES_MAX {
            let what = "the bundle's bytes are";
            return Err(Error::TooLarge { what, value: text.len(), limit: BUNDLE_BYTES_MAX });
        }
        let wire: BundleWire = json::read("bundle", text)?;
        if wire.media_type != MEDIA_TYPE {
            return Err(Error::text("mediaType", &wire.media_type, MEDIA_TYPE));
        }
        if wire.message_signature.is_some() {
            return Err(Error::field("messageSignature", "present", "a dsseEnvelope in its place"));
        }
        let material = wire.verification_material.check()?;
        let envelope = wire.dsse_envelope.ok_or_else(|| Error::field("dsseEnvelope", "missing", "a DSSE envelope"))?;
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err(Error::text("dsseEnvelope.payloadType", &envelope.payload_type, PAYLOAD_TYPE));
        }
        let [signature] = &envelope.signatures[..] else {
            let found = format!("a list of {}", envelope.signatures.len());
            return Err(Error::field(
                "dsseEnvelope.signatures",
                found,
                "a list of one, as sigstore_bundle.proto has it",
            ));
        };
        let signature = decode("dsseEnvelope.signatures[0].sig", &signature.sig)?;
        let payload = decode("dsseEnvelope.payload", &envelope.payload)?;
        Ok(Self { material, payload, signature })
    }

    /// What is signed: DSSE's pre-authentication encoding of the payload and its type.
    pub(crate) fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), self.payload.len()).into_bytes();
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

impl MaterialWire {
    fn check(self) -> Result<Material, Error> {
        if self.certificate.is_some() {
            return Err(Error::Keyless);
        }
        let log_entries = self.tlog_entries.map_or(0, |entries| entries.len());
        let timestamps = self.timestamp_verification_data.and_then(|data| data.rfc3161_timestamps);
        let timestamps = timestamps.map_or(0, |timestamps| timestamps.len());
        for (field, count) in
            [("tlogEntries", log_entries), ("timestampVerificationData.rfc3161Timestamps", timestamps)]
        {
            if count > 0 {
                let field = format!("verificationMaterial.{field}");
                let wanted = "none: logs and timestamps of Sigstore are not verified here";
                return Err(Error::field(field, format!("a list of {count}"), wanted));
            }
        }
        match (self.public_key, self.x509_certificate_chain) {
            (Some(key), None) => Ok(Material::Key { hint: key.hint.filter(|hint| !hint.is_empty()) }),
            (None, Some(chain)) => chain.check().map(Material::Chain),
            (Some(_), Some(_)) => {
                let found = "publicKey and x509CertificateChain";
                Err(Error::field("verificationMaterial", found, "one of them"))
            }
            (None, None) => {
                let found = "without a key";
                Err(Error::field("verificationMaterial", found, "publicKey or x509CertificateChain"))
            }
        }
    }
}

impl ChainWire {
    fn check(self) -> Result<Vec<Vec<u8>>, Error> {
        const FIELD: &str = "verificationMaterial.x509CertificateChain.certificates";
        let count = self.certificates.len();
        if !(1..=CHAIN_MAX).contains(&count) {
            return Err(Error::field(FIELD, format!("a list of {count}"), format!("1 to {CHAIN_MAX} certificates")));
        }
        let certificates = self.certificates.iter().enumerate();
        certificates.map(|(i, certificate)| decode(&format!("{FIELD}[{i}].rawBytes"), &certificate.raw_bytes)).collect()
    }
}

/// In one spelling only, so that equal bytes are equal texts: the standard alphabet of RFC 4648 with padding, as Sigstore's tools write.
fn decode(field: &str, text: &str) -> Result<Vec<u8>, Error> {
    const WANTED: &str = "standard base64 with padding";
    match STANDARD.decode(text) {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        Ok(_) => Err(Error::field(field, "empty", WANTED)),
        Err(error) => Err(Error::field(field, format!("no base64 ({error})"), WANTED)),
    }
}
