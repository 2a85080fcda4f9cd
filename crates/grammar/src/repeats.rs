//! How long a regular expression gets when its counted repetitions are written out: compiling costs as much.

use regex_syntax::hir::{Hir, HirKind};

use crate::{Error, Limits};

/// Refuses what gets longer than [`Limits::repeats_max`]. What cannot be read passes: the compiler says why.
pub(crate) fn check(regex: &str, limits: &Limits) -> Result<(), Error> {
    // Bytes are allowed, as the compiler allows them.
    let mut parser = regex_syntax::ParserBuilder::new().utf8(false).build();
    let Ok(parsed) = parser.parse(regex) else { return Ok(()) };
    let (size, limit) = (written_out(&parsed), limits.repeats_max);
    if size > limit {
        return Err(Error::TooLarge { what: "regex, in characters with all repetitions written out,", size, limit });
    }
    Ok(())
}

/// Recursion is bounded by the parser's limit of 250 levels.
fn written_out(hir: &Hir) -> usize {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => 0,
        HirKind::Class(_) => 1,
        HirKind::Literal(literal) => literal.0.len(),
        HirKind::Capture(capture) => written_out(&capture.sub),
        HirKind::Repetition(repetition) => {
            let times = repetition.max.unwrap_or(repetition.min).max(1);
            written_out(&repetition.sub).saturating_mul(times as usize)
        }
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().fold(0, |sum: usize, part| sum.saturating_add(written_out(part)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_repetitions_multiply() {
        let size = |regex: &str| written_out(&regex_syntax::parse(regex).unwrap());
        for (regex, expected) in [
            ("abc", 3),
            ("a{5}", 5),
            ("(a{5}b){7}", 42),
            ("[ab]{2,}x*|c{3,9}", 12),
            ("((a{100}){100}){100}", 1_000_000),
        ] {
            assert_eq!(size(regex), expected, "{regex}");
        }
        let limits = Limits { repeats_max: 10, ..Limits::default() };
        assert_eq!(check("a{10}", &limits), Ok(()));
        assert!(matches!(check("a{11}", &limits), Err(Error::TooLarge { size: 11, limit: 10, .. })));
    }
}
