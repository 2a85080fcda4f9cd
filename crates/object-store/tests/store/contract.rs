//! What every `ObjectStore` promises, over the real client and the real server.

use crate::support::{BUCKET, embedded, loopback};
use bytes::Bytes;
use futures::StreamExt;
use weft_fault::{Fault, Kind};
use weft_object_store::{Content, ETag, EmbeddedS3, Error, ObjectPart, ObjectStore, PutOutcome, S3Settings, S3Store};

fn etag(outcome: PutOutcome) -> ETag {
    match outcome {
        PutOutcome::Written(etag) => etag,
        PutOutcome::Lost => panic!("lost"),
    }
}

#[tokio::test]
async fn what_is_put_comes_back() {
    let (_folder, _server, store) = embedded().await;
    assert!(store.get("a/b").await.unwrap().is_none());
    assert!(store.head("a/b").await.unwrap().is_none());
    let first = store.put("a/b", Bytes::from_static(b"one")).await.unwrap();
    let object = store.get("a/b").await.unwrap().unwrap();
    assert_eq!((&object.bytes[..], &object.etag), (&b"one"[..], &first));
    let second = store.put("a/b", Bytes::from_static(b"three")).await.unwrap();
    assert_ne!(first, second);
    let head = store.head("a/b").await.unwrap().unwrap();
    assert_eq!((head.bytes, &head.etag), (5, &second));
    let empty = store.put("empty", Bytes::new()).await.unwrap();
    assert_eq!(store.get("empty").await.unwrap().map(|object| (object.bytes.len(), object.etag)), Some((0, empty)));
    store.delete("a/b").await.unwrap();
    store.delete("a/b").await.unwrap();
    assert!(store.get("a/b").await.unwrap().is_none());
}

#[tokio::test]
async fn conditions_decide_who_writes() {
    let (_folder, _server, store) = embedded().await;
    let first = etag(store.put_if_absent("k", Bytes::from_static(b"1")).await.unwrap());
    assert_eq!(store.put_if_absent("k", Bytes::from_static(b"2")).await.unwrap(), PutOutcome::Lost);
    let second = etag(store.put_if_match("k", Bytes::from_static(b"2"), &first).await.unwrap());
    assert_eq!(store.put_if_match("k", Bytes::from_static(b"3"), &first).await.unwrap(), PutOutcome::Lost);
    assert_eq!(store.put_if_match("none", Bytes::from_static(b"3"), &second).await.unwrap(), PutOutcome::Lost);
    assert_eq!(&store.get("k").await.unwrap().unwrap().bytes[..], b"2");
    store.delete("k").await.unwrap();
    assert_eq!(store.put_if_match("k", Bytes::from_static(b"3"), &second).await.unwrap(), PutOutcome::Lost);
    etag(store.put_if_absent("k", Bytes::from_static(b"4")).await.unwrap());
}

#[tokio::test]
async fn a_listing_is_complete_and_sorted_beyond_one_page() {
    let (_folder, _server, store) = embedded().await;
    let keys: Vec<String> = (0..1203).map(|i| format!("many/{:04}", (i * 7) % 1203)).collect();
    let puts = keys.iter().map(|key| store.put(key, Bytes::from_static(b"x")));
    let written: Vec<_> = futures::stream::iter(puts).buffer_unordered(32).collect().await;
    assert!(written.iter().all(Result::is_ok));
    store.put("many-not/x", Bytes::new()).await.unwrap();
    let listed = store.list("many/").await.unwrap();
    let expected: Vec<String> = (0..1203).map(|i| format!("many/{i:04}")).collect();
    assert_eq!(listed.iter().map(|object| object.key.clone()).collect::<Vec<_>>(), expected);
    let head = store.head("many/0007").await.unwrap().unwrap();
    assert_eq!(listed[7], head);
    assert_eq!(store.list("many").await.unwrap().len(), 1204);
    assert!(store.list("nothing/").await.unwrap().is_empty());
}

