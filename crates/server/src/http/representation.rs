//! How an object looks over HTTP: one value with its headers, several as a list or as `multipart/mixed`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::header::{
    HeaderMap, HeaderName, HeaderValue, ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, ETAG, LAST_MODIFIED, LINK,
    VARY,
};
use hyper::{Response, StatusCode};
use oort_core::causality::Dot;
use oort_core::object::{Object, Sibling, Value};

use crate::http::body::Body;
use crate::http::conditions::etag;
use crate::http::refusal::Refusal;
use crate::http::route::Place;
use crate::token::{self, Binding};

/// The context, opaque to clients.
pub const VCLOCK: HeaderName = HeaderName::from_static("x-riak-vclock");
/// Set on a 404 when the key was deleted, not just never written.
pub const DELETED: HeaderName = HeaderName::from_static("x-riak-deleted");
/// When the value expires.
pub const EXPIRES: HeaderName = HeaderName::from_static("x-oort-expires");
/// The prefix of the headers that clients may store along.
const META_PREFIX: &str = "x-riak-meta-";
/// The prefix of secondary index entries, which are refused.
const INDEX_PREFIX: &str = "x-riak-index-";
/// The type of a value that was stored without one.
const DEFAULT_CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/octet-stream");
/// The last second that an HTTP date can express: the end of the year 9999, in milliseconds since 1970.
const DATE_MS_MAX: u64 = 253_402_300_799_000;

/// The printable name of one sibling.
pub fn vtag(dot: Dot) -> String {
    format!("{:016x}-{:016x}", dot.counter, dot.actor.0)
}

/// The time of a dot, in whole seconds, as HTTP dates are.
pub fn modified(dot: Dot) -> SystemTime {
    seconds(dot.wall_ms())
}

fn seconds(wall_ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(wall_ms.min(DATE_MS_MAX) / 1000)
}

fn date(wall_ms: u64) -> HeaderValue {
    HeaderValue::try_from(httpdate::fmt_http_date(seconds(wall_ms))).expect("a date is printable")
}

/// The headers of a request that are stored with its value.
///
/// `rel="up"` links are left out: each answer adds the one of its own path. Errors: 400 for secondary indexes.
pub fn stored_headers(headers: &HeaderMap) -> Result<Vec<(Bytes, Bytes)>, Refusal> {
    let mut stored = Vec::new();
    for (name, value) in headers {
        let text = name.as_str();
        if text.starts_with(INDEX_PREFIX) {
            return Err(Refusal::bad_request(format!("{text}: secondary indexes are not supported")));
        }
        let value = match *name == LINK {
            true => without_up_links(value.as_bytes()),
            false => Bytes::copy_from_slice(value.as_bytes()),
        };
        if is_stored(name) && (!value.is_empty() || text.starts_with(META_PREFIX)) {
            stored.push((Bytes::copy_from_slice(text.as_bytes()), value));
        }
    }
    Ok(stored)
}

fn is_stored(name: &HeaderName) -> bool {
    *name == CONTENT_TYPE
        || *name == CONTENT_ENCODING
        || *name == LINK
        || name.as_str().starts_with(META_PREFIX)
}

/// The links of a `Link` header but those to a bucket, as they stand.
fn without_up_links(value: &[u8]) -> Bytes {
    let mut kept: Vec<&[u8]> = Vec::new();
    let (mut start, mut is_quoted, mut is_in_target) = (0, false, false);
    for at in 0..=value.len() {
        match value.get(at) {
            Some(b'"') if !is_in_target => is_quoted = !is_quoted,
            Some(b'<') if !is_quoted => is_in_target = true,
            Some(b'>') if !is_quoted => is_in_target = false,
            Some(b',') if !is_quoted && !is_in_target => {
                kept.push(value[start..at].trim_ascii());
                start = at + 1;
            }
            None => kept.push(value[start..].trim_ascii()),
            _ => {}
        }
    }
    kept.retain(|link| !link.is_empty() && !link.ends_with(b"rel=\"up\""));
    kept.join(&b", "[..]).into()
}

/// What an answer about one object needs to know.
pub struct View<'a> {
    pub object: &'a Object,
    pub place: &'a Place,
    /// Of the object's key.
    pub binding: Binding,
    pub wall_ms: u64,
}

