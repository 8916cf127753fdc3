//! Requests that cannot be served, as HTTP answers: a status, a text that says why, and what to do about it.

use bytes::Bytes;
use hyper::header::{HeaderValue, ALLOW, CONTENT_TYPE, RETRY_AFTER};
use hyper::{Response, StatusCode};
use oort_core::active::FailureKind;
use oort_core::client::{ActiveError, ClientError};
use oort_core::mutation::MutationError;
use oort_core::types::KeyError;

use crate::handle::Stopped;
use crate::http::body::Body;
use crate::token::TokenError;

/// An answer that is an error.
#[derive(Debug)]
pub struct Refusal {
    pub status: StatusCode,
    /// One line, without a full stop.
    pub text: String,
    /// The methods that would have been served, for 405.
    pub allow: Option<&'static str>,
    /// Seconds after which trying again makes sense.
    pub retry_s: Option<u32>,
}

impl Refusal {
    /// An error that trying again does not help.
    pub fn new(status: StatusCode, text: impl Into<String>) -> Refusal {
        Refusal { status, text: text.into(), allow: None, retry_s: None }
    }

    /// 400: the request itself is wrong.
    pub fn bad_request(text: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, text)
    }

    /// 405, with the methods that this path serves.
    pub fn method(method: &hyper::Method, allow: &'static str) -> Refusal {
        Refusal {
            allow: Some(allow),
            ..Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{} is not served here: use {allow}", shortened(method.as_str())),
            )
        }
    }

    /// 412: a condition that came with the request does not hold.
    pub fn condition() -> Refusal {
        Refusal::new(
            StatusCode::PRECONDITION_FAILED,
            "the request's condition does not hold: nothing was changed",
        )
    }

    /// 413, with the limit that was exceeded.
    pub fn too_large(what: &str, limit_bytes: u64) -> Refusal {
        Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("{what} exceeds the limit of {limit_bytes} bytes"),
        )
    }

    /// 503: this node, now. Try again, or elsewhere.
    pub fn unavailable(text: impl Into<String>) -> Refusal {
        Refusal { retry_s: Some(1), ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, text) }
    }

    /// The answer on the wire.
    pub fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::full(Bytes::from(self.text + "\n")));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if let Some(seconds) = self.retry_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// The one place where a client error becomes an HTTP status.
impl From<ClientError> for Refusal {
    fn from(error: ClientError) -> Refusal {
        let text = error.to_string();
        match error {
            ClientError::QuorumUnavailable { .. }
            | ClientError::TooFewReachable { .. }
            | ClientError::NotReady
            | ClientError::ReadOnly { .. }
            | ClientError::ClockSkew { .. }
            | ClientError::Busy { .. }
            | ClientError::Stopping => Refusal::unavailable(text),
            // No Retry-After: trying a write again may do it twice.
            ClientError::OutcomeUnknown => Refusal::new(StatusCode::BAD_GATEWAY, text),
            ClientError::InvalidQuorum { .. }
            | ClientError::InvalidTimeout { .. }
            | ClientError::InvalidContext
            | ClientError::Property(_)
            | ClientError::Ring(_) => Refusal::bad_request(text),
            ClientError::Active(reason) => match reason {
                ActiveError::Missing => Refusal::new(StatusCode::NOT_FOUND, text),
                ActiveError::NotActive => Refusal::new(StatusCode::CONFLICT, text),
                ActiveError::Forbidden | ActiveError::Refused { .. } => {
                    Refusal::new(StatusCode::FORBIDDEN, text)
                }
                ActiveError::Crowded { .. }
                | ActiveError::Rests { .. }
                | ActiveError::NoSandbox
                | ActiveError::NoCopy => Refusal::unavailable(text),
                ActiveError::TimedOut | ActiveError::Replaced => Refusal::new(StatusCode::BAD_GATEWAY, text),
                ActiveError::Reserved { .. } => Refusal::bad_request(text),
                ActiveError::Failed(failure) => match failure.kind {
                    FailureKind::Syntax => Refusal::bad_request(text),
                    FailureKind::NoFunction => Refusal::new(StatusCode::NOT_FOUND, text),
                    FailureKind::Error | FailureKind::Limit => {
                        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, text)
                    }
                },
                ActiveError::Returned { .. }
                | ActiveError::CannotWait { .. }
                | ActiveError::CannotDelete { .. } => Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, text),
            },
            ClientError::Mutation(reason) => match reason {
                MutationError::IsActive => Refusal::new(StatusCode::CONFLICT, text),
                MutationError::ValueTooLarge { .. } | MutationError::ObjectTooLarge { .. } => {
                    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, text)
                }
                MutationError::TooManySiblings { .. } => Refusal::new(StatusCode::CONFLICT, text),
                MutationError::NotAnInteger
                | MutationError::NotAFloat
                | MutationError::WouldOverflow
                | MutationError::NotFinite => Refusal::bad_request(text),
            },
        }
    }
}

impl From<Stopped> for Refusal {
    fn from(stopped: Stopped) -> Refusal {
        Refusal::unavailable(stopped.to_string())
    }
}

impl From<KeyError> for Refusal {
    fn from(error: KeyError) -> Refusal {
        Refusal::bad_request(error.to_string())
    }
}

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Refusal {
        Refusal::bad_request(format!("X-Riak-Vclock: {error}"))
    }
}

/// As much of a client's text as an error may repeat.
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(100) {
        None => text.to_string(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}