#[tokio::test]
async fn odd_keys_and_a_key_below_a_key_are_objects_of_their_own() {
    let (_folder, _server, store) = embedded().await;
    let mut keys =
        ["a", "a/b", "a b+c&d=e", "ä/ö", "percent%41", "org/name@live", "x/.hidden", "semi;colon'quote\"<&>"];
    for key in keys {
        store.put(key, Bytes::copy_from_slice(key.as_bytes())).await.unwrap();
    }
    for key in keys {
        assert_eq!(store.get(key).await.unwrap().unwrap().bytes, key.as_bytes(), "{key}");
    }
    keys.sort();
    assert_eq!(store.list("").await.unwrap().into_iter().map(|object| object.key).collect::<Vec<_>>(), keys);
}

#[tokio::test]
async fn a_large_object_streams_both_ways() {
    let (_folder, _server, store) = embedded().await;
    let content: Bytes =
        (0..24u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>().into();
    store.put_if_absent("large", content.clone()).await.unwrap();
    let mut found = store.get_stream("large").await.unwrap().unwrap();
    assert_eq!(found.bytes, content.len() as u64);
    let (mut at, mut pieces) = (0, 0);
    while let Some(piece) = found.stream.next().await {
        let piece = piece.unwrap();
        assert!(piece == content[at..at + piece.len()], "differs at {at}");
        assert!(piece.len() <= 1 << 20, "a piece of {} bytes", piece.len());
        at += piece.len();
        pieces += 1;
    }
    assert_eq!(at, content.len());
    assert!(pieces > 10);
    assert!(store.get("large").await.unwrap().unwrap().bytes == content);
    assert!(store.get_stream("none").await.unwrap().is_none());
}

async fn read(part: ObjectPart) -> Vec<u8> {
    let pieces: Vec<Bytes> = part.stream.map(Result::unwrap).collect().await;
    pieces.concat()
}

#[tokio::test]
async fn parts_of_one_state_come_one_by_one() {
    let (_folder, _server, store) = embedded().await;
    let content: Vec<u8> = (0..100).collect();
    let etag = store.put("k", content.clone().into()).await.unwrap();
    let first = store.get_part("k", 0..30, None).await.unwrap().unwrap();
    assert_eq!((first.range.clone(), first.object_bytes, &first.etag), (0..30, 100, &etag));
    assert_eq!(read(first).await, content[..30]);
    let last = store.get_part("k", 90..200, Some(&etag)).await.unwrap().unwrap();
    assert_eq!((last.range.clone(), last.object_bytes), (90..100, 100));
    assert_eq!(read(last).await, content[90..]);
    let behind = store.get_part("k", 100..200, None).await.unwrap_err();
    assert!(matches!(&behind, Error::Refused { code, .. } if code == "InvalidRange"), "{behind:?}");
    assert!(store.get_part("none", 0..30, Some(&etag)).await.unwrap().is_none());

    let later = store.put("k", Bytes::from_static(b"other")).await.unwrap();
    let changed = store.get_part("k", 30..60, Some(&etag)).await.unwrap_err();
    assert!(matches!(&changed, Error::Changed { key } if key == "k"), "{changed:?}");
    assert_eq!(read(store.get_part("k", 0..60, Some(&later)).await.unwrap().unwrap()).await, b"other");
    store.put("empty", Bytes::new()).await.unwrap();
    let empty = store.get_part("empty", 0..30, None).await.unwrap().unwrap();
    assert_eq!((empty.range.clone(), empty.object_bytes), (0..0, 0));
    assert!(read(empty).await.is_empty());
}

#[tokio::test]
async fn a_reader_keeps_the_object_it_began_with() {
    let (_folder, _server, store) = embedded().await;
    let old = Bytes::from(vec![1; 8 << 20]);
    store.put("k", old.clone()).await.unwrap();
    let mut found = store.get_stream("k").await.unwrap().unwrap();
    let first = found.stream.next().await.unwrap().unwrap();
    store.put("k", Bytes::from(vec![2; 8 << 20])).await.unwrap();
    store.delete("k").await.unwrap();
    let mut read = first.to_vec();
    while let Some(piece) = found.stream.next().await {
        read.extend_from_slice(&piece.unwrap());
    }
    assert!(read == old);
}

#[tokio::test]
async fn a_prefix_keeps_two_meshes_in_one_bucket_apart() {
    let (_folder, server, _) = embedded().await;
    let connect = |prefix: &str| {
        let settings = S3Settings { prefix: prefix.to_owned(), ..server.settings(BUCKET) };
        async move { S3Store::connect(&settings).await.unwrap() }
    };
    let (one, two, all) = (connect("one/").await, connect("two/").await, connect("").await);
    one.put("k", Bytes::from_static(b"1")).await.unwrap();
    two.put("k", Bytes::from_static(b"2")).await.unwrap();
    assert_eq!(one.list("").await.unwrap().into_iter().map(|object| object.key).collect::<Vec<_>>(), ["k"]);
    assert_eq!(&two.get("k").await.unwrap().unwrap().bytes[..], b"2");
    assert_eq!(all.list("").await.unwrap().into_iter().map(|o| o.key).collect::<Vec<_>>(), ["one/k", "two/k"]);
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let (folder, server, store) = embedded().await;
    let etag = store.put("a/b", Bytes::from_static(b"one")).await.unwrap();
    let Err(error) = EmbeddedS3::start(folder.path(), loopback()).await else { panic!("two owners of one folder") };
    assert!(matches!(error, Error::FolderTaken { .. }), "{error}");
    server.stop().await;
    let server = EmbeddedS3::start(folder.path(), loopback()).await.unwrap();
    let store = S3Store::connect(&server.settings(BUCKET)).await.unwrap();
    store.ensure_bucket().await.unwrap();
    let object = store.get("a/b").await.unwrap().unwrap();
    assert_eq!((&object.bytes[..], &object.etag), (&b"one"[..], &etag));
    assert!(store.put_if_match("a/b", Bytes::from_static(b"two"), &etag).await.unwrap().is_written());
}

#[tokio::test]
async fn wrong_credentials_and_a_missing_bucket_are_refused_at_once() {
    let (_folder, server, _) = embedded().await;
    let wrong = S3Settings { secret_access_key: Some("wrong".to_owned()), ..server.settings(BUCKET) };
    let error = S3Store::connect(&wrong).await.unwrap().get("k").await.unwrap_err();
    assert!(matches!(&error, Error::Refused { code, .. } if code == "SignatureDoesNotMatch"), "{error:?}");
    let missing = S3Store::connect(&server.settings("missing")).await.unwrap();
    for error in [missing.get("k").await.unwrap_err(), missing.put("k", Bytes::new()).await.unwrap_err()] {
        assert!(matches!(&error, Error::Refused { code, .. } if code == "NoSuchBucket"), "{error:?}");
    }
}

#[tokio::test]
async fn an_endpoint_that_is_away_is_unavailable_and_named() {
    let (_folder, server, store) = embedded().await;
    server.stop().await;
    let fault = Fault::from(store.put("k", Bytes::new()).await.unwrap_err());
    assert_eq!(fault.kind, Kind::Unavailable);
    assert!(fault.message.contains("refused"), "{}", fault.message);
}

/// Whoever sends what is there already is still sending when that is known; the answer has to reach it all the same.
#[tokio::test]
async fn large_content_that_is_there_already_is_told_so_every_time() {
    let (_folder, _server, store) = embedded().await;
    let content = Content::of(vec![Bytes::from(vec![7; 8 << 20])]);
    assert!(store.put_content_if_absent("k", content.clone()).await.unwrap().is_written());
    for round in 0..40 {
        let again = store.put_content_if_absent("k", content.clone()).await;
        assert!(matches!(again, Ok(PutOutcome::Lost)), "round {round}: {again:?}");
    }
}
