//! What many routes have in common, written into the OpenAPI document once: answers that do not depend on the route, the form of
//! names in paths, and event streams, which utoipa's attributes have no words for.

use super::is_lorax;
use serde_json::{Map, Value, json};

/// Segments of paths, and queries of the same name: their pattern and how long they may be.
const NAMES: [(&str, &str, u32); 3] = [
    ("tenant", LABEL, 63),
    ("name", "^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$", 128),
    // Not all digits: that would be a version.
    ("alias", "^([a-z]|[0-9]+[a-z-])[a-z0-9-]*$", 63),
];
const LABEL: &str = "^[a-z0-9][a-z0-9-]{0,62}$";
/// `{id}` means another thing on each of these.
const IDS: [(&str, &str); 2] = [("/keys/{id}", "^[0-9a-f]{16}$"), ("/experiments/{id}", LABEL)];

/// Routes that can answer with server-sent events: the schema of an event, and whether the last one is `[DONE]`.
const STREAMS: [(&str, &str, bool); 5] = [
    ("/v1/chat/completions", "ChatChunk", true),
    ("/v1/completions", "Completion", true),
    ("/", "LoraxEvent", false),
    ("/invocations", "LoraxEvent", false),
    ("/generate_stream", "LoraxEvent", false),
];

/// Completes the document.
pub(super) fn complete(document: &mut Value) {
    let free = free_schemas(document);
    let Some(paths) = document.get_mut("paths").and_then(Value::as_object_mut) else { return };
    for (path, item) in paths {
        let Some(item) = item.as_object_mut() else { continue };
        for (method, operation) in item {
            let Some(operation) = operation.as_object_mut() else { continue };
            names(path, operation);
            answers(path, operation);
            if path.starts_with("/admin/") {
                optional_body(&free, operation);
            }
            if method == "post" {
                stream(path, operation);
            }
        }
    }
}

fn names(path: &str, operation: &mut Map<String, Value>) {
    let Some(parameters) = operation.get_mut("parameters").and_then(Value::as_array_mut) else { return };
    for parameter in parameters {
        let Some(name) = parameter["name"].as_str().map(str::to_owned) else { continue };
        // `/v1/models/{id}` takes whatever a request's `model` may be.
        let id = IDS.iter().find(|(at, _)| name == "id" && path.contains(at)).map(|(_, pattern)| (*pattern, 63));
        let known = NAMES.iter().find(|(known, _, _)| *known == name).map(|(_, pattern, max)| (*pattern, *max));
        if let (Some((pattern, max)), Some(schema)) = (id.or(known), parameter["schema"].as_object_mut()) {
            schema.insert("pattern".into(), pattern.into());
            schema.insert("maxLength".into(), max.into());
        }
    }
}

/// References to schemas that `{}` keeps to.
fn free_schemas(document: &Value) -> Vec<Value> {
    let Some(schemas) = document["components"]["schemas"].as_object() else { return Vec::new() };
    let is_free = |schema: &Value| schema["type"] == "object" && schema["required"].is_null();
    schemas.iter().filter(|(_, schema)| is_free(schema)).map(|(name, _)| schema_of(name)).collect()
}

/// Nothing is read as `{}`: see [`super::admin`].
fn optional_body(free: &[Value], operation: &mut Map<String, Value>) {
    let Some(body) = operation.get_mut("requestBody") else { return };
    if free.contains(&body["content"]["application/json"]["schema"]) {
        body["required"] = false.into();
    }
}

/// Statuses that the route itself has described stay as they are.
fn answers(path: &str, operation: &mut Map<String, Value>) {
    let has_body = operation.contains_key("requestBody");
    let has_parameters = operation.contains_key("parameters");
    let needs_key = operation.contains_key("security");
    // Health is always told; everything else is counted by address.
    let is_counted = !matches!(path, "/livez" | "/readyz");
    let common = [
        (has_body || has_parameters, 400, "The request is wrong"),
        (needs_key, 401, "No or wrong key"),
        (path.contains('{'), 404, "Something that the path names is not there"),
        (has_body, 408, "The body came too slowly"),
        (has_body, 413, "The body is over its cap"),
        (has_body && is_lorax(path), 422, "The request is wrong"),
        (is_counted, 429, "Full, or too many requests; see `retry-after`"),
        (needs_key, 503, "A part is away; see `retry-after`"),
        (needs_key, 504, "A part did not answer in time"),
    ];
    let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) else { return };
    for (_, status, description) in common.into_iter().filter(|(is_so, _, _)| *is_so) {
        let answer = || json!({"description": description, "content": {"application/json": {"schema": error(path)}}});
        responses.entry(status.to_string()).or_insert_with(answer);
    }
    responses.sort_keys();
}

fn schema_of(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn error(path: &str) -> Value {
    schema_of(if is_lorax(path) { "LoraxBody" } else { "OpenAiBody" })
}

/// The schema of `text/event-stream` describes one event. A stream may end in an error.
fn stream(path: &str, operation: &mut Map<String, Value>) {
    let Some((_, event, is_done)) = STREAMS.iter().find(|(at, _, _)| *at == path) else { return };
    let told =
        json!({"contentMediaType": "application/json", "contentSchema": {"anyOf": [schema_of(event), error(path)]}});
    let data = if *is_done { json!({"anyOf": [{"const": "[DONE]"}, told]}) } else { told };
    let one =
        json!({"type": "object", "required": ["data"], "properties": {"data": {"allOf": [{"type": "string"}, data]}}});
    let content = operation["responses"]["200"]["content"].as_object_mut();
    if let Some(content) = content {
        content.insert("text/event-stream".into(), json!({"schema": one}));
    }
}
