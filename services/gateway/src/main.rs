//! The gateway as a process of its own: settings, parts, run, drain.

use anyhow::Context;
use std::process::ExitCode;
use weft_gateway::{App, Components, Settings, WorkerEndpoint};
use weft_service_kit::settings::{Loader, report_check, shown};
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::telemetry::{self, LogFormat};
use weft_service_kit::transport::{Address, Listener, Peers, Service};

#[tokio::main]
async fn main() -> ExitCode {
    let loader =
        Loader::new("weft-gateway", "HTTP in front of a Weft mesh: OpenAI's and LoRAX's dialects, and /admin/v1");
    let loaded = loader.checkable().section::<Settings>("").load(std::env::args_os().skip(1), std::env::vars_os());
    let loaded = loaded.and_then(|loaded| Ok((Settings::of(&loaded, "", "")?, loaded.is_check_only())));
    let (settings, check_only) = loaded.unwrap_or_else(|error| error.exit());
    if check_only {
        return report_check(build(settings).map(drop).map_err(|error| format!("{error:#}")));
    }
    let format =
        if std::env::var("WEFT_LOG_FORMAT").as_deref() == Ok("json") { LogFormat::Json } else { LogFormat::Text };
    telemetry::init(format, &std::env::var("WEFT_LOG").unwrap_or_else(|_| "info".to_owned()));
    tracing::info!(settings = shown(&settings), "starting");
    let failed = |code: u8| {
        move |error: anyhow::Error| {
            eprintln!("error: {error:#}");
            ExitCode::from(code)
        }
    };
    // What is wrong with the settings ends with 2, what is wrong with the machine with 1.
    let opened = build(settings).and_then(|(app, data, admin)| Ok((app.open()?, data, admin)));
    let (app, data, admin) = match opened.map_err(failed(2)) {
        Ok(built) => built,
        Err(code) => return code,
    };
    run(app, &data, &admin).await.map_or_else(failed(1), |()| ExitCode::SUCCESS)
}

// Within the runtime: the bus begins to connect.
fn build(settings: Settings) -> anyhow::Result<(App, Address, Address)> {
    let metrics = prometheus::Registry::new();
    let peers = Peers::new(Service::Gateway, settings.tls(), &metrics).map_err(anyhow::Error::msg)?;
    let registry: Address = settings.registry.parse().context("setting registry")?;
    let mut workers = Vec::new();
    for address in &settings.workers {
        let parsed: Address = address.parse().context("setting workers")?;
        let channel = peers.connect(&parsed, Service::Worker).context("setting workers")?;
        workers.push(WorkerEndpoint { address: address.clone(), channel });
    }
    let data = settings.data_address().context("setting listen")?;
    let admin = settings.admin_listen.parse().context("setting admin_listen")?;
    let bus = weft_bus::connect(settings.nats("weft-gateway"), &metrics)?;
    let registry = peers.connect(&registry, Service::Registry).context("setting registry")?;
    let components = Components { registry, workers, metrics };
    let dial = move |address: &str| peers.connect_heard(address, Service::Worker);
    Ok((App::build(settings, components)?.with_bus(bus, dial), data, admin))
}

async fn run(app: App, data: &Address, admin: &Address) -> anyhow::Result<()> {
    let (data, admin) = (Listener::bind(data).await?, Listener::bind(admin).await?);
    // For whoever started us: with port 0 it is the only way to know the ports.
    println!("listening on {}", data.address());
    println!("admin listening on {}", admin.address());
    app.run(data, admin, Shutdown::on_signals()?).await;
    Ok(())
}
