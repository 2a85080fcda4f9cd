//! Folders and archives of this machine.

use crate::support::{bytes, weights};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use weft_adapter_sources::{Access, Error, Opened, Sources};
use weft_fault::Kind;

/// A folder with a root in it and something beside the root.
struct Base {
    dir: TempDir,
}

impl Base {
    fn new() -> Self {
        let base = Self { dir: tempfile::tempdir().unwrap() };
        package(&base.root().join("mine"), "{}", 600_000);
        package(&base.dir.path().join("outside"), r#"{"secret":1}"#, 10);
        base
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn access(&self) -> Access {
        Access { file_roots: vec![self.root()], ..Access::default() }
    }

    async fn open(&self, path: &str) -> Result<Opened, Error> {
        self.open_with(self.access(), path).await
    }

    async fn open_with(&self, access: Access, path: &str) -> Result<Opened, Error> {
        let source = format!("file://{}/{path}", self.dir.path().display());
        Sources::new(access).unwrap().open(&source.parse().unwrap()).await
    }
}

fn package(folder: &Path, config: &str, weights_bytes: usize) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("adapter_config.json"), config).unwrap();
    std::fs::write(folder.join("adapter_model.safetensors"), bytes(weights_bytes)).unwrap();
}

fn run(program: &str, dir: &Path, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).current_dir(dir).status();
    assert!(status.unwrap_or_else(|error| panic!("{program}: {error}")).success());
}

#[tokio::test]
async fn a_folder_beneath_a_root_is_read() {
    let base = Base::new();
    let mine = base.root().join("mine");
    std::fs::write(mine.join("tokenizer.json"), "{}").unwrap();
    std::fs::write(mine.join("a.txt"), "x").unwrap();
    std::fs::create_dir(mine.join("checkpoint-1")).unwrap();
    let opened = base.open("root/mine").await.unwrap();
    assert_eq!(opened.config, "{}");
    assert_eq!(opened.origin, format!("file://{}", mine.canonicalize().unwrap().display()));
    assert_eq!(opened.other_files, ["tokenizer.json", "a.txt"]);
    assert_eq!(weights(opened).await.unwrap(), bytes(600_000));
}

#[tokio::test]
async fn links_are_followed_to_what_a_root_holds_and_no_further() {
    let base = Base::new();
    symlink("mine", base.root().join("current")).unwrap();
    symlink("../outside", base.root().join("out")).unwrap();
    symlink(base.dir.path().join("outside"), base.root().join("out-absolute")).unwrap();
    symlink("root", base.dir.path().join("root-link")).unwrap();

    let opened = base.open("root/current").await.unwrap();
    assert!(opened.origin.ends_with("/root/mine"), "{}", opened.origin);
    for path in ["root/out", "root/out-absolute"] {
        let error = base.open(path).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Refused, "{error:?}");
        assert!(error.to_string().contains("leads out of file_roots"), "{error}");
    }
    // A root that is a link is the operator's own.
    let access = Access { file_roots: vec![base.dir.path().join("root-link")], ..Access::default() };
    base.open_with(access.clone(), "root-link/mine").await.unwrap();
    base.open_with(access, "root/mine").await.unwrap();
}

#[tokio::test]
async fn what_lies_beneath_no_root_is_not_even_looked_for() {
    let base = Base::new();
    for path in ["outside", "missing", "root-and-more/mine"] {
        let error = base.open(path).await.unwrap_err();
        assert!(matches!(error, Error::NotAllowed { setting: "file_roots", .. }), "{path}: {error:?}");
    }
    let error = base.open("root/missing").await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error:?}");
}

