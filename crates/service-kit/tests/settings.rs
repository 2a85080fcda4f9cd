//! Settings come from a file, variables and flags, in that order, and everything wrong is reported at once.

use std::io::Write;
use std::path::PathBuf;
use weft_service_kit::settings::{LoadError, Loader, assert_sound, shown};

weft_service_kit::settings! {
    /// Example of a service's settings.
    pub struct Settings {
        /// Where it listens.
        pub listen: String = "127.0.0.1:0".to_owned(),
        /// Most requests at once.
        pub max_concurrent_requests: usize = 64,
        /// Base model.
        pub model: Option<PathBuf> = None,
        /// Print more.
        pub verbose: bool = false,
        /// Peers.
        pub workers: Vec<String> = Vec::new(),
        /// Fraction of memory.
        pub adapter_memory_fraction: Option<f64> = None,
        /// Who may administer.
        secret pub admin_key: Option<String> = None,
    }
    aliases { "model-id" => model, "m" => model, "hostname" => listen, "peer" => workers }
}

fn load(args: &[&str], variables: &[(&str, &str)]) -> Result<Settings, LoadError> {
    let args = args.iter().map(|arg| (*arg).to_owned());
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Ok(Loader::new("example", "an example").section::<Settings>("").load(args, variables)?.get("")?)
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn the_declaration_is_sound() {
    assert_sound::<Settings>();
}

#[test]
fn later_sources_win() {
    let file = file("max_concurrent_requests = 1\nworkers = ['a:1']\nlisten = 'file:1'\n");
    let path = file.path().to_str().unwrap();
    let variables = [("WEFT_CONFIG", path), ("WEFT_MAX_CONCURRENT_REQUESTS", "2"), ("WEFT_LISTEN", "variable:1")];
    let settings = load(&["--max-concurrent-requests", "3", "--verbose"], &variables).unwrap();
    assert_eq!(settings.max_concurrent_requests, 3);
    assert_eq!(settings.listen, "variable:1");
    assert_eq!(settings.workers, ["a:1"]);
    assert!(settings.verbose);
}

#[test]
fn aliases_fill_the_same_field() {
    assert_eq!(load(&["--model-id", "/m"], &[]).unwrap().model, Some("/m".into()));
    assert_eq!(load(&[], &[("MODEL_ID", "/m")]).unwrap().model, Some("/m".into()));
    assert_eq!(load(&["--model", "/own", "--model-id", "/alias"], &[]).unwrap().model, Some("/own".into()));
    // A container's own HOSTNAME is no setting.
    assert_eq!(load(&[], &[("HOSTNAME", "pod-7")]).unwrap().listen, "127.0.0.1:0");
}

#[test]
fn every_problem_is_reported_at_once() {
    let file = file("nonsense = 1\n");
    let args = ["--config", file.path().to_str().unwrap(), "--max-concurrent-requests", "many"];
    let Err(LoadError::Settings(error)) = load(&args, &[("WEFT_NONSENSE", "1"), ("WEFT_VERBOSE", "perhaps")]) else {
        panic!("accepted");
    };
    let all = error.to_string();
    for part in ["unknown key nonsense", "WEFT_NONSENSE", "--max-concurrent-requests: \"many\"", "WEFT_VERBOSE"] {
        assert!(all.contains(part), "{part} in {all}");
    }
}

#[test]
fn a_wrong_type_in_the_file_names_its_key() {
    let file = file("max_concurrent_requests = 'many'\n");
    let Err(LoadError::Settings(error)) = load(&["--config", file.path().to_str().unwrap()], &[]) else {
        panic!("accepted");
    };
    assert!(error.to_string().contains("max_concurrent_requests"), "{error}");
}

#[test]
fn unknown_flags_are_refused_and_help_names_every_flag() {
    assert!(matches!(load(&["--nonsense"], &[]), Err(LoadError::Usage(_))));
    let Err(LoadError::Usage(help)) = load(&["--help"], &[]) else { panic!("no help") };
    let help = help.to_string();
    for flag in ["--listen", "--max-concurrent-requests", "--admin-key", "WEFT_ADMIN_KEY", "Most requests at once"] {
        assert!(help.contains(flag), "{flag} in {help}");
    }
}

#[test]
fn secrets_are_not_shown() {
    let settings = load(&["--admin-key", "hush"], &[]).unwrap();
    let line = shown(&settings);
    assert!(line.contains("admin_key=(hidden)") && !line.contains("hush"), "{line}");
}

#[test]
fn sections_have_their_own_names() {
    let args = ["--worker-listen", "w:1", "--listen", "g:1"].map(str::to_owned);
    let loaded = Loader::new("both", "two sections")
        .section::<Settings>("")
        .section::<Settings>("worker")
        .load(args, [("WEFT_WORKER_VERBOSE".to_owned(), "true".to_owned())])
        .unwrap();
    let (own, worker): (Settings, Settings) = (loaded.get("").unwrap(), loaded.get("worker").unwrap());
    assert_eq!((own.listen.as_str(), worker.listen.as_str()), ("g:1", "w:1"));
    assert!(worker.verbose && !own.verbose);
}

#[test]
fn a_letter_is_a_short_flag_and_no_variable() {
    assert_eq!(load(&["-m", "/m"], &[]).unwrap().model, Some("/m".into()));
    assert_eq!(load(&[], &[("M", "/m")]).unwrap().model, None);
}

#[test]
fn a_list_may_be_given_piece_by_piece() {
    assert_eq!(load(&["--workers", "a:1", "--workers", "b:1,c:1"], &[]).unwrap().workers, ["a:1", "b:1", "c:1"]);
    assert_eq!(load(&["--peer", "a:1", "--peer", "b:1"], &[]).unwrap().workers, ["a:1", "b:1"]);
}

#[test]
fn what_a_cluster_sets_for_a_service_named_weft_is_no_setting() {
    let variables = [
        ("WEFT_GATEWAY_SERVICE_HOST", "10.0.0.1"),
        ("WEFT_GATEWAY_SERVICE_PORT", "8080"),
        ("WEFT_GATEWAY_SERVICE_PORT_HTTP", "8080"),
        ("WEFT_GATEWAY_PORT", "tcp://10.0.0.1:8080"),
        ("WEFT_LISTEN_PORT", "udp://10.0.0.1:8080"),
        ("WEFT_GATEWAY_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("WEFT_GATEWAY_PORT_8080_TCP_PROTO", "tcp"),
        ("WEFT_GATEWAY_PORT_8080_TCP_PORT", "8080"),
        ("WEFT_GATEWAY_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("WEFT_TEST_SEED", "7"),
    ];
    assert!(load(&[], &variables).is_ok());
    for typo in [("WEFT_GATEWAY_PORT", "8080"), ("WEFT_PORT_X_TCP", "1"), ("WEFT_LISTEN_HOST", "x")] {
        assert!(load(&[], &[typo]).is_err(), "{typo:?}");
    }
}

#[test]
fn what_is_not_utf_8_is_a_problem_only_where_it_would_be_read() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let odd = || OsString::from_vec(b"a\xff".to_vec());
    let load = |args: Vec<OsString>, variables: Vec<(OsString, OsString)>| {
        Loader::new("example", "an example").section::<Settings>("").load(args, variables)
    };
    assert!(load(vec![], vec![("OTHER".into(), odd()), (odd(), "x".into())]).is_ok());
    for name in ["WEFT_LISTEN", "WEFT_LOG", "MODEL_ID"] {
        let Err(LoadError::Settings(error)) = load(vec![], vec![(name.into(), odd())]) else {
            panic!("{name} accepted")
        };
        assert!(error.to_string().contains(&format!("{name}: the value is not UTF-8")), "{error}");
    }
    for args in [vec!["--listen".into(), odd()], vec![odd()]] {
        let Err(LoadError::Usage(usage)) = load(args, vec![]) else { panic!("accepted") };
        assert_eq!(usage.exit_code(), 2);
    }
}

#[test]
fn what_gave_a_value_is_known() {
    use weft_service_kit::settings::Source;
    let file = file("listen = 'file:1'\n");
    let args = ["--config", file.path().to_str().unwrap(), "--model-id", "/m"].map(str::to_owned);
    let variables = [("WEFT_LISTEN".to_owned(), "variable:1".to_owned()), ("MODEL_ID".to_owned(), "/n".to_owned())];
    let loaded = Loader::new("example", "an example").section::<Settings>("").load(args, variables).unwrap();
    assert_eq!(loaded.source("", "listen"), Some(Source::Variable));
    assert_eq!(loaded.given("", "listen").len(), 2);
    assert!(loaded.given("", "listen")[0].place.ends_with("listen"));
    assert_eq!(loaded.source("", "model"), Some(Source::Flag));
    assert!(loaded.given("", "model").iter().all(|given| given.by_alias));
    assert_eq!(loaded.source("", "workers"), None);
}

#[test]
fn a_program_may_be_asked_to_check_its_settings_only() {
    let load = |checkable: bool, args: &[&str]| {
        let loader = Loader::new("example", "an example").section::<Settings>("");
        let loader = if checkable { loader.checkable() } else { loader };
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        loader.load(args, std::iter::empty::<(String, String)>()).map(|loaded| loaded.is_check_only())
    };
    assert!(load(true, &["--check-settings"]).unwrap());
    assert!(!load(true, &["--listen", "a:1"]).unwrap());
    let Err(LoadError::Usage(_)) = load(false, &["--check-settings"]) else { panic!("nobody would obey the flag") };
    let Err(LoadError::Settings(_)) = load(true, &["--check-settings", "--verbose=maybe"]) else { panic!("accepted") };
}
