//! From sampling settings to the device table of `sampling.cu`. No IO, no device.

#[cfg(feature = "shim")]
mod on_host;

#[cfg(feature = "shim")]
pub use on_host::{Request, Sampled, Sequence};

/// Threads of a block; as in `sampling_logits.cuh`.
pub const THREADS: u32 = 512;
/// Largest vocabulary: the maxima of its blocks of 64 fill 32 KiB of shared memory.
pub const VOCABULARY_MAX: usize = 524_288;
/// Candidates that a block sorts in shared memory; rows with more go to `weft_sample_large`.
pub const CANDIDATES: usize = 2048;
/// Most alternatives that a row may report.
pub const ALTERNATIVES_MAX: usize = 1024;
/// Bytes of workspace for each token of the vocabulary in each slot of `weft_sample_large`.
pub const WORKSPACE_BYTES_PER_TOKEN: usize = 32;

/// What no launch takes.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Nothing to choose from, or more than shared memory has room for.
    #[error("vocabulary {given} is not within 1..={VOCABULARY_MAX}")]
    Vocabulary {
        /// Tokens.
        given: usize,
    },
    /// Rows would overlap, or addresses leave 32 bits.
    #[error("stride {given} is not within {vocabulary}..={}", i32::MAX)]
    Stride {
        /// Elements from row to row.
        given: usize,
        /// Tokens.
        vocabulary: usize,
    },
    /// More than a grid has blocks.
    #[error("rows {given} exceed {}", i32::MAX)]
    Rows {
        /// Rows of the launch.
        given: usize,
    },
    /// More alternatives than are selected in shared memory.
    #[error("alternatives {given} exceed {ALTERNATIVES_MAX}")]
    Alternatives {
        /// Of one row.
        given: usize,
    },
    /// A bias for a token that there is not, or two for one.
    #[error("logit_bias for token {id}: ids are below {vocabulary} and named once")]
    BiasToken {
        /// Token.
        id: u32,
        /// Tokens.
        vocabulary: usize,
    },
    /// A bias that would make logits of which there is no largest.
    #[error("logit_bias {value} for token {id} is not finite")]
    BiasValue {
        /// Token.
        id: u32,
        /// Bias.
        value: f32,
    },
    /// The shim refused or stopped the launch.
    #[cfg(feature = "shim")]
    #[error(transparent)]
    Launch(#[from] crate::host::Error),
}

/// How tokens are chosen: the engine's `SamplingParams`, with the same meaning of every value. The default is greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// 0, or so small that its inverse overflows: greedy.
    pub temperature: f32,
    /// Smallest set of most probable tokens with this share. `<= 0` or `>= 1`: off.
    pub top_p: f32,
    /// This many most probable tokens. 0: off.
    pub top_k: usize,
    /// Tokens at least this fraction as probable as the most probable one. `<= 0`: off.
    pub min_p: f32,
    /// Locally typical sampling. `<= 0` or `>= 1`: off.
    pub typical_p: f32,
    /// Over prompt and output. 1 or `<= 0`: off.
    pub repetition_penalty: f32,
    /// Subtracted once per occurrence in the output. 0: off.
    pub frequency_penalty: f32,
    /// Subtracted if the token occurs in the output. 0: off.
    pub presence_penalty: f32,
    /// Names the stream of random numbers.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: 0,
        }
    }
}

impl Settings {
    /// Whether a sequence with these needs counts of its tokens.
    #[must_use]
    pub fn penalises(&self) -> bool {
        self.effective_repetition() != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }

    fn effective_repetition(&self) -> f32 {
        if self.repetition_penalty > 0.0 { self.repetition_penalty } else { 1.0 }
    }
}

/// What is added to the logit of a token, before penalties. The layout of `LogitBias` on the device, 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bias {
    /// Token.
    pub id: u32,
    /// Finite.
    pub value: f32,
}

