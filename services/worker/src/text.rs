//! From tokens to delivered text: whole characters, and nothing of a stop string.
//!
//! A token's bytes may end inside a character: its text is then empty and the token that completes the character
//! carries it. A token whose text may be the beginning of a stop string is held back until more is known, so that what
//! was delivered never has to be taken back. Where a stop string ends is found as if the text came character by
//! character: the match that is complete first wins, and of those the longest, whatever the tokens' borders are.

use std::collections::VecDeque;

/// Cuts the text of one answer into tokens. `T` is what travels with a token.
#[derive(Debug)]
pub(crate) struct TextStream<T> {
    stops: Vec<String>,
    include_stop: bool,
    /// Bytes of a character that is not complete.
    partial: Vec<u8>,
    /// Tokens whose text may belong to a stop string, in order.
    held: VecDeque<Held<T>>,
    /// Their text in one piece.
    held_text: String,
}

#[derive(Debug)]
struct Held<T> {
    token: T,
    /// Where its text ends in `held_text`.
    end: usize,
}

/// A token with the text it adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece<T> {
    pub(crate) token: T,
    pub(crate) text: String,
}

/// What a token sets free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pushed<T> {
    /// Tokens that can be delivered, in order.
    pub(crate) pieces: Vec<Piece<T>>,
    /// Index of the stop string that ends the answer here; nothing is held back then.
    pub(crate) stopped: Option<usize>,
}

impl<T> TextStream<T> {
    /// `stops` hold no empty string: admission refuses those.
    pub(crate) fn new(stops: Vec<String>, include_stop: bool) -> Self {
        Self { stops, include_stop, partial: Vec::new(), held: VecDeque::new(), held_text: String::new() }
    }

    /// Takes the next token. `last`: no token follows, so that nothing is held back and an incomplete character
    /// becomes U+FFFD. Cost: linear in the text that is held back, at most the longest stop string and one token.
    pub(crate) fn push(&mut self, token: T, bytes: &[u8], last: bool) -> Pushed<T> {
        self.partial.extend_from_slice(bytes);
        let text = take_whole_characters(&mut self.partial, last);
        self.held_text.push_str(&text);
        self.held.push_back(Held { token, end: self.held_text.len() });
        if let Some((stop, start, end)) = self.first_match() {
            let keep = if self.include_stop { end } else { start };
            return Pushed { pieces: self.release_all(keep), stopped: Some(stop) };
        }
        let free = if last { self.held_text.len() } else { self.held_text.len() - self.undecided_bytes() };
        Pushed { pieces: if last { self.release_all(free) } else { self.release_up_to(free) }, stopped: None }
    }

    /// The stop string that is complete first, as `(index, start, end)` in the held text.
    fn first_match(&self) -> Option<(usize, usize, usize)> {
        let matches = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            self.held_text.find(stop.as_str()).map(|start| (index, start, start + stop.len()))
        });
        matches.min_by_key(|(index, start, end)| (*end, *start, *index))
    }

    /// Length of the longest end of the held text that begins a stop string.
    fn undecided_bytes(&self) -> usize {
        let longest = |stop: &String| {
            let lengths = (1..stop.len()).rev().filter(|length| stop.is_char_boundary(*length));
            lengths.into_iter().find(|length| self.held_text.ends_with(&stop[..*length])).unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }

    /// Tokens whose text ends within the first `free` bytes.
    fn release_up_to(&mut self, free: usize) -> Vec<Piece<T>> {
        let mut pieces = Vec::new();
        let mut start = 0;
        while self.held.front().is_some_and(|held| held.end <= free) {
            let Some(held) = self.held.pop_front() else { break };
            pieces.push(Piece { token: held.token, text: self.held_text[start..held.end].to_owned() });
            start = held.end;
        }
        self.held_text.drain(..start);
        for held in &mut self.held {
            held.end -= start;
        }
        pieces
    }

    /// All tokens; text behind the first `keep` bytes is dropped.
    fn release_all(&mut self, keep: usize) -> Vec<Piece<T>> {
        self.held_text.truncate(keep);
        for held in &mut self.held {
            held.end = held.end.min(keep);
        }
        self.release_up_to(keep)
    }
}

/// Takes the complete characters from the front; what can be no character becomes U+FFFD, as in lossy decoding.
fn take_whole_characters(bytes: &mut Vec<u8>, last: bool) -> String {
    let mut text = String::new();
    let mut done = 0;
    loop {
        match std::str::from_utf8(&bytes[done..]) {
            Ok(rest) => {
                text.push_str(rest);
                done = bytes.len();
                break;
            }
            Err(error) => {
                let valid = done + error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&bytes[done..valid]));
                match error.error_len() {
                    Some(length) => {
                        text.push(char::REPLACEMENT_CHARACTER);
                        done = valid + length;
                    }
                    None if last => {
                        text.push(char::REPLACEMENT_CHARACTER);
                        done = bytes.len();
                        break;
                    }
                    None => {
                        done = valid;
                        break;
                    }
                }
            }
        }
    }
    bytes.drain(..done);
    text
}

#[cfg(test)]
mod tests;
