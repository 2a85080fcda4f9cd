//! The HTTP clients of the command line: the admin API and the data plane, as a script would use them.

use anyhow::{Context, Result, bail};
use eventsource_stream::Eventsource;
use futures::StreamExt;
use futures::future::BoxFuture;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, RequestBuilder, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// A name as one path segment: a slash becomes `%2F`.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub(crate) fn segment(name: &str) -> String {
    utf8_percent_encode(name, SEGMENT).to_string()
}

/// Calls under `/admin/v1`.
#[derive(Clone)]
pub struct Admin {
    url: String,
    key: String,
    http: reqwest::Client,
}

/// A new API key; the secret is shown this once.
#[derive(Debug, Serialize, Deserialize)]
pub struct NewKey {
    /// Names the key, for revoking it.
    pub id: String,
    /// The bearer token of the data plane.
    pub secret: String,
}

/// The answer to a publish.
#[derive(Debug, Serialize, Deserialize)]
pub struct Published {
    /// Name of the adapter.
    pub adapter: String,
    /// Number of the version.
    pub version: u64,
    /// `sha256:…` of the canonical blob.
    pub digest: String,
    /// What is unusual but allowed.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What signed the package.
    #[serde(default)]
    pub signed_by: Option<String>,
    /// Nobody is shown it until it is released.
    #[serde(default)]
    pub quarantined: bool,
    /// What it costs where it is served.
    #[serde(default)]
    pub cost: Value,
}

