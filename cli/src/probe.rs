//! `weft probe`: a health check for images that have no other client.

use anyhow::{Context, Result};
use futures::future::BoxFuture;
use std::time::Duration;

/// Characters of a refusal that are shown.
const BODY_CHARS_MAX: usize = 500;

/// Asks `url` once. `http://…` must answer with success, `tcp://HOST:PORT` must take a connection. Proxies of the environment
/// are not used.
///
/// # Errors
/// It does not answer in time, or not with success: the message has the status and the beginning of the answer, where `/readyz`
/// lists what a service waits for.
pub fn run(url: &str, timeout: Duration) -> BoxFuture<'_, Result<()>> {
    Box::pin(ask(url, timeout))
}

async fn ask(url: &str, timeout: Duration) -> Result<()> {
    let silent = || format!("{url} does not answer");
    if let Some(address) = url.strip_prefix("tcp://") {
        let connecting = tokio::net::TcpStream::connect(address);
        tokio::time::timeout(timeout, connecting).await.with_context(silent)?.with_context(silent)?;
        return Ok(());
    }
    let client = reqwest::Client::builder().no_proxy().timeout(timeout).build()?;
    let response = client.get(url).send().await.with_context(silent)?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let body: String = response.text().await.unwrap_or_default().chars().take(BODY_CHARS_MAX).collect();
    anyhow::bail!("{url} answers {status}: {body}")
}
