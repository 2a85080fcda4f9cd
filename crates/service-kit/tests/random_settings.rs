//! Settings from any text: the answer is settings or problems, never a panic, and a value that was taken is the value
//! that was given.

use proptest::prelude::*;
use std::io::Write;
use weft_service_kit::settings::{LoadError, Loader};

weft_service_kit::settings! {
    /// One field of each kind.
    pub struct Settings {
        /// A text.
        pub name: String = String::new(),
        /// A count.
        pub count: u32 = 7,
        /// A number.
        pub share: f64 = 0.5,
        /// A switch.
        pub verbose: bool = false,
        /// A list.
        pub peers: Vec<String> = Vec::new(),
        /// A path that may be absent.
        pub path: Option<std::path::PathBuf> = None,
        /// An address.
        pub at: std::net::SocketAddr = ([127, 0, 0, 1], 1).into(),
        /// Never shown.
        secret pub key: Option<String> = None,
    }
    aliases { "num-count" => count }
}

fn load(args: Vec<String>, variables: Vec<(String, String)>) -> Result<Settings, LoadError> {
    Ok(Loader::new("example", "an example").section::<Settings>("").load(args, variables)?.get("")?)
}

fn from_file(text: &str) -> Result<Settings, LoadError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    load(vec!["--config".into(), file.path().to_str().unwrap().into()], Vec::new())
}

const KEYS: [&str; 11] =
    ["name", "count", "share", "verbose", "peers", "path", "at", "key", "num_count", "nam", "config"];

/// A TOML value, or nearly.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| number.to_string()),
        any::<bool>().prop_map(|on| on.to_string()),
        "[a-z0-9.:,/ ]{0,12}".prop_map(|text| format!("{text:?}")),
        prop::collection::vec("[a-z]{0,4}", 0..3).prop_map(|items| format!("{items:?}")),
        prop::sample::select(vec![
            "{ a = 1 }",
            "[1, 'a']",
            "1979-05-27",
            "0x10",
            "1_000",
            "inf",
            "'",
            "[",
            "\"\\u12\""
        ])
        .prop_map(str::to_owned),
        any::<String>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_file_of_nearly_settings_is_read_or_refused(
        lines in prop::collection::vec((prop::sample::select(KEYS.to_vec()), value()), 0..5),
        head in prop::sample::select(vec!["", "[worker]\n", "[[name]]\n", "# said\n"]),
    ) {
        let text: String = lines.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        let text = format!("{head}{text}");
        match from_file(&text) {
            Ok(settings) => {
                // What TOML itself reads for a key is what arrived.
                let table: toml::Table = text.parse().map_err(|error| TestCaseError::fail(format!("{error}")))?;
                let count = table.get("count").map_or(7, |count| count.as_integer().expect("a number"));
                prop_assert_eq!(i64::from(settings.count), count);
                let name = table.get("name").map_or("", |name| name.as_str().expect("a text"));
                prop_assert_eq!(&settings.name, name);
                prop_assert!(table.keys().all(|key| KEYS[..8].contains(&key.as_str())), "an unknown key was accepted");
            }
            Err(LoadError::Settings(error)) => prop_assert!(error.problems.iter().all(|problem| !problem.is_empty())),
            Err(LoadError::Usage(error)) => prop_assert!(false, "{}", error),
        }
    }

    #[test]
    fn any_bytes_as_a_file_are_read_or_refused(text in any::<String>()) {
        if let Err(error) = from_file(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn variables_and_flags_of_any_text_are_read_or_refused(
        name in prop::sample::select(vec!["NAME", "COUNT", "SHARE", "VERBOSE", "PEERS", "PATH_", "AT", "KEY", "CONFIG"]),
        text in prop_oneof!["[0-9.eE+-]{1,20}", "[a-z,: ]{0,20}", any::<String>()],
        as_flag in any::<bool>(),
    ) {
        let (args, variables) = match as_flag {
            true => (vec![format!("--{}={text}", name.to_lowercase())], Vec::new()),
            false => (Vec::new(), vec![(format!("WEFT_{name}"), text.clone())]),
        };
        match load(args, variables) {
            Ok(settings) => match name {
                "NAME" => prop_assert_eq!(&settings.name, &text),
                "COUNT" => prop_assert_eq!(Ok(settings.count), text.parse::<u32>()),
                "VERBOSE" => prop_assert!(settings.verbose == (text != "false")),
                _ => {}
            },
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}
