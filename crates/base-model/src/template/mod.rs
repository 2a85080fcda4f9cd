//! Chat templates: Jinja as Hugging Face runs it, on minijinja with Python's string and dict methods.
//!
//! Kept as in transformers' `chat_template_utils.py`: `trim_blocks` and `lstrip_blocks`, `{% generation %}` blocks,
//! loop controls, `tojson` that does not escape HTML, `raise_exception`, `strftime_now` (in UTC), and the variables
//! `messages`, `tools`, `documents`, `add_generation_prompt` and the named special tokens.
//!
//! A template runs under a fuel limit, which bounds both its steps and the memory it can take.
//!
//! # User text never becomes a special token
//! Before rendering, the text of a special token inside any string of `messages` and `tools` is broken up with a
//! *mark*: a Unicode noncharacter that occurs nowhere in the input. What the template writes itself is not marked.
//! [`Tokenizer::encode_rendered`](crate::Tokenizer::encode_rendered) then sees unbroken special tokens only where
//! the template wrote them, and takes the marks out of everything else.

mod json;
mod mark;
#[cfg(test)]
mod random;

use crate::Error;
use mark::Marker;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind, Value};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_types::Digest;

/// Steps of one rendering, where 64 bytes of output count as a step too. A chat of 1,000 messages takes about 50,000.
const FUEL: u64 = 4_000_000;

/// Names such as `bos_token` with the token's text.
pub(crate) type SpecialNames = BTreeMap<String, String>;

/// The template's source: one, or one for chats without and one for chats with tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sources {
    pub(crate) default: String,
    pub(crate) tool_use: Option<String>,
}

/// A compiled chat template. Cheap to clone; may render on many threads at once.
#[derive(Clone)]
pub struct ChatTemplate {
    inner: Arc<Inner>,
}

struct Inner {
    environment: Environment<'static>,
    sources: Sources,
    names: SpecialNames,
    marker: Marker,
}

/// A rendered chat, in which special tokens that the template wrote can be told from those inside user text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    marked: String,
    mark: char,
}

impl Rendered {
    /// The text as transformers would render it.
    #[must_use]
    pub fn text(&self) -> String {
        self.unmark(&self.marked)
    }

    pub(crate) fn marked(&self) -> &str {
        &self.marked
    }

    pub(crate) fn unmark(&self, piece: &str) -> String {
        piece.replace(self.mark, "")
    }
}

impl ChatTemplate {
    /// Compiles a template. `special_texts` are the special tokens that user text must not become.
    pub(crate) fn new(sources: Sources, names: SpecialNames, special_texts: Vec<String>) -> Result<Self, Error> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(template_error)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_template_owned("chat", without_generation_tags(&sources.default)).map_err(template_error)?;
        if let Some(source) = &sources.tool_use {
            environment
                .add_template_owned("chat_with_tools", without_generation_tags(source))
                .map_err(template_error)?;
        }
        let marker = Marker::new(special_texts).map_err(Error::Template)?;
        Ok(Self { inner: Arc::new(Inner { environment, sources, names, marker }) })
    }

    /// Renders a chat. `messages` is an array of objects with `role` and `content`, `tools` an array of JSON schemas.
    /// With `continue_final_message` the text ends inside the last message, for the model to go on with it.
    /// Cost: some 10 µs per message.
    ///
    /// # Errors
    /// [`Error::Template`]: the template raised an exception, ran out of fuel, or lacks what it needs in `messages`;
    /// or the last message cannot be continued.
    pub fn render(
        &self,
        messages: &Json,
        tools: Option<&Json>,
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> Result<Rendered, Error> {
        if !messages.is_array() {
            return Err(Error::Template("messages is not an array".into()));
        }
        if add_generation_prompt && continue_final_message {
            return Err(Error::Template("add_generation_prompt and continue_final_message exclude each other".into()));
        }
        let inner = &*self.inner;
        let [mark, tag] = mark::free_characters(messages, tools).map_err(Error::Template)?;
        let mut messages = inner.marker.mark(messages, mark);
        let tools = tools.map(|tools| inner.marker.mark(tools, mark));
        let mut to_continue = None;
        if continue_final_message {
            let text = final_text(&mut messages)
                .ok_or_else(|| Error::Template("there is no final message to continue".into()))?;
            to_continue = Some(text.clone());
            // A space after the tag shows whether the template trims what it is given, as transformers does it.
            text.push(tag);
            text.push(' ');
        }

        let mut variables: BTreeMap<String, Value> =
            inner.names.iter().map(|(name, text)| (name.clone(), Value::from(text.as_str()))).collect();
        variables.insert("messages".into(), Value::from(Serde(&messages)));
        variables.insert("tools".into(), Value::from(Serde(&tools)));
        variables.insert("documents".into(), Value::from(()));
        variables.insert("add_generation_prompt".into(), Value::from(add_generation_prompt));
        let with_tools = tools.is_some() && inner.sources.tool_use.is_some();
        let name = if with_tools { "chat_with_tools" } else { "chat" };
        let template = inner.environment.get_template(name).map_err(template_error)?;
        let mut marked = template
            .render(Value::from_pairs(variables))
            .map_err(|error| Error::Template(describe(&error).replace([mark, tag], "")))?;
        if let Some(text) = to_continue {
            cut_after(&mut marked, text.trim(), tag)?;
        }
        Ok(Rendered { marked, mark })
    }

    /// The source that is used for chats without tools.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.inner.sources.default
    }

    /// A digest over the sources and the named special tokens: what decides the rendered text.
    pub(crate) fn digest(&self) -> Digest {
        let mut record = crate::record::Record::new("weft.base-model.template.v1");
        record.text(&self.inner.sources.default);
        record.number(u64::from(self.inner.sources.tool_use.is_some()));
        record.text(self.inner.sources.tool_use.as_deref().unwrap_or_default());
        record.number(self.inner.names.len() as u64);
        for (name, text) in &self.inner.names {
            record.text(name);
            record.text(text);
        }
        record.finish()
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("bytes", &self.inner.sources.default.len()).finish_non_exhaustive()
    }
}