impl View<'_> {
    /// 200 with the only value or the one `vtag` names, 300 with several that differ, 404 when none is live or has that
    /// name.
    pub fn response(&self, vtag_asked: Option<&str>, accept: Accept) -> Response<Body> {
        let mut siblings = self.object.siblings(self.wall_ms);
        if siblings.is_empty() {
            return self.not_found();
        }
        if let Some(name) = vtag_asked {
            siblings.retain(|sibling| vtag(sibling.dot) == name);
        }
        // A put that was repeated is its own sibling: there is nothing to choose between equal ones.
        if let [first, others @ ..] = &siblings[..] {
            if others.iter().all(|other| is_same(first, other)) {
                siblings.truncate(1);
            }
        }
        match &siblings[..] {
            [] => {
                let text = "no sibling has this vtag: it may have been resolved";
                Refusal::new(StatusCode::NOT_FOUND, text).into_response()
            }
            [sibling] => self.single(sibling),
            _ => self.multiple(&siblings, accept),
        }
    }

    /// 304, with what identifies the version the client already has.
    pub fn not_modified(&self, newest: Dot) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        self.identify(response.headers_mut());
        response.headers_mut().insert(LAST_MODIFIED, date(newest.wall_ms()));
        response
    }

    /// 404; with the context, and a mark if the key was deleted.
    pub fn not_found(&self) -> Response<Body> {
        let mut response = Refusal::new(StatusCode::NOT_FOUND, "not found").into_response();
        if !self.object.is_unknown() {
            response.headers_mut().insert(VCLOCK, self.vclock());
        }
        let is_deleted = |value: &Value| *value == Value::Tombstone;
        if self.object.0.values().iter().any(|(_, version)| is_deleted(&version.value)) {
            response.headers_mut().insert(DELETED, HeaderValue::from_static("true"));
        }
        response
    }

    fn single(&self, sibling: &Sibling) -> Response<Body> {
        let mut response = Response::new(Body::full(sibling.value.clone()));
        let headers = response.headers_mut();
        *headers = value_headers(sibling, self.place);
        self.identify(headers);
        response
    }

    fn multiple(&self, siblings: &[Sibling], accept: Accept) -> Response<Body> {
        let (content_type, body) = match accept {
            Accept::List => (HeaderValue::from_static("text/plain"), list(siblings)),
            Accept::Multipart { boundary } => multipart(siblings, self.place, boundary),
        };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::MULTIPLE_CHOICES;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, content_type);
        headers.insert(LAST_MODIFIED, date(siblings[0].dot.wall_ms()));
        self.identify(headers);
        response
    }

    fn identify(&self, headers: &mut HeaderMap) {
        headers.insert(VCLOCK, self.vclock());
        headers.insert(VARY, HeaderValue::from_static("Accept"));
        let tag = HeaderValue::try_from(etag(self.object.etag())).expect("a tag is printable");
        headers.insert(ETAG, tag);
    }

    fn vclock(&self) -> HeaderValue {
        HeaderValue::try_from(token::encode(self.object.context(), self.binding))
            .expect("a token is printable")
    }
}

