//! The document: read back what was written, refuse everything else, never panic.

use proptest::prelude::*;
use weft_placement::{
    ADAPTERS_MAX, COPIES_MAX, DOCUMENT_BYTES_MAX, Document, DocumentError, Epoch, Host, Placed, WORKER_NAME_BYTES_MAX,
    WORKERS_MAX,
};
use weft_types::Digest;

fn digest(n: u64) -> Digest {
    Digest::of(&n.to_le_bytes())
}

fn document(workers: usize, adapters: u64, copies: usize) -> Document {
    let mut placed: Vec<Placed> = (0..adapters)
        .map(|n| {
            Placed(digest(n), (0..copies.min(workers)).map(|copy| ((n as usize + copy) % workers) as u16).collect())
        })
        .collect();
    placed.sort_by_key(|placed| placed.0);
    let workers = (0..workers).map(|at| Host(format!("worker-{at:04}"), 100)).collect();
    Document { epoch: Epoch::first_of(7).unwrap(), holder: "registry-a".to_owned(), workers, adapters: placed }
}

/// The JSON with its digest before it, as if it had been written so.
fn sealed(json: &str) -> Vec<u8> {
    format!("{}\n{json}", Digest::of(json.as_bytes())).into_bytes()
}

#[test]
fn the_largest_document_is_written_and_read_and_one_more_is_refused() {
    let mut largest = document(WORKERS_MAX, ADAPTERS_MAX as u64, COPIES_MAX / ADAPTERS_MAX);
    for (at, host) in largest.workers.iter_mut().enumerate() {
        *host = Host(format!("{at:0>width$}", width = WORKER_NAME_BYTES_MAX), 10_000);
    }
    let bytes = largest.encode().unwrap();
    assert!(bytes.len() <= DOCUMENT_BYTES_MAX);
    assert_eq!(Document::decode(&bytes).unwrap(), largest);

    let first = &mut largest.adapters[0].1;
    let unused = (0..WORKERS_MAX as u16).find(|at| !first.contains(at)).unwrap();
    first.push(unused);
    let error = largest.encode().unwrap_err().to_string();
    assert_eq!(error, "placement field adapters: 100001 entries, the limit is 100000");
}

#[test]
fn what_breaks_a_rule_is_refused_by_field_value_and_limit() {
    let good = r#"{"format":1,"epoch":7000000,"holder":"a","workers":[["w",100]],"adapters":[]}"#;
    assert_eq!(Document::decode(&sealed(good)).unwrap().workers.len(), 1);
    let one = digest(1);
    for (json, expected) in [
        (
            good.replace(r#""format":1"#, r#""format":2"#),
            "placement has format 2, this program reads format 1".to_owned(),
        ),
        (good.replace(r#""holder":"a""#, r#""holder":"""#), "holder: \"\" must be 1 to 128".to_owned()),
        (good.replace("7000000", "9007199254740993"), "epoch: 9007199254740993 is beyond term".to_owned()),
        (good.replace(r#"["w",100]"#, r#"["w",0]"#), "workers: \"w\" has weight 0, it must be 1 to 10000".to_owned()),
        (
            good.replace(r#"["w",100]"#, r#"["w",100],["w",100]"#),
            "workers: \"w\" must come before \"w\", once".to_owned(),
        ),
        (good.replace(r#""adapters":[]"#, &format!(r#""adapters":[["{one}",[1]]]"#)), "is on worker 1 of 1".to_owned()),
        (
            good.replace(r#""adapters":[]"#, &format!(r#""adapters":[["{one}",[]]]"#)),
            "needs distinct workers".to_owned(),
        ),
        (
            good.replace(r#""adapters":[]"#, &format!(r#""adapters":[["{one}",[0,0]]]"#)),
            "needs distinct workers".to_owned(),
        ),
        (good.replace(r#""adapters":[]"#, r#""adapters":[],"more":1"#), "placement cannot be read".to_owned()),
    ] {
        let error = Document::decode(&sealed(&json)).unwrap_err().to_string();
        assert!(error.contains(&expected), "{json}: {error}");
    }
    assert!(matches!(Document::decode(&vec![b'x'; DOCUMENT_BYTES_MAX + 1]), Err(DocumentError::TooLong { .. })));
}

#[test]
fn epochs_grow_over_terms_and_end_with_them() {
    let last = (0..Epoch::PER_TERM - 1).try_fold(Epoch::first_of(3).unwrap(), |epoch, _| epoch.next()).unwrap();
    assert_eq!((last.term(), last.next()), (3, None));
    assert!(Epoch::first_of(4).unwrap() > last);
    assert_eq!(Epoch::first_of(Epoch::TERM_MAX + 1), None);
    assert!(Epoch::first_of(Epoch::TERM_MAX).unwrap().number() < 1 << 53);
}

proptest! {
    #[test]
    fn what_was_written_is_read_back(workers in 1usize..40, adapters in 0u64..200, copies in 1usize..5) {
        let document = document(workers, adapters, copies);
        prop_assert_eq!(Document::decode(&document.encode().unwrap()).unwrap(), document);
    }

    #[test]
    fn one_changed_byte_is_noticed(at in any::<prop::sample::Index>(), by in 1u8..=255) {
        let mut bytes = document(3, 5, 2).encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= by;
        prop_assert!(Document::decode(&bytes).is_err());
    }

    #[test]
    fn a_piece_is_noticed(length in any::<prop::sample::Index>()) {
        let bytes = document(3, 5, 2).encode().unwrap();
        prop_assert!(Document::decode(&bytes[..length.index(bytes.len())]).is_err());
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Document::decode(&bytes).is_err());
    }

    /// Under a right digest, so that the parser behind it sees it: JSON of nearly the right shape.
    #[test]
    fn no_json_panics(
        format in "(1|2|-1|1.5|null|4294967296)",
        epoch in "(0|7000000|18446744073709551615|18446744073709551616|-1|\"1\")",
        holder in "(\"a\"|\"\\\\u0000\"|\"é\"|7)",
        workers in "\\[(\\[\"[a-c]\",[0-9]{1,5}\\]){0,1}(,\\[\"[a-c]\",-?[0-9]{1,6}\\]){0,2}\\]",
        on in "\\[-?[0-9]{0,6}(,[0-9]){0,3}\\]",
        seed in 0u64..3,
    ) {
        let adapter = digest(seed);
        let json = format!(
            r#"{{"format":{format},"epoch":{epoch},"holder":{holder},"workers":{workers},"adapters":[["{adapter}",{on}]]}}"#
        );
        if let Ok(document) = Document::decode(&sealed(&json)) {
            prop_assert_eq!(Document::decode(&document.encode().unwrap()).unwrap(), document);
        }
    }
}