#[tokio::test]
async fn only_regular_files_are_read() {
    let base = Base::new();
    let mine = base.root().join("mine");
    let config = mine.join("adapter_config.json");
    let refused = async |is: &str| {
        let error = base.open("root/mine").await.unwrap_err();
        assert!(matches!(error, Error::NotRegular { .. }), "{is}: {error:?}");
        assert!(error.to_string().contains(is), "{is}: {error}");
    };
    std::fs::remove_file(&config).unwrap();
    symlink("../../outside/adapter_config.json", &config).unwrap();
    refused("a symbolic link").await;
    std::fs::remove_file(&config).unwrap();
    run("mkfifo", &mine, &["adapter_config.json"]);
    refused("a pipe").await;
    std::fs::remove_file(&config).unwrap();
    std::fs::create_dir(&config).unwrap();
    refused("a folder").await;
    std::fs::remove_dir(&config).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(&config).unwrap();
    refused("a socket").await;
    drop(socket);

    run("mkfifo", &base.root(), &["pipe.tar"]);
    let error = base.open("root/pipe.tar").await.unwrap_err();
    assert!(error.to_string().contains("a pipe"), "{error}");
    std::fs::write(base.root().join("file.zip"), "PK").unwrap();
    let error = base.open("root/file.zip").await.unwrap_err();
    assert!(error.to_string().contains("does not end with .tar or .tar.gz"), "{error}");
    let error = base.open("root/file.zip/mine").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{error:?}");
}

/// Somebody exchanges a folder on the way for a link out of the root again and again, while it is opened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_is_exchanged_meanwhile_leads_nowhere_else() {
    let base = Base::new();
    package(&base.root().join("way/pack"), "{}", 10);
    package(&base.dir.path().join("evil/pack"), r#"{"secret":1}"#, 10);
    symlink("../evil", base.root().join("link")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (root, stopped) = (base.root(), stop.clone());
    let swapper = std::thread::spawn(move || {
        let (way, real, link) = (root.join("way"), root.join("real"), root.join("link"));
        while !stopped.load(Ordering::Relaxed) {
            std::fs::rename(&way, &real).unwrap();
            std::fs::rename(&link, &way).unwrap();
            std::fs::rename(&way, &link).unwrap();
            std::fs::rename(&real, &way).unwrap();
        }
    });
    let sources = Sources::new(base.access()).unwrap();
    let source = format!("file://{}/way/pack", base.root().display()).parse().unwrap();
    let mut opened = 0;
    for _ in 0..2000 {
        if let Ok(package) = sources.open(&source).await {
            assert_eq!(package.config, "{}", "read from outside of the root");
            opened += 1;
        }
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(opened > 0);
}

#[tokio::test]
async fn limits_hold_and_pickles_are_told() {
    let base = Base::new();
    let error = base.open_with(Access { weights_bytes_max: 599_999, ..base.access() }, "root/mine").await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { part: "adapter_model.safetensors", .. }), "{error:?}");
    let mine = base.root().join("mine");
    std::fs::write(mine.join("adapter_config.json"), vec![b' '; (1 << 20) + 1]).unwrap();
    let error = base.open("root/mine").await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { part: "adapter_config.json", .. }), "{error:?}");
    std::fs::write(mine.join("adapter_config.json"), "{}").unwrap();
    std::fs::rename(mine.join("adapter_model.safetensors"), mine.join("adapter_model.bin")).unwrap();
    let error = base.open("root/mine").await.unwrap_err();
    assert!(matches!(error, Error::PickleOnly { .. }), "{error:?}");
    std::fs::remove_file(mine.join("adapter_model.bin")).unwrap();
    let error = base.open("root/mine").await.unwrap_err();
    assert!(matches!(error, Error::Missing { file: "adapter_model.safetensors", .. }), "{error:?}");
}

#[tokio::test]
async fn a_file_that_is_cut_meanwhile_is_told() {
    let base = Base::new();
    let opened = base.open("root/mine").await.unwrap();
    let path = base.root().join("mine/adapter_model.safetensors");
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(10).unwrap();
    let error = weights(opened).await.unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error:?}");
}

