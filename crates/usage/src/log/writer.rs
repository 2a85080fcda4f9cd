//! The one thread that writes: takes whatever waits, makes it durable together, answers.

use super::Shared;
use super::folder::Folder;
use super::segment::Segment;
use crate::{Error, Hour, frame};
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::{mpsc, oneshot};

type Answer = oneshot::Sender<Result<(), Error>>;

/// What the thread is asked.
pub(super) enum Command {
    Append { payload: Vec<u8>, ended_ms: u64, answer: Answer },
    Close { answer: Answer },
}

/// The segment that is appended to.
struct Open {
    segment: Segment,
    file: File,
    /// Its length, what is buffered among it.
    bytes: u64,
    /// Whether its name is durable.
    is_name_synced: bool,
}

pub(super) struct Writer {
    folder: Arc<Folder>,
    shared: Arc<Shared>,
    /// Names this opening of the log.
    id: String,
    next_sequence: u32,
    open: Option<Open>,
    /// Frames of the open segment that were not written yet.
    buffer: Vec<u8>,
    /// Bytes of all files but the open segment; looked up anew with each batch.
    other_bytes: u64,
}

impl Writer {
    pub(super) fn new(folder: Arc<Folder>, shared: Arc<Shared>) -> Self {
        // Version 7 begins with the time: later writers sort behind earlier ones, as far as clocks agree.
        let id = uuid::Uuid::now_v7().simple().to_string();
        Self { folder, shared, id, next_sequence: 0, open: None, buffer: Vec::new(), other_bytes: 0 }
    }

    /// Until every sender is gone. Ends with a closed segment, so that a new opening finds nothing to cut.
    pub(super) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let batch_max = self.shared.settings.waiting_max;
        let mut batch = Vec::new();
        while commands.blocking_recv_many(&mut batch, batch_max) > 0 {
            self.handle(batch.drain(..));
        }
        // What cannot be closed is cut and closed when the log is opened next.
        let _ = self.close();
    }

    fn handle(&mut self, batch: impl Iterator<Item = Command>) {
        let mut waiting = Vec::new();
        let mut closing = Vec::new();
        self.other_bytes = self.bytes_besides_open();
        for command in batch {
            match command {
                Command::Append { payload, ended_ms, answer } => match self.buffer_record(&payload, ended_ms) {
                    Ok(()) => waiting.push(answer),
                    // Whoever has gone away needs no answer.
                    Err(error) => drop(answer.send(Err(error))),
                },
                Command::Close { answer } => closing.push(answer),
            }
        }
        let synced = if waiting.is_empty() { Ok(()) } else { self.flush() };
        if synced.is_ok() {
            self.shared.appended.fetch_add(waiting.len() as u64, Ordering::Relaxed);
        }
        for answer in waiting {
            let _ = answer.send(self.answer());
        }
        if !closing.is_empty() {
            let _ = self.close();
        }
        for answer in closing {
            let _ = answer.send(self.answer());
        }
    }

    /// Every failure of the disk is remembered, so that this is what came of it.
    fn answer(&self) -> Result<(), Error> {
        self.shared.poisoned().map_or(Ok(()), Err)
    }

    fn bytes_besides_open(&self) -> u64 {
        let segments = self.shared.segments();
        segments.bytes().saturating_sub(self.open.as_ref().map_or(0, |open| open.bytes))
    }

    /// Puts the record behind the others of its segment, or of a new one.
    fn buffer_record(&mut self, payload: &[u8], ended_ms: u64) -> Result<(), Error> {
        if let Some(error) = self.shared.poisoned() {
            return Err(error);
        }
        let settings = &self.shared.settings;
        let frame_bytes = frame::frame_bytes(payload.len());
        let open_bytes = self.open.as_ref().map_or(0, |open| open.bytes);
        let bytes = self.other_bytes + open_bytes;
        if bytes + frame_bytes + frame::MAGIC.len() as u64 > settings.bytes_max {
            return Err(Error::NoRoom { bytes, bytes_max: settings.bytes_max });
        }
        let fits = self.open.as_ref().is_some_and(|open| {
            open.bytes + frame_bytes <= settings.segment_bytes_max && open.segment.hour().is_near(Hour::of_ms(ended_ms))
        });
        if !fits {
            self.close()?;
            self.other_bytes += open_bytes;
            self.begin(ended_ms)?;
        }
        frame::write(&mut self.buffer, payload);
        let open = self.open.as_mut().expect("begun above if there was none");
        open.bytes += frame_bytes;
        Ok(())
    }

    /// Begins a segment. If there can be none now, nothing that was written is in doubt: the log is not poisoned, and the next record
    /// tries again.
    fn begin(&mut self, time_ms: u64) -> Result<(), Error> {
        let (segment, file) = loop {
            let segment = Segment::new(&self.id, self.next_sequence, time_ms);
            match self.folder.create(&segment) {
                Ok(file) => break (segment, file),
                // Left by a try that failed half way: it is empty, and goes when the log is opened next.
                Err(error) if error.is_taken() => self.next_sequence += 1,
                Err(error) => return Err(error),
            }
        };
        self.next_sequence += 1;
        let bytes = frame::MAGIC.len() as u64;
        self.buffer.extend_from_slice(frame::MAGIC);
        self.shared.segments().opened(segment.clone(), bytes);
        self.open = Some(Open { segment, file, bytes, is_name_synced: false });
        Ok(())
    }

    /// Makes everything that is buffered durable.
    fn flush(&mut self) -> Result<(), Error> {
        if let Some(error) = self.shared.poisoned() {
            return Err(error);
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        let done = write_and_sync(&self.folder, open, &self.buffer);
        self.buffer.clear();
        self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        self.shared.segments().grown(open.bytes);
        done.map_err(|error| self.poison(&error))
    }

    fn close(&mut self) -> Result<(), Error> {
        if !self.buffer.is_empty() {
            self.flush()?;
        }
        if let Some(error) = self.shared.poisoned() {
            return Err(error);
        }
        let Some(open) = self.open.take() else { return Ok(()) };
        self.folder.close(&open.segment).map_err(|error| self.poison(&error))?;
        self.shared.segments().close_open();
        Ok(())
    }

    /// Remembers the first failure; from now on every append fails.
    fn poison(&self, error: &Error) -> Error {
        let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
        let problem = format!("{error}{source}");
        tracing::error!(problem, "the usage log takes no more records");
        let problem = self.shared.poison.get_or_init(|| problem).clone();
        Error::Poisoned { problem }
    }
}

fn write_and_sync(folder: &Folder, open: &mut Open, buffer: &[u8]) -> Result<(), Error> {
    let failed = |operation, segment: &Segment, source| Error::io(operation, folder.dir().join(segment.name()), source);
    open.file.write_all(buffer).map_err(|source| failed("write", &open.segment, source))?;
    open.file.sync_data().map_err(|source| failed("sync", &open.segment, source))?;
    if !open.is_name_synced {
        folder.sync()?;
        open.is_name_synced = true;
    }
    Ok(())
}
