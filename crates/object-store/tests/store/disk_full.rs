//! A disk without room is an answer, not a torn object.

use crate::support::ServerProcess;
use bytes::Bytes;
use weft_fault::{Fault, Kind};
use weft_object_store::ObjectStore;

#[tokio::test]
async fn a_write_without_room_is_unavailable_and_leaves_the_old_object() {
    let folder = tempfile::tempdir().unwrap();
    // A limit of 1 MiB a file stands in for a full disk: the write fails half-way, like there.
    let limited = "trap '' XFSZ; ulimit -f 1024; exec \"$@\"";
    let server = ServerProcess::start(folder.path(), Some(limited)).await;
    let store = server.store().await;
    let etag = store.put("k", Bytes::from_static(b"old")).await.unwrap();
    let large = Bytes::from(vec![7; 3 << 20]);
    for error in [
        store.put("k", large.clone()).await.unwrap_err(),
        store.put_if_match("k", large.clone(), &etag).await.unwrap_err(),
        store.put_if_absent("new", large).await.unwrap_err(),
    ] {
        let fault = Fault::from(error);
        assert_eq!(fault.kind, Kind::Unavailable, "{fault:?}");
        assert!(fault.message.contains("no room"), "{}", fault.message);
    }
    assert_eq!(&store.get("k").await.unwrap().unwrap().bytes[..], b"old");
    assert!(store.head("new").await.unwrap().is_none());
    assert_eq!(std::fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
    assert!(store.put_if_match("k", Bytes::from_static(b"new"), &etag).await.unwrap().is_written());
}
