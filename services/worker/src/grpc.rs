//! The worker's face: `weft.worker.v1.Worker`.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use weft_batching::RequestId;
use weft_proto::worker::v1 as pb;
use weft_proto::worker::v1::generate_event::Event;
use weft_proto::worker::v1::worker_server::Worker;

use crate::Error;
use crate::admit;
use crate::grammars::Grammars;
use crate::model::Model;
use crate::settings::Settings;
use crate::step_loop::{Command, Wish};
use crate::turns::{Turn, Turns};
use crate::view::View;

/// Answers the calls of the package. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) model: Arc<Model>,
    pub(crate) settings: Arc<Settings>,
    /// Chosen when the process started.
    pub(crate) incarnation: Arc<str>,
    pub(crate) slot_bytes_max: u64,
    pub(crate) view: Arc<View>,
    pub(crate) commands: Sender<Command>,
    pub(crate) next_id: Arc<AtomicU64>,
    /// Requests between their receipt and the scheduler, which has its own limit.
    pub(crate) arrivals: Arc<Semaphore>,
    /// Whose text is read next.
    pub(crate) turns: Turns,
    pub(crate) grammars: Arc<Grammars>,
    /// `Generate` calls that are not over, their streams included.
    pub(crate) open_calls: Arc<watch::Sender<usize>>,
}

#[tonic::async_trait]
impl Worker for Service {
    type GenerateStream = EventStream;

    async fn generate(&self, request: Request<pb::GenerateRequest>) -> Result<Response<EventStream>, Status> {
        let received = Instant::now();
        // Counted before the look at `draining`, so that a drain that sees no call open has seen the last.
        let open = OpenCall::new(&self.open_calls);
        if self.view.is_draining() {
            return Err(Error::Draining.into());
        }
        self.check_turns()?;
        let (model, settings) = (Arc::clone(&self.model), Arc::clone(&self.settings));
        let mut request = request.into_inner();
        let tenant = admit::check_name("tenant", &request.tenant)?.to_owned();
        let grammar = match request.grammar.take() {
            None => None,
            Some(wire) => {
                let adapter = admit::adapter(&request)?;
                Some(self.grammars.get(wire, &tenant, adapter.as_ref(), &request.tenant_salt).await?)
            }
        };
        let (job, turn) =
            self.off_the_runtime(&tenant, move || admit::admit(request, grammar, received, &model, &settings)).await?;
        // With the turn in hand, so that a loop that is behind holds up the reading and not the order. Never closed.
        let arrival = Arc::clone(&self.arrivals).acquire_owned().await.map_err(|_| self.gone())?;
        drop(turn);

        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let (events, inbox) = mpsc::unbounded_channel();
        let command = Command::Submit { id, job: Box::new(job), events, arrival };
        self.commands.send(command).map_err(|_| self.gone())?;
        let mut stream = EventStream {
            inbox,
            first: None,
            is_over: false,
            view: Arc::clone(&self.view),
            _cancel: CancelOnDrop { id, commands: self.commands.clone() },
            _open: open,
        };
        // A failure before the first step is the status of the call itself.
        match stream.inbox.recv().await {
            Some(Ok(event)) => stream.first = Some(event),
            Some(Err(status)) => return Err(status),
            None => return Err(self.gone().into()),
        }
        Ok(Response::new(stream))
    }

    async fn describe(&self, _: Request<pb::DescribeRequest>) -> Result<Response<pb::DescribeResponse>, Status> {
        let (model, settings) = (&self.model, &self.settings);
        Ok(Response::new(pb::DescribeResponse {
            worker: model.worker.clone(),
            served_name: model.served_name.clone(),
            base_digest: model.digest.to_vec().into(),
            dtype: model.dtype.to_owned(),
            isa: model.isa.clone(),
            context_tokens_max: model.context_tokens_max as u32,
            prompt_tokens_max: model.prompt_tokens_max as u32,
            vocabulary_size: model.vocabulary as u32,
            has_chat_template: model.chat_template.is_some(),
            slot_bytes_max: self.slot_bytes_max,
            kv_tokens_max: model.kv_tokens_max() as u64,
            concurrent_requests_max: settings.running_requests_max.min(settings.step_tokens_max) as u32,
            queue_requests_max: settings.queue_requests_max as u32,
            model_id: model.model_id.clone(),
            step_tokens_max: settings.step_tokens_max as u32,
            incarnation: self.incarnation.to_string(),
            weight_bytes: model.weight_bytes,
            adapter_element_bytes: model.adapter_element_bytes,
        }))
    }

    async fn get_load(&self, _: Request<pb::GetLoadRequest>) -> Result<Response<pb::GetLoadResponse>, Status> {
        // Whoever asks wants to know whether this worker works.
        self.check_turns()?;
        Ok(Response::new(self.view.load()))
    }

