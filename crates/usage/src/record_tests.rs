use super::*;
use proptest::prelude::*;

fn request() -> Request {
    Request {
        id: "chatcmpl-1".to_owned(),
        tenant: "harbour".parse().unwrap(),
        key_id: "k1".to_owned(),
        adapter: Some("org/pirate".parse().unwrap()),
        version: Some(3),
        digest: Some(Digest::of(b"x")),
        ended_ms: 1_751_328_000_000,
        prompt_tokens: 12,
        completion_tokens: u64::MAX,
        cached_tokens: 8,
        outcome: Outcome::Complete,
        duration_ms: 840,
    }
}

#[test]
fn the_line_is_as_documented() {
    let line = Record::Request(request()).to_json().unwrap();
    let expected = format!(
        "{{\"v\":1,\"kind\":\"request\",\"id\":\"chatcmpl-1\",\"tenant\":\"harbour\",\"key_id\":\"k1\",\
         \"adapter\":\"org/pirate\",\"version\":3,\"digest\":\"{}\",\"ended_ms\":1751328000000,\"prompt_tokens\":12,\
         \"completion_tokens\":18446744073709551615,\"cached_tokens\":8,\"outcome\":\"complete\",\"duration_ms\":840}}",
        Digest::of(b"x")
    );
    assert_eq!(String::from_utf8(line).unwrap(), expected);
}

#[test]
fn a_later_programs_field_is_ignored_and_its_version_refused() {
    let line = String::from_utf8(Record::Request(request()).to_json().unwrap()).unwrap();
    let more = line.replace("\"v\":1", "\"v\":1,\"new\":{\"a\":[1]}");
    assert_eq!(Record::from_json(more.as_bytes()).unwrap(), Record::Request(request()));
    let later = line.replace("\"v\":1", "\"v\":2");
    let error = Record::from_json(later.as_bytes()).unwrap_err().to_string();
    assert_eq!(error, "record cannot be read: version 2 is not 1");
}

#[test]
fn a_field_beyond_its_limit_is_named() {
    let long = Record::Request(Request { id: "i".repeat(129), ..request() });
    assert!(long.check().unwrap_err().to_string().starts_with("record field id is \"iii"));
    let spaced = Record::Request(Request { key_id: "a b".to_owned(), ..request() });
    assert!(spaced.check().unwrap_err().to_string().starts_with("record field key_id is \"a b\", not 1 to 128"));
    let late = Record::Request(Request { ended_ms: TIME_MS_MAX + 1, ..request() });
    assert!(late.to_json().unwrap_err().to_string().contains("not before the year 10000"));
}

#[test]
fn the_longest_record_fits() {
    let text = "\"".repeat(ID_BYTES_MAX);
    let longest = Request {
        id: text.clone(),
        key_id: text.clone(),
        adapter: Some("a".repeat(128).parse().unwrap()),
        ..request()
    };
    let residency = Residency {
        id: text.clone(),
        worker: text.clone(),
        incarnation: text,
        from_ms: TIME_MS_MAX,
        to_ms: TIME_MS_MAX,
        digest: Digest::of(b""),
        slot_ms: u64::MAX,
        memory_ms: u64::MAX,
        bytes_moved: u64::MAX,
        bytes: u64::MAX,
    };
    for record in [Record::Request(longest), Record::Residency(residency)] {
        let line = record.to_json().unwrap();
        assert!(line.len() <= RECORD_BYTES_MAX / 2, "{}", line.len());
        assert_eq!(Record::from_json(&line).unwrap(), record);
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Record::from_json(&bytes);
    }

    #[test]
    fn no_altered_record_panics(at in 0usize..300, byte: u8) {
        let mut line = Record::Request(request()).to_json().unwrap();
        let at = at % line.len();
        line[at] = byte;
        if let Ok(record) = Record::from_json(&line) {
            prop_assert!(record.to_json().is_ok());
        }
    }
}
