//! Control frames before chunks, also where the other side's window is what is scarce.
//!
//! A stream's priority decides about what is written already. But what may be written at all, by all
//! streams of a connection together, is bounded by the receiver's window (RFC 9000, 4.1), and whoever
//! writes first has it: chunks longer than the window took all of it whenever some came free, and an answer
//! of ten bytes waited for seconds behind them, until who had asked gave up.

use bytes::Bytes;
use quinn::{SendStream, WriteError};
use tokio::sync::watch;

/// One connection's word on whether control frames wait for the window.
#[derive(Debug, Default)]
pub(crate) struct ControlFirst(watch::Sender<bool>);

/// A chunk's part in it.
#[derive(Debug)]
pub(crate) struct AfterControl(watch::Receiver<bool>);

impl ControlFirst {
    /// For one who writes chunks.
    pub(crate) fn subscribe(&self) -> AfterControl {
        AfterControl(self.0.subscribe())
    }

    /// Writes all of it, before any byte of a chunk that is not written yet.
    pub(crate) async fn write(
        &self,
        stream: &mut SendStream,
        frames: &[u8],
    ) -> Result<(), WriteError> {
        tokio::select! {
            biased;
            // Mostly there is room for all of it.
            count = stream.write(frames) => match &frames[count?..] {
                [] => Ok(()),
                rest => self.write_waiting(stream, rest).await,
            },
            // Nothing was written, and nothing can be now.
            () = std::future::ready(()) => self.write_waiting(stream, frames).await,
        }
    }

    async fn write_waiting(
        &self,
        stream: &mut SendStream,
        frames: &[u8],
    ) -> Result<(), WriteError> {
        self.0.send_replace(true);
        let written = stream.write_all(frames).await;
        self.0.send_replace(false);
        written
    }
}

impl AfterControl {
    /// Writes some of `bytes`, which are taken off its beginning; nothing while control frames wait.
    pub(crate) async fn write(
        &mut self,
        stream: &mut SendStream,
        bytes: &mut Bytes,
    ) -> Result<(), WriteError> {
        loop {
            // Without anybody who writes control frames the link has ended, and so does this write.
            if self.0.wait_for(|waits| !waits).await.is_err() {
                return stream
                    .write_chunks(std::slice::from_mut(bytes))
                    .await
                    .map(drop);
            }
            tokio::select! {
                biased;
                Ok(()) = self.0.changed() => {}
                // Dropped before it is done it has written nothing.
                written = stream.write_chunks(std::slice::from_mut(bytes)) => return written.map(drop),
            }
        }
    }
}