/// Biases as the device wants them: ascending by id.
///
/// # Errors
///
/// [`Error::BiasToken`], [`Error::BiasValue`].
pub fn biases(given: &[(u32, f32)], vocabulary: usize) -> Result<Vec<Bias>, Error> {
    let mut biases: Vec<Bias> = given.iter().map(|&(id, value)| Bias { id, value }).collect();
    biases.sort_by_key(|bias| bias.id);
    for (at, &Bias { id, value }) in biases.iter().enumerate() {
        if id as usize >= vocabulary || (at > 0 && biases[at - 1].id == id) {
            return Err(Error::BiasToken { id, vocabulary });
        }
        if !value.is_finite() {
            return Err(Error::BiasValue { id, value });
        }
    }
    Ok(biases)
}

/// How a row is sampled. The layout of `SampleRow` on the device, 104 bytes; what fields mean is said there.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::NoUninit)]
pub struct Row {
    /// Of the random numbers.
    pub seed: u64,
    /// In the whole sequence, prompt included.
    pub position: u64,
    /// Address of the words of the mask, or 0.
    pub mask: u64,
    /// Address of one bit for each token, rounded up to words of 32; 0 without penalties and biases.
    pub marked: u64,
    /// Address of `[vocabulary]` counts, or 0.
    pub counts: u64,
    /// Address of the biases.
    pub biases: u64,
    /// Words of the mask.
    pub mask_words: u32,
    /// Biases.
    pub bias_count: u32,
    inverse_temperature: f32,
    top_p: f32,
    min_p: f32,
    min_p_slack: f32,
    typical_p: f32,
    repetition_penalty: f32,
    frequency_penalty: f32,
    presence_penalty: f32,
    top_k: u32,
    /// Most probable tokens to report, up to [`ALTERNATIVES_MAX`].
    pub alternatives: u32,
    /// 1: report the log-probability of the token. Alternatives need it.
    pub wants_logprob: u32,
    /// Which row of the logits it is of.
    pub logits_row: u32,
}

impl Row {
    /// Row 0 without mask, penalties and biases: their addresses are 0. All roundings that the device relies on are made here.
    #[must_use]
    pub fn new(settings: &Settings, position: u64) -> Self {
        // Not below the smallest normal number: a forbidden token (-inf) must stay forbidden at any temperature.
        let inverse = (1.0 / settings.temperature).max(f32::MIN_POSITIVE);
        let is_greedy = settings.temperature.is_nan() || settings.temperature <= 0.0 || !inverse.is_finite();
        let inverse_temperature = if is_greedy { 0.0 } else { inverse };
        let share = |value: f32| if value > 0.0 && value < 1.0 { value } else { 1.0 };
        let min_p = if settings.min_p > 0.0 { settings.min_p.min(1.0) } else { 0.0 };
        Self {
            seed: settings.seed,
            position,
            mask: 0,
            marked: 0,
            counts: 0,
            biases: 0,
            mask_words: 0,
            bias_count: 0,
            inverse_temperature,
            top_p: share(settings.top_p),
            min_p,
            // weight >= min_p <=> logit >= max + T ln(min_p); a little lower, because the exact test follows.
            min_p_slack: min_p.ln() / inverse - 1e-3,
            typical_p: share(settings.typical_p),
            repetition_penalty: settings.effective_repetition(),
            frequency_penalty: settings.frequency_penalty,
            presence_penalty: settings.presence_penalty,
            top_k: u32::try_from(settings.top_k).unwrap_or(u32::MAX),
            alternatives: 0,
            wants_logprob: 0,
            logits_row: 0,
        }
    }
}

/// What a row got. The layout of `SampleResult` on the device, 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Outcome {
    /// The token, if `status` is 0.
    pub token: u32,
    /// 0, or [`BAD_LOGITS`].
    pub status: u32,
    /// Natural logarithm of its probability under the model's own distribution, if it was wanted.
    pub logprob: f32,
    /// How many were written.
    pub alternatives: u32,
}

/// NaN or +inf among the logits, or nothing above -inf that is allowed.
pub const BAD_LOGITS: u32 = 1;

/// A token and the logarithm of its probability. The layout of `Alternative` on the device, 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Alternative {
    /// Token.
    pub id: u32,
    /// Natural logarithm.
    pub logprob: f32,
}

