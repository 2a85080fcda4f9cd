//! From the grammar of a request to one that the step loop can follow: compiled off the loop, kept for its tenant.

use std::sync::Arc;
use std::time::Instant;

use weft_grammar::{Cache, CacheLimits, Compiler, Grammar, Key, Limits, Source};
use weft_proto::worker::v1 as pb;
use weft_types::Digest;

use crate::Error;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::settings::Settings;
use crate::turns::Turns;

/// Compiles and keeps grammars.
pub(crate) struct Grammars {
    compiler: Arc<Compiler>,
    cache: Cache,
    base: Digest,
    /// Whose grammar is compiled next.
    turns: Turns,
    metrics: Metrics,
}

impl Grammars {
    pub(crate) fn new(model: &Model, settings: &Settings, metrics: Metrics) -> Self {
        let limits = Limits {
            source_bytes_max: settings.grammar_bytes_max,
            lexer_states_max: settings.grammar_states_max,
            ..Limits::default()
        };
        let kept = CacheLimits { entries_max: settings.grammar_cache_entries, bytes_max: settings.grammar_cache_bytes };
        let compiler = Compiler::new(model.tokenizer.clone(), model.vocabulary, model.eos_ids(), limits);
        Self {
            compiler: Arc::new(compiler),
            cache: Cache::new(kept),
            base: model.digest,
            turns: Turns::new(settings.grammar_compile_concurrency, settings.queue_requests_max),
            metrics,
        }
    }

    /// The grammar of a request: from the cache, or compiled on a blocking thread. A tenant without a salt is nobody in
    /// particular: nothing is kept for it.
    ///
    /// # Errors
    /// [`Error::Grammar`]: it is over a limit, unsupported or impossible. [`Error::QueueFull`]: too many wait.
    pub(crate) async fn get(
        &self,
        wire: pb::Grammar,
        tenant: &str,
        adapter: Option<&Digest>,
        tenant_salt: &[u8],
    ) -> Result<Grammar, Error> {
        let source = source(wire)?;
        let key = Key::new(&self.base, adapter, tenant_salt, &source);
        let kept = !tenant_salt.is_empty();
        if let Some(grammar) = self.kept(&key, kept) {
            return Ok(grammar);
        }
        let turn = self.turns.turn(tenant).await?;
        // Another request of the tenant may have brought it meanwhile.
        if let Some(grammar) = self.kept(&key, kept) {
            return Ok(grammar);
        }
        let started = Instant::now();
        let compiler = Arc::clone(&self.compiler);
        // The work keeps the turn until it is done, whether anybody still waits for it or not.
        let compiled = tokio::task::spawn_blocking(move || (compiler.compile(&source), turn)).await;
        self.metrics.grammar_compile_seconds.observe(started.elapsed().as_secs_f64());
        let (compiled, _turn) = compiled.map_err(|_| Error::Panic("compiling the grammar"))?;
        self.count(if compiled.is_ok() { "compiled" } else { "refused" });
        let grammar = compiled?;
        if kept {
            self.cache.put(key, grammar.clone());
        }
        Ok(grammar)
    }

    fn kept(&self, key: &Key, kept: bool) -> Option<Grammar> {
        let grammar = if kept { self.cache.get(key) } else { None }?;
        self.count("cached");
        Some(grammar)
    }

    fn count(&self, result: &str) {
        self.metrics.grammars.with_label_values(&[result]).inc();
    }
}

fn source(wire: pb::Grammar) -> Result<Source, Error> {
    use pb::grammar::Source as Wire;
    match wire.source {
        Some(Wire::JsonSchema(text)) => Ok(Source::JsonSchema(text)),
        Some(Wire::Regex(text)) => Ok(Source::Regex(text)),
        Some(Wire::Lark(text)) => Ok(Source::Lark(text)),
        Some(Wire::JsonObject(_)) => Ok(Source::JsonObject),
        None => Err(Error::field("grammar", "without a source", "one of json_schema, regex, lark and json_object")),
    }
}
