//! Counters under Riak's path for them, `/buckets/B/counters/K`: the same that Redis's `INCR` counts.
//!
//! `GET` answers the count as decimal digits, `POST` adds the number in its body. Concurrent additions all count, which
//! is why the bucket must keep siblings. Source: Riak KV 1.4's counters.

use bytes::Bytes;
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use oort_core::bucket::Conflict;
use oort_core::client::{Operation, Reply, Request, Want};
use oort_core::mutation::Mutation;
use oort_core::object::Object;
use oort_core::types::ObjectKey;

use crate::http::body::{text_response, Body};
use crate::http::parameters::Parameters;
use crate::http::refusal::{shortened, Refusal};
use crate::http::route::Place;
use crate::http::shared::Shared;
use crate::http::upload::Upload;

/// The longest body of a `POST`, in bytes: a number and white space around it.
const NUMBER_BYTES_MAX: u64 = 64;

/// Serves one request for the counter `key`.
pub async fn serve(
    shared: &Shared,
    head: &Parts,
    parameters: Parameters,
    body: &mut Upload,
    (place, key): (Place, Bytes),
) -> Result<Response<Body>, Refusal> {
    let properties = shared.properties_in_force(&place.bucket).await?;
    let quorum = parameters.quorum(&properties)?;
    let key = ObjectKey::new(&place.bucket, &key)?;
    let operation = match head.method {
        Method::POST if properties.conflict != Conflict::Siblings => {
            let text = "counters need the bucket property allow_mult=true: without it additions get lost";
            return Err(Refusal::new(StatusCode::CONFLICT, text));
        }
        Method::POST => {
            let delta = number(&shared.read_body(body, NUMBER_BYTES_MAX).await?)?;
            let want = Want { before: false, after: parameters.return_value };
            Operation::Update { key, mutation: Mutation::Add { delta }, quorum, want, caller: None }
        }
        _ => Operation::Get { key, quorum },
    };
    let request = Request { operation, timeout_ms: parameters.timeout_ms };
    match shared.handle.request(request).await? {
        Reply::Object(object) => shown(&object, shared.wall_ms()),
        Reply::Updated(updated) => match updated.after {
            Some(object) => shown(&object, shared.wall_ms()),
            None => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NO_CONTENT;
                Ok(response)
            }
        },
        other => Err(Shared::unexpected(&other)),
    }
}

/// The count as text. Errors: 404 without a value; 409 if the value is no number.
fn shown(object: &Object, wall_ms: u64) -> Result<Response<Body>, Refusal> {
    let Some(sibling) = object.newest(wall_ms) else {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "not found"));
    };
    match std::str::from_utf8(&sibling.value).ok().and_then(|text| text.parse::<i64>().ok()) {
        Some(count) => Ok(text_response(count.to_string(), "text/plain")),
        None => Err(Refusal::new(StatusCode::CONFLICT, "the value is no counter")),
    }
}

fn number(body: &[u8]) -> Result<i64, Refusal> {
    let text = String::from_utf8_lossy(body);
    let wrong = |_| format!("the body is '{}': it must be a whole number of 64 bits", shortened(text.trim()));
    text.trim().parse().map_err(wrong).map_err(Refusal::bad_request)
}
