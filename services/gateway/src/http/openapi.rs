//! The routes as an OpenAPI document, and a page that shows it without any other server's help.

use super::{
    admin, admin_aliases, admin_experiments, admin_gc, admin_import, admin_merge, admin_placement, admin_publish,
    admin_residency, admin_smoke, admin_update, admin_usage, admin_workers, errors, feedback, lorax, lorax_request,
    lorax_stream, models,
};
use super::{openai_chat, openai_chat_answer, openai_completions, openai_completions_answer, openapi_shared, ops};
use axum::response::{Html, IntoResponse, Response};
use http::{HeaderValue, header};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

#[derive(OpenApi)]
#[openapi(
    info(title = "Weft", description = "One base model, many LoRA adapters. `/admin/v1` and `/metrics` are on the admin listener, all else that generates on the data listener."),
    paths(
        openai_chat::chat, openai_completions::completions, feedback::feedback, models::list, models::one,
        lorax::compat, lorax::root, lorax::generate, lorax::generate_stream, lorax::invocations, lorax::tokenize, lorax::info,
        lorax::health, lorax::ping, document, page, ops::livez, ops::readyz, ops::metrics,
        admin::create_tenant, admin::list_tenants, admin_update::update_tenant, admin::create_key, admin::list_keys, admin_update::update_key,
        admin::revoke_key,
        admin::list_adapters, admin::list_versions, admin_publish::publish, admin_merge::merge, admin_aliases::list_aliases, admin_aliases::get_alias,
        admin_aliases::set_alias, admin_aliases::history, admin_aliases::roll_back, admin_experiments::create, admin_experiments::list,
        admin_experiments::show, admin_experiments::start, admin_experiments::weigh, admin_experiments::promote, admin_experiments::stop,
        admin_experiments::exposures, admin_gc::collect, admin_gc::delete_version, admin_smoke::smoke, admin_smoke::release, admin_import::import, admin_usage::usage, admin_workers::workers, admin_workers::residency,
        admin_residency::pin, admin_residency::unpin, admin_residency::evict, admin_placement::placement,
    ),
    components(schemas(
        openai_chat::ChatRequest, openai_chat_answer::ChatCompletion, openai_chat_answer::ChatChunk<'static>,
        openai_completions::CompletionRequest, openai_completions_answer::Completion, models::Model, models::ModelList,
        lorax_request::LoraxRequest, lorax::LoraxAnswer, lorax_stream::LoraxEvent, lorax::Info,
        errors::OpenAiBody, errors::LoraxBody, ops::Ready,
    )),
    modifiers(&Keys),
)]
struct Document;

struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = |text: &str| {
            SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(text)).build())
        };
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("key", bearer("A tenant's key"));
        components.add_security_scheme("admin", bearer("An admin key"));
    }
}

/// The OpenAPI document of all routes, as JSON.
#[must_use]
pub fn openapi_json() -> String {
    // The document is built from literals, and a test writes it out.
    let mut document = serde_json::to_value(Document::openapi()).unwrap_or_default();
    openapi_shared::complete(&mut document);
    serde_json::to_string_pretty(&document).unwrap_or_default()
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "operations", responses((status = 200, description = "All routes", body = Object)))]
pub(crate) async fn document() -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], openapi_json()).into_response()
}

/// A page that shows it.
#[utoipa::path(get, path = "/docs", tag = "operations", responses((status = 200, description = "HTML", body = String, content_type = "text/html")))]
pub(crate) async fn page() -> Html<&'static str> {
    Html(include_str!("docs.html"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_every_route_and_no_dangling_reference() {
        let text = openapi_json();
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let tables = [
            super::super::openai_routes(),
            super::super::lorax_routes(),
            super::super::ops_routes(),
            super::super::data_ops_routes(),
            super::super::admin_routes(),
            super::super::admin_ops_routes(),
        ];
        let served: std::collections::BTreeSet<String> =
            tables.into_iter().flatten().map(|(path, _)| path.replace("{*", "{")).collect();
        let documented: std::collections::BTreeSet<String> = paths.keys().cloned().collect();
        assert_eq!(documented, served);
        let ids: Vec<&str> = paths
            .values()
            .flat_map(|item| item.as_object().unwrap().values())
            .map(|operation| operation["operationId"].as_str().unwrap())
            .collect();
        assert_eq!(ids.len(), ids.iter().collect::<std::collections::BTreeSet<_>>().len(), "an id twice: {ids:?}");
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name} is referred to and missing");
        }
    }

    #[test]
    fn what_routes_have_in_common_is_described() {
        let document: serde_json::Value = serde_json::from_str(&openapi_json()).unwrap();
        let paths = &document["paths"];
        let key = &paths["/admin/v1/tenants/{tenant}/keys/{id}"]["patch"];
        for status in ["200", "400", "401", "404", "408", "413", "429", "503", "504"] {
            assert!(key["responses"][status].is_object(), "{status}: {key}");
        }
        assert!(
            key["parameters"].as_array().unwrap().iter().all(|named| named["schema"]["pattern"].is_string()),
            "{key}"
        );
        assert_eq!(key["requestBody"]["required"], false, "{key}");
        assert_eq!(paths["/admin/v1/tenants"]["post"]["requestBody"]["required"], true);
        for path in ["/v1/chat/completions", "/v1/completions", "/", "/invocations", "/generate_stream"] {
            let events = &paths[path]["post"]["responses"]["200"]["content"]["text/event-stream"]["schema"];
            assert!(events["properties"]["data"].is_object(), "{path}: {events}");
        }
        assert!(paths["/livez"]["get"]["responses"]["429"].is_null());
    }
}
