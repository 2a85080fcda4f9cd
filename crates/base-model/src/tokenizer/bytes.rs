//! The raw bytes of every token, worked out once, for streaming: a character may be spread over several tokens, so
//! what is streamed is joined as bytes and cut at character borders.

use tokenizers::DecoderWrapper;

/// Bytes of all tokens, end to end.
pub(super) struct TokenBytes {
    bytes: Vec<u8>,
    /// `ends[id]` is where token `id` ends and the next begins.
    ends: Vec<usize>,
}

/// Ids beyond this are refused: the table has a row for each.
const IDS_MAX: u32 = 1 << 24;

/// How the vocabulary spells bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// GPT-2's: a printable character for every byte.
    ByteLevel,
    /// SentencePiece's: `▁` for a space, `<0x0A>` for a byte that has no token.
    Metaspace,
}

impl TokenBytes {
    pub(super) fn of(hf: &tokenizers::Tokenizer) -> Result<Self, String> {
        let spelling = spelling(hf.get_decoder())?;
        let mut tokens: Vec<(u32, String)> = hf.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
        tokens.sort();
        let mut table = Self { bytes: Vec::new(), ends: Vec::new() };
        for (id, token) in tokens {
            if id > IDS_MAX {
                return Err(format!("token {token:?} has id {id}, more than {IDS_MAX}"));
            }
            // Ids nobody has, and all but the first name of an id that has several, stand for nothing.
            while table.ends.len() < id as usize {
                table.ends.push(table.bytes.len());
            }
            if table.ends.len() == id as usize {
                spell(spelling, &token, &mut table.bytes);
                table.ends.push(table.bytes.len());
            }
        }
        Ok(table)
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of the longest token.
    pub(super) fn longest(&self) -> usize {
        let starts = std::iter::once(&0).chain(&self.ends);
        self.ends.iter().zip(starts).map(|(end, start)| end - start).max().unwrap_or(0)
    }

    pub(super) fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..end]
    }
}

fn spelling(decoder: Option<&DecoderWrapper>) -> Result<Spelling, String> {
    let parts = match decoder {
        None => return Err("it has no decoder".into()),
        Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders(),
        Some(single) => std::slice::from_ref(single),
    };
    let has = |wanted: fn(&DecoderWrapper) -> bool| parts.iter().any(wanted);
    if has(|part| matches!(part, DecoderWrapper::ByteLevel(_))) {
        return Ok(Spelling::ByteLevel);
    }
    if has(|part| matches!(part, DecoderWrapper::Metaspace(_) | DecoderWrapper::ByteFallback(_))) {
        return Ok(Spelling::Metaspace);
    }
    Err("its decoder is neither ByteLevel nor Metaspace nor ByteFallback".into())
}

fn spell(spelling: Spelling, token: &str, out: &mut Vec<u8>) {
    match spelling {
        Spelling::ByteLevel => {
            let start = out.len();
            for character in token.chars() {
                let Some(byte) = byte_of(character) else {
                    // As the decoder does: a token with a character outside the alphabet is itself.
                    out.truncate(start);
                    out.extend_from_slice(token.as_bytes());
                    return;
                };
                out.push(byte);
            }
        }
        Spelling::Metaspace => match fallback_byte(token) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(token.replace('▁', " ").as_bytes()),
        },
    }
}

/// The byte that `<0xNN>` names.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// The byte behind a character of GPT-2's alphabet (`bytes_to_unicode` in `openai/gpt-2` `src/encoder.py`): printable
/// Latin-1 stands for itself, the 68 other bytes for U+0100 onwards, in order.
fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_alphabet_has_one_character_for_every_byte() {
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        assert_eq!(alphabet.len(), 256);
        let bytes: BTreeSet<u8> = alphabet.iter().filter_map(|c| byte_of(*c)).collect();
        assert_eq!(bytes.len(), 256);
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of('ń'), None);
    }

    #[test]
    fn fallback_bytes_are_read_and_nothing_else() {
        assert_eq!(fallback_byte("<0x0A>"), Some(10));
        for other in ["<0x0>", "<0xZZ>", "<0x+1>", "a", "<0x00", ""] {
            assert_eq!(fallback_byte(other), None, "{other}");
        }
    }
}
