//! What can go wrong in a worker, and what its caller should do.

use std::path::PathBuf;

use weft_fault::{Fault, Kind};
use weft_types::Digest;

/// A worker that cannot start, or a request that it cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Settings are wrong; one line for each.
    #[error("{}", .0.join("\n"))]
    Settings(Vec<String>),
    /// The base model or its engine cannot be used.
    #[error("base model {model} cannot be used: {problem}", model = model.display())]
    Start {
        /// The setting `model`.
        model: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The listener failed.
    #[error("server failed")]
    Serve(#[from] tonic::transport::Error),
    /// A metric is registered twice: two workers share one registry.
    #[error("metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
    /// The thread of the step loop cannot be started.
    #[error("step loop cannot be started")]
    Thread(#[source] std::io::Error),

    /// A field has a value outside its range.
    #[error("{field} is {value}, allowed is {allowed}")]
    Field {
        /// Name in the request.
        field: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// The prompt, or prompt and output together, exceed the context.
    #[error("prompt of {prompt_tokens} tokens{} the limit of {limit} tokens", .max_tokens.map_or(" exceeds".to_owned(), |max| format!(" and max_tokens of {max} exceed")))]
    ContextLength {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// What was asked for, when the sum is the problem.
        max_tokens: Option<usize>,
        /// Most tokens.
        limit: usize,
    },
    /// The prompt has so many bytes that it exceeds the context whatever its tokens are; it was not tokenized.
    #[error("prompt of {bytes} bytes has at least {tokens_min} tokens and exceeds the limit of {limit} tokens")]
    SurelyTooLong {
        /// Bytes of the prompt.
        bytes: usize,
        /// Tokens, if each stood for as much text as the longest of the vocabulary.
        tokens_min: usize,
        /// Most tokens.
        limit: usize,
    },
    /// The prompt is too large even to be tokenized.
    #[error("prompt of {bytes} bytes exceeds prompt_bytes_max of {limit} bytes")]
    PromptBytes {
        /// Bytes of the prompt.
        bytes: usize,
        /// Most bytes.
        limit: usize,
    },
    /// No token to start from.
    #[error("prompt is empty")]
    EmptyPrompt,
    /// A chat for a base that has no template.
    #[error("the base model has no chat template: send a text prompt")]
    NoChatTemplate,
    /// The template, or the messages given to it, failed.
    #[error("{0}")]
    Template(String),
    /// The tokenizer refused the text.
    #[error("prompt cannot be tokenized: {0}")]
    Tokenize(String),
    /// The request is meant for another base.
    #[error("this worker serves base {actual}, the request expects {expected}")]
    OtherBase {
        /// What the request names.
        expected: Digest,
        /// What is here.
        actual: Digest,
    },
    /// The queue is full.
    #[error("queue is full: {queued} requests wait, the limit is {limit}")]
    QueueFull {
        /// Requests that wait.
        queued: usize,
        /// Most requests that wait.
        limit: usize,
    },
    /// The thread that computes has ended without being told to: a bug. The worker ends, to be started again.
    #[error("the worker's step loop has ended unexpectedly")]
    LoopEnded,
    /// The grammar cannot be used, or not be followed any further.
    #[error(transparent)]
    Grammar(#[from] weft_grammar::Error),
    /// A token of a continuation is not what the request's grammar allows there.
    #[error("continuation.ids has token {id} at {index}, which the grammar does not allow")]
    NotInGrammar {
        /// The token.
        id: u32,
        /// Its place among those of the continuation.
        index: usize,
        /// What the grammar says; none: it does not let the answer end there.
        source: Option<weft_grammar::Error>,
    },
    /// The prompt of a continuation is not the one that its tokens were generated for.
    #[error("the prompt has other tokens than those that continuation.ids were generated for")]
    OtherPrompt,
    /// The worker stops.
    #[error("worker is shutting down")]
    Draining,
    /// The step loop does not come to the end of its turn.
    #[error("the step loop has been in one turn for {0} s, longer than step_stall_s")]
    Stuck(u64),
    /// The request's own deadline passed.
    #[error("deadline of {0} ms passed")]
    Deadline(u64),

    /// The adapter can never fit.
    #[error("adapter {digest} needs {bytes} bytes, adapter_memory_bytes is {limit}")]
    AdapterTooLarge {
        /// Which adapter.
        digest: Digest,
        /// Bytes in a slot.
        bytes: u64,
        /// The whole budget.
        limit: u64,
    },
    /// The bytes are not those that the digest names.
    #[error("adapter {wanted} has other bytes: they hash to {found}")]
    WrongBytes {
        /// Asked for.
        wanted: Digest,
        /// Computed while the bytes were copied.
        found: Digest,
    },
    /// A step used another adapter than the request's. A bug, caught before delivery.
    #[error("step used adapter {found:?}, the request names {wanted:?}")]
    WrongAdapter {
        /// Asked for.
        wanted: Option<Digest>,
        /// Read from the slot table entry.
        found: Option<Digest>,
    },
    /// The cache daemon refused the lease.
    #[error("adapter {digest} cannot be leased: {message}")]
    Lease {
        /// Which adapter.
        digest: Digest,
        /// The daemon's kind.
        kind: Kind,
        /// The daemon's words.
        message: String,
    },
    /// The load took too long.
    #[error("adapter {digest} was not loaded within {seconds} s (adapter_load_timeout_s)")]
    LoadTimeout {
        /// Which adapter.
        digest: Digest,
        /// The setting.
        seconds: u64,
    },
    /// Pinned adapters lie between the blocks that are left.
    #[error(
        "adapter {digest} needs {needed} blocks, some of them neighbours, and pinned adapters lie between those that are left"
    )]
    NoBlocks {
        /// Which adapter.
        digest: Digest,
        /// In all.
        needed: usize,
    },
    /// Pins have their part of the slots.
    #[error(
        "adapter {digest} needs {bytes} bytes; pins hold {pinned} of the {limit} bytes they may take \
         (adapter_pinned_fraction_max of adapter_memory_bytes)"
    )]
    PinBudget {
        /// Which adapter.
        digest: Digest,
        /// Bytes in a slot.
        bytes: u64,
        /// Bytes of pinned adapters.
        pinned: u64,
        /// Most bytes of pinned adapters.
        limit: u64,
    },
    /// Too many pins wait for their adapters.
    #[error("{0} pins wait for their adapters already (adapter_leases_max)")]
    PinsWaiting(usize),
    /// A pin was taken back before its adapter came.
    #[error("adapter {0} was unpinned before it had a slot")]
    Unpinned(Digest),
    /// The adapter cannot be evicted.
    #[error("adapter {digest} is in use: {users} requests run with it{}", if *.pinned { ", and it is pinned" } else { "" })]
    InUse {
        /// Which adapter.
        digest: Digest,
        /// Requests that run with it.
        users: u32,
        /// Whether it is pinned.
        pinned: bool,
    },
    /// The leased file cannot be mapped.
    #[error("adapter file {path} cannot be read", path = path.display())]
    AdapterFile {
        /// What the daemon granted.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] weft_engine::Error),
    /// Our code panicked over one request; the others went on.
    #[error("{0} failed by a panic")]
    Panic(&'static str),
}

impl Error {
    /// A setting that cannot be read.
    pub(crate) fn setting(name: &str, problem: impl std::fmt::Display) -> Self {
        Self::Settings(vec![format!("{name}: {problem}")])
    }

    /// A field outside its range.
    pub(crate) fn field(field: &'static str, value: impl std::fmt::Display, allowed: impl Into<String>) -> Self {
        // Values come from outside: echo a bounded piece.
        Self::Field { field, value: value.to_string().chars().take(80).collect(), allowed: allowed.into() }
    }

    /// What the caller should do.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Settings(_)
            | Self::Field { .. }
            | Self::ContextLength { .. }
            | Self::SurelyTooLong { .. }
            | Self::EmptyPrompt
            | Self::NoChatTemplate
            | Self::Template(_)
            | Self::NotInGrammar { .. }
            | Self::Tokenize(_) => Kind::Invalid,
            Self::PromptBytes { .. } => Kind::TooLarge,
            Self::OtherBase { .. } | Self::OtherPrompt | Self::AdapterTooLarge { .. } => Kind::Refused,
            Self::PinBudget { .. } => Kind::Refused,
            Self::QueueFull { .. } | Self::PinsWaiting(_) => Kind::Overloaded,
            Self::Unpinned(_) | Self::InUse { .. } => Kind::Conflict,
            Self::Draining | Self::LoopEnded | Self::Stuck(_) | Self::AdapterFile { .. } => Kind::Unavailable,
            // Another worker has other pins.
            Self::LoadTimeout { .. } | Self::NoBlocks { .. } => Kind::Unavailable,
            Self::Deadline(_) => Kind::Timeout,
            Self::WrongBytes { .. } | Self::WrongAdapter { .. } => Kind::Corrupt,
            // A blob over the daemon's budget is no larger request than others: this adapter cannot be served here.
            Self::Lease { kind: Kind::TooLarge, .. } => Kind::Refused,
            Self::Lease { kind, .. } => *kind,
            // Its bytes are right (see `load`): it is the base that is another one since it was published.
            Self::Engine(weft_engine::Error::AdapterShape { .. }) => Kind::Refused,
            Self::Engine(error) => error.kind(),
            Self::Grammar(error) => error.kind(),
            Self::Start { .. } | Self::Serve(_) | Self::Metrics(_) | Self::Thread(_) | Self::Panic(_) => Kind::Internal,
        }
    }

    /// Stable machine word, where it says more than the kind.
    fn code(&self) -> Option<&'static str> {
        Some(match self {
            Self::ContextLength { .. } | Self::SurelyTooLong { .. } => "context_length_exceeded",
            Self::Template(_) => "template_error",
            Self::NoChatTemplate => "no_chat_template",
            Self::EmptyPrompt => "empty_prompt",
            Self::QueueFull { .. } => "queue_full",
            Self::Grammar(_) => "invalid_grammar",
            Self::AdapterTooLarge { .. } | Self::Lease { kind: Kind::TooLarge, .. } => "adapter_too_large",
            Self::Lease { kind: Kind::Unavailable | Kind::Timeout, .. }
            | Self::LoadTimeout { .. }
            | Self::AdapterFile { .. } => "adapter_unavailable",
            Self::Engine(weft_engine::Error::AdapterShape { .. }) => "adapter_wrong_base",
            Self::Engine(weft_engine::Error::AdapterLimit { .. }) => "adapter_too_large",
            Self::WrongBytes { .. } | Self::WrongAdapter { .. } | Self::Lease { kind: Kind::Corrupt, .. } => {
                "wrong_adapter_bytes"
            }
            Self::PinBudget { .. } => "pin_budget",
            Self::InUse { .. } => "adapter_in_use",
            Self::OtherBase { .. } => "wrong_base",
            Self::OtherPrompt => "other_prompt",
            Self::Draining => "draining",
            _ => return None,
        })
    }

    fn param(&self) -> Option<&'static str> {
        match self {
            Self::Field { field, .. } => Some(field),
            Self::ContextLength { max_tokens: Some(_), .. } => Some("max_tokens"),
            Self::ContextLength { .. }
            | Self::SurelyTooLong { .. }
            | Self::PromptBytes { .. }
            | Self::EmptyPrompt
            | Self::Tokenize(_) => Some("prompt"),
            Self::Template(_) | Self::NoChatTemplate => Some("messages"),
            Self::Grammar(_) => Some("response_format"),
            Self::NotInGrammar { .. } => Some("continuation.ids"),
            _ => None,
        }
    }
}

