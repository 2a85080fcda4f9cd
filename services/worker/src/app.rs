//! The one place where the worker's parts meet.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use weft_bus::Bus;
use weft_proto::worker::v1::worker_server::{SERVICE_NAME, WorkerServer};
use weft_service_kit::health::Health;
use weft_service_kit::readiness::Readiness;
use weft_service_kit::shutdown::{Shutdown, within_grace};
use weft_service_kit::transport::{self, Listener, MESSAGE_BYTES_MAX};

use crate::Error;
use crate::adapters::lease::Leases;
use crate::adapters::load::Loader;
use crate::adapters::prefetch::Prefetch;
use crate::adapters::slots::Budgets;
use crate::age;
use crate::announce;
use crate::desired;
use crate::error::chain;
use crate::grammars::Grammars;
use crate::grpc::Service;
use crate::heartbeat;
use crate::masks::MaskThreads;
use crate::metrics::Metrics;
use crate::model::{self, Model};
use crate::settings::Settings;
use crate::step_loop::{Command, Parts, StepLoop};
use crate::tell_occupancy::Teller;
use crate::turns::Turns;
use crate::view::View;

/// What a worker reaches others through.
pub struct Components {
    /// The cache daemon of this node.
    pub cache_daemon: Channel,
    /// The adapter registry, to announce the base to; none: nobody is told.
    pub registry: Option<Channel>,
}

/// A worker with its base loaded and its loop running.
pub struct App {
    service: Service,
    step_loop: RunningLoop,
    model: Arc<Model>,
    registry: Option<Channel>,
    bus: Option<Arc<dyn Bus>>,
    readiness: Readiness,
    settings: Settings,
    metrics: Metrics,
}