impl Admin {
    /// A client of the admin listener at `url`, e.g. `http://127.0.0.1:8081`.
    #[must_use]
    pub fn new(url: &str, key: &str) -> Self {
        Self { url: url.trim_end_matches('/').to_owned(), key: key.to_owned(), http: reqwest::Client::new() }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}/admin/v1/{path}", self.url)).bearer_auth(&self.key)
    }

    fn unreachable(&self) -> String {
        format!("cannot reach the admin API at {} (--admin-url or WEFT_ADMIN_URL says where it is)", self.url)
    }

    fn send(&self, request: RequestBuilder) -> BoxFuture<'_, Result<Value>> {
        Box::pin(async move {
            let response = request.send().await.with_context(|| self.unreachable())?;
            answer(response).await
        })
    }

    /// `GET` of any path below `/admin/v1/`.
    ///
    /// # Errors
    /// The API cannot be reached or refuses.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.send(self.request(Method::GET, path)).await
    }

    /// Creates a tenant; one that exists already is fine.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn create_tenant(&self, name: &str) -> Result<Value> {
        self.send(self.request(Method::POST, "tenants").json(&json!({ "name": name }))).await
    }

    /// Sets a tenant's share, relative to others': 0.01 to 100.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn set_weight(&self, name: &str, weight: f64) -> Result<Value> {
        let path = format!("tenants/{}", segment(name));
        self.send(self.request(Method::PATCH, &path).json(&json!({ "weight": weight }))).await
    }

    /// Sets what a tenant may publish and ask for; what is not in `policy` stays.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn set_policy(&self, name: &str, policy: &Value) -> Result<Value> {
        let path = format!("tenants/{}", segment(name));
        self.send(self.request(Method::PATCH, &path).json(&json!({ "policy": policy }))).await
    }

    /// Sets what an absent model name means: an adapter of the tenant's, or the base if empty.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn set_default_adapter(&self, name: &str, adapter: &str) -> Result<Value> {
        let path = format!("tenants/{}", segment(name));
        self.send(self.request(Method::PATCH, &path).json(&json!({ "default_adapter": adapter }))).await
    }

    /// Sets what a tenant may use; what is not in `limits` stays, null takes a limit away.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn set_limits(&self, name: &str, limits: &Value) -> Result<Value> {
        let path = format!("tenants/{}", segment(name));
        self.send(self.request(Method::PATCH, &path).json(&json!({ "limits": limits }))).await
    }

    /// The same for a key, besides what its tenant may use.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn set_key_limits(&self, tenant: &str, id: &str, limits: &Value) -> Result<Value> {
        let path = format!("tenants/{}/keys/{}", segment(tenant), segment(id));
        self.send(self.request(Method::PATCH, &path).json(&json!({ "limits": limits }))).await
    }

    /// Creates a key of the tenant.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn create_key(&self, tenant: &str, label: Option<&str>) -> Result<NewKey> {
        let mut body = json!({});
        if let Some(label) = label {
            body["label"] = label.into();
        }
        let path = format!("tenants/{}/keys", segment(tenant));
        Ok(serde_json::from_value(self.send(self.request(Method::POST, &path).json(&body)).await?)?)
    }

    /// Revokes a key.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn revoke_key(&self, tenant: &str, id: &str) -> Result<()> {
        let path = format!("tenants/{}/keys/{}", segment(tenant), segment(id));
        self.send(self.request(Method::DELETE, &path)).await.map(drop)
    }

    /// Publishes the PEFT package in `folder`, which may be an archive (.tar, .tar.gz, .tgz). `alias` is moved to the new version; `None` moves none.
    ///
    /// # Errors
    /// A file is missing, or as [`Admin::get`]; a refusal lists every reason.
    pub async fn publish(&self, tenant: &str, name: &str, folder: &Path, alias: Option<&str>) -> Result<Published> {
        let alias = alias.map_or_else(|| "none".to_owned(), segment);
        self.publish_at(&format!("{}?alias={alias}", versions_path(tenant, name)), folder).await
    }

    /// The same, shown to nobody until it is released.
    ///
    /// # Errors
    /// As [`Admin::publish`].
    pub async fn publish_quarantined(&self, tenant: &str, name: &str, folder: &Path) -> Result<Published> {
        self.publish_at(&format!("{}?alias=none&quarantine=true", versions_path(tenant, name)), folder).await
    }

    /// Asks a version prompts; one that answers as it should is released, and the alias moves to it.
    ///
    /// # Errors
    /// As [`Admin::get`]; a refusal lists every reason.
    pub async fn smoke(
        &self,
        tenant: &str,
        name: &str,
        version: u64,
        alias: Option<&str>,
        asked: &Value,
    ) -> Result<Value> {
        let alias = alias.map_or_else(|| "none".to_owned(), segment);
        let path = format!("{}/{version}/smoke?alias={alias}", versions_path(tenant, name));
        crate::progress::waiting("asking it", self.post(&path, asked)).await
    }

    /// Ends a version's quarantine, and moves the alias to it.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn release(&self, tenant: &str, name: &str, version: u64, alias: Option<&str>) -> Result<Value> {
        let alias = alias.map_or_else(|| "none".to_owned(), segment);
        self.post(&format!("{}/{version}/release?alias={alias}", versions_path(tenant, name)), &json!({})).await
    }

    async fn publish_at(&self, path: &str, folder: &Path) -> Result<Published> {
        let request = self.request(Method::POST, path);
        let request = match folder.is_file() {
            true => crate::publish::archive(request, folder).await?,
            false => crate::publish::folder(request, folder).await?,
        };
        Ok(serde_json::from_value(self.send(request).await?)?)
    }

    /// Publishes a package from elsewhere.
    ///
    /// # Errors
    /// As [`Admin::get`]; a refusal lists every reason.
    pub async fn import(&self, tenant: &str, name: &str, source: &str, alias: Option<&str>) -> Result<Value> {
        let alias = alias.map_or_else(|| "none".to_owned(), segment);
        let path = format!("tenants/{}/adapters/{}/imports?alias={alias}", segment(tenant), segment(name));
        crate::progress::waiting("importing", self.post(&path, &json!({ "source": source }))).await
    }

    /// Writes what is at a path below `/admin/v1/`, piece by piece.
    ///
    /// # Errors
    /// As [`Admin::get`]; or `out` takes no more.
    pub async fn stream(&self, path: &str, out: &mut (dyn Write + Send)) -> Result<()> {
        let mut response = self.request(Method::GET, path).send().await.with_context(|| self.unreachable())?;
        if !response.status().is_success() {
            return answer(response).await.map(drop);
        }
        while let Some(piece) = response.chunk().await? {
            out.write_all(&piece)?;
        }
        Ok(out.flush()?)
    }

    /// Publishes a package from memory.
    ///
    /// # Errors
    /// As [`Admin::publish`].
    pub async fn publish_bytes(
        &self,
        tenant: &str,
        name: &str,
        config: Vec<u8>,
        weights: Vec<u8>,
        alias: Option<&str>,
    ) -> Result<Published> {
        let path =
            format!("{}?alias={}", versions_path(tenant, name), alias.map_or_else(|| "none".to_owned(), segment));
        use reqwest::multipart::{Form, Part};
        let form = Form::new()
            .part("config", Part::bytes(config).file_name("adapter_config.json"))
            .part("weights", Part::bytes(weights).file_name("adapter_model.safetensors"));
        Ok(serde_json::from_value(self.send(self.request(Method::POST, &path).multipart(form)).await?)?)
    }

    /// Merges versions into a new version of `name`; `merge` is the body of the admin API's call.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn merge(&self, tenant: &str, name: &str, merge: &Value, alias: Option<&str>) -> Result<Value> {
        let alias = segment(alias.unwrap_or("none")).to_string();
        let path = format!("tenants/{}/adapters/{}/merges?alias={alias}", segment(tenant), segment(name));
        crate::progress::waiting("merging", self.send(self.request(Method::POST, &path).json(merge))).await
    }

    /// The tenant's adapters.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn adapters(&self, tenant: &str) -> Result<Value> {
        self.get(&format!("tenants/{}/adapters", segment(tenant))).await
    }

    /// The versions of an adapter.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn versions(&self, tenant: &str, name: &str) -> Result<Value> {
        self.get(&versions_path(tenant, name)).await
    }

    /// Keeps the adapter in its slot on every worker, loading it first where it is not.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn pin(&self, tenant: &str, name: &str) -> Result<Value> {
        self.send(self.request(Method::PUT, &residency(tenant, name, "pin"))).await
    }

    /// Ends a pin.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn unpin(&self, tenant: &str, name: &str) -> Result<Value> {
        self.send(self.request(Method::DELETE, &residency(tenant, name, "pin"))).await
    }

    /// Frees the adapter's memory on every worker where nobody uses it.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn evict(&self, tenant: &str, name: &str) -> Result<Value> {
        self.send(self.request(Method::POST, &residency(tenant, name, "evict"))).await
    }

    /// Moves an alias to a version; with `if_match` only if its ETag is still that.
    ///
    /// # Errors
    /// As [`Admin::get`]; a lost race is one.
    pub async fn set_alias(
        &self,
        tenant: &str,
        name: &str,
        alias: &str,
        version: u64,
        if_match: Option<&str>,
    ) -> Result<Value> {
        let path = format!("tenants/{}/adapters/{}/aliases/{}", segment(tenant), segment(name), segment(alias));
        let mut request = self.request(Method::PUT, &path).json(&json!({ "version": version }));
        if let Some(etag) = if_match {
            request = request.header("if-match", etag);
        }
        self.send(request).await
    }

    /// Moves an alias back to what it meant before its last move; with `if_match` only if its ETag is still that.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn roll_back(&self, tenant: &str, name: &str, alias: &str, if_match: Option<&str>) -> Result<Value> {
        let mut request = self.request(Method::POST, &alias_path(tenant, name, alias, "rollback"));
        if let Some(etag) = if_match {
            request = request.header("if-match", etag);
        }
        self.send(request).await
    }

    /// What an alias meant before.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn alias_history(&self, tenant: &str, name: &str, alias: &str) -> Result<Value> {
        self.get(&alias_path(tenant, name, alias, "history")).await
    }

    /// Deletes a version that nothing holds.
    ///
    /// # Errors
    /// As [`Admin::get`]; what holds it is one.
    pub async fn delete_version(&self, tenant: &str, name: &str, version: u64) -> Result<()> {
        let path = format!("{}/{version}", versions_path(tenant, name));
        self.send(self.request(Method::DELETE, &path)).await.map(drop)
    }

    /// Posts JSON to a path below `/admin/v1/`.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// The text at a path below `/admin/v1/`.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn text(&self, path: &str) -> Result<String> {
        let response = self.request(Method::GET, path).send().await?;
        if !response.status().is_success() {
            return answer(response).await.map(|value| value.to_string());
        }
        Ok(response.text().await?)
    }
}

