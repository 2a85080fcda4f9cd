//! How much text one token can stand for, so that a prompt that cannot fit is refused without being tokenized.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{NormalizerWrapper, SplitDelimiterBehavior};

/// NFC at most thirds the bytes of a text (U+0390 from three characters of two bytes each); one more to be safe.
const NFC_SHRINKS_BY_MAX: usize = 4;

/// Most bytes of text behind one token whose longest spelling has `longest` bytes. `None` where text may vanish or
/// fold without bound: a normalizer that deletes, a pre-tokenizer that drops delimiters, added tokens that swallow the
/// white space around them, bytes that the vocabulary does not know.
pub(super) fn text_bytes_per_token_max(hf: &tokenizers::Tokenizer, longest: usize) -> Option<usize> {
    let shrinks_by = match hf.get_normalizer() {
        None => 1,
        Some(NormalizerWrapper::NFC(_)) => NFC_SHRINKS_BY_MAX,
        Some(_) => return None,
    };
    let mut parts = match hf.get_pre_tokenizer()? {
        PreTokenizerWrapper::Sequence(sequence) => sequence.as_ref().iter(),
        single => std::slice::from_ref(single).iter(),
    };
    let keeps_text = |part: &PreTokenizerWrapper| match part {
        PreTokenizerWrapper::ByteLevel(_) | PreTokenizerWrapper::Digits(_) => true,
        PreTokenizerWrapper::Split(split) => split.behavior != SplitDelimiterBehavior::Removed,
        _ => false,
    };
    let is_byte_level = parts.clone().any(|part| matches!(part, PreTokenizerWrapper::ByteLevel(_)));
    let knows_every_byte = ByteLevel::alphabet().iter().all(|byte| hf.token_to_id(&byte.to_string()).is_some());
    let swallows = hf.get_added_tokens_decoder().values().any(|token| token.lstrip || token.rstrip);
    let is_bounded = is_byte_level && parts.all(keeps_text) && knows_every_byte && !swallows;
    is_bounded.then(|| longest.max(1) * shrinks_by)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::models::bpe::{BPE, Vocab};
    use tokenizers::normalizers::{NFC, Strip};
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::{AddedToken, Tokenizer};

    fn bytes_only() -> Tokenizer {
        let vocab: Vocab =
            ByteLevel::alphabet().iter().enumerate().map(|(id, byte)| (byte.to_string(), id as u32)).collect();
        let model = BPE::builder().vocab_and_merges(vocab, Vec::new()).build().unwrap();
        let mut hf = Tokenizer::new(model);
        hf.with_pre_tokenizer(Some(ByteLevel::new(false, true, false)));
        hf
    }

    #[test]
    fn a_byte_level_vocabulary_has_a_bound_and_what_drops_text_has_none() {
        let mut hf = bytes_only();
        assert_eq!(text_bytes_per_token_max(&hf, 7), Some(7));
        hf.with_normalizer(Some(NFC)).unwrap();
        assert_eq!(text_bytes_per_token_max(&hf, 7), Some(28));
        hf.with_normalizer(Some(Strip::new(true, true))).unwrap();
        assert_eq!(text_bytes_per_token_max(&hf, 7), None);

        let mut hf = bytes_only();
        let split = Split::new(SplitPattern::String(" ".into()), SplitDelimiterBehavior::Removed, false).unwrap();
        hf.with_pre_tokenizer(Some(split));
        assert_eq!(text_bytes_per_token_max(&hf, 7), None);

        let mut hf = bytes_only();
        hf.add_special_tokens([AddedToken::from("<|x|>", true).rstrip(true)]).unwrap();
        assert_eq!(text_bytes_per_token_max(&hf, 7), None);

        let mut hf = Tokenizer::new(BPE::builder().vocab_and_merges([("a".to_owned(), 0)], vec![]).build().unwrap());
        hf.with_pre_tokenizer(Some(ByteLevel::new(false, true, false)));
        assert_eq!(text_bytes_per_token_max(&hf, 7), None, "unknown bytes vanish");
    }
}
