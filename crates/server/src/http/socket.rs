//! A client's socket that gives up on clients who do not read, and says goodbye to those that still send.
//!
//! hyper limits how long a request's head may take, and `upload` how long its body; nothing limits how long an answer
//! may wait for a client that stopped reading. This does: a write that makes no progress for long enough is an error.
//!
//! A system throws an answer away on its way to the client when its socket is closed with bytes unread. So after an
//! answer that came before its request was read, the rest is read into nothing for a moment.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{ready, Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{sleep, Sleep};

use crate::http::framing::{Framing, Watch};

/// How long a client may go on sending after an early answer. Shorter: a slow client misses why.
const PARTING: Duration = Duration::from_secs(2);
/// How much of it is read, in bytes. Less: a client that sends a large value misses why.
const PARTING_BYTES_MAX: usize = 64 << 20;

/// What a connection's socket and its service know of each other.
#[derive(Default)]
pub struct Wire {
    watch: Mutex<Watch>,
    is_early: AtomicBool,
}

impl Wire {
    /// How the next request is framed.
    pub fn next_framing(&self) -> Option<Framing> {
        self.watch().take_next()
    }

    /// True if all of every request that began has come, whether or not it was read.
    pub fn has_whole_requests(&self) -> bool {
        self.watch().is_between_requests()
    }

    /// An answer goes out before its request was read: the connection ends with it.
    pub fn note_early(&self) {
        self.is_early.store(true, Ordering::Relaxed);
    }

    fn watch(&self) -> std::sync::MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream whose writes time out.
pub struct Socket {
    stream: TcpStream,
    wire: Arc<Wire>,
    patience: Duration,
    /// Runs while a write waits for the client.
    stalled: Option<Pin<Box<Sleep>>>,
    parting: Option<Parting>,
}

/// The end of a connection: everything is written, something is still read.
struct Parting {
    until: Pin<Box<Sleep>>,
    bytes: usize,
}

impl Socket {
    /// A write may wait for `patience` without progress.
    pub fn new(stream: TcpStream, wire: Arc<Wire>, patience: Duration) -> Socket {
        Socket { stream, wire, patience, stalled: None, parting: None }
    }

    fn limit<T>(&mut self, cx: &mut Context, progress: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.stalled = None;
            return progress;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Reads what the client still sends, until it ends or has had its time.
    fn part(&mut self, cx: &mut Context) -> Poll<()> {
        let parting =
            self.parting.get_or_insert_with(|| Parting { until: Box::pin(sleep(PARTING)), bytes: 0 });
        let mut scratch = [0; 16 << 10];
        while parting.bytes < PARTING_BYTES_MAX && parting.until.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => parting.bytes += buffer.filled().len(),
                // It has ended or gone away.
                _ => break,
            }
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let progress = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.wire.watch().feed(&buffer.filled()[before..]);
        progress
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.limit(cx, progress)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
        slices: &[io::IoSlice],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.limit(cx, progress)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        if self.parting.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        // hyper answers a head that is no HTTP without reading all of it, too.
        match self.wire.is_early.load(Ordering::Relaxed) || !self.wire.has_whole_requests() {
            true => self.part(cx).map(Ok),
            false => Poll::Ready(Ok(())),
        }
    }
}