/// The headers of one value: those stored with it, its time and its links.
///
/// Other interfaces may have stored any headers; only those that HTTP stores are given out.
fn value_headers(sibling: &Sibling, place: &Place) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut links: Vec<u8> = Vec::new();
    for (name, value) in &sibling.headers {
        let Ok(name) = HeaderName::from_bytes(name) else {
            continue;
        };
        if name == LINK {
            links.extend_from_slice(value);
            links.extend_from_slice(b", ");
        } else if let (true, Ok(value)) = (is_stored(&name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers.entry(CONTENT_TYPE).or_insert(DEFAULT_CONTENT_TYPE);
    links.extend_from_slice(format!("<{}>; rel=\"up\"", place.path).as_bytes());
    if let Ok(links) = HeaderValue::from_bytes(&links) {
        headers.insert(LINK, links);
    }
    headers.insert(LAST_MODIFIED, date(sibling.dot.wall_ms()));
    if let Some(expires_ms) = sibling.expires_ms {
        headers.insert(EXPIRES, date(expires_ms));
    }
    headers
}

/// True if a client could tell two siblings apart by their names only.
fn is_same(one: &Sibling, other: &Sibling) -> bool {
    one.value == other.value && one.headers == other.headers && one.expires_ms == other.expires_ms
}

fn list(siblings: &[Sibling]) -> Body {
    let names = siblings.iter().map(|sibling| vtag(sibling.dot) + "\n");
    Body::full("Siblings:\n".to_string() + &names.collect::<String>())
}

fn multipart(siblings: &[Sibling], place: &Place, boundary: String) -> (HeaderValue, Body) {
    let mut pieces = Vec::with_capacity(2 * siblings.len() + 1);
    for sibling in siblings {
        let mut head = format!("\r\n--{boundary}\r\n").into_bytes();
        for (name, value) in &value_headers(sibling, place) {
            head.extend_from_slice(name.as_str().as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(format!("etag: \"{}\"\r\n\r\n", vtag(sibling.dot)).as_bytes());
        pieces.push(head.into());
        pieces.push(sibling.value.clone());
    }
    pieces.push(format!("\r\n--{boundary}--\r\n").into());
    let content_type = HeaderValue::try_from(format!("multipart/mixed; boundary={boundary}"));
    (content_type.expect("a boundary is printable"), Body::pieces(pieces))
}

/// What several siblings are shown as.
pub enum Accept {
    /// Their names, as plain text.
    List,
    /// All values, between lines that no value contains.
    Multipart { boundary: String },
}

/// True if the client asks for `multipart/mixed` rather than plain text. A wildcard alone does not ask for it.
pub fn accepts_multipart(headers: &HeaderMap) -> bool {
    prefers_to_text(headers, "multipart/mixed", "multipart/*")
}

/// True if the client asks for JSON rather than plain text. A wildcard alone does not ask for it.
pub fn accepts_json(headers: &HeaderMap) -> bool {
    prefers_to_text(headers, "application/json", "application/*")
}

/// True if `Accept` names `wanted`, or the `range` that contains it, and likes it no less than plain text.
fn prefers_to_text(headers: &HeaderMap, wanted: &str, range: &str) -> bool {
    let (mut named, mut text, mut any) = (None, None, None);
    for value in headers.get_all(ACCEPT) {
        for item in value.to_str().unwrap_or("").split(',') {
            let mut parts = item.split(';').map(str::trim);
            let kind = parts.next().unwrap_or("").to_ascii_lowercase();
            let quality = parts
                .find_map(|parameter| parameter.strip_prefix("q="))
                .map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0));
            match kind.as_str() {
                kind if kind == wanted || kind == range => named = Some(quality),
                "text/plain" | "text/*" => text = Some(quality),
                "*/*" => any = Some(quality),
                _ => {}
            }
        }
    }
    let text = text.or(any).unwrap_or(0.0);
    named.is_some_and(|named| named > 0.0 && named >= text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multipart_must_be_asked_for() {
        let cases = [
            (None, false),
            (Some("*/*"), false),
            (Some("text/plain"), false),
            (Some("application/json"), false),
            (Some("multipart/mixed"), true),
            (Some("multipart/mixed, */*"), true),
            (Some("multipart/mixed, */*;q=0.9"), true),
            (Some("Multipart/Mixed;q=0.5, text/plain;q=0.8"), false),
            (Some("multipart/mixed;q=0"), false),
            (Some("application/json, multipart/mixed; q=0.3"), true),
        ];
        for (accept, want) in cases {
            let headers =
                accept.map(|accept| (ACCEPT, HeaderValue::from_static(accept))).into_iter().collect();
            assert_eq!(accepts_multipart(&headers), want, "{accept:?}");
        }
    }

    #[test]
    fn json_must_be_asked_for() {
        let cases = [
            ("*/*", false),
            ("text/html, */*;q=0.8", false),
            ("application/json", true),
            ("multipart/mixed, application/json, */*;q=0.5", true),
            ("application/json;q=0.5, text/plain", false),
        ];
        for (accept, want) in cases {
            let headers = [(ACCEPT, HeaderValue::from_static(accept))].into_iter().collect();
            assert_eq!(accepts_json(&headers), want, "{accept}");
        }
    }

    #[test]
    fn links_to_the_bucket_are_not_stored() {
        let cases: [(&[u8], &[u8]); 4] = [
            (b"</buckets/b>; rel=\"up\"", b""),
            (b"</a>; riaktag=\"x\", </buckets/b>; rel=\"up\"", b"</a>; riaktag=\"x\""),
            (
                b"</a,b>; riaktag=\"x, y\",</c>; riaktag=\"z\"",
                b"</a,b>; riaktag=\"x, y\", </c>; riaktag=\"z\"",
            ),
            (b"</open, \"", b"</open, \""),
        ];
        for (given, want) in cases {
            assert_eq!(without_up_links(given), want, "{}", given.escape_ascii());
        }
    }

    #[test]
    fn times_beyond_the_calendar_are_its_end() {
        assert_eq!(date(u64::MAX), "Fri, 31 Dec 9999 23:59:59 GMT");
        assert_eq!(date(784_111_777_999), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
