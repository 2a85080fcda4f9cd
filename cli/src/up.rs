//! `weft up`: settings of the embedded mesh and its life from start to SIGTERM.

use crate::embedded;
use anyhow::{Context, Result};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use weft_service_kit::shutdown::Shutdown;

weft_service_kit::settings! {
    /// Settings of the embedded mesh that concern no single service.
    pub struct Settings {
        /// Base model: a GGUF file, a Hugging Face folder, or `demo`.
        pub model: String = "demo".to_owned(),
        /// Name under which the base answers; default: the model's own.
        pub served_model_name: Option<String> = None,
        /// What the weights are computed in, as worker-dtype: auto, f32, bf16, int8 or q4; on a device fp8 too.
        pub dtype: String = "auto".to_owned(),
        /// Data listener: what tenants' applications call.
        pub listen: String = "127.0.0.1:8080".to_owned(),
        /// Admin listener: metrics and the admin API.
        pub admin_listen: String = "127.0.0.1:8081".to_owned(),
        /// Folder for everything that must survive: objects and the adapter cache. Default: ~/.local/share/weft.
        pub data_dir: Option<PathBuf> = None,
        /// Key of the admin API. None given here or in a file: a random one is made and kept in the data folder.
        secret pub admin_key: Option<String> = None,
        /// File that holds the admin key.
        pub admin_key_file: Option<PathBuf> = None,
        /// Log lines as text or json.
        pub log_format: String = "text".to_owned(),
        /// The same as the log format json (LoRAX's name).
        pub json_output: bool = false,
    }
    aliases { "model-id" => model, "quantize" => dtype, "json-output" => json_output }
}

/// Name of the file in the data folder that holds a made admin key.
pub const ADMIN_KEY_FILE: &str = "admin-key";

/// `$XDG_DATA_HOME/weft` or `~/.local/share/weft`.
#[must_use]
pub fn default_data_dir() -> PathBuf {
    let base = std::env::var_os("XDG_DATA_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let base = base.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")));
    base.unwrap_or_else(std::env::temp_dir).join("weft")
}

/// Runs the embedded mesh until SIGTERM or Ctrl-C.
///
/// # Errors
/// Wrong settings, a taken port, a missing model, a data folder in use; the message names it.
pub async fn run(args: Vec<String>) -> Result<()> {
    let shutdown = Shutdown::on_signals()?;
    let mesh = embedded::start(embedded::load_settings(args), shutdown).await?;
    println!("data plane  {}", mesh.data_url());
    println!("admin plane {}", mesh.admin_url());
    if let Some(path) = mesh.admin_key_path() {
        println!("admin key   {}", path.display());
    }
    println!("serving {} ({})", mesh.served_name(), mesh.base_digest());
    mesh.finished().await
}

/// The key in a file, without surrounding white space.
///
/// # Errors
/// The file cannot be read or holds nothing.
pub fn read_key_file(path: &Path) -> Result<String> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read the admin key in {}", path.display()))?;
    let key = text.trim();
    anyhow::ensure!(!key.is_empty(), "the admin key file {} is empty", path.display());
    Ok(key.to_owned())
}

/// The admin key of these settings, and the file it lies in if it came from one or was made.
///
/// # Errors
/// A key file cannot be read or written.
pub fn admin_key(settings: &Settings, data_dir: &Path) -> Result<(String, Option<PathBuf>)> {
    if let Some(key) = &settings.admin_key {
        anyhow::ensure!(!key.trim().is_empty(), "setting admin_key is empty");
        return Ok((key.trim().to_owned(), None));
    }
    if let Some(path) = &settings.admin_key_file {
        return Ok((read_key_file(path)?, Some(path.clone())));
    }
    let path = data_dir.join(ADMIN_KEY_FILE);
    if !path.exists() {
        let key = hex::encode(rand::random::<[u8; 32]>());
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        writeln!(file, "{key}")?;
        file.sync_all()?;
    }
    Ok((read_key_file(&path)?, Some(path)))
}
