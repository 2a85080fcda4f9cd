use super::*;
use proptest::prelude::*;

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

fn refused(file: &[u8]) -> String {
    split(file, 1 << 20).expect_err("refused")
}

fn layout(header: &str, data_bytes: usize) -> Vec<String> {
    let header = parse(header.as_bytes()).expect("valid header");
    let mut reasons = Reasons::default();
    let sound = check_layout(&header.tensors, data_bytes, &mut reasons);
    assert_eq!(sound, reasons.is_empty());
    reasons.list().to_vec()
}

#[test]
fn a_sound_header_is_read_with_its_metadata() {
    let text = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},
        "b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]}}   "#;
    let header = parse(text.as_bytes()).expect("valid");
    assert_eq!(header.metadata, [("format".to_owned(), "pt".to_owned())]);
    assert_eq!(header.tensors[1].name, "b");
    assert_eq!(header.tensors[0].slice(&[7; 14]), [7; 8]);
    assert!(layout(text, 14).is_empty());
}

#[test]
fn files_that_are_something_else_are_named() {
    assert!(
        refused(b"PK\x03\x04\x14\x00\x08\x08\x08").contains("a zip archive, as torch.save writes adapter_model.bin")
    );
    assert!(refused(b"\x80\x02}q\x00(X\x0c\x00").contains("a Python pickle, as torch.save writes adapter_model.bin"));
    assert!(refused(b"GGUF\x03\x00\x00\x00\x00").contains("a GGUF file"));
    assert!(refused(b"<html><head>").contains("not a safetensors file"));
    assert!(refused(b"").contains("truncated: 0 bytes"));
    assert!(refused(&file("{}", &[])[..8]).contains("truncated: the header has 2 bytes"));
}

#[test]
fn a_header_whose_length_looks_like_a_pickle_is_read() {
    let text = format!("{{{}}}", " ".repeat(0x280 - 2));
    let file = file(&text, &[]);
    assert_eq!(file[..2], [0x80, 2]);
    assert!(split(&file, 1 << 20).is_ok());
}

#[test]
fn an_absurd_length_is_refused_before_anything_is_read() {
    let mut huge = u64::MAX.to_le_bytes().to_vec();
    huge.push(b'{');
    assert!(refused(&huge).contains("18446744073709551615 bytes, the limit is 1048576"));
    let cut = &file(r#"{"a":{}}"#, &[])[..12];
    assert!(refused(cut).contains("truncated: the header has 8 bytes, the file holds 4"));
}

#[test]
fn broken_headers_are_refused_with_the_fault() {
    for (text, why) in [
        (r#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"a":1}"#, "\"a\" appears twice"),
        (r#"{"__metadata__":{"k":"1","k":"2"}}"#, "\"k\" appears twice"),
        (r#"{"__metadata__":{"k":1}}"#, "invalid type"),
        (r#"{"__metadata__":{},"__metadata__":{}}"#, "appears twice"),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}"#, "unknown field `x`"),
        (r#"{"a":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}"#, "duplicate field"),
        (r#"{"a":{"dtype":"F32","shape":[1]}}"#, "missing field `data_offsets`"),
        (r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, "invalid value"),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}"#, "data_offsets"),
        (r#"{"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}"#, "9 dimensions"),
        (r#"{"a":"#, "EOF"),
        ("{} x", "trailing"),
        ("{\"\\ud800\":1}", "hex escape"),
    ] {
        let error = parse(text.as_bytes()).expect_err(text);
        assert!(error.contains(why) || why == "data_offsets", "{text}: {error}");
    }
    assert!(parse(b"{\"\xff\":1}").is_err());
}

#[test]
fn gaps_overlaps_and_wrong_sizes_are_each_named() {
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{a}}},"b":{{"dtype":"F32","shape":[2],"data_offsets":{b}}}}}"#
        )
    };
    assert!(layout(&two("[0,8]", "[8,16]"), 16).is_empty());
    assert!(
        layout(&two("[0,8]", "[8,16]"), 15)[0]
            .contains("truncated: the tensors need 16 bytes of data, the file holds 15")
    );
    assert!(layout(&two("[0,8]", "[8,16]"), 20)[0].contains("4 bytes of data behind the last tensor"));
    assert!(layout(&two("[0,8]", "[12,20]"), 20)[0].contains("tensor b: a gap of 4 bytes"));
    assert!(
        layout(&two("[0,8]", "[4,12]"), 12)[0].contains("tensor b: its data from 4 overlaps another tensor's up to 8")
    );
    assert!(layout(&two("[0,8]", "[8,12]"), 12)[0].contains("tensor b: F32 [2] does not fit its 4 bytes"));
    assert!(layout(&two("[8,0]", "[0,8]"), 8)[0].contains("tensor a: its data ends at 0, before it starts at 8"));
    let overflow = r#"{"a":{"dtype":"F32","shape":[18446744073709551615,4],"data_offsets":[0,8]}}"#;
    assert!(layout(overflow, 8)[0].contains("does not fit"));
    let wild = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[18446744073709551607,18446744073709551615]}}"#;
    assert!(layout(wild, 8)[0].contains("truncated"));
}

#[test]
fn a_header_with_too_many_tensors_is_refused() {
    let mut text = String::from("{");
    for index in 0..=TENSORS_MAX {
        text.push_str(&format!(r#""{index}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}},"#));
    }
    text.pop();
    text.push('}');
    assert!(parse(text.as_bytes()).expect_err("too many").contains("more than 65536 tensors"));
}

/// Text that looks enough like a header to get past the first checks.
fn header_like() -> impl Strategy<Value = String> {
    let number = prop_oneof![Just(0u64), Just(4), Just(8), Just(16), Just(u64::MAX), any::<u64>()];
    let name = prop_oneof![Just("a".to_owned()), Just("b".to_owned()), Just("__metadata__".to_owned()), "[a-c.]{0,4}"];
    let dtype = prop_oneof![Just("F32"), Just("F16"), Just("BF16"), Just("I64"), Just("")];
    let entry = (name, dtype, prop::collection::vec(number.clone(), 0..4), number.clone(), number).prop_map(
        |(name, dtype, shape, start, end)| {
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
        },
    );
    prop::collection::vec(entry, 0..5).prop_map(|entries| format!("{{{}}}", entries.join(",")))
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok((text, data)) = split(&bytes, 100) {
            let _ = parse(text).map(|header| check_layout(&header.tensors, data.len(), &mut Reasons::default()));
        }
    }

    #[test]
    fn a_layout_called_sound_slices_to_the_wanted_bytes(text in header_like(), data in prop::collection::vec(any::<u8>(), 0..40)) {
        let bytes = file(&text, &data);
        let (text, data) = split(&bytes, 1 << 20).expect("a whole file");
        if let Ok(header) = parse(text) {
            let mut reasons = Reasons::default();
            if check_layout(&header.tensors, data.len(), &mut reasons) {
                let total: usize = header.tensors.iter().map(|tensor| tensor.slice(data).len()).sum();
                prop_assert_eq!(total, data.len());
                for tensor in &header.tensors {
                    if let Some(wanted) = tensor.bytes_wanted() {
                        prop_assert_eq!(tensor.slice(data).len() as u64, wanted);
                    }
                }
            } else {
                prop_assert!(!reasons.is_empty());
            }
        }
    }
}
