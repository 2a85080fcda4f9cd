//! Names of entries.

use crate::opened::NAME_BYTES_MAX;
use std::fmt;

/// A name that leads nowhere but down: folders and a file, without `.`, `..` and empty ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    text: String,
    /// Where the file's own name begins.
    file_at: usize,
}

impl Name {
    /// From an entry's bytes, which may begin with `./` and end with `/`.
    pub(super) fn parse(raw: &[u8]) -> Result<Self, String> {
        let shown = || String::from_utf8_lossy(&raw[..raw.len().min(NAME_BYTES_MAX)]).into_owned();
        if raw.len() > NAME_BYTES_MAX {
            return Err(format!("has a name of {} bytes, the limit is {NAME_BYTES_MAX}: {:?}", raw.len(), shown()));
        }
        let Ok(text) = std::str::from_utf8(raw) else { return Err(format!("has the name {:?}, not UTF-8", shown())) };
        if text.chars().any(|c| c.is_control() || c == '\\') {
            return Err(format!("has the name {text:?}, with a control character or a backslash"));
        }
        if text.starts_with('/') {
            return Err(format!("has the name {text:?}, which is absolute"));
        }
        let mut parts = Vec::new();
        for part in text.split('/') {
            match part {
                "" | "." => {}
                ".." => return Err(format!("has the name {text:?}, which leads up")),
                part => parts.push(part),
            }
        }
        let text = parts.join("/");
        let file_at = text.rfind('/').map_or(0, |slash| slash + 1);
        Ok(Self { text, file_at })
    }

    /// The last part.
    pub(super) fn file(&self) -> &str {
        &self.text[self.file_at..]
    }

    /// What is before it, without a slash at the end.
    pub(super) fn folder(&self) -> &str {
        self.text[..self.file_at].trim_end_matches('/')
    }

    /// As seen from a folder: the bare name of what lies in it, the whole of what does not.
    pub(super) fn beside(&self, folder: &str) -> String {
        if self.folder() == folder { self.file().to_owned() } else { self.text.clone() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
