//! The byte-level BPE tokenizer that a GGUF file carries in its metadata.
//!
//! What `tokenizer.ggml.pre` means is fixed by `llm_tokenizer_bpe` and `llama_vocab::impl::load` in llama.cpp's
//! `src/llama-vocab.cpp`; each kind here is the published `tokenizer.json` pipeline it was made from. A kind that is
//! not known to be exact is refused by name: a slightly wrong split costs quality without anyone noticing.

use super::Tokenizer;
use crate::Error;
use crate::gguf::Meta;
use crate::record::Record;
use crate::template::SpecialNames;
use std::collections::BTreeSet;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NFC, NormalizerWrapper};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior};
use weft_types::Digest;

/// `tokenizer.ggml.token_type` of tokens that only templates write, and of words added by the model's maker.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
/// Tokens a vocabulary may have.
const TOKENS_MAX: usize = 1 << 22;

const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is cut before merging, and what else goes with a pre-tokenizer kind.
struct Kind {
    pre_tokenizer: PreTokenizerWrapper,
    normalizer: Option<NormalizerWrapper>,
    /// Words that are tokens are taken whole, whatever the merges say.
    ignore_merges: bool,
    /// What `add_bos_token` is when the file does not say.
    add_bos: bool,
}

/// Kinds that are done exactly, by `tokenizer.ggml.pre`.
const KINDS: [&str; 9] =
    ["gpt-2", "smollm", "starcoder", "refact", "llama3", "llama-v3", "llama-bpe", "qwen2", "deepseek-r1-qwen"];

fn kind(name: &str) -> Result<Kind, String> {
    let plain = |pre_tokenizer| Kind { pre_tokenizer, normalizer: None, ignore_merges: false, add_bos: false };
    Ok(match name {
        "gpt-2" => plain(ByteLevel::new(false, true, true).into()),
        "smollm" | "starcoder" | "refact" => {
            let steps = vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()];
            plain(Sequence::new(steps).into())
        }
        "llama3" | "llama-v3" | "llama-bpe" => {
            Kind { ignore_merges: true, add_bos: true, ..plain(split_then_bytes(LLAMA3_SPLIT)?) }
        }
        "qwen2" | "deepseek-r1-qwen" => Kind { normalizer: Some(NFC.into()), ..plain(split_then_bytes(QWEN2_SPLIT)?) },
        other => return Err(format!("tokenizer.ggml.pre {other:?}, supported are {}", KINDS.join(", "))),
    })
}

fn split_then_bytes(pattern: &str) -> Result<PreTokenizerWrapper, String> {
    let split = Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false)
        .map_err(|error| error.to_string())?;
    Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()]).into())
}

