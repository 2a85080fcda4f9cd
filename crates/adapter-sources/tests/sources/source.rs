//! The text of a source.

use proptest::prelude::*;
use weft_adapter_sources::Source;
use weft_fault::Kind;

#[test]
fn a_source_is_read_and_written_as_it_was() {
    for text in [
        "hf://org/name",
        "hf://gpt2",
        "hf://org/name@v1.0",
        "hf://org/name@refs/pr/1",
        "hf://0rg-x/n_a.m-e@0123456789abcdef0123456789abcdef01234567",
        "s3://bucket/prefix",
        "s3://my.bucket-1/a/b c/ü@x",
        "file:///srv/adapters/mine",
        "file:///srv/a dapter.tar.gz",
    ] {
        let source: Source = text.parse().unwrap();
        assert_eq!(source.to_string(), text);
        let json = serde_json::to_string(&source).unwrap();
        assert_eq!(json, serde_json::to_string(text).unwrap());
        assert_eq!(serde_json::from_str::<Source>(&json).unwrap(), source);
    }
    let Source::Hub(model) = "hf://org/name@v1".parse().unwrap() else { panic!("not the hub") };
    assert_eq!((model.owner(), model.id().as_str(), model.revision()), (Some("org"), "org/name", Some("v1")));
    let Source::S3(folder) = "s3://bucket/a/b".parse().unwrap() else { panic!("not S3") };
    assert_eq!((folder.bucket(), folder.prefix()), ("bucket", "a/b"));
}

#[test]
fn what_is_no_source_is_refused_with_the_reason() {
    let long_name = format!("hf://org/{}", "n".repeat(97));
    let long_revision = format!("hf://org/name@{}", "r".repeat(129));
    let long = format!("file:///{}", "x".repeat(1020));
    for (text, reason) in [
        ("", "must begin with"),
        ("org/name", "must begin with"),
        ("HF://org/name", "must begin with"),
        ("https://huggingface.co/org/name", "must begin with"),
        (" hf://org/name", "must begin with"),
        ("hf://", "neither may be empty"),
        ("hf:///name", "neither may be empty"),
        ("hf://org/", "neither may be empty"),
        ("hf://org/name/more", "'/'"),
        ("hf://org/..", "must begin with a letter"),
        ("hf://.org/name", "must begin with a letter"),
        ("hf://org/na me", "' '"),
        ("hf://huggingface.co:443/name", "':'"),
        ("hf://örg/name", "'ö'"),
        ("hf://org/name@", "0 bytes"),
        ("hf://user:password@host/name", "':'"),
        ("hf://org/name@a@b", "'@'"),
        ("hf://org/name@a..b", "\"..\""),
        ("hf://org/name@a//b", "empty name"),
        ("hf://org/name@/b", "empty name"),
        ("hf://org/name@a b", "' '"),
        ("hf://org/name@a^", "'^'"),
        ("hf://org/name?x=1", "'?'"),
        ("hf://org/name#x", "'#'"),
        ("hf://org/%2e%2e", "'%'"),
        ("hf://org\\name", "'\\\\'"),
        ("hf://org/name\n", "'\\n'"),
        ("hf://org/na\0me", "'\\0'"),
        (&long_name, "97 bytes, the limit is 96"),
        (&long_revision, "129 bytes, allowed are 1 to 128"),
        ("s3://bucket", "needs a bucket and a prefix"),
        ("s3://bucket/", "empty name"),
        ("s3://bucket/a/", "empty name"),
        ("s3://bucket/a//b", "empty name"),
        ("s3://bucket/../b", "\"..\""),
        ("s3:///prefix", "0 bytes, allowed are 3 to 63"),
        ("s3://Bucket/prefix", "'B'"),
        ("s3://-bucket/prefix", "must begin and end"),
        ("s3://key:secret@bucket/prefix", "':'"),
        ("s3://bucket:9000/prefix", "':'"),
        ("file://", "absolute path"),
        ("file://host/path", "absolute path"),
        ("file:///", "empty name"),
        ("file:///a/../b", "\"..\""),
        ("file:///a/./b", "\".\""),
        ("file:////etc", "empty name"),
        ("file:///a%2f..%2fb", "'%'"),
        (&long, "1028 bytes, the limit is 1024"),
    ] {
        let error = text.parse::<Source>().unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains(reason), "{text:?}: {error}");
    }
}

proptest! {
    #[test]
    fn no_text_panics_and_what_is_read_is_written_as_it_was(scheme in "(hf|s3|file)?(://)?/?", rest in "\\PC{0,60}|[a-z./@%:-]{0,40}|.*") {
        let text = format!("{scheme}{rest}");
        if let Ok(source) = text.parse::<Source>() {
            prop_assert_eq!(source.to_string(), text);
        }
    }

    #[test]
    fn every_source_of_allowed_letters_is_read(
        owner in "[A-Za-z0-9][A-Za-z0-9._-]{0,20}", name in "[A-Za-z0-9][A-Za-z0-9._-]{0,20}",
        revision in "[a-z0-9]{1,20}(/[a-z0-9._-]*[a-z0-9])?", path in "([a-z0-9]{1,8}/){0,4}[a-z0-9 _-]{1,8}",
    ) {
        let revision = revision.replace("..", "-");
        for text in [format!("hf://{owner}/{name}@{revision}"), format!("s3://bucket/{path}"), format!("file:///{path}")] {
            let source: Source = text.parse().unwrap();
            prop_assert_eq!(source.to_string(), text);
        }
    }
}
