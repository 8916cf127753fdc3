//! Lists of keys and buckets. Keys are streamed page by page: however large the bucket, a listing holds one page.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::{Response, StatusCode};
use oort_core::bucket::DEFAULT_BUCKET;
use oort_core::client::{Operation, Page, Reply, Request, Scan, SCAN_LIMIT_MAX};
use oort_core::types::{ObjectKey, Position};
use serde_json::{json, Map, Value};
use tokio::sync::mpsc;

use crate::handle::Handle;
use crate::http::body::{json_response, Body, Interrupted, JSON};
use crate::http::parameters::{Listing, Parameters};
use crate::http::properties;
use crate::http::refusal::Refusal;
use crate::http::route::{percent_encode, printable, Place};
use crate::http::shared::Shared;

/// The most names of one list of buckets. Fewer: large clusters cannot list them; more: memory, 255 bytes each at most.
const BUCKETS_MAX: usize = 100_000;

/// The buckets that hold keys or have properties of their own, and `default`. Reads all keys of all buckets.
pub async fn buckets(
    shared: &Shared,
    parameters: &Parameters,
    prefix: Bytes,
) -> Result<Response<Body>, Refusal> {
    if parameters.buckets == Listing::No {
        return Err(Refusal::bad_request("ask with ?buckets=true or ?buckets=stream"));
    }
    let look = shared.handle.inspect(move |inside| {
        let configured = inside.node.buckets().entries().map(|(bucket, _)| bucket.clone());
        configured.collect::<Vec<Bytes>>()
    });
    let mut names: BTreeSet<Bytes> = look.await?.into_iter().collect();
    names.insert(Bytes::from_static(DEFAULT_BUCKET));
    let mut pages = Pages::new(shared, parameters, Bytes::new());
    while let Some(page) = pages.next().await? {
        names.extend(page.keys);
        if names.len() > BUCKETS_MAX {
            let text = format!("more than {BUCKETS_MAX} buckets hold keys: they cannot be listed");
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, text));
        }
    }
    let of_type = names.iter().filter_map(|name| name.strip_prefix(&prefix[..]));
    let listed: Vec<String> = of_type.map(printable).collect();
    Ok(json_response(&json!({ "buckets": listed })))
}

/// The keys of a bucket, as the query asks.
pub async fn keys(
    shared: &Shared,
    parameters: &Parameters,
    place: &Place,
) -> Result<Response<Body>, Refusal> {
    if parameters.keys == Listing::No {
        return Err(Refusal::bad_request(
            "ask with ?keys=true or ?keys=stream: a listing reads the whole bucket",
        ));
    }
    stream_keys(shared, parameters, place, Map::new()).await
}

/// `/riak/B`: the properties unless `props=false`, and the keys if asked for.
pub async fn old_bucket(
    shared: &Shared,
    parameters: &Parameters,
    place: &Place,
) -> Result<Response<Body>, Refusal> {
    let mut fields = Map::new();
    if !parameters.without_properties {
        fields.insert("props".into(), properties::current(shared, place).await?);
    }
    match parameters.keys {
        Listing::No => Ok(json_response(&Value::Object(fields))),
        _ => stream_keys(shared, parameters, place, fields).await,
    }
}

/// Answers once the first page is there, so that a bucket that cannot be listed is a plain error.
async fn stream_keys(
    shared: &Shared,
    parameters: &Parameters,
    place: &Place,
    fields: Map<String, Value>,
) -> Result<Response<Body>, Refusal> {
    // The empty name means the buckets themselves.
    ObjectKey::new(&place.bucket, b"any")?;
    let mut pages = Pages::new(shared, parameters, place.bucket.clone());
    let first = match pages.next().await {
        Ok(first) => first.unwrap_or_default(),
        // Riak says in the stream that the time given is over, and its clients look for it there.
        Err(refusal) if parameters.keys == Listing::Stream && parameters.timeout_ms.is_some() => {
            return Ok(json_response(&json!({ "error": refusal.text })));
        }
        Err(refusal) => return Err(refusal),
    };
    let (pieces, receiver) = mpsc::channel(1);
    let writer = Writer { pieces, form: parameters.keys, encode_keys: parameters.encode_keys };
    tokio::spawn(writer.run(fields, first, pages));
    let mut response = Response::new(Body::Stream(receiver));
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    Ok(response)
}