fn template_error(error: minijinja::Error) -> Error {
    Error::Template(describe(&error))
}

fn describe(error: &minijinja::Error) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => format!("it takes more than {FUEL} steps"),
        (ErrorKind::InvalidOperation, Some(detail)) if detail.starts_with(RAISED) => detail[RAISED.len()..].to_owned(),
        _ => error.to_string(),
    }
}

/// Marks what a template raised itself, so that its words reach the caller unadorned.
const RAISED: &str = "raised: ";

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    let wrong = |problem: String| minijinja::Error::new(ErrorKind::InvalidOperation, problem);
    let items = time::format_description::parse_strftime_owned(format).map_err(|error| wrong(error.to_string()))?;
    time::OffsetDateTime::now_utc().format(&items).map_err(|error| wrong(error.to_string()))
}

fn tojson(value: &Value, kwargs: Kwargs) -> Result<String, minijinja::Error> {
    let options = json::Options {
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent: kwargs.get::<Option<usize>>("indent")?,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        separators: kwargs.get::<Option<Vec<String>>>("separators")?,
    };
    kwargs.assert_all_used()?;
    let value = serde_json::to_value(value)
        .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    json::dump(&value, &options).map_err(|problem| minijinja::Error::new(ErrorKind::InvalidOperation, problem))
}

/// `{% generation %}` marks the assistant's words for training and renders as its content: an `if true`.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        // Behind the opening: the two may share their percent sign.
        let Some(end) = tag[2..].find("%}").map(|at| at + 2) else { break };
        out.push_str(before);
        let (tag, after) = tag.split_at(end + 2);
        match tag[2..end].trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// The text of the last message: its content, or the last text part of its content.
fn final_text(messages: &mut Json) -> Option<&mut String> {
    match messages.as_array_mut()?.last_mut()?.get_mut("content")? {
        Json::String(text) => Some(text),
        Json::Array(parts) => parts.iter_mut().rev().find_map(|part| match part.get_mut("text")? {
            Json::String(text) => Some(text),
            _ => None,
        }),
        _ => None,
    }
}

/// Ends the rendered chat where the final message ends, which is where its tag is.
fn cut_after(marked: &mut String, text: &str, tag: char) -> Result<(), Error> {
    let Some(at) = marked.rfind(tag).filter(|_| marked.contains(text)) else {
        return Err(Error::Template("the final message does not appear in the rendered chat".into()));
    };
    let keeps_spacing = marked[at..].chars().nth(1) == Some(' ');
    marked.truncate(at);
    if !keeps_spacing {
        marked.truncate(marked.trim_end().len());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