/// Builds the tokenizer, and the names of special tokens that templates use.
pub(crate) fn from_gguf(meta: &Meta<'_>) -> Result<(Tokenizer, SpecialNames), Error> {
    let path = meta.path;
    let model = meta.text("tokenizer.ggml.model")?;
    let model = meta.required("tokenizer.ggml.model", model)?;
    if model != "gpt2" {
        return Err(Error::unsupported(path, format!("tokenizer.ggml.model {model:?}, supported is \"gpt2\"")));
    }
    let pre = meta.text("tokenizer.ggml.pre")?;
    let kind = kind(meta.required("tokenizer.ggml.pre", pre)?).map_err(|problem| Error::unsupported(path, problem))?;

    let texts = meta.texts("tokenizer.ggml.tokens")?;
    let tokens = meta.required("tokenizer.ggml.tokens", texts)?;
    let types = meta.integers("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![1; tokens.len()]);
    if tokens.is_empty() || tokens.len() > TOKENS_MAX {
        return Err(Error::broken(
            path,
            format!("tokenizer.ggml.tokens has {} tokens, not 1 to {TOKENS_MAX}", tokens.len()),
        ));
    }
    if types.len() != tokens.len() {
        let problem = format!("tokenizer.ggml.token_type has {} entries for {} tokens", types.len(), tokens.len());
        return Err(Error::broken(path, problem));
    }

    let mut hf = tokenizers::Tokenizer::new(bpe(meta, &tokens, kind.ignore_merges)?);
    hf.with_normalizer(kind.normalizer).map_err(|error| Error::broken(path, error.to_string()))?;
    hf.with_pre_tokenizer(Some(kind.pre_tokenizer));
    hf.with_decoder(Some(ByteLevel::default()));
    add_tokens(&mut hf, &tokens, &types).map_err(|error| Error::broken(path, error.to_string()))?;

    let known = |id: u32| tokens.get(id as usize).map(|text| (*text).to_owned());
    let bos_id = meta.token_id("tokenizer.ggml.bos_token_id")?.filter(|id| known(*id).is_some());
    if meta.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(kind.add_bos) {
        let bos =
            bos_id.ok_or_else(|| Error::broken(path, "tokenizer.ggml.add_bos_token is set without a bos token"))?;
        hf.with_post_processor(Some(prepend(tokens[bos as usize], bos).map_err(|error| Error::broken(path, error))?));
    }
    let names = special_names(meta, known)?;
    let eos_ids = eos_ids(meta, &tokens, &types)?;
    let tokenizer = Tokenizer::new(hf, bos_id, &eos_ids).map_err(|problem| Error::unsupported(path, problem))?;
    Ok((tokenizer, names))
}

fn bpe(meta: &Meta<'_>, tokens: &[&str], ignore_merges: bool) -> Result<BPE, Error> {
    let path = meta.path;
    let mut vocab = Vocab::default();
    for (id, token) in tokens.iter().enumerate() {
        if let Some(first) = vocab.insert((*token).to_owned(), id as u32) {
            return Err(Error::broken(path, format!("tokenizer.ggml.tokens has {token:?} as {first} and as {id}")));
        }
    }
    let lines = meta.texts("tokenizer.ggml.merges")?;
    let lines = meta.required("tokenizer.ggml.merges", lines)?;
    let mut merges = Vec::with_capacity(lines.len());
    for line in lines {
        let Some((left, right)) = line.split_once(' ') else {
            return Err(Error::broken(path, format!("tokenizer.ggml.merges has {line:?}, which is no pair")));
        };
        merges.push((left.to_owned(), right.to_owned()));
    }
    let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(ignore_merges).build();
    model.map_err(|error| Error::broken(path, format!("tokenizer.ggml.merges: {error}")))
}

fn add_tokens(hf: &mut tokenizers::Tokenizer, tokens: &[&str], types: &[i64]) -> tokenizers::Result<()> {
    let mut special = Vec::new();
    let mut words = Vec::new();
    for (token, kind) in tokens.iter().zip(types) {
        match *kind {
            CONTROL => special.push(AddedToken::from(*token, true).normalized(false)),
            USER_DEFINED => words.push(AddedToken::from(*token, false).normalized(false)),
            _ => {}
        }
    }
    hf.add_special_tokens(special)?;
    hf.add_tokens(words)?;
    Ok(())
}

fn prepend(token: &str, id: u32) -> Result<TemplateProcessing, String> {
    // `$A` is the text; the token's own spelling may contain what the template syntax uses, so it goes by an alias.
    let special = tokenizers::processors::template::SpecialToken::new("bos".into(), vec![id], vec![token.to_owned()])
        .map_err(|error| error.to_string())?;
    let mut builder = TemplateProcessing::builder();
    builder.try_single("bos $A").map_err(|error| error.to_string())?;
    builder.special_tokens(vec![special]);
    builder.build().map_err(|error| error.to_string())
}

/// The end-of-sequence, end-of-turn and end-of-message tokens. Files made before those keys existed name only the
/// first, so that well-known end-of-turn tokens are looked up by text, as llama.cpp does.
fn eos_ids(meta: &Meta<'_>, tokens: &[&str], types: &[i64]) -> Result<Vec<u32>, Error> {
    let mut ids = BTreeSet::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        ids.extend(meta.token_id(&format!("tokenizer.ggml.{key}"))?);
    }
    if meta.token_id("tokenizer.ggml.eot_token_id")?.is_none() {
        for (id, (token, kind)) in tokens.iter().zip(types).enumerate() {
            if *kind == CONTROL && matches!(*token, "<|eot_id|>" | "<|im_end|>" | "<end_of_turn>") {
                ids.insert(id as u32);
            }
        }
    }
    Ok(ids.into_iter().collect())
}

