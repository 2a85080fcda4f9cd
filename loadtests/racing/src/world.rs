//! An S3 server and registries as processes. A registry is killed with `kill -9` and started again at the same address.

use crate::package;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tonic::transport::Channel;
use weft_object_store::{S3Settings, S3Store};
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::registry_client::RegistryClient;
use weft_service_kit::transport::{Address, MESSAGE_BYTES_MAX, connect};

/// The tenant of all adapters.
pub const TENANT: &str = "harbour";
const KEY: &str = "racing-key";
const SECRET: &str = "racing-secret";
const BUCKET: &str = "weft";
/// How long a process may take to say where it listens.
const START: Duration = Duration::from_secs(60);

/// Processor time, user and system, of this process, the S3 server and all registries together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// This process.
    pub client: Duration,
    /// The S3 server.
    pub s3: Duration,
    /// The registries.
    pub registry: Duration,
}

impl std::ops::Sub for Cpu {
    type Output = Self;

    /// What was spent since `earlier`.
    fn sub(self, earlier: Self) -> Self {
        Self {
            client: self.client.saturating_sub(earlier.client),
            s3: self.s3.saturating_sub(earlier.s3),
            registry: self.registry.saturating_sub(earlier.registry),
        }
    }
}

impl std::ops::AddAssign for Cpu {
    fn add_assign(&mut self, more: Self) {
        self.client += more.client;
        self.s3 += more.s3;
        self.registry += more.registry;
    }
}

/// A registry's gRPC face.
pub type Client = RegistryClient<Channel>;

/// The processes.
pub struct World {
    bins: PathBuf,
    endpoint: String,
    s3: Child,
    registries: Vec<Registry>,
    _folder: tempfile::TempDir,
}

struct Registry {
    child: Option<Child>,
    socket: PathBuf,
    log: PathBuf,
}

/// Starts a program and reads its lines until one has this prefix; gives back what follows it.
async fn started(command: &mut Command, prefix: &str) -> Result<(Child, String)> {
    let mut child =
        command.stdout(Stdio::piped()).kill_on_drop(true).spawn().with_context(|| format!("{command:?}"))?;
    let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines();
    let said = tokio::time::timeout(START, async {
        while let Some(line) = lines.next_line().await? {
            if let Some(rest) = line.strip_prefix(prefix) {
                return Ok(Some(rest.to_owned()));
            }
        }
        Ok::<_, std::io::Error>(None)
    });
    let Some(said) = said.await.with_context(|| format!("{command:?} says nothing"))?? else {
        bail!("{command:?} ended early");
    };
    // Read on, so that it never waits for us.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok((child, said))
}

/// User and system time of a process, in steps of 10 ms (`USER_HZ`).
fn cpu_of(process: &str) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // Behind the name, which may have anything in it: the state is field 3, utime field 14, stime field 15.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().skip(11).take(2);
    let ticks = fields.map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 10))
}

impl World {
    /// Starts the S3 server and so many registries, with the base announced and the tenant there. `bins`: where `weft-embedded-s3` and
    /// `weft-adapter-registry` are.
    ///
    /// # Errors
    /// A process does not start.
    pub async fn start(bins: &Path, registries: usize) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut s3 = Command::new(bins.join("weft-embedded-s3"));
        s3.args(["--listen", "127.0.0.1:0", "--access-key-id", KEY]).arg("--dir").arg(folder.path().join("s3"));
        s3.env("WEFT_S3_SECRET_ACCESS_KEY", SECRET);
        let (s3, endpoint) = started(&mut s3, "endpoint=").await?;
        let of = |at: usize| Registry {
            child: None,
            socket: folder.path().join(format!("registry-{at}")),
            log: folder.path().join(format!("registry-{at}.log")),
        };
        let registries = (0..registries).map(of).collect();
        let mut world = Self { bins: bins.to_owned(), endpoint, s3, registries, _folder: folder };
        for at in 0..world.registries.len() {
            world.launch(at).await?;
        }
        let mut client = world.client(0)?;
        client.announce_base(package::base()).await?;
        let request = pb::CreateTenantRequest { name: TENANT.to_owned(), ..Default::default() };
        client.create_tenant(request).await?;
        Ok(world)
    }

    /// Starts a registry that does not run.
    ///
    /// # Errors
    /// It does not start.
    pub async fn launch(&mut self, at: usize) -> Result<()> {
        let registry = &mut self.registries[at];
        let _ = std::fs::remove_file(&registry.socket);
        let log = std::fs::File::options().create(true).append(true).open(&registry.log)?;
        let mut command = Command::new(self.bins.join("weft-adapter-registry"));
        command
            .arg("--listen")
            .arg(format!("unix:{}", registry.socket.display()))
            .args(["--s3-endpoint", &self.endpoint, "--s3-bucket", BUCKET, "--publishes-max", "64"])
            .env("WEFT_S3_ACCESS_KEY_ID", KEY)
            .env("WEFT_S3_SECRET_ACCESS_KEY", SECRET)
            .env("WEFT_LOG", "error")
            .stderr(log);
        let (child, _) = started(&mut command, "listening on ").await?;
        registry.child = Some(child);
        Ok(())
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// It cannot be killed.
    pub async fn kill(&mut self, at: usize) -> Result<()> {
        if let Some(mut child) = self.registries[at].child.take() {
            child.start_kill()?;
            child.wait().await?;
        }
        Ok(())
    }

    /// How many registries there are, running or not.
    #[must_use]
    pub fn registries(&self) -> usize {
        self.registries.len()
    }

    /// What the processes have spent so far, those that run.
    ///
    /// # Errors
    /// There is no `/proc`.
    pub fn cpu(&self) -> Result<Cpu> {
        let of =
            |child: Option<&Child>| child.and_then(Child::id).map_or(Ok(Duration::ZERO), |id| cpu_of(&id.to_string()));
        let registries = self.registries.iter().map(|registry| of(registry.child.as_ref()));
        Ok(Cpu { client: cpu_of("self")?, s3: of(Some(&self.s3))?, registry: registries.sum::<Result<_>>()? })
    }

    /// A client of a registry; it connects when it is first used, and again when the registry is back.
    ///
    /// # Errors
    /// The folder's path is no address.
    pub fn client(&self, at: usize) -> Result<Client> {
        let address: Address = format!("unix:{}", self.registries[at].socket.display()).parse()?;
        Ok(RegistryClient::new(connect(&address))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// The S3 server itself.
    ///
    /// # Errors
    /// It cannot be reached.
    pub async fn store(&self) -> Result<S3Store> {
        let settings = S3Settings {
            endpoint: Some(self.endpoint.clone()),
            bucket: BUCKET.to_owned(),
            access_key_id: Some(KEY.to_owned()),
            secret_access_key: Some(SECRET.to_owned()),
            prefix: String::new(),
            region: "us-east-1".to_owned(),
            path_style: true,
        };
        Ok(S3Store::connect(&settings).await?)
    }
}