impl App {
    /// Loads the base on a blocking thread and starts the loop. Must run within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Settings`] for values that cannot be used, all at once; [`Error::Start`] for an unusable model;
    /// [`Error::Metrics`] if the registry has a worker already.
    pub fn build<'a>(
        settings: Settings,
        components: Components,
        metrics: &'a prometheus::Registry,
    ) -> BoxFuture<'a, Result<Self, Error>> {
        Box::pin(Self::start(settings, components, metrics))
    }

    async fn start(settings: Settings, components: Components, metrics: &prometheus::Registry) -> Result<Self, Error> {
        let checked = settings.check()?;
        let metrics = Metrics::new(metrics)?;
        let opened = tokio::task::spawn_blocking(move || model::open(&checked)).await;
        let model::Opened { model, engine, slot_bytes: slot_bytes_max, block_bytes } =
            opened.unwrap_or(Err(Error::Panic("loading the base model")))?;
        let budgets = Budgets {
            slots: slot_bytes_max,
            prepared: settings.adapter_prepared_bytes,
            pins: (slot_bytes_max as f64 * settings.adapter_pinned_fraction_max) as u64,
            block: block_bytes,
            pins_waiting: settings.adapter_leases_max,
        };
        metrics.prepared_bytes_total.set(i64::try_from(budgets.prepared).unwrap_or(i64::MAX));
        let model = Arc::new(model);
        tracing::info!(
            base = %model.digest, name = model.served_name, dtype = model.dtype, isa = model.isa,
            context_tokens_max = model.context_tokens_max, kv_tokens_max = model.kv_tokens_max(), slot_bytes_max,
            "base model loaded"
        );

        let readiness = Readiness::new();
        if components.registry.is_some() {
            readiness.wait_for(announce::CONDITION, "announcing the base");
        }
        let prefetch = Prefetch::connect(components.cache_daemon.clone());
        let leases = Leases::connect(components.cache_daemon, settings.name.clone(), readiness.clone());
        let loader = Loader {
            leases,
            preparer: engine.preparer(),
            timeout: Duration::from_secs(settings.adapter_load_timeout_s),
            slot_bytes_max,
            turns: Arc::new(Semaphore::new(settings.adapter_loads_max)),
            turns_max: settings.adapter_loads_max,
            queue: Arc::default(),
        };
        let view = Arc::new(View::new(Duration::from_secs(settings.step_stall_s)));
        let (commands, inbox) = channel();
        let grammars = Arc::new(Grammars::new(&model, &settings, metrics.clone()));
        let masks = MaskThreads::start(settings.mask_threads, &commands, metrics.mask_seconds.clone())?;
        let parts = Parts {
            engine,
            model: Arc::clone(&model),
            settings: settings.clone(),
            budgets,
            loader,
            prefetch,
            runtime: tokio::runtime::Handle::current(),
            view: Arc::clone(&view),
            metrics: metrics.clone(),
            masks,
            commands: commands.clone(),
        };
        let step_loop = RunningLoop::start(StepLoop::new(parts, inbox), commands.clone())?;
        let service = Service {
            model: Arc::clone(&model),
            incarnation: uuid::Uuid::new_v4().to_string().into(),
            slot_bytes_max,
            view,
            commands,
            next_id: Arc::new(AtomicU64::new(1)),
            arrivals: Arc::new(Semaphore::new(settings.queue_requests_max + settings.running_requests_max)),
            turns: Turns::new(settings.tokenize_concurrency, settings.queue_requests_max),
            grammars,
            open_calls: Arc::new(watch::Sender::new(0)),
            settings: Arc::new(settings.clone()),
        };
        let registry = components.registry;
        Ok(Self { service, step_loop, model, registry, bus: None, readiness, settings, metrics })
    }

    /// Sends heartbeats over this bus while it runs.
    #[must_use]
    pub fn with_bus(self, bus: Arc<dyn Bus>) -> Self {
        Self { bus: Some(bus), ..self }
    }

    /// What the worker still waits for before it should get requests.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Serves until shutdown. Then new requests are refused, running ones get `shutdown_grace_s` to finish, and the rest is
    /// ended with "unavailable".
    ///
    /// # Errors
    /// [`Error::Serve`] if the listener fails; [`Error::LoopEnded`] if the loop ends without being told to: whoever runs
    /// this worker should start it again.
    pub fn run(self, listener: Listener, shutdown: Shutdown) -> BoxFuture<'static, Result<(), Error>> {
        Box::pin(self.serve(listener, shutdown))
    }

    async fn serve(self, listener: Listener, shutdown: Shutdown) -> Result<(), Error> {
        let registry = self.registry.clone();
        let announcing = self.registry.map(|channel| {
            let interval = Duration::from_secs(self.settings.announce_interval_s);
            let (readiness, shutdown) = (self.readiness.clone(), shutdown.clone());
            tokio::spawn(announce::announce(channel, Arc::clone(&self.model), interval, readiness, shutdown))
        });
        let (readiness, start_seconds) = (self.readiness.clone(), self.metrics.start_seconds.clone());
        let ready = tokio::spawn(async move {
            readiness.ready().await;
            if let Some(age) = age::of_process() {
                start_seconds.set(age.as_secs_f64());
                tracing::info!(seconds = age.as_secs_f64(), "ready");
            }
        });
        let mut telling = JoinSet::new();
        telling.spawn(watch_turns(Arc::clone(&self.service.view), self.readiness.clone()));
        let (told, drain_told) = oneshot::channel();
        let address = listener.advertised(&self.settings.advertise);
        let occupancy = registry.clone().filter(|_| self.settings.residency_report_ms > 0).map(|registry| {
            let teller = Teller {
                view: Arc::clone(&self.service.view),
                worker: address.clone(),
                incarnation: self.service.incarnation.to_string(),
                every: Duration::from_millis(self.settings.residency_report_ms),
            };
            teller.view.keep_occupancy();
            let over = Shutdown::new();
            (tokio::spawn(teller.tell(registry, over.clone())), over)
        });
        if let Some(bus) = self.bus {
            // Placements name workers by what their heartbeats say.
            if let Some(registry) = registry {
                let (commands, metrics) = (self.step_loop.commands.clone(), self.metrics.clone());
                telling.spawn(desired::follow(registry, address.clone(), commands, metrics));
            }
            let facts = heartbeat::Facts {
                worker: self.settings.name.clone(),
                address,
                incarnation: self.service.incarnation.to_string(),
                base: self.model.digest,
                interval: Duration::from_millis(self.settings.heartbeat_interval_ms),
            };
            telling.spawn(weft_bus::report(Arc::clone(&bus), self.readiness.clone()));
            telling.spawn(heartbeat::beat(bus, facts, Arc::clone(&self.service.view), shutdown.clone(), told));
        } else {
            drop(told);
        }
        let (view, open_calls) = (Arc::clone(&self.service.view), self.service.open_calls.subscribe());
        let server = WorkerServer::new(self.service)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let health = Health::new(&shutdown).report("", &self.readiness).report(SERVICE_NAME, &self.readiness);
        // The listener outlives the drain, so that new callers are told "unavailable" and go elsewhere.
        let hang_up = Shutdown::new();
        let serving = transport::server()
            .add_service(server)
            .add_service(health.into_server())
            .serve_with_incoming_shutdown(listener.incoming(), hang_up.wait_owned());
        let mut serving = std::pin::pin!(serving);
        let mut loop_ended = self.step_loop.ended.clone();
        let served = tokio::select! {
            served = &mut serving => served.map_err(Error::from),
            why = unasked_end(&mut loop_ended) => {
                tracing::error!(why, "the step loop has ended; this worker ends with it");
                self.readiness.wait_for(LOOP_CONDITION, format!("it has ended: {why}"));
                hang_up.trigger();
                // Every open stream ends with a status; those get a moment to go out.
                let _ = tokio::time::timeout(LAST_WORDS, serving).await;
                Err(Error::LoopEnded)
            }
            () = drain(&view, open_calls, &shutdown, Duration::from_secs(self.settings.shutdown_grace_s)) => {
                // Gateways should hear of it before the connection breaks. An error means that there is nobody to tell.
                let _ = tokio::time::timeout(LAST_WORDS, drain_told).await;
                // Ending the loop ends every stream that is left with a status; those get a moment to go out.
                self.step_loop.stop();
                hang_up.trigger();
                tokio::time::timeout(LAST_WORDS, serving).await.unwrap_or(Ok(())).map_err(Error::from)
            }
        };
        ready.abort();
        if let Some((mut teller, over)) = occupancy {
            over.trigger();
            if tokio::time::timeout(LAST_WORDS, &mut teller).await.is_err() {
                teller.abort();
            }
        }
        drop(telling);
        if let Some(announcing) = announcing {
            announcing.abort();
        }
        // The loop may be within a step: joining must not hold up the runtime.
        let step_loop = self.step_loop;
        let _ = tokio::task::spawn_blocking(move || drop(step_loop)).await;
        // A loop that dies lets go of its pipes before it is known to be dead: whoever noticed that first may have begun a drain.
        if loop_ended.borrow().is_some() { Err(Error::LoopEnded) } else { served }
    }
}

