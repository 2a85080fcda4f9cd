//! A tenant's policy on the command line: what is not given stays, `none` takes a limit away.

use crate::limits::limit;
use clap::Args;
use serde_json::{Map, Value, json};

/// `hub=hf://`, or `hub=none`.
fn source(text: &str) -> Result<(String, Value), String> {
    let (source, beginning) = text.split_once('=').ok_or("must be SOURCE=BEGINNING")?;
    Ok((source.to_owned(), if beginning == "none" { Value::Null } else { beginning.into() }))
}

/// What a tenant may publish and ask for
#[derive(Args, Clone, Debug)]
pub struct PolicyFlags {
    /// Largest rank of a package, or `none`
    #[arg(long, value_name = "N", value_parser = limit)]
    rank_max: Option<Value>,
    /// Most bytes of a package's weights, or `none`
    #[arg(long, value_name = "BYTES", value_parser = limit)]
    package_bytes_max: Option<Value>,
    /// Whether a package needs a signature that the registries trust
    #[arg(long, value_name = "true|false")]
    signed: Option<bool>,
    /// Merges made at request time that are kept at once; 0: none are made; `none`: as the registries have it
    #[arg(long, value_name = "N", value_parser = limit)]
    request_merges_max: Option<Value>,
    /// Where adapters that requests ask for are imported from, by `adapter_source`: `hub=hf://`, `s3=s3://bucket/prefix/`, `local=file:///folder/`, or
    /// `hub=none`
    #[arg(long = "adapter-source", value_name = "SOURCE=BEGINNING", value_parser = source)]
    adapter_sources: Vec<(String, Value)>,
    /// Whether the base's name means the default adapter
    #[arg(long, value_name = "true|false")]
    base_is_default: Option<bool>,
}

impl PolicyFlags {
    /// What was given, as the admin API takes it.
    #[must_use]
    pub fn json(&self) -> Value {
        let flags = [
            ("rank_max", self.rank_max.clone()),
            ("package_bytes_max", self.package_bytes_max.clone()),
            ("signed", self.signed.map(Value::from)),
            ("request_merges_max", self.request_merges_max.clone()),
            ("base_is_default", self.base_is_default.map(Value::from)),
        ];
        let mut given: Map<_, _> =
            flags.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
        if !self.adapter_sources.is_empty() {
            given.insert(
                "adapter_sources".to_owned(),
                json!(self.adapter_sources.iter().cloned().collect::<Map<_, _>>()),
            );
        }
        Value::Object(given)
    }
}
