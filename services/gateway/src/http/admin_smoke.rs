//! A version on trial before anybody gets it: `?quarantine=true` publishes one that nobody is shown, `…/smoke` asks it prompts and lets it go if it
//! answers as it should, `…/release` lets it go without.

use super::InPath;
use super::admin::{VersionBody, checked};
use super::admin_publish::wished_alias;
use super::errors::{OpenAiBody, OpenAiError};
use super::identify::Known;
use crate::app::Gateway;
use crate::directory::Snapshot;
use crate::experiments::ResponseId;
use crate::generate::{Admission, Wanted};
use crate::quota::Meter;
use crate::resolve::Resolved;
use axum::Json;
use axum::extract::{Request, State};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::time::Instant;
use utoipa::ToSchema;
use weft_fault::{Fault, Kind};
use weft_proto::registry::v1 as pb_registry;
use weft_proto::worker::v1 as pb;
use weft_types::{AdapterName, Digest, TenantName};

const PROMPTS_MAX: usize = 32;
const TOKENS_MAX: u32 = 512;
const PHRASES_MAX: usize = 16;
/// Of an answer, in results.
const ANSWER_CHARS_MAX: usize = 2_000;
/// The last in the worker's queue.
const PRIORITY: i32 = 1;

/// What to ask a version, and what its answers must be like.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SmokeAsked {
    /// 1 to 32, asked one after the other, without chance.
    prompts: Vec<SmokePrompt>,
}

/// One question. Every answer must have some text.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SmokePrompt {
    /// The whole prompt; or `messages`.
    prompt: Option<String>,
    /// As in a chat; or `prompt`.
    #[schema(value_type = Option<Vec<Object>>)]
    messages: Option<serde_json::Value>,
    /// 1 to 512; absent: 64.
    max_tokens: Option<u32>,
    /// Each must be in the answer, whatever its case; at most 16.
    #[serde(default)]
    contains: Vec<String>,
    /// None may be in the answer; at most 16.
    #[serde(default)]
    lacks: Vec<String>,
}

/// How a version did.
#[derive(Serialize, ToSchema)]
pub(crate) struct SmokeBody {
    adapter: String,
    version: u64,
    #[schema(value_type = String)]
    digest: Digest,
    results: Vec<SmokeResult>,
}

/// One answer, as it should be.
#[derive(Serialize, ToSchema)]
pub(crate) struct SmokeResult {
    answer: String,
    completion_tokens: u32,
}

impl SmokePrompt {
    fn check(&self, at: usize) -> Result<Wanted, Fault> {
        let wrong = |field: &str, what: String| Fault::invalid(format!("prompts[{at}].{field}"), what);
        let prompt = match (&self.prompt, &self.messages) {
            (Some(text), None) if !text.is_empty() => pb::generate_request::Prompt::Text(pb::TextPrompt {
                text: text.clone(),
                add_special_tokens: true,
                truncate: 0,
                parse_special: true,
            }),
            (None, Some(messages)) if messages.is_array() => pb::generate_request::Prompt::Chat(pb::ChatPrompt {
                messages_json: messages.to_string(),
                ..pb::ChatPrompt::default()
            }),
            _ => return Err(wrong("prompt", "one of prompt (text) and messages (a list) is needed".to_owned())),
        };
        let max_tokens = self.max_tokens.unwrap_or(64);
        if !(1..=TOKENS_MAX).contains(&max_tokens) {
            return Err(wrong("max_tokens", format!("max_tokens is {max_tokens}, allowed are 1 to {TOKENS_MAX}")));
        }
        for (field, phrases) in [("contains", &self.contains), ("lacks", &self.lacks)] {
            if phrases.len() > PHRASES_MAX || phrases.iter().any(String::is_empty) {
                return Err(wrong(
                    field,
                    format!("{field} is a list of at most {PHRASES_MAX} texts that are not empty"),
                ));
            }
        }
        Ok(Wanted {
            prompt: Arc::new(prompt),
            sampling: pb::Sampling { seed: Some(0), ..pb::Sampling::default() },
            stopping: pb::Stopping { max_tokens, ..pb::Stopping::default() },
            logprobs: None,
            priority: PRIORITY,
            grammar: None,
        })
    }