/// A sequence whose counts and marks are made anew. The layout of `SampleStart` on the device, 48 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::NoUninit)]
pub struct Start {
    /// Address of `[vocabulary]` counts, or 0.
    pub counts: u64,
    /// Address of one bit for each token, rounded up to words of 32.
    pub marked: u64,
    /// Address of the tokens of the prompt, then those of the output.
    pub tokens: u64,
    /// Address of the biases.
    pub biases: u64,
    /// Of them, in the prompt.
    pub prompt_tokens: u32,
    /// Of prompt and output.
    pub all_tokens: u32,
    /// Biases.
    pub bias_count: u32,
    /// Zero.
    pub padding: u32,
}

/// Checks what a launch for up to `rows` rows is given; `alternatives` is the room that each row has for them.
///
/// # Errors
///
/// [`Error`], by field.
pub fn check(vocabulary: usize, stride: usize, rows: usize, alternatives: usize) -> Result<(), Error> {
    if vocabulary == 0 || vocabulary > VOCABULARY_MAX {
        return Err(Error::Vocabulary { given: vocabulary });
    }
    if stride < vocabulary || stride > i32::MAX as usize {
        return Err(Error::Stride { given: stride, vocabulary });
    }
    if rows > i32::MAX as usize {
        return Err(Error::Rows { given: rows });
    }
    if alternatives > ALTERNATIVES_MAX {
        return Err(Error::Alternatives { given: alternatives });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_the_device() {
        let sizes = (size_of::<Row>(), size_of::<Outcome>(), size_of::<Start>(), size_of::<Bias>());
        assert_eq!(sizes, (104, 16, 48, 8));
        assert_eq!((size_of::<Alternative>(), std::mem::offset_of!(Row, inverse_temperature)), (8, 56));
    }

    #[test]
    fn what_turns_a_setting_off_is_one_value() {
        let off = Row::new(&Settings { temperature: 1.0, ..Settings::default() }, 0);
        for value in [0.0f32, -1.0, 1.0, 2.0, f32::NAN] {
            let settings = Settings { temperature: 1.0, top_p: value, typical_p: value, ..Settings::default() };
            assert_eq!(Row::new(&settings, 0), Row { min_p_slack: off.min_p_slack, ..off }, "{value}");
        }
        for value in [0.0, -1.0, f32::NAN, 1.0] {
            assert!(!Settings { repetition_penalty: value, ..Settings::default() }.penalises(), "{value}");
        }
        for temperature in [0.0, -1.0, f32::NAN, 1e-45] {
            assert_eq!(Row::new(&Settings { temperature, ..Settings::default() }, 0).inverse_temperature, 0.0);
        }
    }

    #[test]
    fn errors_name_field_value_and_limit() {
        let text = |result: Result<(), Error>| result.unwrap_err().to_string();
        assert_eq!(text(check(0, 1, 1, 0)), "vocabulary 0 is not within 1..=524288");
        assert_eq!(text(check(524_289, 524_289, 1, 0)), "vocabulary 524289 is not within 1..=524288");
        assert_eq!(text(check(10, 9, 1, 0)), "stride 9 is not within 10..=2147483647");
        assert_eq!(text(check(10, 10, usize::MAX, 0)), format!("rows {} exceed 2147483647", usize::MAX));
        assert_eq!(text(check(10, 10, 1, 1025)), "alternatives 1025 exceed 1024");
        let text = |given: &[(u32, f32)]| biases(given, 10).unwrap_err().to_string();
        assert_eq!(text(&[(10, 0.0)]), "logit_bias for token 10: ids are below 10 and named once");
        assert_eq!(text(&[(3, 0.0), (3, 1.0)]), "logit_bias for token 3: ids are below 10 and named once");
        assert_eq!(text(&[(3, f32::INFINITY)]), "logit_bias inf for token 3 is not finite");
        assert_eq!(biases(&[(7, 1.0), (2, 2.0)], 10).unwrap()[0], Bias { id: 2, value: 2.0 });
    }
}
