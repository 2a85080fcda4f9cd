//! `weft-cache-daemon`: settings, logs, the object store, then [`App`] until SIGTERM.

use std::process::ExitCode;
use std::sync::Arc;
use weft_cache_daemon::{App, Error, Settings};
use weft_fault::{Fault, Kind};
use weft_object_store::S3Store;
use weft_service_kit::operations::Operations;
use weft_service_kit::settings::{Loader, report_check, shown};
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::telemetry::{self, LogFormat};
use weft_service_kit::transport::{Address, ListenError, Peers, Service, WrongSetting};

/// The exit code of wrong settings.
const USAGE: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let loader =
        Loader::new("weft-cache-daemon", "Brings adapter bytes near once, verified, and keeps them while leased");
    let loaded = loader.checkable().section::<Settings>("").load(std::env::args_os().skip(1), std::env::vars_os());
    let loaded = loaded.and_then(|loaded| Ok((loaded.get::<Settings>("")?, loaded.is_check_only())));
    let (settings, check_only) = loaded.unwrap_or_else(|error| error.exit());
    if check_only {
        return report_check(check(&settings, &prometheus::Registry::new()).map(drop));
    }
    let json = std::env::var("WEFT_LOG_FORMAT").is_ok_and(|format| format == "json");
    let filter = std::env::var("WEFT_LOG").unwrap_or_else(|_| "info".to_owned());
    telemetry::init(if json { LogFormat::Json } else { LogFormat::Text }, &filter);
    tracing::info!(settings = shown(&settings), "starting");
    match run(settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("error: {fault}");
            if fault.kind == Kind::Invalid { USAGE.into() } else { ExitCode::FAILURE }
        }
    }
}

/// By whom to listen, and where: for everybody, and for neighbours alone.
struct Checked {
    peers: Peers,
    listen: Address,
    neighbours_listen: Option<Address>,
}

/// What a start refuses before it touches anything.
fn check(settings: &Settings, metrics: &prometheus::Registry) -> Result<Checked, Fault> {
    settings.check()?;
    let wrong = |wrong: WrongSetting| Fault::invalid(wrong.setting, wrong.problem);
    let peers = settings.peers(Service::CacheDaemon, metrics).map_err(wrong)?;
    let listen = peers.address("listen", &settings.listen).map_err(wrong)?;
    let neighbours_listen = match settings.neighbours_listen.as_str() {
        "" => None,
        text => Some(peers.address("neighbours_listen", text).map_err(wrong)?),
    };
    Ok(Checked { peers, listen, neighbours_listen })
}

async fn run(settings: Settings) -> Result<(), Fault> {
    let metrics = prometheus::Registry::new();
    let Checked { peers, listen, neighbours_listen } = check(&settings, &metrics)?;
    let shutdown = Shutdown::on_signals().map_err(|error| Fault::internal(format!("signals: {error}")))?;
    // The ports first: a taken one is known at once, before the folders are touched.
    let taken = |error: ListenError| Fault::unavailable(error.to_string());
    let listener = peers.listen(&listen).await.map_err(taken)?;
    let neighbours_listener = match &neighbours_listen {
        Some(address) => Some(peers.listen(address).await.map_err(taken)?),
        None => None,
    };
    let operations = Operations::start(&settings.metrics_listen, &metrics, &shutdown).await;
    let operations = operations.map_err(|error| Fault::unavailable(error.to_string()))?;
    if let Some(address) = operations.address() {
        println!("metrics on {address}");
    }
    let store = S3Store::connect(&settings.s3()).await?;
    let bus = weft_bus::connect(settings.nats(format!("weft-cache-daemon {}", settings.name)), &metrics)
        .map_err(|error| Fault::invalid("nats_url", error.to_string()))?;
    let mut app = App::build(settings, Arc::new(store), &metrics)?.with_bus(bus).with_neighbours(peers);
    operations.follow(&app.readiness());
    // For whoever started us: with port 0 it is the only way to know the ports.
    if let Some(listener) = neighbours_listener {
        println!("neighbours listening on {}", listener.address());
        app = app.with_neighbours_listener(listener);
    }
    println!("listening on {}", listener.address());
    app.run(listener, shutdown).await.map_err(|error: Error| error.into())
}
