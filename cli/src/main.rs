//! The `weft` program: the embedded mesh, and a command line for the admin API.

use anyhow::{Context, Result, bail};
use clap::{Args, CommandFactory, Parser, Subcommand};
use serde_json::Value;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use weft_cli::client::Admin;
use weft_cli::experiment::{self, Printed};
use weft_cli::limits::LimitFlags;
use weft_cli::policy::PolicyFlags;
use weft_cli::{bench, demo, embedded, merge, model, probe, up, usage};

#[derive(Parser)]
#[command(name = "weft", version, about = "Many LoRA adapters over one resident base model")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the four services in this process: gateway, registry, cache daemon and worker (`weft up --help` lists its settings)
    #[command(disable_help_flag = true)]
    Up {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        settings: Vec<String>,
    },
    /// Three tenants, three adapters, one base: the story this program exists for
    Demo {
        /// Stop after the transcript
        #[arg(long, env = "DEMO_ONCE", value_parser = clap::builder::FalseyValueParser::new(), num_args = 0, action = clap::ArgAction::SetTrue)]
        once: bool,
        /// Folder with the example adapters
        #[arg(long)]
        examples: Option<PathBuf>,
        /// Settings of `weft up`, after `--`
        #[arg(last = true)]
        settings: Vec<String>,
    },
    /// Base models
    Model {
        #[command(subcommand)]
        command: ModelCommand,
    },
    /// Publish a PEFT package (a folder, or a .tar or .tar.gz of one) as the next version of an adapter
    Publish {
        /// Folder or archive with adapter_config.json and adapter_model.safetensors
        folder: PathBuf,
        #[arg(long)]
        tenant: String,
        /// Name of the adapter; default: the folder's or the archive's name
        #[arg(long)]
        name: Option<String>,
        /// Alias to move to the new version, or `none`
        #[arg(long, default_value = "live")]
        alias: String,
        /// Ask the version the prompts of this JSON file first, `{"prompts": [{"prompt": "…", "contains": ["…"]}]}`: it is shown to nobody, and the alias does
        /// not move, unless it answers as it should
        #[arg(long, value_name = "FILE")]
        smoke: Option<PathBuf>,
        /// Show it to nobody until `weft release`
        #[arg(long, conflicts_with = "smoke")]
        quarantine: bool,
        #[command(flatten)]
        api: Api,
    },
    /// Publish a package from elsewhere: hf://org/name[@revision], s3://bucket/prefix or file:///path on the registry's machine
    Import {
        source: String,
        #[arg(long)]
        tenant: String,
        #[arg(long)]
        name: String,
        /// Alias to move to the new version, or `none`
        #[arg(long, default_value = "live")]
        alias: String,
        #[command(flatten)]
        api: Api,
    },
    /// Show what tenants used, by day, adapter and version
    Usage {
        #[command(flatten)]
        usage: usage::Flags,
        #[command(flatten)]
        api: Api,
    },
    /// Merge versions of a tenant's adapters into a new version of one
    Merge {
        #[arg(long)]
        tenant: String,
        /// The adapter that gets the version
        name: String,
        #[command(flatten)]
        merge: merge::Flags,
        /// Alias to move to it; `none` moves none
        #[arg(long, default_value = "live")]
        alias: String,
        #[command(flatten)]
        api: Api,
    },
    /// List a tenant's adapters, or the versions of one
    Adapters {
        #[arg(long)]
        tenant: String,
        /// One adapter: list its versions
        name: Option<String>,
        #[command(flatten)]
        api: Api,
    },
    /// Move an alias to a version
    Alias {
        #[arg(long)]
        tenant: String,
        name: String,
        alias: String,
        version: u64,
        /// Only if the alias still has this ETag
        #[arg(long)]
        if_match: Option<String>,
        #[command(flatten)]
        api: Api,
    },
    /// Move an alias back to what it meant before its last move
    Rollback {
        #[arg(long)]
        tenant: String,
        name: String,
        #[arg(default_value = "live")]
        alias: String,
        /// Only if the alias still has this ETag
        #[arg(long)]
        if_match: Option<String>,
        #[command(flatten)]
        api: Api,
    },
    /// Show what an alias meant before, when and by whom it was moved
    History {
        #[arg(long)]
        tenant: String,
        name: String,
        #[arg(default_value = "live")]
        alias: String,
        #[command(flatten)]
        api: Api,
    },
    /// Delete a version that nothing holds; its number is never given again
    Delete {
        #[arg(long)]
        tenant: String,
        name: String,
        version: u64,
        #[command(flatten)]
        api: Api,
    },
    /// Clean up: versions that nothing holds, and the bytes of those that went long enough ago
    Gc {
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
        /// One tenant; absent: all
        #[arg(long)]
        tenant: Option<String>,
        /// Newest versions of an adapter to keep, in place of the registry's setting
        #[arg(long)]
        keep_versions: Option<u64>,
        /// Seconds for which a new version stays, in place of the registry's setting
        #[arg(long)]
        age_min_s: Option<u64>,
        /// Seconds for which what an alias meant stays, in place of the registry's setting
        #[arg(long)]
        rollback_s: Option<u64>,
        #[command(flatten)]
        api: Api,
    },
    /// Split an alias over versions and compare them
    Experiment {
        #[arg(long, global = true, default_value = "")]
        tenant: String,
        #[command(subcommand)]
        command: experiment::Command,
        #[command(flatten)]
        api: Api,
    },
    /// Print a script that completes this program's arguments: bash, zsh, fish, elvish or powershell
    Completion { shell: clap_complete::Shell },
    /// Keep an adapter in its slot on every worker: `name`, `name@alias` or `name@3`
    Pin(Named),
    /// End a pin
    Unpin(Named),
    /// Free an adapter's memory on every worker where nobody uses it
    Evict(Named),
    /// Show the last placement: epoch, authority, and the workers that should hold each adapter
    Placement {
        #[command(flatten)]
        api: Api,
    },
    /// List the workers that a gateway knows, with the view that it places requests by
    Workers {
        #[command(flatten)]
        api: Api,
    },
    /// End a version's quarantine, and move an alias to it
    Release {
        name: String,
        version: u64,
        #[arg(long)]
        tenant: String,
        /// Alias to move to the version, or `none`
        #[arg(long, default_value = "live")]
        alias: String,
        #[command(flatten)]
        api: Api,
    },
    /// Tenants
    Tenant {
        #[command(subcommand)]
        command: TenantCommand,
    },
    /// API keys of a tenant
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Ask a URL such as http://127.0.0.1:7103/readyz, or tcp://HOST:PORT; the exit status says whether it answers with success
    Probe {
        url: String,
        /// Seconds until it counts as silent
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
        timeout_s: u64,
    },
    /// Measure the embedded mesh: base, one shared adapter, and as many adapters as requests
    Bench(bench::Options),
}

