//! Bodies of answers: whole, or in pieces as the client takes them.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use hyper::header::{HeaderValue, CONTENT_TYPE};
use hyper::Response;
use serde_json::Value;
use tokio::sync::mpsc;

/// The content type of JSON.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer's body.
pub enum Body {
    /// Everything is there. Pieces are sent one after the other without being copied together.
    Pieces(VecDeque<Bytes>),
    /// Pieces come as the client takes them; an error cuts the connection, so that the end is not mistaken.
    Stream(mpsc::Receiver<Result<Bytes, Interrupted>>),
}

/// A streamed answer could not be finished.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "the answer could not be finished")
    }
}

impl std::error::Error for Interrupted {}

impl Body {
    /// A body without bytes.
    pub fn empty() -> Body {
        Body::Pieces(VecDeque::new())
    }

    /// A body of one piece.
    pub fn full(bytes: impl Into<Bytes>) -> Body {
        Body::pieces([bytes.into()])
    }

    /// The concatenation of `pieces`.
    pub fn pieces(pieces: impl IntoIterator<Item = Bytes>) -> Body {
        Body::Pieces(pieces.into_iter().filter(|piece| !piece.is_empty()).collect())
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Interrupted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
    ) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        match &mut *self {
            Body::Pieces(pieces) => Poll::Ready(pieces.pop_front().map(|piece| Ok(Frame::data(piece)))),
            Body::Stream(pieces) => pieces.poll_recv(cx).map(|next| next.map(|piece| piece.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Pieces(pieces) => pieces.is_empty(),
            Body::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Pieces(pieces) => SizeHint::with_exact(pieces.iter().map(|piece| piece.len() as u64).sum()),
            Body::Stream(_) => SizeHint::default(),
        }
    }
}

/// An answer of JSON.
pub fn json_response(value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::full(value.to_string() + "\n"));
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// An answer of text.
pub fn text_response(text: String, content_type: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::full(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