fn versions_path(tenant: &str, name: &str) -> String {
    format!("tenants/{}/adapters/{}/versions", segment(tenant), segment(name))
}

fn alias_path(tenant: &str, name: &str, alias: &str, what: &str) -> String {
    format!("tenants/{}/adapters/{}/aliases/{}/{what}", segment(tenant), segment(name), segment(alias))
}

fn residency(tenant: &str, name: &str, what: &str) -> String {
    format!("tenants/{}/adapters/{}/{what}", segment(tenant), segment(name))
}

/// The JSON of a success, or the error object as text.
async fn answer(response: Response) -> Result<Value> {
    let status = response.status();
    let text = response.text().await?;
    if status.is_success() {
        return if text.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_str(&text)?) };
    }
    let error: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    let message = error["error"]["message"].as_str().unwrap_or(&text).to_owned();
    let reasons = error["error"]["reasons"].as_array().cloned().unwrap_or_default();
    // One reason is often the message itself.
    let others = reasons.iter().filter_map(Value::as_str).filter(|reason| !message.contains(reason));
    let listed: String = others.map(|reason| format!("\n  - {reason}")).collect();
    bail!("{status}: {message}{listed}")
}

/// Calls of a tenant's application.
#[derive(Clone)]
pub struct Data {
    url: String,
    key: String,
    http: reqwest::Client,
}