/// The pages of one bucket, in ring order.
struct Pages {
    handle: Handle,
    bucket: Bytes,
    /// The time limit of one page, in milliseconds.
    timeout_ms: Option<u32>,
    /// When the client wants all of it to be over, and how long after it asked.
    ends: Option<(Instant, Duration)>,
    next: Option<Position>,
}

impl Pages {
    fn new(shared: &Shared, parameters: &Parameters, bucket: Bytes) -> Pages {
        let timeout = parameters.timeout_ms.map(|ms| Duration::from_millis(ms.into()));
        Pages {
            handle: shared.handle.clone(),
            bucket,
            timeout_ms: parameters.timeout_ms,
            ends: timeout.map(|timeout| (Instant::now() + timeout, timeout)),
            next: Some(Position(0)),
        }
    }

    async fn next(&mut self) -> Result<Option<Page>, Refusal> {
        let Some(from) = self.next else {
            return Ok(None);
        };
        let scan = Scan {
            bucket: self.bucket.clone(),
            from,
            to: Position(u64::MAX),
            limit: SCAN_LIMIT_MAX,
            count_only: false,
        };
        let request = Request { operation: Operation::Scan(scan), timeout_ms: self.timeout_ms };
        match self.handle.request(request).await? {
            Reply::Page(page) => {
                if let Some((_, timeout)) = self.ends.filter(|(end, _)| Instant::now() > *end) {
                    let text =
                        format!("timeout: the listing is not complete after {} ms", timeout.as_millis());
                    return Err(Refusal::unavailable(text));
                }
                self.next = page.next;
                Ok(Some(page))
            }
            other => Err(Shared::unexpected(&other)),
        }
    }
}

/// Turns pages into JSON, as fast as the client takes it.
struct Writer {
    pieces: mpsc::Sender<Result<Bytes, Interrupted>>,
    form: Listing,
    encode_keys: bool,
}

impl Writer {
    async fn run(self, fields: Map<String, Value>, first: Page, mut pages: Pages) {
        let mut head = self.head(fields);
        let mut page = first;
        let mut is_first_key = true;
        loop {
            let text = std::mem::take(&mut head) + &self.page(&page, &mut is_first_key);
            let is_gone = match text.is_empty() {
                true => self.pieces.is_closed(),
                false => self.pieces.send(Ok(text.into())).await.is_err(),
            };
            if is_gone {
                return; // nobody reads it any more
            }
            page = match pages.next().await {
                Ok(Some(page)) => page,
                Ok(None) => break,
                Err(refusal) => return self.fail(refusal).await,
            };
        }
        if self.form == Listing::Whole {
            let _ = self.pieces.send(Ok("]}".into())).await;
        }
    }

    /// What stands before the first key.
    fn head(&self, fields: Map<String, Value>) -> String {
        match (self.form, fields.is_empty()) {
            (Listing::Stream, true) => String::new(),
            (Listing::Stream, false) => Value::Object(fields).to_string(),
            (_, true) => "{\"keys\":[".into(),
            (_, false) => {
                let mut text = Value::Object(fields).to_string();
                text.truncate(text.len() - 1); // the closing brace
                text + ",\"keys\":["
            }
        }
    }

    fn page(&self, page: &Page, is_first_key: &mut bool) -> String {
        let names = page.keys.iter().map(|key| match self.encode_keys {
            true => percent_encode(key),
            false => printable(key),
        });
        let names: Vec<String> = names.collect();
        if self.form == Listing::Stream {
            return match names.is_empty() {
                true => String::new(),
                false => json!({ "keys": names }).to_string(),
            };
        }
        let mut text = String::new();
        for name in names {
            if !std::mem::take(is_first_key) {
                text.push(',');
            }
            text += &Value::String(name).to_string();
        }
        text
    }

    /// A stream ends with an object that says why, as Riak's does; one JSON object cannot, so the connection is cut.
    async fn fail(&self, refusal: Refusal) {
        let last = match self.form {
            Listing::Stream => Ok(json!({ "error": refusal.text }).to_string().into()),
            Listing::Whole | Listing::No => Err(Interrupted),
        };
        // The client may have gone away.
        let _ = self.pieces.send(last).await;
    }
}
