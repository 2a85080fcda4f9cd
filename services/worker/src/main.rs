//! `weft-worker`: the worker as a process of its own.

use std::process::ExitCode;

use weft_service_kit::settings::{Loader, shown};
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::telemetry::{self, LogFormat};
use weft_service_kit::transport::{Listener, connect};
use weft_worker::{App, Components, Error, Settings};

#[tokio::main]
async fn main() -> ExitCode {
    let variables = std::env::vars().collect::<Vec<_>>();
    let variable = |name: &str| variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let loader = Loader::new("weft-worker", "Serves one base model and many adapters").section::<Settings>("");
    let loaded = loader.load(std::env::args().skip(1), variables.clone()).unwrap_or_else(|error| error.exit());
    let settings: Settings = loaded.get("").unwrap_or_else(|error| weft_service_kit::settings::LoadError::from(error).exit());
    let format = if variable("WEFT_LOG_FORMAT").as_deref() == Some("json") { LogFormat::Json } else { LogFormat::Text };
    telemetry::init(format, variable("WEFT_LOG").as_deref().unwrap_or("info"));
    tracing::info!(settings = shown(&settings), "starting");
    match serve(settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            match error.downcast_ref::<Error>() {
                Some(Error::Settings(_)) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    let address = settings.listen_address()?;
    let components = Components {
        cache_daemon: connect(&settings.cache_address()?),
        registry: settings.registry_address()?.map(|address| connect(&address)),
    };
    let shutdown = Shutdown::on_signals()?;
    let app = App::build(settings, components, prometheus::default_registry()).await?;
    let listener = Listener::bind(&address).await?;
    tracing::info!(address = listener.address(), "serving");
    Ok(app.run(listener, shutdown).await?)
}