/// A streamed answer, timed from the request's first byte.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// All text.
    pub text: String,
    /// To the first piece of text.
    pub first_token: Duration,
    /// To the end.
    pub whole: Duration,
    /// As the usage says.
    pub prompt_tokens: u64,
    /// As the usage says.
    pub completion_tokens: u64,
    /// `x-weft-adapter`.
    pub adapter: String,
    /// `x-weft-adapter-digest`; empty for the base.
    pub digest: String,
    /// Why it ended.
    pub finish_reason: String,
}

impl Answer {
    /// Output tokens a second after the first one.
    #[must_use]
    pub fn decode_rate(&self) -> f64 {
        let seconds = self.whole.saturating_sub(self.first_token).as_secs_f64();
        if seconds > 0.0 { self.completion_tokens.saturating_sub(1) as f64 / seconds } else { 0.0 }
    }
}

/// Which steps computed a whole answer and who shared them, as a gateway with `step_headers` tells it.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    /// First step that the request took part in.
    pub first: u64,
    /// Last one.
    pub last: u64,
    /// Most distinct adapters in one of them; the base counts as one.
    pub adapters_max: u64,
    /// Most requests in one of them.
    pub requests_max: u64,
}

impl Data {
    /// A client of the data listener at `url`, e.g. `http://127.0.0.1:8080`.
    #[must_use]
    pub fn new(url: &str, key: &str) -> Self {
        Self { url: url.trim_end_matches('/').to_owned(), key: key.to_owned(), http: reqwest::Client::new() }
    }

    /// A greedy chat with one user message.
    ///
    /// # Errors
    /// The API cannot be reached, refuses, or fails in the stream.
    pub async fn chat(&self, model: &str, question: &str, max_tokens: u32) -> Result<Answer> {
        let body = json!({
            "model": model,
            "messages": [{ "role": "user", "content": question }],
            "temperature": 0,
            "max_tokens": max_tokens,
        });
        self.stream("v1/chat/completions", body).await
    }

    /// A greedy completion of token ids, exactly `max_tokens` long.
    ///
    /// # Errors
    /// As [`Data::chat`].
    pub async fn complete_tokens(&self, model: &str, prompt: &[u32], max_tokens: u32) -> Result<Answer> {
        self.complete_tokens_as(model, prompt, max_tokens, None).await
    }

