//! `/aso/...`: active objects by HTTP, and how their values become JSON.
//!
//! ```text
//! GET    /aso/B/K                 what ASO.INFO tells
//! PUT    /aso/B/K                 a new object; the body is its source
//! GET    /aso/B/K/source          the source
//! PUT    /aso/B/K/source          new code; the state stays
//! POST   /aso/B/K/call/FUNCTION   calls a function; the body is a JSON array of arguments
//! ```

use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderValue, CONTENT_TYPE};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use oort_core::active::{Ask, Call, Caller, Value as Lua};
use oort_core::client::{Operation, Quorum, Reply, Request, Want};
use oort_core::mutation::{Expiry, Mutation};
use oort_core::types::ObjectKey;
use serde_json::{Map, Number, Value};

use crate::http::body::{json_response, Body};
use crate::http::parameters::Parameters;
use crate::http::refusal::Refusal;
use crate::http::route::Part;
use crate::http::shared::Shared;
use crate::http::upload::Upload;
use crate::token::{from_base64, to_base64url};

/// The content type of an active object's source: a `PUT` with it stores one.
pub const SOURCE: &str = "application/x-oort-aso+lua";
/// The header that says where the client is in the network: numbers, with commas between.
const COORDINATE: &str = "x-oort-coordinate";
/// The header with a key under which the object may put one reply.
const REPLY_KEY: &str = "x-oort-reply-key";
/// The name under which JSON has bytes that are no text.
const BYTES: &str = "$base64url";
/// The largest body of arguments, in bytes.
const ARGUMENTS_BYTES_MAX: u64 = 1 << 20;
/// Arrays and objects within each other in arguments, at most.
const LEVELS_MAX: usize = 32;

/// Serves one request.
pub async fn serve(
    shared: &Shared,
    head: &Parts,
    parameters: Parameters,
    body: &mut Upload,
    (bucket, key, part): (Bytes, Bytes, Part),
) -> Result<Response<Body>, Refusal> {
    let properties = shared.properties_in_force(&bucket).await?;
    let quorum = parameters.quorum(&properties)?;
    let key = ObjectKey::new(&bucket, &key)?;
    let ask = async |operation| {
        let request = Request { operation, timeout_ms: parameters.timeout_ms };
        Ok::<_, Refusal>(shared.handle.request(request).await?)
    };
    let operation = match (&head.method, part) {
        (&Method::PUT, part) => {
            let keeps_state = part == Part::Source;
            let source = shared.read_body(body, properties.aso.memory_bytes.into()).await?;
            let expiry = match parameters.ttl_s {
                Some(seconds) => Expiry::At(shared.wall_ms() + seconds * 1000),
                None => Expiry::Default,
            };
            let mutation = Mutation::Activate { source, expiry, keeps_state };
            let caller = Some(Arc::new(caller(shared, head)?));
            let want = Want::default();
            ask(Operation::Update { key, mutation, quorum, want, caller }).await?;
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            return Ok(response);
        }
        (_, Part::Source) => Operation::Get { key, quorum },
        (_, Part::Object) => call(shared, head, key, Ask::Info, Vec::new(), quorum)?,
        (_, Part::Function(name)) => {
            let body = shared.read_body(body, ARGUMENTS_BYTES_MAX).await?;
            let arguments = arguments(&body)?;
            call(shared, head, key, Ask::Function(name), arguments, quorum)?
        }
    };
    match ask(operation).await? {
        Reply::Called(called) => Ok(answer(called.value)),
        Reply::Object(object) => match object.active(shared.wall_ms()) {
            Some(active) => Ok(typed(Body::full(active.source.clone()), HeaderValue::from_static(SOURCE))),
            None => Err(Refusal::new(StatusCode::NOT_FOUND, "there is no active object")),
        },
        other => Err(Shared::unexpected(&other)),
    }
}

/// Asks an active object on behalf of a client.
pub fn call(
    shared: &Shared,
    head: &Parts,
    key: ObjectKey,
    what: Ask,
    arguments: Vec<Lua>,
    quorum: Quorum,
) -> Result<Operation, Refusal> {
    let caller = Some(Arc::new(caller(shared, head)?));
    Ok(Operation::Call { key, call: Call { what, arguments, caller }, quorum })
}