/// Long enough for the clock of the file system, which goes in steps.
const TICK: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_file_that_is_rewritten_in_place_meanwhile_is_told() {
    let base = Base::new();
    let mine = base.root().join("mine");
    run("tar", &mine, &["-cf", "../a.tar", "adapter_config.json", "adapter_model.safetensors"]);
    // The same length each time; of the archive, what both readings find alike.
    let archive = std::fs::read(base.root().join("a.tar")).unwrap();
    for (opened_as, rewritten, content) in [
        ("root/mine", mine.join("adapter_model.safetensors"), vec![7; 600_000]),
        ("root/mine", mine.join("adapter_config.json"), b"[]".to_vec()),
        ("root/a.tar", base.root().join("a.tar"), archive),
    ] {
        tokio::time::sleep(TICK).await;
        let opened = base.open(opened_as).await.unwrap();
        tokio::time::sleep(TICK).await;
        let mut file = std::fs::OpenOptions::new().write(true).open(&rewritten).unwrap();
        file.write_all(&content).unwrap();
        let error = weights(opened).await.unwrap_err();
        assert!(matches!(error, Error::Changed { .. }), "{rewritten:?}: {error:?}");
    }
    weights(base.open("root/mine").await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn telling_names_are_found_among_however_many_files() {
    let base = Base::new();
    let mine = base.root().join("mine");
    let telling = [
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ];
    for name in telling {
        std::fs::write(mine.join(name), "x").unwrap();
    }
    for number in 0..20_000 {
        std::fs::File::create(mine.join(format!("checkpoint-{number}"))).unwrap();
    }
    let opened = base.open("root/mine").await.unwrap();
    assert_eq!(opened.other_files[..telling.len()], telling);
}

#[tokio::test]
async fn archives_as_tar_writes_them_are_read() {
    let base = Base::new();
    std::fs::write(base.root().join("mine/tokenizer.json"), "{}").unwrap();
    for format in ["v7", "ustar", "gnu", "pax"] {
        let format = format!("--format={format}");
        run("tar", &base.root(), &["-c", &format, "-f", "whole.tar", "mine"]);
        run("tar", &base.root().join("mine"), &["-cz", &format, "-f", "../bare.tar.gz", "."]);
        for name in ["whole.tar", "bare.tar.gz"] {
            let opened = base.open(&format!("root/{name}")).await.unwrap();
            assert_eq!(opened.config, "{}", "{format} {name}");
            assert_eq!(opened.weights_bytes, Some(600_000));
            assert_eq!(opened.other_files, ["tokenizer.json"]);
            assert!(opened.origin.ends_with(&format!("root/{name}")));
            assert_eq!(weights(opened).await.unwrap(), bytes(600_000), "{format} {name}");
        }
    }
}

#[tokio::test]
async fn an_archive_without_a_package_is_refused_when_it_is_opened() {
    let base = Base::new();
    run("tar", &base.root().join("mine"), &["-cf", "../half.tar", "adapter_config.json"]);
    let error = base.open("root/half.tar").await.unwrap_err();
    assert!(matches!(error, Error::Missing { file: "adapter_model.safetensors", .. }), "{error:?}");
    std::fs::write(base.root().join("noise.tar"), bytes(5000)).unwrap();
    let error = base.open("root/noise.tar").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid, "{error:?}");
}

#[tokio::test]
async fn an_archive_that_is_changed_between_its_two_readings_is_told() {
    let base = Base::new();
    run("tar", &base.root().join("mine"), &["-cf", "../a.tar", "adapter_config.json", "adapter_model.safetensors"]);
    let opened = base.open("root/a.tar").await.unwrap();
    std::fs::write(base.root().join("mine/adapter_config.json"), "{ }").unwrap();
    run("tar", &base.root().join("mine"), &["-cf", "../a.tar", "adapter_config.json", "adapter_model.safetensors"]);
    let error = weights(opened).await.unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error:?}");
}
