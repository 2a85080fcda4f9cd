//! What a person at a terminal sees while something takes long; nothing where the output is no terminal.

use futures::{Stream, StreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use std::io;
use std::time::Duration;
use tokio_util::bytes::Bytes;

/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// Waits, with a spinner.
pub async fn waiting<T>(what: &'static str, work: impl Future<Output = T>) -> T {
    let spinner = ProgressBar::new_spinner().with_message(what);
    spinner.enable_steady_tick(TICK);
    let done = work.await;
    spinner.finish_and_clear();
    done
}

/// The same pieces, with a bar that shows how many of `bytes` have gone by.
pub fn shown(
    what: &'static str,
    bytes: u64,
    pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}");
    let bar = ProgressBar::new(bytes).with_message(what);
    // The template is ours; should it be wrong, the bar looks plain.
    let bar = style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style));
    let end = bar.clone();
    let counted = pieces.inspect(move |piece| {
        if let Ok(piece) = piece {
            bar.inc(piece.len() as u64);
        }
    });
    counted.chain(futures::stream::once(async move {
        end.finish_and_clear();
        Ok(Bytes::new())
    }))
}
