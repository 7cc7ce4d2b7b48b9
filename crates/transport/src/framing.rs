//! Control frames on a QUIC stream: a length, then that many bytes.
//!
//! The length is checked against the protocol's bound before anything is allocated for it. What
//! the bytes mean is `rootswarm_swarm`'s codec (members) or [`crate::join`]'s (newcomers).

use quinn::{ReadExactError, RecvStream, SendStream, WriteError};

/// Bytes of the length prefix: a big-endian `u32`.
const PREFIX_BYTES: usize = 4;

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The sender claims more than the protocol allows.
    #[error("a frame of {claimed} bytes was announced: at most {most} are allowed")]
    TooLong {
        /// What it claims.
        claimed: u32,
        /// The bound.
        most: usize,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended within a frame")]
    Truncated,
    /// The stream ended between two frames.
    #[error("the stream was closed")]
    Closed,
    /// The stream or its connection failed.
    #[error(transparent)]
    Read(#[from] quinn::ReadError),
}

/// Reads one frame of at most `most` bytes.
///
/// # Errors
/// See [`FrameError`]; after any of them the stream is of no more use.
pub async fn read_frame(stream: &mut RecvStream, most: usize) -> Result<Vec<u8>, FrameError> {
    let mut prefix = [0; PREFIX_BYTES];
    stream
        .read_exact(&mut prefix)
        .await
        .map_err(|error| match error {
            ReadExactError::FinishedEarly(0) => FrameError::Closed,
            ReadExactError::FinishedEarly(_) => FrameError::Truncated,
            ReadExactError::ReadError(error) => FrameError::Read(error),
        })?;
    let claimed = u32::from_be_bytes(prefix);
    let length = usize::try_from(claimed).unwrap_or(usize::MAX);
    if length > most {
        return Err(FrameError::TooLong { claimed, most });
    }
    let mut frame = vec![0; length];
    stream
        .read_exact(&mut frame)
        .await
        .map_err(|error| match error {
            ReadExactError::FinishedEarly(_) => FrameError::Truncated,
            ReadExactError::ReadError(error) => FrameError::Read(error),
        })?;
    Ok(frame)
}

/// Appends a frame to a batch that goes out in one write.
pub fn push_frame(batch: &mut Vec<u8>, frame: &[u8]) {
    // Every frame of this protocol is shorter than its bound, which is far below 4 GiB.
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    batch.extend_from_slice(&length.to_be_bytes());
    batch.extend_from_slice(frame);
}

/// Writes one frame.
///
/// # Errors
/// The stream was stopped or its connection failed.
pub async fn write_frame(stream: &mut SendStream, frame: &[u8]) -> Result<(), WriteError> {
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + frame.len());
    push_frame(&mut bytes, frame);
    stream.write_all(&bytes).await
}
