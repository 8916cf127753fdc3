//! Bodies of requests, read whole up to a limit.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Incoming};
use hyper::StatusCode;

use crate::http::refusal::Refusal;

/// What memory a body of unknown length is given at first.
const FIRST_BYTES: usize = 8 << 10;

/// A request's body, and how far it was read.
pub struct Upload {
    body: Incoming,
    is_read: bool,
}

impl Upload {
    /// Nothing of `body` has been read.
    pub fn new(body: Incoming) -> Upload {
        Upload { is_read: body.is_end_stream(), body }
    }

    /// The length a request announces for its body; `None` if it comes in chunks.
    pub fn announced_bytes(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// True once the body was read to its end. Only then can the connection carry another request.
    pub fn is_read(&self) -> bool {
        self.is_read
    }

    /// Reads the body whole.
    ///
    /// Errors: 413 beyond `limit_bytes`, without reading further; 408 when it takes longer than `patience`; 400 when it
    /// is malformed or cut short.
    pub async fn read(&mut self, limit_bytes: u64, patience: Duration) -> Result<Bytes, Refusal> {
        let announced = self.announced_bytes();
        if announced.is_some_and(|bytes| bytes > limit_bytes) {
            return Err(Refusal::too_large("body", limit_bytes));
        }
        let mut bytes = BytesMut::with_capacity(announced.map_or(FIRST_BYTES, |bytes| bytes as usize));
        let collect = async {
            while let Some(piece) = self.next().await? {
                if (bytes.len() + piece.len()) as u64 > limit_bytes {
                    return Err(Refusal::too_large("body", limit_bytes));
                }
                bytes.extend_from_slice(&piece);
            }
            Ok(())
        };
        match tokio::time::timeout(patience, collect).await {
            Ok(result) => result.map(|()| bytes.freeze()),
            Err(_) => Err(Refusal::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("body not complete after {} ms", patience.as_millis()),
            )),
        }
    }

    /// Reads what is left and throws it away. Bounded by what has come already: see [`crate::http::framing`].
    pub async fn skip(&mut self, patience: Duration) {
        let rest = async { while let Ok(Some(_)) = self.next().await {} };
        // If it takes longer after all, the body stays unread, and the connection is closed.
        let _ = tokio::time::timeout(patience, rest).await;
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        loop {
            let Some(frame) = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await else {
                self.is_read = true;
                return Ok(None);
            };
            let frame = frame.map_err(|error| Refusal::bad_request(format!("malformed body: {error}")))?;
            // Trailers mean nothing here.
            if let Ok(piece) = frame.into_data() {
                return Ok(Some(piece));
            }
        }
    }
}