/// The message with its causes: a fault keeps no source.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// How long a caller waits when the queue is full: a few requests have left by then.
const QUEUE_RETRY_MS: u64 = 1000;

impl From<&Error> for Fault {
    fn from(error: &Error) -> Self {
        let (kind, code, param) = (error.kind(), error.code(), error.param());
        let mut fault = Fault::new(kind, chain(error));
        if let Some(code) = code {
            fault = fault.with_code(code);
        }
        if let Some(param) = param {
            fault = fault.with_param(param);
        }
        match kind {
            Kind::Overloaded | Kind::Unavailable => fault.with_retry_after_ms(QUEUE_RETRY_MS),
            _ => fault,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        Fault::from(error).into()
    }
}

impl From<weft_base_model::Error> for Error {
    /// Of the calls that admission makes; errors of opening a model are [`Error::Start`].
    fn from(error: weft_base_model::Error) -> Self {
        match error {
            weft_base_model::Error::Template(message) => Self::Template(message),
            other => Self::Tokenize(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(kind: Kind) -> Fault {
        Error::Lease { digest: Digest::of(b"a"), kind, message: "as the daemon says it".into() }.into()
    }

    #[test]
    fn what_the_cache_daemon_refuses_says_whether_another_try_can_help() {
        let too_large = lease(Kind::TooLarge);
        assert_eq!((too_large.kind, too_large.code.as_str()), (Kind::Refused, "adapter_too_large"));
        for kind in [Kind::Unavailable, Kind::Timeout] {
            assert_eq!((lease(kind).kind, lease(kind).code.as_str()), (kind, "adapter_unavailable"));
        }
        assert_eq!(lease(Kind::Overloaded).kind, Kind::Overloaded);
        let corrupt = lease(Kind::Corrupt);
        assert_eq!((corrupt.kind, corrupt.code.as_str()), (Kind::Corrupt, "wrong_adapter_bytes"));
    }

    #[test]
    fn an_adapter_of_another_base_is_refused_by_name() {
        let shape =
            weft_engine::Error::AdapterShape { layer: 3, module: "q_proj", reason: "the base has 2 layers".into() };
        let fault = Fault::from(Error::from(shape));
        assert_eq!((fault.kind, fault.code.as_str()), (Kind::Refused, "adapter_wrong_base"));
    }
}