    /// As [`complete_tokens`](Self::complete_tokens), but the answer keeps to this JSON schema.
    ///
    /// # Errors
    /// As [`complete_tokens`](Self::complete_tokens).
    pub async fn complete_tokens_as(
        &self,
        model: &str,
        prompt: &[u32],
        max_tokens: u32,
        schema: Option<&Value>,
    ) -> Result<Answer> {
        let mut body = json!({
            "model": model, "prompt": prompt, "temperature": 0, "max_tokens": max_tokens, "ignore_eos": true,
        });
        if let Some(schema) = schema {
            body["response_format"] = json!({ "type": "json_object", "schema": schema });
        }
        self.stream("v1/completions", body).await
    }

    /// The same, not streamed: the number of output tokens, and the steps that computed them.
    ///
    /// # Errors
    /// As [`Data::chat`]; the gateway does not tell steps.
    pub async fn steps_of_tokens(&self, model: &str, prompt: &[u32], max_tokens: u32) -> Result<(u64, Steps)> {
        let body = json!({
            "model": model, "prompt": prompt, "temperature": 0, "max_tokens": max_tokens, "ignore_eos": true,
        });
        let request = self.http.post(format!("{}/v1/completions", self.url)).bearer_auth(&self.key).json(&body);
        let response = request.send().await.with_context(|| format!("cannot reach {}", self.url))?;
        let number = |name: &str| -> Result<u64> {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok()?.parse().ok());
            value.with_context(|| format!("the answer has no header {name} (setting step_headers of the gateway)"))
        };
        let read = || -> Result<Steps> {
            Ok(Steps {
                first: number("x-weft-first-step")?,
                last: number("x-weft-last-step")?,
                adapters_max: number("x-weft-adapters-in-step-max")?,
                requests_max: number("x-weft-requests-in-step-max")?,
            })
        };
        let steps = read();
        let answer = answer(response).await?;
        let tokens = answer["usage"]["completion_tokens"].as_u64().context("the answer has no usage")?;
        Ok((tokens, steps?))
    }

    fn stream<'a>(&'a self, path: &'a str, body: Value) -> BoxFuture<'a, Result<Answer>> {
        Box::pin(self.read_stream(path, body))
    }

    async fn read_stream(&self, path: &str, mut body: Value) -> Result<Answer> {
        body["stream"] = true.into();
        body["stream_options"] = json!({ "include_usage": true });
        let begin = Instant::now();
        let request = self.http.post(format!("{}/{path}", self.url)).bearer_auth(&self.key).json(&body);
        let response = request.send().await.with_context(|| format!("cannot reach {}", self.url))?;
        if !response.status().is_success() {
            answer(response).await?;
            bail!("a refusal without an error");
        }
        let header = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let mut result =
            Answer { adapter: header("x-weft-adapter"), digest: header("x-weft-adapter-digest"), ..Answer::default() };
        let mut done = false;
        let mut events = response.bytes_stream().eventsource();
        while let Some(event) = events.next().await {
            let event = event?;
            if event.data == "[DONE]" {
                done = true;
                break;
            }
            let chunk: Value = serde_json::from_str(&event.data)?;
            if let Some(message) = chunk["error"]["message"].as_str() {
                bail!("the stream failed: {message}");
            }
            let choice = &chunk["choices"][0];
            if let Some(piece) = choice["delta"]["content"].as_str().or_else(|| choice["text"].as_str()) {
                if !piece.is_empty() && result.first_token.is_zero() {
                    result.first_token = begin.elapsed();
                }
                result.text.push_str(piece);
            }
            if let Some(reason) = choice["finish_reason"].as_str() {
                result.finish_reason = reason.to_owned();
            }
            if let Some(usage) = chunk["usage"].as_object() {
                result.prompt_tokens = usage["prompt_tokens"].as_u64().unwrap_or_default();
                result.completion_tokens = usage["completion_tokens"].as_u64().unwrap_or_default();
            }
        }
        if !done {
            bail!("the stream was cut off");
        }
        result.whole = begin.elapsed();
        Ok(result)
    }
}
