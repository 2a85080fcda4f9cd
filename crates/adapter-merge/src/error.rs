//! What can keep adapters from being merged.

use weft_fault::{Fault, Kind};
use weft_types::Digest;

/// Text quoted from outside is cut to this many characters.
const SHOWN_CHARS_MAX: usize = 80;

/// Why there is no merge. Each message names the field or tensor, its value and what would be allowed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The text is no recipe.
    #[error("the recipe cannot be read: {0}")]
    Unreadable(String),
    /// A field of the recipe has a value that is not allowed.
    #[error("{field} is {value}, {limit}")]
    Field {
        /// Path in the recipe, e.g. `parents[1].weight`.
        field: String,
        /// The value as found, cut.
        value: String,
        /// What would be allowed.
        limit: String,
    },
    /// The adapters handed over are not those that the recipe names.
    #[error("{0}")]
    Parents(String),
    /// A parent's bytes are no canonical blob.
    #[error("parent {digest} cannot be read")]
    Blob {
        /// SHA-256 of the bytes.
        digest: Digest,
        /// What is wrong with them.
        source: weft_adapter_format::Error,
    },
    /// A parent does not fit the base, or a tensor of it holds what cannot be computed with.
    #[error("parent {digest}: {what}")]
    Unfit {
        /// The parent's digest.
        digest: Digest,
        /// The tensor or module, what was found and what would be allowed.
        what: String,
    },
    /// These parents fit each other only in a way that this recipe does not allow.
    #[error("{0}")]
    Incompatible(String),
    /// The result, or the memory to compute it, would be larger than allowed.
    #[error("{what} {value}, the limit is {limit}{hint}")]
    TooLarge {
        /// What is counted, and of which module, e.g. `the rank of model.layers.0.mlp.up_proj would be`.
        what: String,
        /// How many there would be.
        value: u64,
        /// How many are allowed.
        limit: u64,
        /// Which field of the recipe would change that; empty if none.
        hint: &'static str,
    },
    /// An element of the result is beyond the output's range.
    #[error("{tensor} would hold a value too large for {dtype}")]
    Overflow {
        /// Full name of the tensor.
        tensor: String,
        /// `F32` or `BF16`.
        dtype: &'static str,
    },
}

impl Error {
    pub(crate) fn field(field: impl Into<String>, value: impl std::fmt::Display, limit: impl Into<String>) -> Self {
        Self::Field { field: field.into(), value: shown(&value.to_string()), limit: limit.into() }
    }
}

/// A text from outside for a message.
pub(crate) fn shown(text: &str) -> String {
    let mut cut: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Unreadable(_) | Error::Parents(_) => {
                Fault::new(Kind::Invalid, message).with_code("merge_recipe_invalid")
            }
            Error::Field { field, .. } => Fault::invalid(field, message).with_code("merge_recipe_invalid"),
            Error::Blob { source, .. } => Fault::from(source),
            Error::Unfit { .. } | Error::Incompatible(_) | Error::Overflow { .. } => {
                Fault::new(Kind::Refused, message).with_code("merge_refused")
            }
            Error::TooLarge { .. } => Fault::new(Kind::TooLarge, message).with_code("merge_too_large"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_at_fault_is_the_param_of_the_fault_and_quoted_text_is_cut() {
        let fault = Fault::from(Error::field("parents[1].weight", "9".repeat(500), "it must be at most 100"));
        assert_eq!((fault.kind, fault.param.as_deref()), (Kind::Invalid, Some("parents[1].weight")));
        assert!(fault.message.len() < 200 && fault.message.ends_with("it must be at most 100"), "{}", fault.message);
        let large = Error::TooLarge { what: "the rank would be".into(), value: 9, limit: 8, hint: "" };
        assert_eq!(Fault::from(large).kind, Kind::TooLarge);
    }
}