/// The names of special tokens that templates ask for.
fn special_names(meta: &Meta<'_>, token: impl Fn(u32) -> Option<String>) -> Result<SpecialNames, Error> {
    let mut names = SpecialNames::new();
    for (key, name) in [
        ("tokenizer.ggml.bos_token_id", "bos_token"),
        ("tokenizer.ggml.eos_token_id", "eos_token"),
        ("tokenizer.ggml.unknown_token_id", "unk_token"),
        ("tokenizer.ggml.padding_token_id", "pad_token"),
    ] {
        if let Some(text) = meta.token_id(key)?.and_then(&token) {
            names.insert(name.to_owned(), text);
        }
    }
    Ok(names)
}

/// What decides which ids a text gets: a digest over everything that [`from_gguf`] reads.
pub(crate) fn vocabulary_digest(meta: &Meta<'_>) -> Result<Digest, Error> {
    let mut record = Record::new("weft.base-model.vocabulary.gguf.v1");
    for key in ["tokenizer.ggml.model", "tokenizer.ggml.pre"] {
        record.text(meta.text(key)?.unwrap_or_default());
    }
    for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.merges"] {
        let texts = meta.texts(key)?.unwrap_or_default();
        record.number(texts.len() as u64);
        texts.iter().for_each(|text| record.text(text));
    }
    let types = meta.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
    record.number(types.len() as u64);
    types.iter().for_each(|kind| record.number(*kind as u64));
    for key in ["bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id", "unknown_token_id", "padding_token_id"]
    {
        record.optional(meta.token_id(&format!("tokenizer.ggml.{key}"))?.map(u64::from));
    }
    record.optional(meta.bool("tokenizer.ggml.add_bos_token")?.map(u64::from));
    Ok(record.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use tokenizers::{NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    /// FNV-1a over the borders of all pieces, as `golden/make_pretokenizers.py` computes it.
    fn fingerprint(borders: impl Iterator<Item = usize>) -> u32 {
        let bytes = borders.flat_map(|border| (border as u32).to_le_bytes());
        bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
    }

    #[test]
    fn every_kind_cuts_a_thousand_lines_where_the_published_pipeline_does() {
        let golden: BTreeMap<String, Vec<u32>> =
            serde_json::from_str(include_str!("../../tests/golden/pretokenizers.json")).unwrap();
        let text = |line: &str| {
            let row: Vec<serde_json::Value> = serde_json::from_str(line).unwrap();
            row[0].as_str().unwrap().to_owned()
        };
        let texts: Vec<String> = include_str!("../../tests/golden/tokenizer_lines.jsonl").lines().map(text).collect();
        assert_eq!(golden.len(), 4);
        for (name, expected) in golden {
            let kind = kind(&name).unwrap();
            assert_eq!(expected.len(), texts.len());
            for (text, expected) in texts.iter().zip(expected) {
                let mut normalized = NormalizedString::from(text.as_str());
                if let Some(normalizer) = &kind.normalizer {
                    normalizer.normalize(&mut normalized).unwrap();
                }
                let mut pieces = PreTokenizedString::from(normalized.get());
                kind.pre_tokenizer.pre_tokenize(&mut pieces).unwrap();
                let borders = pieces.get_splits(OffsetReferential::Original, OffsetType::Char);
                let found = fingerprint(borders.iter().map(|(_, (_, end), _)| *end));
                assert_eq!(
                    found,
                    expected,
                    "{name}: {text:?} cut to {:?}",
                    borders.iter().map(|b| b.0).collect::<Vec<_>>()
                );
            }
        }
    }

    #[test]
    fn kinds_that_are_not_exact_are_refused_and_all_named_ones_exist() {
        for name in KINDS {
            assert!(kind(name).is_ok(), "{name}");
        }
        for name in ["default", "deepseek-llm", "tekken", "gpt-4o", "", "SMOLLM"] {
            assert!(kind(name).is_err_and(|problem| problem.contains("supported are")), "{name}");
        }
    }
}