/// Waits for the shutdown, refuses new requests from then on, and waits until none is open, at most `grace`.
async fn drain(view: &View, mut open_calls: watch::Receiver<usize>, shutdown: &Shutdown, grace: Duration) {
    shutdown.wait().await;
    view.drain();
    let open = *open_calls.borrow();
    tracing::info!(open, "draining");
    // An error means that the service is gone, and every call with it.
    let done = async { open_calls.wait_for(|count| *count == 0).await.is_ok() };
    if within_grace(done, shutdown, grace).await.is_none() {
        tracing::warn!("requests outlast the grace period; ending them");
    }
}

/// What is not met once the loop has ended by itself, or while it is stuck.
const LOOP_CONDITION: &str = "step loop";
/// How often somebody looks whether it is.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A worker whose loop is stuck is not ready.
async fn watch_turns(view: Arc<View>, readiness: Readiness) {
    let mut was_stuck = false;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match view.stuck_for() {
            Some(turn) => {
                readiness.wait_for(LOOP_CONDITION, Error::Stuck(turn.as_secs()).to_string());
                if !was_stuck {
                    tracing::error!(seconds = turn.as_secs(), "the step loop is stuck");
                }
                was_stuck = true;
            }
            None if was_stuck => {
                readiness.met(LOOP_CONDITION);
                tracing::warn!("the step loop goes on");
                was_stuck = false;
            }
            None => {}
        }
    }
}

/// Waits until the loop ends without being told to, and says why.
async fn unasked_end(ended: &mut watch::Receiver<Option<String>>) -> String {
    match ended.wait_for(Option::is_some).await {
        Ok(why) => why.clone().unwrap_or_default(),
        // The sender lives as long as the thread and speaks before it goes.
        Err(_) => "its thread is gone".to_owned(),
    }
}

/// How long the last statuses may take to reach their callers.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The loop's thread. Dropping it stops the loop and waits for the step that runs.
struct RunningLoop {
    commands: Sender<Command>,
    /// Why it ended, if nobody told it to.
    ended: watch::Receiver<Option<String>>,
    thread: Option<JoinHandle<()>>,
}

impl RunningLoop {
    fn start(step_loop: StepLoop, commands: Sender<Command>) -> Result<Self, Error> {
        let (tell, ended) = watch::channel(None);
        let thread = std::thread::Builder::new().name("weft-step-loop".to_owned());
        let work = move || match catch_unwind(AssertUnwindSafe(|| step_loop.run())) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => drop(tell.send_replace(Some(chain(&error)))),
            Err(panic) => drop(tell.send_replace(Some(panic_text(&*panic)))),
        };
        let thread = thread.spawn(work).map_err(Error::Thread)?;
        Ok(Self { commands, ended, thread: Some(thread) })
    }

    fn stop(&self) {
        // An error means that it has ended.
        let _ = self.commands.send(Command::Stop);
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", text.unwrap_or("without a message"))
}

impl Drop for RunningLoop {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // A panic within was caught and told.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[path = "app_tests.rs"]
mod tests;
