//! `weft-worker`: settings, logs, the base model, then [`App`] until SIGTERM.

use std::process::ExitCode;

use weft_service_kit::operations::Operations;
use weft_service_kit::settings::{Loader, report_check, shown};
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::telemetry::{self, LogFormat};
use weft_service_kit::transport::{Address, ListenError, Peers, Service};
use weft_worker::{App, Components, Error, Settings};

/// The exit code of wrong settings.
const USAGE: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let loader = Loader::new("weft-worker", "Serves one base model and many adapters");
    let loaded = loader.checkable().section::<Settings>("").load(std::env::args_os().skip(1), std::env::vars_os());
    let loaded = loaded.and_then(|loaded| Ok((loaded.get::<Settings>("")?, loaded.is_check_only())));
    let (settings, check_only) = loaded.unwrap_or_else(|error| error.exit());
    if check_only {
        return report_check(settings.validate());
    }
    let json = std::env::var("WEFT_LOG_FORMAT").is_ok_and(|format| format == "json");
    let filter = std::env::var("WEFT_LOG").unwrap_or_else(|_| "info".to_owned());
    telemetry::init(if json { LogFormat::Json } else { LogFormat::Text }, &filter);
    tracing::info!(settings = shown(&settings), "starting");
    match serve(settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            let is_usage = matches!(error.downcast_ref(), Some(Error::Settings(_)));
            if is_usage { USAGE.into() } else { ExitCode::FAILURE }
        }
    }
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    let nats = settings.nats(format!("weft-worker {}", settings.name));
    let wrong = |problem: String| Error::Settings(vec![problem]);
    let metrics = prometheus::Registry::new();
    let peers = Peers::new(Service::Worker, settings.tls(), &metrics).map_err(wrong)?;
    let connect = |name: &str, address: &Address, to| {
        peers.connect(address, to).map_err(|refused| wrong(format!("{name}: {refused}")))
    };
    let components = Components {
        cache_daemon: connect("cache", &settings.cache_address()?, Service::CacheDaemon)?,
        registry: settings
            .registry_address()?
            .map(|address| connect("registry", &address, Service::Registry))
            .transpose()?,
    };
    let shutdown = Shutdown::on_signals()?;
    // The port first: a taken one is known at once, not after the model has been read.
    let listener = match peers.listen(&settings.listen_address()?).await {
        Err(ListenError::Plaintext(refused)) => return Err(wrong(format!("listen: {refused}")).into()),
        listener => listener?,
    };
    let bus = weft_bus::connect(nats, &metrics).map_err(|error| wrong(error.to_string()))?;
    let operations = Operations::start(&settings.metrics_listen, &metrics, &shutdown).await?;
    if let Some(address) = operations.address() {
        println!("metrics on {address}");
    }
    let app = tokio::select! {
        app = App::build(settings, components, &metrics) => app?.with_bus(bus),
        () = shutdown.wait() => return Ok(()),
    };
    operations.follow(&app.readiness());
    // One line for whoever started us: with port 0 it is the only way to know the port.
    println!("listening on {}", listener.address());
    Ok(app.run(listener, shutdown).await?)
}
