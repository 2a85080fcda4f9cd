//! Settings: one struct a service, declared once with [`settings!`](crate::settings!), filled in this order, later wins:
//! the field's default, a TOML file, an upper-case variable of an alias, a `WEFT_*` variable, a flag.
//!
//! A field `step_tokens_max` of the section `worker` is the key `step_tokens_max` in the table `[worker]` of the file,
//! the variable `WEFT_WORKER_STEP_TOKENS_MAX` and the flag `--worker-step-tokens-max`. A program with one section
//! leaves its name away. Unknown keys, variables and flags are refused, and all problems are reported at once.

use clap::{Arg, ArgAction, Command};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// One field of a settings struct.
#[derive(Clone, Copy)]
pub struct Field {
    /// Name in the struct and in the file.
    pub name: &'static str,
    /// Lines of its documentation.
    pub doc: &'static [&'static str],
    /// Reads the text of a variable or a flag.
    pub parse: fn(&str) -> Result<Value, String>,
    /// Never printed.
    pub secret: bool,
}

/// A struct made by [`settings!`](crate::settings!).
pub trait Settings: DeserializeOwned + Serialize + Default {
    /// Its fields, in order.
    const FIELDS: &'static [Field];
    /// Other names of fields: `(alias in kebab case, field)`. An alias is also a flag and an upper-case variable without
    /// prefix; one of a single letter is a short flag alone.
    const ALIASES: &'static [(&'static str, &'static str)];
}

/// A type that a setting can have.
pub trait SettingValue {
    /// Reads the text of a variable or a flag.
    ///
    /// # Errors
    /// What is expected instead, for people.
    fn parse(text: &str) -> Result<Value, String>;
}

macro_rules! parsed_value {
    ($what:literal: $($ty:ty),+) => {$(
        impl SettingValue for $ty {
            fn parse(text: &str) -> Result<Value, String> {
                let value: $ty = text.parse().map_err(|_| format!("{text:?} is not {}", $what))?;
                serde_json::to_value(value).map_err(|error| error.to_string())
            }
        }
    )+};
}
parsed_value!("a whole number in range": u16, u32, u64, usize);
parsed_value!("a number": f32, f64);
parsed_value!("true or false": bool);
parsed_value!("an address like 127.0.0.1:8080": std::net::SocketAddr);

impl SettingValue for String {
    fn parse(text: &str) -> Result<Value, String> {
        Ok(Value::String(text.to_owned()))
    }
}

impl SettingValue for PathBuf {
    fn parse(text: &str) -> Result<Value, String> {
        Ok(Value::String(text.to_owned()))
    }
}