    /// What is wrong with an answer.
    fn problem(&self, answer: &str) -> Option<String> {
        let answer = answer.to_lowercase();
        if answer.trim().is_empty() {
            return Some("the answer is empty".to_owned());
        }
        let has = |phrase: &&String| answer.contains(&phrase.to_lowercase());
        if let Some(missing) = self.contains.iter().find(|phrase| !has(phrase)) {
            return Some(format!("the answer lacks {missing:?}"));
        }
        self.lacks.iter().find(has).map(|found| format!("the answer has {found:?}"))
    }
}

/// Ask a version prompts; if every answer is as it should be its quarantine ends and the alias moves to it, as at a publish. Else it stays as it is.
#[utoipa::path(
    post, path = "/admin/v1/tenants/{tenant}/adapters/{name}/versions/{version}/smoke", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("name" = String, Path, description = "One segment: a slash is `%2F`"), ("version" = u64, Path),
        ("alias" = Option<String>, Query, description = "`none`, or the alias to move; absent: `live`")),
    request_body = SmokeAsked,
    responses(
        (status = 200, description = "It answers as it should, and is released", body = SmokeBody),
        (status = 400, description = "A value is wrong", body = OpenAiBody),
        (status = 404, description = "No such version", body = OpenAiBody),
        (status = 409, description = "The alias is split by an experiment", body = OpenAiBody),
        (status = 422, description = "It does not answer as it should; every reason is in `error.reasons`", body = OpenAiBody),
        (status = 503, description = "No worker answers", body = OpenAiBody),
    )
)]
pub(crate) async fn smoke(
    State(gateway): State<Arc<Gateway>>,
    InPath((tenant, name, version)): InPath<(String, String, u64)>,
    request: Request,
) -> Result<Json<SmokeBody>, OpenAiError> {
    let (tenant, name): (TenantName, AdapterName) = (checked("tenant", &tenant)?, checked("name", &name)?);
    let alias = wished_alias(request.uri())?;
    let (actor, _, asked) = gateway.admin_json::<SmokeAsked>(request).await?;
    if !(1..=PROMPTS_MAX).contains(&asked.prompts.len()) {
        let message = format!("prompts are {}, allowed are 1 to {PROMPTS_MAX}", asked.prompts.len());
        return Err(Fault::invalid("prompts", message).into());
    }
    let wanted =
        asked.prompts.iter().enumerate().map(|(at, prompt)| prompt.check(at)).collect::<Result<Vec<_>, _>>()?;
    let digest = gateway.listed_version(&tenant, &name, version).await?;
    let admission = gateway.trial_of(&tenant, &name, version, digest)?;
    let (mut results, mut reasons) = (Vec::with_capacity(wanted.len()), Vec::new());
    for (at, (prompt, wanted)) in asked.prompts.iter().zip(&wanted).enumerate() {
        let answer = gateway.mesh.start(&admission, wanted).await?.collect().await?;
        if let Some(problem) = prompt.problem(&answer.text) {
            let shown: String = answer.text.chars().take(200).collect();
            reasons.push(format!("prompts[{at}]: {problem}: {shown:?}"));
        }
        results.push(SmokeResult {
            answer: answer.text.chars().take(ANSWER_CHARS_MAX).collect(),
            completion_tokens: answer.finished.completion_tokens,
        });
    }
    if !reasons.is_empty() {
        let message = format!("version {version} of {name} does not answer as it should: {}", reasons.join("; "));
        return Err(Fault::new(Kind::Refused, message).with_code("smoke_failed").with_reasons(reasons).into());
    }
    gateway.release_and_show(&tenant, &name, version, &alias, actor).await?;
    Ok(Json(SmokeBody { adapter: name.to_string(), version, digest, results }))
}

/// End a version's quarantine without asking it anything, and move the alias to it, as at a publish.
#[utoipa::path(
    post, path = "/admin/v1/tenants/{tenant}/adapters/{name}/versions/{version}/release", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("name" = String, Path, description = "One segment: a slash is `%2F`"), ("version" = u64, Path),
        ("alias" = Option<String>, Query, description = "`none`, or the alias to move; absent: `live`")),
    responses(
        (status = 200, description = "As it is now", body = VersionBody),
        (status = 400, description = "A value is wrong", body = OpenAiBody),
        (status = 404, description = "No such version", body = OpenAiBody),
        (status = 409, description = "The alias is split by an experiment", body = OpenAiBody),
    )
)]
pub(crate) async fn release(
    State(gateway): State<Arc<Gateway>>,
    InPath((tenant, name, version)): InPath<(String, String, u64)>,
    request: Request,
) -> Result<Json<VersionBody>, OpenAiError> {
    let (tenant, name): (TenantName, AdapterName) = (checked("tenant", &tenant)?, checked("name", &name)?);
    let alias = wished_alias(request.uri())?;
    let actor = super::admin::operator(&request.into_parts().0);
    Ok(Json(gateway.release_and_show(&tenant, &name, version, &alias, actor).await?.into()))
}

