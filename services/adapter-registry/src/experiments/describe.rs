//! From an operator's JSON to a checked description.

use crate::Error;
use crate::core::Core;
use crate::layout::adapter_prefix;
use serde_json::{Map, Value};
use weft_experiments::Experiment;
use weft_types::{AdapterName, Selector, TenantName};

/// Longest description: all that run are in every directory.
pub(super) const DESCRIPTION_BYTES_MAX: usize = 8 << 10;
/// What the registry writes itself.
const OURS: [&str; 4] = ["tenant", "state", "revision", "earlier_weights"];

fn wrong(message: impl Into<String>) -> Error {
    Error::invalid("description", message)
}

impl Core {
    /// Reads a description. An arm may name its version by alias, number or digest in `version`; what the alias means now
    /// is what the arm serves.
    pub(super) async fn described(&self, tenant: &TenantName, json: &[u8]) -> Result<Experiment, Error> {
        if json.len() > DESCRIPTION_BYTES_MAX {
            return Err(wrong(format!(
                "the description has {} bytes, the limit is {DESCRIPTION_BYTES_MAX}",
                json.len()
            )));
        }
        let read = serde_json::from_slice(json);
        let mut description: Map<String, Value> = read.map_err(|error| wrong(format!("no JSON object: {error}")))?;
        if let Some(ours) = OURS.into_iter().find(|field| description.contains_key(*field)) {
            return Err(wrong(format!("{ours} is not for the description to say")));
        }
        let adapter = description.get("adapter").and_then(Value::as_str).ok_or_else(|| wrong("adapter is missing"))?;
        let adapter: AdapterName = adapter.parse().map_err(|source| Error::Name { param: "adapter", source })?;
        self.refresh(&adapter_prefix(tenant, &adapter)).await?;
        if let Some(Value::Array(arms)) = description.get_mut("arms") {
            for (at, arm) in arms.iter_mut().enumerate() {
                self.resolve_arm(tenant, &adapter, at, arm).await?;
            }
        }
        description.insert("tenant".to_owned(), Value::String(tenant.to_string()));
        let description = serde_json::to_vec(&description).expect("JSON values serialize");
        let experiment = Experiment::parse(&description).map_err(|error| wrong(error.to_string()))?;
        for (at, arm) in experiment.arms.iter().enumerate() {
            let selector = Selector::Digest(arm.digest);
            if self.catalog().resolve(tenant, &adapter, &selector).is_none() {
                return Err(wrong(format!("arms[{at}].digest is no version of {adapter}")));
            }
            if experiment.arms[..at].iter().any(|earlier| earlier.digest == arm.digest) {
                return Err(wrong(format!("arms[{at}].digest is {}, another arm's already", arm.digest)));
            }
        }
        Ok(experiment)
    }

    async fn resolve_arm(
        &self,
        tenant: &TenantName,
        adapter: &AdapterName,
        at: usize,
        arm: &mut Value,
    ) -> Result<(), Error> {
        // What is no object, or has no `version`, is for the reader of the description to judge.
        let Some(arm) = arm.as_object_mut() else { return Ok(()) };
        let Some(version) = arm.remove("version") else { return Ok(()) };
        let field = format!("arms[{at}].version");
        if arm.contains_key("digest") {
            return Err(wrong(format!("{field} and digest are both given")));
        }
        let selector = match &version {
            Value::Number(number) => number.to_string(),
            Value::String(text) => text.clone(),
            _ => return Err(wrong(format!("{field} is neither a number nor a text"))),
        };
        let selector: Selector = selector.parse().map_err(|error| wrong(format!("{field}: {error}")))?;
        let found = self.resolve(tenant, adapter, &selector).await?;
        arm.insert("digest".to_owned(), Value::String(found.digest.to_string()));
        Ok(())
    }
}
