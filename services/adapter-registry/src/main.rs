//! `weft-adapter-registry`: settings, logs, the object store, then [`App`] until SIGTERM.

use std::process::ExitCode;
use std::sync::Arc;
use weft_adapter_registry::{App, Error, Settings};
use weft_fault::{Fault, Kind};
use weft_object_store::S3Store;
use weft_service_kit::operations::Operations;
use weft_service_kit::settings::{Loader, report_check, shown};
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::telemetry::{self, LogFormat};
use weft_service_kit::transport::{Address, Backoff, Peers, Service, WrongSetting};

/// The exit code of wrong settings.
const USAGE: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let loader =
        Loader::new("weft-adapter-registry", "Publishes, validates, versions and stores adapters; tenants and keys");
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

/// What a start refuses before it touches anything. The address to listen at, and by whom, if all of it holds.
fn check(settings: &Settings, metrics: &prometheus::Registry) -> Result<(Address, Peers), Fault> {
    settings.check()?;
    let wrong = |wrong: WrongSetting| Fault::invalid(wrong.setting, wrong.problem);
    let peers = settings.peers(Service::Registry, metrics).map_err(wrong)?;
    Ok((peers.address("listen", &settings.listen).map_err(wrong)?, peers))
}

async fn run(settings: Settings) -> Result<(), Fault> {
    let metrics = prometheus::Registry::new();
    let (address, peers) = check(&settings, &metrics)?;
    let shutdown = Shutdown::on_signals().map_err(|error| Fault::internal(format!("signals: {error}")))?;
    // The port first: a taken one is known at once, not after the store has been read.
    let listener = peers.listen(&address).await.map_err(|error| Fault::unavailable(error.to_string()))?;
    let operations = Operations::start(&settings.metrics_listen, &metrics, &shutdown).await;
    let operations = operations.map_err(|error| Fault::unavailable(error.to_string()))?;
    if let Some(address) = operations.address() {
        println!("metrics on {address}");
    }
    let bus = weft_bus::connect(settings.nats("weft-adapter-registry"), &metrics)
        .map_err(|error| Fault::invalid("nats_url", error.to_string()))?;
    let store = S3Store::connect(&settings.s3()).await?;
    let ready = async {
        ensure_bucket(&store, settings.store_wait_ms).await?;
        Ok::<_, Fault>(App::build(settings, Arc::new(store), &metrics).await?)
    };
    let app = tokio::select! {
        app = ready => app?.with_bus(bus),
        () = shutdown.wait() => return Ok(()),
    };
    operations.follow(&app.readiness());
    // One line for whoever started us: with port 0 it is the only way to know the port.
    println!("listening on {}", listener.address());
    app.run(listener, shutdown).await.map_err(|error: Error| error.into())
}

async fn ensure_bucket(store: &S3Store, wait_ms: u64) -> Result<(), Fault> {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_millis(wait_ms);
    let mut backoff = Backoff::default();
    loop {
        match store.ensure_bucket().await.map_err(Fault::from) {
            Err(fault)
                if matches!(fault.kind, Kind::Unavailable | Kind::Timeout)
                    && tokio::time::Instant::now() < deadline =>
            {
                tracing::warn!(%fault, "waiting for the object store");
                backoff.wait().await;
            }
            result => return result,
        }
    }
}
