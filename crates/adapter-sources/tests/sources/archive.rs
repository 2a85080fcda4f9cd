//! Archives that were made by hand, to the byte.

use crate::support::bytes;
use async_compression::tokio::write::GzipEncoder;
use proptest::prelude::*;
use std::io::Cursor;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio_tar::{EntryType, Header};
use weft_adapter_sources::Error;
use weft_adapter_sources::archive::{Event, Limits, Reader};
use weft_fault::Kind;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const LIMITS: Limits = Limits { weights_bytes_max: 1 << 20 };

/// An archive in the making.
#[derive(Clone, Default)]
struct Tar(Vec<u8>);

impl Tar {
    /// Both files.
    fn package() -> Self {
        Self::default().file(CONFIG, b"{}").file(WEIGHTS, &bytes(1000))
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, name, content)
    }

    /// An entry with a name that no library would write.
    fn entry(self, kind: EntryType, name: &str, content: &[u8]) -> Self {
        self.header(kind, name, content.len() as u64).raw(content)
    }

    fn header(mut self, kind: EntryType, name: &str, bytes: u64) -> Self {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(bytes);
        header.set_mode(0o644);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self
    }

    /// Bytes as they are, filled up to a block.
    fn raw(mut self, content: &[u8]) -> Self {
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn pax(self, kind: EntryType, records: &[(&str, &str)]) -> Self {
        let mut text = String::new();
        for (key, value) in records {
            let rest = format!(" {key}={value}\n");
            // The length counts its own digits.
            let mut bytes = rest.len() + 1;
            while bytes != rest.len() + bytes.to_string().len() {
                bytes += 1;
            }
            text.push_str(&format!("{bytes}{rest}"));
        }
        self.entry(kind, "pax", text.as_bytes())
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

#[derive(Debug, Default, PartialEq)]
struct Read {
    config: Vec<u8>,
    signature: Vec<u8>,
    weights: Vec<u8>,
    other_files: Vec<String>,
}

async fn read_from(reader: impl AsyncRead + Send + Unpin + 'static, limits: Limits) -> Result<Read, Error> {
    let mut reader = Reader::open(reader, limits).await?;
    let mut read = Read::default();
    loop {
        match reader.next().await {
            Ok(Some(Event::Config(config))) => {
                assert!(read.config.is_empty() && (1..=1 << 20).contains(&config.len()));
                read.config = config.into();
            }
            Ok(Some(Event::Signature(bundle))) => {
                assert!(read.signature.is_empty() && (1..=1 << 20).contains(&bundle.len()));
                read.signature = bundle.into();
            }
            Ok(Some(Event::Weights(chunk))) => {
                assert!((1..=1 << 20).contains(&chunk.len()));
                read.weights.extend_from_slice(&chunk);
                assert!(read.weights.len() as u64 <= limits.weights_bytes_max);
            }
            Ok(None) => {
                assert_eq!(reader.weights_bytes(), Some(read.weights.len() as u64));
                assert!(reader.next().await.unwrap().is_none());
                read.other_files = reader.other_files();
                return Ok(read);
            }
            Err(error) => {
                assert!(reader.next().await.is_err(), "an error was forgotten");
                return Err(error);
            }
        }
    }
}

async fn read(archive: Vec<u8>) -> Result<Read, Error> {
    read_from(Cursor::new(archive), LIMITS).await
}

async fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzipEncoder::new(Vec::new());
    encoder.write_all(bytes).await.unwrap();
    encoder.shutdown().await.unwrap();
    encoder.into_inner()
}

#[tokio::test]
async fn both_orders_both_places_and_gzip_are_read() {
    let weights = bytes(700_000);
    for folder in ["", "./", "mine/", "a/b/"] {
        let config_first = Tar::default()
            .file(&format!("{folder}{CONFIG}"), b"{}")
            .file(&format!("{folder}tokenizer.json"), b"x")
            .file(&format!("{folder}{WEIGHTS}"), &weights);
        let weights_first = Tar::default()
            .entry(EntryType::Directory, "a/", b"")
            .file(&format!("{folder}{WEIGHTS}"), &weights)
            .file(&format!("{folder}tokenizer.json"), b"x")
            .file(&format!("{folder}{CONFIG}"), b"{}");
        for archive in [config_first.end(), weights_first.end()] {
            for archive in [gzip(&archive).await, archive] {
                let read = read(archive).await.unwrap();
                assert_eq!(read.config, b"{}");
                assert_eq!(read.weights, weights);
                assert_eq!(read.other_files, ["tokenizer.json"]);
            }
        }
    }
    // Without the two empty blocks, as some writers leave it; and in several members, as parallel gzips write.
    read(Tar::package().0).await.unwrap();
    let archive = Tar::package().end();
    let halves = [gzip(&archive[..700]).await, gzip(&archive[700..]).await].concat();
    read(halves).await.unwrap();
}

#[tokio::test]
async fn a_signature_comes_with_its_package_and_once() {
    let signed = Tar::default().file("a/model.sig", b"{}").file("a/adapter_config.json", b"{}");
    let read = read(signed.file("a/adapter_model.safetensors", b"tensors").end()).await.unwrap();
    assert_eq!((&read.signature[..], &read.weights[..]), (&b"{}"[..], &b"tensors"[..]));
    for wrong in [
        Tar::default().file("a/model.sig", b"{}").file("a/model.sig", b"{}"),
        Tar::default().file("a/model.sig", b"{}").file("b/adapter_config.json", b"{}"),
        Tar::default().file("a/model.sig", b""),
    ] {
        self::read(wrong.end()).await.unwrap_err();
    }
}

#[tokio::test]
async fn files_elsewhere_are_listed_with_their_folders() {
    let archive = Tar::package().file("logs/x.txt", b"x").file("vocab.json", b"x").end();
    assert_eq!(read(archive).await.unwrap().other_files, ["logs/x.txt", "vocab.json"]);
}

#[tokio::test]
async fn what_a_package_does_not_hold_is_refused_by_name() {
    let long = "n".repeat(300);
    let gnu_name = |name: &str| Tar::package().entry(EntryType::GNULongName, "././@LongLink", name.as_bytes());
    let pax = |records: &[(&str, &str)]| Tar::package().pax(EntryType::XHeader, records);
    let many = (0..65).fold(Tar::package(), |tar, i| tar.file(&format!("f{i}"), b""));
    let folders = (0..600).fold(Tar::default(), |tar, _| tar.entry(EntryType::Directory, "d/", b""));
    for (archive, reason) in [
        (Tar::package().entry(EntryType::Symlink, "link", b""), "link is a symbolic link"),
        (Tar::package().entry(EntryType::Link, "link", b""), "link is a hard link"),
        (Tar::package().entry(EntryType::GNULongLink, "k", b"x"), "a hard link"),
        (Tar::package().entry(EntryType::Char, "null", b""), "null is a device"),
        (Tar::package().entry(EntryType::Block, "disk", b""), "disk is a device"),
        (Tar::package().entry(EntryType::Fifo, "pipe", b""), "pipe is a pipe"),
        (Tar::package().entry(EntryType::GNUSparse, "holes", b""), "holes is a sparse file"),
        (Tar::package().entry(EntryType::new(b'Q'), "odd", b""), "odd is of an unknown kind"),
        (pax(&[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")]).file("x", b""), "a sparse file"),
        (Tar::default().file(&format!("/{CONFIG}"), b"{}"), "absolute"),
        (Tar::default().file(&format!("../{CONFIG}"), b"{}"), "leads up"),
        (Tar::default().file(&format!("a/../{CONFIG}"), b"{}"), "leads up"),
        (Tar::default().entry(EntryType::Directory, "../", b""), "leads up"),
        (Tar::default().file("a\\b", b"{}"), "backslash"),
        (Tar::default().file("a\x1b[1mb", b"{}"), "control character"),
        (Tar::package().file(CONFIG, b"{}"), "a second adapter_config.json"),
        (Tar::package().file(WEIGHTS, b"{}"), "a second adapter_model.safetensors"),
        (Tar::package().file("deeper/adapter_config.json", b"{}"), "a second adapter_config.json"),
        (Tar::default().file(CONFIG, b"{}").file("a/adapter_model.safetensors", b"x"), "in another folder"),
        (Tar::default().file("a/adapter_model.safetensors", b"x").file(CONFIG, b"{}"), "in another folder"),
        (Tar::default().file(".", b""), "a file without a name"),
        (gnu_name(&long), "a header of 300 bytes, the limit is 257"),
        (gnu_name("../x").file("x", b""), "leads up"),
        (gnu_name("a").entry(EntryType::GNULongName, "l", b"b").file("x", b""), "two names"),
        (gnu_name("a"), "speaks of a next entry"),
        (pax(&[("path", &long)]).file("x", b""), "a name of 300 bytes"),
        (pax(&[("path", "/etc/passwd")]).file("x", b""), "absolute"),
        (pax(&[("path", "a"), ("path", "b")]).file("x", b""), "two names"),
        (pax(&[("size", "99")]).file("x", b"y"), "two lengths"),
        (pax(&[("size", "-1")]).file("x", b"y"), "no number"),
        (pax(&[("comment", "x")]).pax(EntryType::XHeader, &[("comment", "y")]), "two headers"),
        (pax(&[("comment", &"x".repeat(70_000))]), "the limit is 65536"),
        (Tar::package().pax(EntryType::XGlobalHeader, &[("path", "x")]), "path for every entry"),
        (Tar::package().entry(EntryType::XHeader, "x", b"nonsense"), "malformed pax"),
        (Tar::package().header(EntryType::Regular, "short", 10_000), "is damaged"),
        (many, "more than 64 other files"),
        (folders, "more than 512 entries"),
    ] {
        let error = read(archive.end()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{reason}: {error:?}");
        assert!(error.to_string().contains(reason), "{reason}: {error}");
    }
}

#[tokio::test]
async fn extensions_that_agree_are_heeded() {
    let folder = "f".repeat(150);
    let named = |tar: Tar, file: &str, content: &[u8]| {
        let name = format!("{folder}/{file}");
        let length = content.len().to_string();
        let records = [("path", name.as_str()), ("size", length.as_str()), ("mtime", "1.5")];
        tar.pax(EntryType::XHeader, &records).file("short", content)
    };
    let start = Tar::default().pax(EntryType::XGlobalHeader, &[("comment", "0123abc")]);
    let archive = named(named(start, CONFIG, b"{}"), WEIGHTS, b"tensors")
        .entry(EntryType::GNULongName, "././@LongLink", format!("{folder}/tokenizer.json\0").as_bytes())
        .file("short", b"x");
    let read = read(archive.end()).await.unwrap();
    assert_eq!((read.config.as_slice(), read.weights.as_slice()), (&b"{}"[..], &b"tensors"[..]));
    assert_eq!(read.other_files, ["tokenizer.json"]);
}

#[tokio::test]
async fn what_is_missing_is_told_at_the_end() {
    let error = read(Tar::default().file(CONFIG, b"{}").end()).await.unwrap_err();
    assert!(matches!(error, Error::Missing { file: WEIGHTS, .. }), "{error:?}");
    let error = read(Tar::default().file(WEIGHTS, b"x").end()).await.unwrap_err();
    assert!(matches!(error, Error::Missing { file: CONFIG, .. }), "{error:?}");
    let error = read(Tar::default().file(CONFIG, b"{}").file("adapter_model.bin", b"x").end()).await.unwrap_err();
    assert!(matches!(error, Error::PickleOnly { .. }), "{error:?}");
    let error = read(Tar::default().file(CONFIG, b"").end()).await.unwrap_err();
    assert!(matches!(error, Error::Empty { file: CONFIG, .. }), "{error:?}");
    let error = read(Tar::default().file(WEIGHTS, b"").end()).await.unwrap_err();
    assert!(matches!(error, Error::Empty { file: WEIGHTS, .. }), "{error:?}");
    for empty in [Vec::new(), vec![0; 1024]] {
        assert!(matches!(read(empty).await.unwrap_err(), Error::Missing { .. }));
    }
}

#[tokio::test]
async fn what_is_no_archive_or_a_damaged_one_is_told() {
    for noise in
        [b"PK\x03\x04".to_vec(), bytes(2000), b"\x1f\x8b".to_vec(), [b"\x1f\x8b".as_slice(), &bytes(500)].concat()]
    {
        let error = read(noise).await.unwrap_err();
        assert!(error.to_string().contains("is no tar"), "{error}");
        assert_eq!(error.kind(), Kind::Invalid);
    }
    let archive = Tar::package().end();
    let packed = gzip(&archive).await;
    let mut wrong_sum = packed.clone();
    let at = wrong_sum.len() - 6;
    wrong_sum[at] ^= 1;
    let two = [Tar::package().end(), Tar::package().end()].concat();
    for damaged in [archive[..1300].to_vec(), packed[..packed.len() - 10].to_vec(), wrong_sum, two] {
        let error = read(damaged).await.unwrap_err();
        assert!(matches!(error, Error::Archive(_)), "{error:?}");
    }
}

/// A reader that counts what is taken from it.
struct Taken<R>(R, Arc<AtomicU64>);

impl<R: AsyncRead + Unpin> AsyncRead for Taken<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.0).poll_read(cx, into);
        self.1.fetch_add((into.filled().len() - before) as u64, Ordering::Relaxed);
        read
    }
}

#[tokio::test]
async fn a_bomb_costs_bounded_work_and_lets_others_run() {
    // 4 GiB of zeros in 4 MiB: one file that claims them all.
    let mut start = Tar::package().header(EntryType::Regular, "zeros", 4 << 30).0;
    start.resize(1 << 20, 0);
    let zeros = gzip(&vec![0; 64 << 20]).await;
    let bomb = [gzip(&start).await, zeros.repeat(64)].concat();
    let taken = Arc::new(AtomicU64::new(0));
    let other = Arc::new(AtomicU64::new(0));
    let count = other.clone();
    let ticking = tokio::spawn(async move {
        loop {
            count.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    let error = read_from(Taken(Cursor::new(bomb), taken.clone()), LIMITS).await.unwrap_err();
    ticking.abort();
    assert!(
        matches!(error, Error::TooLarge { part: "the archive", bytes_max, .. } if bytes_max == 19 << 20),
        "{error:?}"
    );
    assert!(taken.load(Ordering::Relaxed) < 200_000, "{taken:?} packed bytes were read");
    assert!(other.load(Ordering::Relaxed) > 3, "nobody else ran");
}

#[tokio::test]
async fn an_archive_that_never_unpacks_to_anything_has_an_end() {
    let nothing = gzip(b"").await;
    let endless = Endless(nothing.repeat(1000), 0);
    let read = tokio::time::timeout(Duration::from_secs(60), read_from(endless, LIMITS)).await.unwrap();
    assert!(matches!(read, Err(Error::TooLarge { part: "the archive", .. })), "{read:?}");
}

/// The same bytes again and again.
struct Endless(Vec<u8>, usize);

impl AsyncRead for Endless {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let bytes = (self.0.len() - self.1).min(into.remaining());
        into.put_slice(&self.0[self.1..self.1 + bytes]);
        self.1 = (self.1 + bytes) % self.0.len();
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn too_large_files_are_refused_by_their_header() {
    let archive = Tar::default().header(EntryType::Regular, WEIGHTS, (1 << 20) + 1).end();
    let error = read(archive).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { part: WEIGHTS, bytes_max: 1_048_576, .. }), "{error:?}");
    let archive = Tar::default().header(EntryType::Regular, CONFIG, (1 << 20) + 1).end();
    assert!(matches!(read(archive).await.unwrap_err(), Error::TooLarge { part: CONFIG, .. }));
    // A length that wraps around.
    let archive = Tar::default().header(EntryType::Regular, "x", u64::MAX - 100).end();
    assert!(matches!(read(archive).await.unwrap_err(), Error::Archive(_)));
}

#[tokio::test]
async fn a_reader_that_fails_is_told_from_a_damaged_archive() {
    struct Broken;
    impl AsyncRead for Broken {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()))
        }
    }
    use tokio::io::AsyncReadExt;
    for bytes in [0, 1, 100, 700] {
        let start = Cursor::new(Tar::package().end()).take(bytes);
        let error = read_from(start.chain(Broken), LIMITS).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{bytes}: {error:?}");
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000), is_gzip in any::<bool>()) {
        block_on(async {
            let bytes = if is_gzip { gzip(&bytes).await } else { bytes };
            let _ = read(bytes).await;
        });
    }

    /// Bytes of a good archive are changed, with headers whose sums are right again, so that what lies behind the sum is reached.
    #[test]
    fn no_damage_panics(changes in proptest::collection::vec((0usize..6000, any::<u8>()), 1..12), cut in 0usize..8000, fix in any::<bool>()) {
        let good = Tar::default()
            .pax(EntryType::XHeader, &[("path", "mine/adapter_config.json"), ("size", "2")])
            .file("x", b"{}")
            .entry(EntryType::GNULongName, "l", b"mine/tokenizer.json\0")
            .file("x", b"{}")
            .file("mine/adapter_model.safetensors", &bytes(1000));
        let mut bytes = good.end();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if fix {
            for block in bytes.as_chunks_mut::<512>().0 {
                let mut header = Header::from_byte_slice(block).clone();
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        bytes.truncate(cut.max(512));
        block_on(async {
            let _ = read(bytes).await;
        });
    }

    #[test]
    fn a_package_is_read_in_whatever_pieces_it_comes(config in "[ -~]{1,2000}", count in 1usize..5000, sizes in proptest::collection::vec(1usize..700, 1..20)) {
        let archive = Tar::default().file(WEIGHTS, &bytes(count)).file(CONFIG, config.as_bytes()).end();
        let read = block_on(async {
            let pieces = Pieces { bytes: archive, at: 0, sizes, turn: 0 };
            read_from(pieces, LIMITS).await.unwrap()
        });
        prop_assert_eq!(read, Read { config: config.into_bytes(), weights: bytes(count), ..Read::default() });
    }
}

/// Bytes in pieces of these sizes.
struct Pieces {
    bytes: Vec<u8>,
    at: usize,
    sizes: Vec<usize>,
    turn: usize,
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let size = self.sizes[self.turn % self.sizes.len()];
        let end = self.bytes.len().min(self.at + size.min(into.remaining()));
        into.put_slice(&self.bytes[self.at..end]);
        (self.at, self.turn) = (end, self.turn + 1);
        Poll::Ready(Ok(()))
    }
}