#[derive(Subcommand)]
enum ModelCommand {
    /// Fetch a base model and print its path: `demo` is SmolLM2-135M-Instruct
    Fetch {
        name: String,
        /// Where to keep it
        #[arg(long)]
        cache_dir: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum TenantCommand {
    /// Create a tenant
    Create {
        name: String,
        #[command(flatten)]
        api: Api,
    },
    /// Set a tenant's share of a worker that many want, relative to theirs: 0.01 to 100
    Weight {
        name: String,
        weight: f64,
        #[command(flatten)]
        api: Api,
    },
    /// Set what a tenant may use; what is not given stays
    Limits {
        name: String,
        #[command(flatten)]
        limits: LimitFlags,
        #[command(flatten)]
        api: Api,
    },
    /// Set what a tenant may publish and ask for; what is not given stays
    Policy {
        name: String,
        #[command(flatten)]
        policy: PolicyFlags,
        #[command(flatten)]
        api: Api,
    },
    /// Set the adapter that an absent model name means, or `none` for the base
    Default {
        name: String,
        adapter: String,
        #[command(flatten)]
        api: Api,
    },
    /// List the tenants
    List {
        #[command(flatten)]
        api: Api,
    },
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Create a key; its secret is printed this once
    Create {
        #[arg(long)]
        tenant: String,
        #[arg(long)]
        label: Option<String>,
        #[command(flatten)]
        api: Api,
    },
    /// List the keys
    List {
        #[arg(long)]
        tenant: String,
        #[command(flatten)]
        api: Api,
    },
    /// Set what may be used with a key, besides what its tenant may use; what is not given stays
    Limits {
        #[arg(long)]
        tenant: String,
        id: String,
        #[command(flatten)]
        limits: LimitFlags,
        #[command(flatten)]
        api: Api,
    },
    /// Revoke a key
    Revoke {
        #[arg(long)]
        tenant: String,
        id: String,
        #[command(flatten)]
        api: Api,
    },
}

/// An adapter of a tenant.
#[derive(Args)]
struct Named {
    #[arg(long)]
    tenant: String,
    name: String,
    #[command(flatten)]
    api: Api,
}

/// How to reach the admin API.
#[derive(Args)]
struct Api {
    /// Admin listener
    #[arg(long, global = true, env = "WEFT_ADMIN_URL", default_value = "http://127.0.0.1:8081")]
    admin_url: String,
    #[arg(long, global = true, env = "WEFT_ADMIN_KEY", hide_env_values = true)]
    admin_key: Option<String>,
    /// File that holds the admin key
    #[arg(long, global = true, env = "WEFT_ADMIN_KEY_FILE")]
    admin_key_file: Option<PathBuf>,
    /// Print JSON: what every command does that is not asked for a table or a page
    #[arg(long, global = true)]
    json: bool,
}

impl Api {
    fn client(&self) -> Result<Admin> {
        if !self.admin_url.starts_with("http://") {
            bail!("--admin-url {}: must begin with http:// (https is not spoken)", self.admin_url);
        }
        // A flag wins over the variable of the other form.
        let of_variable = |name: &str, value: &str| std::env::var(name).is_ok_and(|set| set == value);
        let key = match (&self.admin_key, &self.admin_key_file) {
            (Some(key), Some(path)) => {
                let path_text = path.to_string_lossy();
                match (of_variable("WEFT_ADMIN_KEY", key), of_variable("WEFT_ADMIN_KEY_FILE", &path_text)) {
                    (true, false) => up::read_key_file(path)?,
                    (false, true) => key.clone(),
                    _ => bail!("both an admin key and an admin key file are given: leave one of them out"),
                }
            }
            (Some(key), None) => key.clone(),
            (None, Some(path)) => up::read_key_file(path)?,
            (None, None) => {
                let path = up::default_data_dir().join(up::ADMIN_KEY_FILE);
                up::read_key_file(&path)
                    .context("no admin key: give --admin-key, --admin-key-file or WEFT_ADMIN_KEY")?
            }
        };
        Ok(Admin::new(&self.admin_url, &key))
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(run(cli.command));
    // Blocking work that is still under way (a model being read) must not hold up the exit.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Up { settings } => up::run(settings).await,
        Command::Demo { once, examples, settings } => {
            let examples = demo::examples_dir(examples)?;
            let (mesh, shutdown) = embedded::start_demo(settings).await?;
            let ask_yourself = demo::tell(&mesh, &examples).await?;
            if once {
                shutdown.trigger();
            } else {
                println!("\n{ask_yourself}");
                println!("\nserving on {} until Ctrl-C", mesh.data_url());
            }
            mesh.finished().await
        }
        Command::Model { command: ModelCommand::Fetch { name, cache_dir } } => {
            println!("{}", model::fetch(&name, cache_dir).await?.display());
            Ok(())
        }
        Command::Publish { folder, tenant, name, alias, smoke, quarantine, api } => {
            let name = match name {
                Some(name) => name,
                None => {
                    let last = folder.file_name().context("the folder has no name: give --name")?;
                    let last = last.to_string_lossy();
                    last.trim_end_matches(".gz").trim_end_matches(".tgz").trim_end_matches(".tar").to_owned()
                }
            };
            let (alias, admin) = ((alias != "none").then_some(alias.as_str()), api.client()?);
            if quarantine {
                return print_json(&serde_json::to_value(admin.publish_quarantined(&tenant, &name, &folder).await?)?);
            }
            let Some(smoke) = smoke else {
                return print_json(&serde_json::to_value(admin.publish(&tenant, &name, &folder, alias).await?)?);
            };
            let prompts = std::fs::read(&smoke).with_context(|| smoke.display().to_string())?;
            let prompts: Value = serde_json::from_slice(&prompts).with_context(|| smoke.display().to_string())?;
            let published = admin.publish_quarantined(&tenant, &name, &folder).await?;
            let mut printed = serde_json::to_value(&published)?;
            let version = published.version;
            let asked = admin.smoke(&tenant, &name, version, alias, &prompts).await;
            printed["smoke"] = asked.with_context(|| {
                format!("version {version} of {name} stays in quarantine: `weft release` shows it, `weft delete` takes it away")
            })?;
            printed["quarantined"] = false.into();
            print_json(&printed)
        }
        Command::Release { name, version, tenant, alias, api } => {
            let alias = (alias != "none").then_some(alias.as_str());
            print_json(&api.client()?.release(&tenant, &name, version, alias).await?)
        }
        Command::Import { source, tenant, name, alias, api } => {
            let alias = (alias != "none").then_some(alias.as_str());
            print_json(&api.client()?.import(&tenant, &name, &source, alias).await?)
        }
        Command::Usage { usage, api } => usage::run(&api.client()?, usage).await,
        Command::Merge { tenant, name, merge, alias, api } => {
            let alias = (alias != "none").then_some(alias.as_str());
            print_json(&api.client()?.merge(&tenant, &name, &merge.json()?, alias).await?)
        }
        Command::Adapters { tenant, name: None, api } => print_json(&api.client()?.adapters(&tenant).await?),
        Command::Adapters { tenant, name: Some(name), api } => {
            print_json(&api.client()?.versions(&tenant, &name).await?)
        }
        Command::Alias { tenant, name, alias, version, if_match, api } => {
            print_json(&api.client()?.set_alias(&tenant, &name, &alias, version, if_match.as_deref()).await?)
        }
        Command::Rollback { tenant, name, alias, if_match, api } => {
            print_json(&api.client()?.roll_back(&tenant, &name, &alias, if_match.as_deref()).await?)
        }
        Command::History { tenant, name, alias, api } => {
            print_json(&api.client()?.alias_history(&tenant, &name, &alias).await?)
        }
        Command::Delete { tenant, name, version, api } => {
            api.client()?.delete_version(&tenant, &name, version).await?;
            print_json(&serde_json::json!({ "adapter": name, "version": version, "deleted": true }))
        }
        Command::Gc { dry_run, tenant, keep_versions, age_min_s, rollback_s, api } => {
            let mut asked = serde_json::json!({ "dry_run": dry_run });
            let numbers = [("keep_versions", keep_versions), ("age_min_s", age_min_s), ("rollback_s", rollback_s)];
            for (name, number) in numbers.into_iter().filter_map(|(name, number)| Some((name, number?))) {
                asked[name] = number.into();
            }
            if let Some(tenant) = tenant {
                asked["tenant"] = tenant.into();
            }
            print_json(&api.client()?.post("gc", &asked).await?)
        }
        Command::Experiment { tenant, command, api } => {
            if tenant.is_empty() {
                bail!("--tenant is missing: whose experiments?");
            }
            match experiment::run(&api.client()?, &tenant, command).await? {
                Printed::Json(value) => print_json(&value),
                Printed::Text(text) => print(&text),
            }
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            // Its settings are read elsewhere.
            let mut command = Cli::command().mut_subcommand("up", |up| up.args(embedded::flags()));
            clap_complete::generate(shell, &mut command, "weft", &mut script);
            print(&String::from_utf8(script)?)
        }
        Command::Pin(Named { tenant, name, api }) => print_json(&api.client()?.pin(&tenant, &name).await?),
        Command::Unpin(Named { tenant, name, api }) => print_json(&api.client()?.unpin(&tenant, &name).await?),
        Command::Evict(Named { tenant, name, api }) => print_json(&api.client()?.evict(&tenant, &name).await?),
        Command::Workers { api } => print_json(&api.client()?.get("workers").await?),
        Command::Placement { api } => print_json(&api.client()?.get("placement").await?),
        Command::Tenant { command: TenantCommand::Create { name, api } } => {
            print_json(&api.client()?.create_tenant(&name).await?)
        }
        Command::Tenant { command: TenantCommand::Weight { name, weight, api } } => {
            print_json(&api.client()?.set_weight(&name, weight).await?)
        }
        Command::Tenant { command: TenantCommand::Limits { name, limits, api } } => {
            print_json(&api.client()?.set_limits(&name, &limits.json()).await?)
        }
        Command::Tenant { command: TenantCommand::Policy { name, policy, api } } => {
            print_json(&api.client()?.set_policy(&name, &policy.json()).await?)
        }
        Command::Tenant { command: TenantCommand::Default { name, adapter, api } } => {
            let adapter = if adapter == "none" { "" } else { &adapter };
            print_json(&api.client()?.set_default_adapter(&name, adapter).await?)
        }
        Command::Tenant { command: TenantCommand::List { api } } => print_json(&api.client()?.get("tenants").await?),
        Command::Key { command: KeyCommand::Create { tenant, label, api } } => {
            print_json(&serde_json::to_value(api.client()?.create_key(&tenant, label.as_deref()).await?)?)
        }
        Command::Key { command: KeyCommand::List { tenant, api } } => {
            print_json(&api.client()?.get(&format!("tenants/{tenant}/keys")).await?)
        }
        Command::Key { command: KeyCommand::Limits { tenant, id, limits, api } } => {
            print_json(&api.client()?.set_key_limits(&tenant, &id, &limits.json()).await?)
        }
        Command::Key { command: KeyCommand::Revoke { tenant, id, api } } => {
            api.client()?.revoke_key(&tenant, &id).await?;
            print_json(&serde_json::json!({ "id": id, "revoked": true }))
        }
        Command::Probe { url, timeout_s } => probe::run(&url, Duration::from_secs(timeout_s)).await,
        Command::Bench(options) => bench::run(options).await,
    }
}

fn print_json(value: &Value) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // `| head` has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
