//! What an answer may look like: a JSON schema, a regular expression or a Lark grammar, compiled to sets of allowed tokens.
//!
//! Stages:
//! 1. a [`Source`] is what a caller gave; [`Compiler::compile`] checks its size and turns it into a [`Grammar`], or says what
//!    is wrong with it. Milliseconds: not for the step loop;
//! 2. a [`Cache`] keeps grammars, each for one tenant, under budgets of entries and bytes;
//! 3. [`Grammar::matcher`] makes a [`Matcher`] for one answer, which gives the [`Mask`] of tokens that may come next
//!    ([`Matcher::mask`]) and takes in the one that did ([`Matcher::consume`]).
//!
//! Parsing, automata and token tries are `llguidance`'s. This room knows token ids and their bytes; it must not know
//! requests, logits or the wire.
//!
//! A mask holds an end token only where the answer may end, so an answer that ended by itself is whole. White space between
//! the tokens of JSON is at most one space, or a line break and its indentation: a model cannot stay in it for ever.

mod cache;
mod compile;
mod error;
mod json;
mod limits;
mod matcher;
mod repeats;
mod source;
mod vocabulary;

pub use cache::{Cache, CacheLimits, Key};
pub use compile::{Compiler, Grammar};
pub use error::Error;
pub use limits::Limits;
pub use matcher::{Mask, Matcher};
pub use source::Source;
