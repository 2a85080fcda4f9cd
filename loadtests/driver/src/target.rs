//! Where traffic goes, and with whose keys.

use crate::client::Client;
use crate::prompt::{self, Prompt};
use crate::trace::Request;
use std::collections::HashMap;

/// An endpoint with the keys of its tenants.
#[derive(Clone, Debug)]
pub struct Target {
    /// How to reach it.
    pub client: Client,
    /// Bearer token of each tenant; those that are missing send none.
    pub keys: HashMap<String, String>,
    /// Prompts are token ids below this; `None`, or an API that takes none: words.
    pub vocabulary: Option<u32>,
}

impl Target {
    pub(crate) fn prompt(&self, request: &Request, salt: u64) -> Prompt {
        match self.vocabulary.filter(|_| self.client.takes_ids()) {
            Some(vocabulary) => prompt::ids(request.prompt_tokens, vocabulary, request.prompt_seed, salt),
            None => prompt::text(request.prompt_tokens, request.prompt_seed, salt),
        }
    }

    pub(crate) fn key(&self, tenant: &str) -> Option<&str> {
        self.keys.get(tenant).map(String::as_str)
    }
}

/// Keys from text: `TENANT=SECRET` a line; empty lines and those that begin with `#` are skipped.
///
/// # Errors
/// Names the line that is neither.
pub fn read_keys(text: &str) -> Result<HashMap<String, String>, String> {
    let mut keys = HashMap::new();
    for (index, line) in text.lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (tenant, secret) =
            line.split_once('=').ok_or_else(|| format!("line {} is not TENANT=SECRET", index + 1))?;
        keys.insert(tenant.trim().to_owned(), secret.trim().to_owned());
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_and_a_bad_line_is_named() {
        let keys = read_keys("# two\nacme = s3cret=\n\nbeta=x\n").unwrap();
        assert_eq!((keys["acme"].as_str(), keys["beta"].as_str()), ("s3cret=", "x"));
        assert_eq!(read_keys("a=b\nnonsense").unwrap_err(), "line 2 is not TENANT=SECRET");
    }
}
