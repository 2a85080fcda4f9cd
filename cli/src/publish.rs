//! A package on its way to the admin API: streamed from disk, with a bar where a person looks on.

use crate::progress::shown;
use anyhow::{Context, Result, bail};
use reqwest::multipart::{Form, Part};
use reqwest::{Body, RequestBuilder};
use std::path::Path;
use tokio_util::io::ReaderStream;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const SIGNATURE: &str = "model.sig";
/// Names of other files that are told: those that matter come first.
const OTHERS_MAX: usize = 256;

/// The request with the archive as its body.
///
/// # Errors
/// It cannot be opened.
pub(crate) async fn archive(request: RequestBuilder, archive: &Path) -> Result<RequestBuilder> {
    let (body, _) = file(archive).await?;
    Ok(request.header("content-type", "application/x-tar").body(body))
}

/// The request with the folder's package as a form: config, weights, the signature if there is one, and what else lies there.
///
/// # Errors
/// A file is missing or cannot be read, or the weights are a pickle.
pub(crate) async fn folder(request: RequestBuilder, folder: &Path) -> Result<RequestBuilder> {
    let at = folder.display();
    let config = std::fs::read(folder.join(CONFIG)).with_context(|| format!("{at} has no {CONFIG}"))?;
    let weights = folder.join(WEIGHTS);
    if !weights.exists() && folder.join("adapter_model.bin").exists() {
        bail!("{at} holds adapter_model.bin, a pickle: save the adapter as safetensors");
    }
    let (body, bytes) = file(&weights).await.with_context(|| format!("{at} has no {WEIGHTS}"))?;
    let mut form = Form::new().part("config", Part::bytes(config).file_name(CONFIG));
    if let Ok(signature) = std::fs::read(folder.join(SIGNATURE)) {
        form = form.part("signature", Part::bytes(signature).file_name(SIGNATURE));
    }
    let others = others(folder)?;
    if !others.is_empty() {
        form = form.text("others", others.join("\n"));
    }
    let form = form.part("weights", Part::stream_with_length(body, bytes).file_name(WEIGHTS));
    Ok(request.multipart(form))
}

/// Names of what else is in the folder.
fn others(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if ![CONFIG, WEIGHTS, SIGNATURE].contains(&name.as_str()) {
            names.push(name);
        }
    }
    // Templates and added tokens before checkpoints by the thousand.
    names.sort_by_key(|name| (!name.ends_with(".json") && !name.ends_with(".jinja"), name.clone()));
    names.truncate(OTHERS_MAX);
    Ok(names)
}

async fn file(path: &Path) -> Result<(Body, u64)> {
    let file = tokio::fs::File::open(path).await.with_context(|| path.display().to_string())?;
    let bytes = file.metadata().await?.len();
    Ok((Body::wrap_stream(shown("uploading", bytes, ReaderStream::with_capacity(file, 64 << 10))), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_change_prompts_is_told_before_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        for n in 0..OTHERS_MAX + 5 {
            std::fs::write(folder.path().join(format!("a-{n}")), "").unwrap();
        }
        for name in [CONFIG, WEIGHTS, SIGNATURE, "chat_template.jinja", "added_tokens.json"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let names = others(folder.path()).unwrap();
        assert_eq!(names.len(), OTHERS_MAX);
        assert_eq!(names[..2], ["added_tokens.json", "chat_template.jinja"]);
    }
}