impl SettingValue for Vec<String> {
    fn parse(text: &str) -> Result<Value, String> {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        Ok(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
    }
}

impl<T: SettingValue> SettingValue for Option<T> {
    fn parse(text: &str) -> Result<Value, String> {
        T::parse(text)
    }
}

/// Everything that is wrong with the settings, one line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", problems.join("\n"))]
pub struct SettingsError {
    /// One line each, naming where it stands, the value and what is expected.
    pub problems: Vec<String>,
}

/// Why a program does not go on with settings.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// `--help` or `--version`: print and leave with status 0. Wrong flags: print and leave with status 2.
    #[error("{0}")]
    Usage(#[from] clap::Error),
    /// The values are wrong: print and leave with status 2.
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

impl LoadError {
    /// Prints the reason and ends the process, as a command line tool does.
    pub fn exit(self) -> ! {
        match self {
            Self::Usage(usage) => usage.exit(),
            Self::Settings(error) => {
                for problem in &error.problems {
                    eprintln!("error: {problem}");
                }
                std::process::exit(USAGE.into());
            }
        }
    }
}

struct Section {
    prefix: &'static str,
    fields: &'static [Field],
    aliases: &'static [(&'static str, &'static str)],
    defaults: Map<String, Value>,
}

impl Section {
    fn flag(&self, field: &Field) -> String {
        let name = field.name.replace('_', "-");
        if self.prefix.is_empty() { name } else { format!("{}-{name}", self.prefix.replace('_', "-")) }
    }

    fn variable(&self, field: &Field) -> String {
        format!("WEFT_{}", self.flag(field).replace('-', "_").to_uppercase())
    }

    fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// Variables that begin with `WEFT_` and are no settings of a service, or settings of the command line that a shell may
/// export for every program it starts.
const OTHER_VARIABLES: &[&str] = &[
    "WEFT_CONFIG",
    "WEFT_LOG",
    "WEFT_LOG_FORMAT",
    "WEFT_ADMIN_URL",
    "WEFT_ADMIN_KEY",
    "WEFT_ADMIN_KEY_FILE",
    "WEFT_DEMO_MODEL",
    "WEFT_CODEGEN",
    "WEFT_TEST_SEED",
    "WEFT_TEST_MOUNT",
];
/// The exit code of wrong settings.
const USAGE: u8 = 2;
const CHECK_FLAG: &str = "check-settings";
/// Alias variables that container runtimes and shells set for their own purposes: accepted as flags only.
const AMBIENT_VARIABLES: &[&str] = &["HOSTNAME"];

/// Whether a variable that begins with `WEFT_` is one of those that Kubernetes and Docker set for a service named `weft-…`.
fn is_service_variable(name: &str, value: &str) -> bool {
    let numbered = name.split("_PORT_").nth(1).is_some_and(|rest| {
        let (number, protocol) = rest.split_once('_').unwrap_or((rest, ""));
        number.parse::<u16>().is_ok() && ["TCP", "UDP", "SCTP"].iter().any(|known| protocol.starts_with(known))
    });
    let link = name.ends_with("_PORT") && value.contains("://");
    name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || numbered || link
}

/// What gave a setting a value, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The settings file.
    File,
    /// The upper-case variable of an alias.
    AliasVariable,
    /// A `WEFT_*` variable.
    Variable,
    /// A flag or that of an alias.
    Flag,
}

/// One place that gave a setting a value.
#[derive(Clone, Debug)]
pub struct Given {
    /// What kind of place.
    pub source: Source,
    /// For people, e.g. `--listen`.
    pub place: String,
    /// By an alias, which may stand for the fields of several sections.
    pub by_alias: bool,
}

/// Sections while they are filled.
#[derive(Default)]
struct Filling {
    values: BTreeMap<&'static str, Map<String, Value>>,
    given: BTreeMap<(&'static str, String), Vec<Given>>,
    problems: Vec<String>,
}

impl Filling {
    fn put(&mut self, section: &Section, name: &str, value: Value, given: Given) {
        self.values.entry(section.prefix).or_default().insert(name.to_owned(), value);
        self.given.entry((section.prefix, name.to_owned())).or_default().push(given);
    }

    fn set(&mut self, section: &Section, name: &str, text: &str, given: Given) {
        let field = section.field(name).expect("aliases name fields: tested by `settings_are_sound`");
        let place = &given.place;
        match (field.parse)(text) {
            Ok(value) => self.put(section, name, value, given),
            Err(_) if field.secret => self.problems.push(format!("{place}: the value cannot be read")),
            Err(problem) => self.problems.push(format!("{place}: {problem}")),
        }
    }
}

/// Collects the sections of a program and fills them.
pub struct Loader {
    command: Command,
    sections: Vec<Section>,
    checkable: bool,
}

/// Filled sections.
#[derive(Debug)]
pub struct Loaded {
    check_only: bool,
    sections: BTreeMap<&'static str, Map<String, Value>>,
    given: BTreeMap<(&'static str, String), Vec<Given>>,
}

impl Loader {
    /// A program with this name and one-line description.
    #[must_use]
    pub fn new(name: &'static str, about: &'static str) -> Self {
        let command = Command::new(name).about(about).version(env!("CARGO_PKG_VERSION"));
        Self { command, sections: Vec::new(), checkable: false }
    }

    /// Adds the flag `--check-settings`, with which the program only says whether it would take its settings: see
    /// [`Loaded::is_check_only`] and [`report_check`].
    #[must_use]
    pub fn checkable(mut self) -> Self {
        self.checkable = true;
        self
    }

    /// Adds a settings struct. `prefix` is empty for the program's own section.
    ///
    /// # Panics
    /// If the struct does not serialize to an object: then it was not made by `settings!`.
    #[must_use]
    pub fn section<T: Settings>(self, prefix: &'static str) -> Self {
        self.section_with(prefix, &T::default())
    }

    /// The same with other defaults than the struct's own.
    ///
    /// # Panics
    /// As [`Loader::section`].
    #[must_use]
    pub fn section_with<T: Settings>(mut self, prefix: &'static str, defaults: &T) -> Self {
        let Ok(Value::Object(defaults)) = serde_json::to_value(defaults) else {
            panic!("settings serialize to an object");
        };
        self.sections.push(Section { prefix, fields: T::FIELDS, aliases: T::ALIASES, defaults });
        self
    }

    /// Fills the sections. `args` are the arguments without the program's name; `variables` is the environment. Neither
    /// has to be UTF-8: what is not and would be read is a problem like any other.
    ///
    /// # Errors
    /// Usage, or every wrong value at once.
    pub fn load<A, V, N>(mut self, args: A, variables: V) -> Result<Loaded, LoadError>
    where
        A: IntoIterator<Item: Into<OsString> + Clone>,
        V: IntoIterator<Item = (N, N)>,
        N: Into<OsString>,
    {
        let mut filling = Filling::default();
        let variables = self.readable(variables, &mut filling.problems);
        let command = self.flags();
        let matches = command.no_binary_name(true).try_get_matches_from(args)?;
        filling.values = self.sections.iter().map(|section| (section.prefix, section.defaults.clone())).collect();

        let check_only = self.checkable && matches.get_flag(CHECK_FLAG);
        let config = matches.get_one::<String>("config").cloned().or_else(|| variables.get("WEFT_CONFIG").cloned());
        if let Some(path) = config {
            self.fill_from_file(&path, &mut filling);
        }
        self.fill_from_variables(&variables, &mut filling);
        self.fill_from_flags(&matches, &mut filling);
        let Filling { values, given, problems } = filling;
        if problems.is_empty() {
            Ok(Loaded { check_only, sections: values, given })
        } else {
            Err(SettingsError { problems }.into())
        }
    }

    /// The variables that are text. Of the others only those that would be read are worth a word.
    fn readable<N: Into<OsString>>(
        &self,
        variables: impl IntoIterator<Item = (N, N)>,
        problems: &mut Vec<String>,
    ) -> BTreeMap<String, String> {
        let mut readable = BTreeMap::new();
        for (name, value) in variables {
            let Ok(name) = name.into().into_string() else { continue };
            match value.into().into_string() {
                Ok(value) => {
                    readable.insert(name, value);
                }
                Err(_) if name.starts_with("WEFT_") || self.alias_variables().any(|alias| alias == name) => {
                    problems.push(format!("{name}: the value is not UTF-8"));
                }
                Err(_) => {}
            }
        }
        readable
    }

    fn alias_variables(&self) -> impl Iterator<Item = String> {
        self.sections.iter().flat_map(|section| section.aliases).filter_map(|(alias, _)| alias_variable(alias))
    }

    /// All flags, for those who complete them.
    #[must_use]
    pub fn into_flags(mut self) -> Command {
        self.flags()
    }

    fn flags(&mut self) -> Command {
        let mut command = std::mem::replace(&mut self.command, Command::new("")).arg(
            Arg::new("config").long("config").value_name("FILE").help("TOML file with settings [env: WEFT_CONFIG]"),
        );
        if self.checkable {
            let help = "Say whether the settings hold, and leave: status 0 if they do, else 2 with every problem";
            command = command.arg(Arg::new(CHECK_FLAG).long(CHECK_FLAG).action(ArgAction::SetTrue).help(help));
        }
        let mut aliases_seen = std::collections::BTreeSet::new();
        for section in &self.sections {
            for field in section.fields {
                let default = &section.defaults[field.name];
                let flag = section.flag(field);
                let mut help = field.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
                help.push_str(&format!(" [env: {}]", section.variable(field)));
                if !field.secret && !matches!(default, Value::Null) && default != "" {
                    help.push_str(&format!(" [default: {}]", plain(default)));
                }
                command = command.arg(value_arg(flag, default).help(help));
            }
            for (alias, name) in section.aliases {
                let default = &section.defaults[*name];
                let taken =
                    self.sections.iter().any(|other| other.fields.iter().any(|field| other.flag(field) == *alias));
                if !taken && aliases_seen.insert(*alias) {
                    command = command.arg(value_arg((*alias).to_owned(), default).hide(true));
                }
            }
        }
        command
    }

    fn fill_from_file(&self, path: &str, filling: &mut Filling) {
        let table = match std::fs::read_to_string(path)
            .map_err(|error| error.to_string())
            .and_then(|text| toml::from_str::<Map<String, Value>>(&text).map_err(|error| error.to_string()))
        {
            Ok(table) => table,
            Err(error) => return filling.problems.push(format!("settings file {path}: {error}")),
        };
        let given =
            |key: &str| Given { source: Source::File, place: format!("settings file {path}: {key}"), by_alias: false };
        for (key, value) in table {
            let own = self.sections.iter().find(|s| s.prefix.is_empty() && s.field(&key).is_some());
            let section = self.sections.iter().find(|s| !s.prefix.is_empty() && s.prefix == key);
            match (own, section, value) {
                (Some(own), _, value) => filling.put(own, &key, value, given(&key)),
                (None, Some(section), Value::Object(entries)) => {
                    for (name, value) in entries {
                        if section.field(&name).is_some() {
                            filling.put(section, &name, value, given(&format!("{key}.{name}")));
                        } else {
                            filling.problems.push(format!("settings file {path}: unknown key {key}.{name}"));
                        }
                    }
                }
                _ => filling.problems.push(format!("settings file {path}: unknown key {key}")),
            }
        }
    }

    fn fill_from_variables(&self, variables: &BTreeMap<String, String>, filling: &mut Filling) {
        for section in &self.sections {
            for (alias, name) in section.aliases {
                let Some(variable) = alias_variable(alias) else { continue };
                if let Some(text) = variables.get(&variable) {
                    let given = Given { source: Source::AliasVariable, place: variable, by_alias: true };
                    filling.set(section, name, text, given);
                }
            }
        }
        for (variable, text) in variables.iter().filter(|(name, _)| name.starts_with("WEFT_")) {
            if is_service_variable(variable, text) {
                continue;
            }
            let mut known = OTHER_VARIABLES.contains(&variable.as_str());
            for section in &self.sections {
                if let Some(field) = section.fields.iter().find(|field| section.variable(field) == *variable) {
                    known = true;
                    let given = Given { source: Source::Variable, place: variable.clone(), by_alias: false };
                    filling.set(section, field.name, text, given);
                }
            }
            if !known {
                filling.problems.push(format!("unknown variable {variable}"));
            }
        }
    }

    fn fill_from_flags(&self, matches: &clap::ArgMatches, filling: &mut Filling) {
        // A list may be given piece by piece.
        let given = |flag: &str| {
            let values = matches.try_get_many::<String>(flag).ok().flatten()?;
            Some(values.map(String::as_str).collect::<Vec<_>>().join(","))
        };
        for section in &self.sections {
            for (alias, name) in section.aliases {
                if let Some(text) = given(alias) {
                    let given = Given { source: Source::Flag, place: format!("--{alias}"), by_alias: true };
                    filling.set(section, name, &text, given);
                }
            }
        }
        for section in &self.sections {
            for field in section.fields {
                let flag = section.flag(field);
                if let Some(text) = given(&flag) {
                    let given = Given { source: Source::Flag, place: format!("--{flag}"), by_alias: false };
                    filling.set(section, field.name, &text, given);
                }
            }
        }
    }
}

/// The upper-case variable of an alias, if it has one: a letter has not.
fn alias_variable(alias: &str) -> Option<String> {
    let variable = alias.replace('-', "_").to_uppercase();
    (variable.len() > 1 && !AMBIENT_VARIABLES.contains(&variable.as_str())).then_some(variable)
}

/// A flag for a field with this default. A name of one letter makes `-x`, others `--name`.
fn value_arg(flag: String, default: &Value) -> Arg {
    let mut letters = flag.chars();
    let arg = match (letters.next(), letters.next()) {
        (Some(letter), None) => Arg::new(flag).short(letter),
        _ => Arg::new(flag.clone()).long(flag),
    };
    let arg = arg.value_name("VALUE");
    match default {
        Value::Bool(_) => arg.action(ArgAction::Set).num_args(0..=1).require_equals(true).default_missing_value("true"),
        Value::Array(_) => arg.action(ArgAction::Append),
        _ => arg.action(ArgAction::Set),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

impl Loaded {
    /// Whether the program was asked to check its settings and to leave.
    #[must_use]
    pub fn is_check_only(&self) -> bool {
        self.check_only
    }

    /// Every place that gave this setting a value, weakest first; empty: it has its default.
    #[must_use]
    pub fn given(&self, prefix: &'static str, field: &str) -> &[Given] {
        self.given.get(&(prefix, field.to_owned())).map_or(&[], Vec::as_slice)
    }

    /// What its value comes from; none: the default.
    #[must_use]
    pub fn source(&self, prefix: &'static str, field: &str) -> Option<Source> {
        self.given(prefix, field).iter().map(|given| given.source).max()
    }

    /// The struct of this section.
    ///
    /// # Errors
    /// A value of the file has the wrong type; the message names the key.
    pub fn get<T: Settings>(&self, prefix: &'static str) -> Result<T, SettingsError> {
        let values = self.sections.get(prefix).cloned().unwrap_or_default();
        // Field by field first, so that a wrong type names its key.
        let mut problems = Vec::new();
        for field in T::FIELDS {
            let mut one = match serde_json::to_value(T::default()) {
                Ok(Value::Object(defaults)) => defaults,
                _ => Map::new(),
            };
            if let Some(value) = values.get(field.name) {
                one.insert(field.name.to_owned(), value.clone());
            }
            if let Err(error) = serde_json::from_value::<T>(Value::Object(one)) {
                let key = if prefix.is_empty() { field.name.to_owned() } else { format!("{prefix}.{}", field.name) };
                problems.push(format!("setting {key}: {error}"));
            }
        }
        if !problems.is_empty() {
            return Err(SettingsError { problems });
        }
        serde_json::from_value(Value::Object(values))
            .map_err(|error| SettingsError { problems: vec![error.to_string()] })
    }
}

/// Says how a check ended (`--check-settings`): on stdout that the settings hold, or on stderr what is wrong. The status is
/// for the process to leave with.
pub fn report_check<E: std::fmt::Display>(result: Result<(), E>) -> std::process::ExitCode {
    match result {
        Ok(()) => {
            println!("settings hold");
            std::process::ExitCode::SUCCESS
        }
        Err(error) => {
            for problem in error.to_string().lines() {
                eprintln!("error: {problem}");
            }
            USAGE.into()
        }
    }
}

/// The settings as a line for the log, with secrets hidden.
pub fn shown<T: Settings>(settings: &T) -> String {
    let Ok(Value::Object(values)) = serde_json::to_value(settings) else { return String::new() };
    let shown = T::FIELDS.iter().map(|field| match &values[field.name] {
        Value::Null => format!("{}=-", field.name),
        _ if field.secret => format!("{}=(hidden)", field.name),
        value => format!("{}={}", field.name, plain(value)),
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// Checks a declaration: aliases name fields, names do not repeat. For tests.
///
/// # Panics
/// If the declaration is not sound.
pub fn assert_sound<T: Settings>() {
    let mut names = std::collections::BTreeSet::new();
    for field in T::FIELDS {
        assert!(names.insert(field.name), "field {} repeats", field.name);
        assert!(!field.doc.is_empty(), "field {} is not documented", field.name);
    }
    for (alias, name) in T::ALIASES {
        assert!(names.contains(name), "alias {alias} names no field: {name}");
    }
}

/// Declares a settings struct: fields with their documentation and default, then aliases.
///
/// ```text
/// weft_service_kit::settings! {
///     /// How the example runs.
///     pub struct Settings {
///         /// Most requests at once.
///         pub max_concurrent_requests: usize = 64,
///         /// Who may administer.
///         secret pub admin_key: Option<String> = None,
///     }
///     aliases { "concurrency" => max_concurrent_requests }
/// }
/// assert_eq!(Settings::default().max_concurrent_requests, 64);
/// ```
#[macro_export]
macro_rules! settings {
    (
        $(#[doc = $struct_doc:literal])*
        pub struct $name:ident { $($body:tt)* }
        $(aliases { $($alias:literal => $target:ident),* $(,)? })?
    ) => {
        $crate::settings!(@fields [$(#[doc = $struct_doc])*] $name [$($(($alias, stringify!($target))),*)?] [] $($body)*);
    };
    (@fields $docs:tt $name:ident $aliases:tt [$($done:tt)*]
        $(#[doc = $doc:literal])* secret pub $field:ident : $ty:ty = $default:expr, $($rest:tt)*) => {
        $crate::settings!(@fields $docs $name $aliases [$($done)* { [$($doc),*] $field [$ty] [$default] true }] $($rest)*);
    };
    (@fields $docs:tt $name:ident $aliases:tt [$($done:tt)*]
        $(#[doc = $doc:literal])* pub $field:ident : $ty:ty = $default:expr, $($rest:tt)*) => {
        $crate::settings!(@fields $docs $name $aliases [$($done)* { [$($doc),*] $field [$ty] [$default] false }] $($rest)*);
    };
    (@fields [$(#[doc = $struct_doc:literal])*] $name:ident [$($alias:expr),*]
        [$({ [$($doc:literal),*] $field:ident [$ty:ty] [$default:expr] $secret:literal })*]) => {
        $(#[doc = $struct_doc])*
        #[derive(Clone, Debug, $crate::serde::Serialize, $crate::serde::Deserialize)]
        #[serde(crate = "::weft_service_kit::serde", deny_unknown_fields)]
        pub struct $name { $($(#[doc = $doc])* pub $field: $ty,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $crate::settings::Settings for $name {
            const FIELDS: &'static [$crate::settings::Field] = &[$($crate::settings::Field {
                name: stringify!($field),
                doc: &[$($doc),*],
                parse: <$ty as $crate::settings::SettingValue>::parse,
                secret: $secret,
            },)*];
            const ALIASES: &'static [(&'static str, &'static str)] = &[$($alias),*];
        }
    };
}