/// What an object sees of a client.
pub fn caller(shared: &Shared, head: &Parts) -> Result<Caller, Refusal> {
    let address = head.extensions.get::<std::net::SocketAddr>();
    let reply_key = text(&head.headers, REPLY_KEY)?.map(|text| Bytes::copy_from_slice(text.as_bytes()));
    let node = Some(shared.node);
    let coordinate = match text(&head.headers, COORDINATE)? {
        None => None,
        Some(text) => {
            let number = |text: &str| text.trim().parse().ok().filter(|number: &f64| number.is_finite());
            let numbers: Option<Vec<Lua>> =
                text.split(',').map(|text| number(text).map(Lua::Number)).collect();
            let numbers = numbers.filter(|numbers| numbers.len() <= 16);
            let numbers = numbers.ok_or_else(|| {
                Refusal::bad_request("X-Oort-Coordinate: up to 16 numbers with commas between them")
            })?;
            Some(Lua::Array(numbers))
        }
    };
    Ok(Caller {
        ip: address.map(|address| address.ip().to_canonical().to_string()),
        port: address.map(|address| address.port()),
        user: None,
        coordinate,
        node,
        reply_key,
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Refusal> {
    let header = headers.get(name).map(HeaderValue::to_str).transpose();
    header.map_err(|_| Refusal::bad_request(format!("{name}: not ASCII")))
}

/// True if a request's body is the source of an active object.
pub fn is_source(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    kind.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case(SOURCE)
}

/// What an object returned, as an answer: a string as it is, everything else as JSON.
pub fn answer(value: Lua) -> Response<Body> {
    match value {
        Lua::Bytes(bytes) => {
            let kind = match std::str::from_utf8(&bytes) {
                Ok(_) => "text/plain; charset=utf-8",
                Err(_) => "application/octet-stream",
            };
            typed(Body::full(bytes), HeaderValue::from_static(kind))
        }
        value => json_response(&to_json(&value)),
    }
}

fn typed(body: Body, kind: HeaderValue) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// A value as JSON. Bytes that are no UTF-8 become `{"$base64url": "..."}`, keys that are no strings their text.
pub fn to_json(value: &Lua) -> Value {
    match value {
        Lua::Nil => Value::Null,
        Lua::Bool(truth) => Value::Bool(*truth),
        Lua::Integer(number) => Value::from(*number),
        // JSON has no infinities.
        Lua::Number(number) => Number::from_f64(*number).map_or(Value::Null, Value::Number),
        Lua::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Value::from(text),
            Err(_) => Value::Object(Map::from_iter([(BYTES.to_string(), Value::from(to_base64url(bytes)))])),
        },
        Lua::Array(items) => Value::Array(items.iter().map(to_json).collect()),
        Lua::Map(entries) => {
            let name = |key: &Lua| match key {
                Lua::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                other => to_json(other).to_string(),
            };
            Value::Object(entries.iter().map(|(key, item)| (name(key), to_json(item))).collect())
        }
    }
}

/// JSON as a value. Errors: 400: too deep, or bytes that are not base64.
pub fn from_json(value: &Value, level: usize) -> Result<Lua, Refusal> {
    if level > LEVELS_MAX {
        return Err(Refusal::bad_request(format!("arguments nested deeper than {LEVELS_MAX} levels")));
    }
    Ok(match value {
        Value::Null => Lua::Nil,
        Value::Bool(truth) => Lua::Bool(*truth),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => Lua::Integer(integer),
            None => Lua::Number(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => Lua::from(text.as_str()),
        Value::Array(items) => {
            Lua::Array(items.iter().map(|item| from_json(item, level + 1)).collect::<Result<_, _>>()?)
        }
        Value::Object(entries) => match (entries.len(), entries.get(BYTES).and_then(Value::as_str)) {
            (1, Some(text)) => Lua::Bytes(
                from_base64(text.as_bytes())
                    .map_err(|_| Refusal::bad_request(format!("{BYTES}: not base64")))?,
            ),
            _ => {
                let entry = |(name, item): (&String, &Value)| {
                    Ok((Lua::from(name.as_str()), from_json(item, level + 1)?))
                };
                Lua::Map(entries.iter().map(entry).collect::<Result<_, Refusal>>()?)
            }
        },
    })
}

/// The arguments in a body: a JSON array, or nothing.
fn arguments(body: &[u8]) -> Result<Vec<Lua>, Refusal> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    let items: Vec<Value> = serde_json::from_slice(body).map_err(|error| {
        let text = format!("the body must be a JSON array of arguments, such as [\"alice\", 7]: {error}");
        Refusal::bad_request(text)
    })?;
    items.iter().map(|item| from_json(item, 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_comes_back() {
        let value = Lua::Map(vec![
            ("a".into(), Lua::Array(vec![1.into(), Lua::Number(1.5), Lua::Bool(true), Lua::Nil])),
            ("b".into(), Lua::Bytes(b"\xff\0".to_vec())),
        ]);
        let json = to_json(&value);
        assert_eq!(json.to_string(), r#"{"a":[1,1.5,true,null],"b":{"$base64url":"_wA"}}"#);
        assert_eq!(from_json(&json, 0).unwrap(), value);
        let numbered = Lua::Map(vec![(3.into(), "x".into()), (Lua::Bool(true), Lua::Number(f64::INFINITY))]);
        assert_eq!(to_json(&numbered).to_string(), r#"{"3":"x","true":null}"#);
    }

    #[test]
    fn arguments_are_an_array() {
        assert_eq!(arguments(b" ").unwrap(), []);
        assert_eq!(arguments(br#"[1, {"x": "y"}]"#).unwrap().len(), 2);
        let deep = [vec![b'['; 40], vec![b']'; 40]].concat();
        for wrong in [&b"{}"[..], b"[", b"[1]x", br#"[{"$base64url": "*"}]"#, &deep] {
            assert_eq!(arguments(wrong).unwrap_err().status, 400, "{}", wrong.escape_ascii());
        }
    }
}
