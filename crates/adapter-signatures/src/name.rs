//! Names of files in a statement.

/// Most bytes of a name.
const NAME_BYTES_MAX: usize = 1024;

/// What [`is_canonical`] wants, for messages.
pub(crate) const CANONICAL: &str = "a relative path of 1 to 1024 bytes with / between its parts, none of them empty, . or .., without backslashes and control characters (OMS 6.1.2)";

/// Whether a name is in the only form that OMS v1.0 6.1.2 allows, so that equal paths are equal texts and none leads out of the folder.
pub(crate) fn is_canonical(name: &str) -> bool {
    let is_part = |part: &str| !matches!(part, "" | "." | "..");
    name.len() <= NAME_BYTES_MAX && name.split('/').all(is_part) && !name.chars().any(|c| c.is_control() || c == '\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_lead_down_are_canonical() {
        for name in ["README.md", "a/b", ".git", "..a", "a b", "ä", "a:0:64", &"a".repeat(1024)] {
            assert!(is_canonical(name), "{name}");
        }
        let long = "a".repeat(1025);
        for name in ["", "/a", "a/", "a//b", ".", "./a", "a/./b", "..", "../a", "a/../b", "a\\b", "a\nb", "a\0", &long]
        {
            assert!(!is_canonical(name), "{name}");
        }
    }
}