    async fn list_residency(
        &self,
        _: Request<pb::ListResidencyRequest>,
    ) -> Result<Response<pb::ListResidencyResponse>, Status> {
        let incarnation = self.incarnation.to_string();
        Ok(Response::new(pb::ListResidencyResponse { incarnation, ..self.view.residency() }))
    }

    async fn pin(&self, request: Request<pb::PinRequest>) -> Result<Response<pb::PinResponse>, Status> {
        let digest = admit::digest("digest", &request.into_inner().digest)?;
        let (bytes, was_pinned) = self.wish(|reply| Wish::Pin(digest, reply)).await??;
        Ok(Response::new(pb::PinResponse { bytes, was_pinned }))
    }

    async fn unpin(&self, request: Request<pb::UnpinRequest>) -> Result<Response<pb::UnpinResponse>, Status> {
        let digest = admit::digest("digest", &request.into_inner().digest)?;
        let was_pinned = self.wish(|reply| Wish::Unpin(digest, reply)).await?;
        Ok(Response::new(pb::UnpinResponse { was_pinned }))
    }

    async fn evict(&self, request: Request<pb::EvictRequest>) -> Result<Response<pb::EvictResponse>, Status> {
        let digest = admit::digest("digest", &request.into_inner().digest)?;
        let bytes_freed = self.wish(|reply| Wish::Evict(digest, reply)).await??;
        Ok(Response::new(pb::EvictResponse { bytes_freed }))
    }

    async fn tokenize(&self, request: Request<pb::TokenizeRequest>) -> Result<Response<pb::TokenizeResponse>, Status> {
        let (model, settings) = (Arc::clone(&self.model), Arc::clone(&self.settings));
        let request = request.into_inner();
        // Nobody's: these calls take turns with the tenants as one more of them.
        let (tokens, _) = self.off_the_runtime("", move || admit::tokenize(&request, &model, &settings)).await?;
        Ok(Response::new(pb::TokenizeResponse { tokens }))
    }
}

impl Service {
    /// Asks the loop, which answers between two steps, or when what is wished for has come.
    async fn wish<T>(&self, wish: impl FnOnce(oneshot::Sender<T>) -> Wish) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Residency(wish(reply))).map_err(|_| self.gone())?;
        answer.await.map_err(|_| self.gone())
    }

    /// Runs text work on a blocking thread when it is the tenant's turn, and gives the turn back with the result. The
    /// work keeps the turn until it is done, whether anybody still waits for it or not. A panic in it is that
    /// request's failure.
    pub(crate) async fn off_the_runtime<T: Send + 'static>(
        &self,
        tenant: &str,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<(T, Turn), Error> {
        let turn = self.turns.turn(tenant).await?;
        let done = tokio::task::spawn_blocking(move || work().map(|result| (result, turn))).await;
        done.unwrap_or(Err(Error::Panic("reading the prompt")))
    }

    /// Why the loop takes no commands.
    fn gone(&self) -> Error {
        gone(&self.view)
    }

    /// Nothing that goes to the loop would come back.
    fn check_turns(&self) -> Result<(), Error> {
        self.view.stuck_for().map_or(Ok(()), |turn| Err(Error::Stuck(turn.as_secs())))
    }
}

/// Why the loop says nothing: it was told to stop, after the drain had begun, or it panicked.
fn gone(view: &View) -> Error {
    if view.is_draining() { Error::Draining } else { Error::LoopEnded }
}

/// Counts a call while it lives.
struct OpenCall(Arc<watch::Sender<usize>>);

impl OpenCall {
    fn new(open: &Arc<watch::Sender<usize>>) -> Self {
        open.send_modify(|count| *count += 1);
        Self(Arc::clone(open))
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Tells the loop when the caller is gone, whether it was waiting for the first event or reading the stream.
struct CancelOnDrop {
    id: RequestId,
    commands: Sender<Command>,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        // An error means that the loop has ended, and the request with it.
        let _ = self.commands.send(Command::Cancel(self.id));
    }
}

/// The events of one request.
pub(crate) struct EventStream {
    inbox: mpsc::UnboundedReceiver<Result<pb::GenerateEvent, Status>>,
    /// Already taken from `inbox`.
    first: Option<pb::GenerateEvent>,
    /// The last event or an error went out.
    is_over: bool,
    view: Arc<View>,
    _cancel: CancelOnDrop,
    _open: OpenCall,
}

impl Stream for EventStream {
    type Item = Result<pb::GenerateEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = match self.first.take() {
            Some(event) => Some(Ok(event)),
            None => std::task::ready!(self.inbox.poll_recv(context)),
        };
        let next = match next {
            // The loop is gone without a last word: an answer is never silently cut short.
            None if !self.is_over => Some(Err(gone(&self.view).into())),
            next => next,
        };
        self.is_over |= match &next {
            Some(Ok(event)) => matches!(event.event, Some(Event::Finished(_))),
            Some(Err(_)) | None => true,
        };
        Poll::Ready(next)
    }
}
