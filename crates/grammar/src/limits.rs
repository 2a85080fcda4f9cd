use llguidance::api::ParserLimits;

/// How large a grammar may be, and how much work it may cause.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a source.
    pub source_bytes_max: usize,
    /// Characters of a regular expression once its counted repetitions are written out.
    pub repeats_max: usize,
    /// Symbols in all productions of a compiled grammar.
    pub symbols_max: usize,
    /// States of the lexer that all answers of one grammar together may visit; 1 to 2 KB each.
    pub lexer_states_max: usize,
    /// Fuel for the lexer's expressions when a grammar is compiled: 50,000 a millisecond.
    pub compile_fuel_max: u64,
    /// Fuel of the lexer for one mask: 14,000 a millisecond.
    pub mask_fuel_max: u64,
    /// Items of the parser for one mask: 20,000 a millisecond.
    pub mask_items_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            source_bytes_max: 64 << 10,
            repeats_max: 100_000,
            symbols_max: 50_000,
            lexer_states_max: 20_000,
            compile_fuel_max: 1_000_000,
            mask_fuel_max: 100_000,
            mask_items_max: 20_000,
        }
    }
}

impl Limits {
    pub(crate) fn parser(&self) -> ParserLimits {
        ParserLimits {
            initial_lexer_fuel: self.compile_fuel_max,
            step_lexer_fuel: self.mask_fuel_max,
            step_max_items: self.mask_items_max,
            max_lexer_states: self.lexer_states_max,
            max_grammar_size: self.symbols_max,
            // State and source in errors: for a log, not for a caller.
            verbose_errors: false,
            ..ParserLimits::default()
        }
    }
}
