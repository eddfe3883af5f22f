//! One connection of a client: its socket, which gives up on a peer that takes nothing, and its place among the open ones. Floor 7.

use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep},
};

/// What the server knows about an open connection; it counts as open while this is held.
pub(super) struct Connection {
    is_used: AtomicBool,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    pub(super) fn new(place: OwnedSemaphorePermit) -> Self {
        Self {
            is_used: AtomicBool::new(false),
            _place: place,
        }
    }

    /// Remembers that a request has come.
    pub(super) fn mark_used(&self) {
        self.is_used.store(true, Ordering::Relaxed);
    }

    /// Whether a request has ever come. Browsers open connections that they may need later.
    pub(super) fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Relaxed)
    }
}

/// A socket whose writes fail where the peer has taken no byte for the time-out.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    send_timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    taken_at: Option<Instant>,
    /// How many bytes may still be read; `None` where nothing bounds them here.
    readable_bytes: Option<usize>,
}

/// The peer has sent more than it may.
#[derive(Debug, Error)]
#[error("more was sent than may be before the connection is acknowledged")]
pub(super) struct TooMuchRead;

impl Socket {
    pub(super) fn new(stream: TcpStream, send_timeout: Duration) -> Self {
        Self {
            stream,
            send_timeout,
            stalled: None,
            taken_at: None,
            readable_bytes: None,
        }
    }

    /// Bounds what is read from now on: past it, reads fail with [`TooMuchRead`].
    pub(super) fn bound_reads(&mut self, readable_bytes: Option<usize>) {
        self.readable_bytes = readable_bytes;
    }

    /// When the peer last took something that it had to be waited for: a sign of life of one that is slow.
    pub(super) fn taken_at(&self) -> Option<Instant> {
        self.taken_at
    }

    /// Judges the outcome of a write: progress ends a stall, a stall has a time-out.
    fn judge<T>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(written) = &outcome {
            if self.stalled.take().is_some() && written.is_ok() {
                self.taken_at = Some(Instant::now());
            }
            return outcome;
        }
        let send_timeout = self.send_timeout;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(send_timeout)));
        ready!(stalled.as_mut().poll(cx));
        // Whoever writes again after this error starts anew.
        stalled.as_mut().reset(Instant::now() + send_timeout);
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the peer takes nothing",
        )))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.readable_bytes == Some(0) {
            return Poll::Ready(Err(io::Error::other(TooMuchRead)));
        }
        let length_before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Some(readable_bytes) = &mut self.readable_bytes {
            *readable_bytes = readable_bytes.saturating_sub(buffer.filled().len() - length_before);
        }
        outcome
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.judge(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
