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

/// The length a request announces for its body; `None` if it comes in chunks.
pub fn announced_bytes(body: &Incoming) -> Option<u64> {
    body.size_hint().exact()
}

/// Reads a request's body whole.
///
/// Errors: 413 beyond `limit_bytes`, without reading further; 408 when it takes longer than `patience`; 400 when it is
/// malformed or cut short.
pub async fn read(mut body: Incoming, limit_bytes: u64, patience: Duration) -> Result<Bytes, Refusal> {
    let announced = announced_bytes(&body);
    if announced.is_some_and(|bytes| bytes > limit_bytes) {
        return Err(Refusal::too_large("body", limit_bytes));
    }
    let mut bytes = BytesMut::with_capacity(announced.map_or(FIRST_BYTES, |bytes| bytes as usize));
    let collect = async {
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let frame = frame.map_err(|error| Refusal::bad_request(format!("malformed body: {error}")))?;
            let Ok(piece) = frame.into_data() else {
                continue; // trailers mean nothing here
            };
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