impl Gateway {
    /// The digest of a version that an operator may see, in quarantine or not.
    async fn listed_version(&self, tenant: &TenantName, name: &AdapterName, version: u64) -> Result<Digest, Fault> {
        let request = pb_registry::ListVersionsRequest { tenant: tenant.to_string(), adapter: name.to_string() };
        let versions = self.ask(self.registry.clone().list_versions(request)).await?.versions;
        let found = versions.iter().find(|known| known.number == version);
        let digest = found.and_then(|found| Digest::try_from(found.digest.as_ref()).ok());
        digest.ok_or_else(|| Fault::not_found(format!("tenant {tenant} has no adapter {name}@{version}")))
    }

    /// A request that is nobody's to pay and in nobody's limits.
    fn trial_of(
        &self,
        tenant: &TenantName,
        name: &AdapterName,
        version: u64,
        digest: Digest,
    ) -> Result<Admission, Fault> {
        let snapshot = self.directory.snapshot()?;
        let unknown = || Fault::not_found(format!("there is no tenant {tenant}"));
        let tenant = Arc::clone(snapshot.tenant(tenant.as_str()).ok_or_else(unknown)?);
        Ok(Admission {
            request_id: format!("smoke_{}", uuid::Uuid::now_v7().simple()),
            known: Known::default(),
            tenant,
            resolved: Resolved::Adapter { name: name.to_string(), version, digest },
            base: self.mesh.pool.base()?,
            arrived: Instant::now(),
            timeout: self.settings.request_timeout(),
            meter: Meter::free(),
            response_id: ResponseId::new(None).plain(),
            trial: None,
            account: None,
        })
    }

    /// Ends a version's quarantine, if it is in one, and moves the alias forward to it; empty: none.
    pub(super) async fn release(
        &self,
        tenant: &TenantName,
        name: &AdapterName,
        version: u64,
        alias: &str,
        actor: String,
    ) -> Result<pb_registry::Version, Fault> {
        let request = pb_registry::ReleaseVersionRequest {
            tenant: tenant.to_string(),
            adapter: name.to_string(),
            version,
            alias: alias.to_owned(),
            actor,
        };
        let released = self.ask(self.registry.clone().release_version(request)).await?.version;
        released.ok_or_else(|| Fault::internal("the registry answered with nothing"))
    }

    async fn release_and_show(
        &self,
        tenant: &TenantName,
        name: &AdapterName,
        version: u64,
        alias: &str,
        actor: String,
    ) -> Result<pb_registry::Version, Fault> {
        let released = self.release(tenant, name, version, alias, actor).await?;
        let shown = |snapshot: &Snapshot| {
            snapshot.adapter(tenant.as_str(), name.as_str()).is_some_and(|known| {
                known.versions.contains_key(&version)
                    && (alias.is_empty() || known.aliases.get(alias) >= Some(&version))
            })
        };
        self.show(shown).await;
        Ok(released)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn prompt(value: serde_json::Value) -> SmokePrompt {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_answer_must_have_text_and_be_as_it_should() {
        let asked = prompt(json!({"prompt": "Hi", "contains": ["Arr", "matey"], "lacks": ["sorry"]}));
        assert_eq!(asked.problem("ARR, MATEY!"), None);
        for (answer, problem) in [(" \n", "empty"), ("arr", "lacks \"matey\""), ("arr matey, Sorry", "has \"sorry\"")] {
            assert!(asked.problem(answer).unwrap().contains(problem), "{answer}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_question_is_named() {
        for (value, field) in [
            (json!({}), "prompts[3].prompt"),
            (json!({"prompt": "a", "messages": []}), "prompts[3].prompt"),
            (json!({"messages": "a"}), "prompts[3].prompt"),
            (json!({"prompt": "a", "max_tokens": 513}), "prompts[3].max_tokens"),
            (json!({"prompt": "a", "contains": [""]}), "prompts[3].contains"),
            (json!({"prompt": "a", "lacks": vec!["b"; 17]}), "prompts[3].lacks"),
        ] {
            let Err(fault) = prompt(value).check(3) else { panic!("{field}") };
            assert_eq!(fault.param.as_deref(), Some(field));
        }
    }
}
