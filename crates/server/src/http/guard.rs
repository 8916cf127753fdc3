//! What no request may do, whatever it asks for: be ambiguous, or write for a page of another origin.
//!
//! A browser sends the requests of any page to any address its user can reach, so a page from elsewhere could write to
//! a node on the user's machine or in the user's network. The browser says where the page is from, in `Origin` and
//! `Sec-Fetch-Site`, and no page can change that. Programs that are no browsers send neither.
//!
//! Source: RFC 9110 §5.3 and §7.2, RFC 9112 §3.2 and §6.1, RFC 6454 §7; the Fetch Metadata Request Headers of the W3C.

use hyper::header::{
    HeaderMap, HeaderName, HeaderValue, CONTENT_ENCODING, CONTENT_TYPE, EXPECT, HOST, IF_MODIFIED_SINCE,
    IF_UNMODIFIED_SINCE, ORIGIN, TRANSFER_ENCODING,
};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode, Version};

use crate::http::framing::Framing;
use crate::http::refusal::{shortened, Refusal};
use crate::http::representation::VCLOCK;

/// Headers that mean nothing when they are given twice. Lists, such as `Link` and `If-Match`, may be.
static SINGLE: [HeaderName; 10] = [
    CONTENT_TYPE,
    CONTENT_ENCODING,
    EXPECT,
    IF_MODIFIED_SINCE,
    IF_UNMODIFIED_SINCE,
    ORIGIN,
    VCLOCK,
    HeaderName::from_static("x-oort-ttl"),
    HeaderName::from_static("x-oort-coordinate"),
    HeaderName::from_static("x-oort-reply-key"),
];
/// What a browser says of the page that asks.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses heads that two readers could understand differently. Errors: 400; 501 for a transfer coding; 417 for an
/// expectation.
pub fn check(head: &Parts, framing: Option<Framing>) -> Result<(), Refusal> {
    check_host(head)?;
    let framing = framing.unwrap_or_default();
    if framing.lengths > 1 {
        return Err(Refusal::bad_request(format!("content-length is given {} times", framing.lengths)));
    }
    if framing.is_ambiguous() {
        return Err(Refusal::bad_request("content-length and transfer-encoding contradict each other"));
    }
    for name in &SINGLE {
        if head.headers.get_all(name).iter().nth(1).is_some() {
            return Err(Refusal::bad_request(format!("{name} is given twice")));
        }
    }
    check_codings(&head.headers)?;
    match head.headers.get(EXPECT) {
        Some(value) if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") => {
            Err(Refusal::new(StatusCode::EXPECTATION_FAILED, "expect: only 100-continue is understood"))
        }
        _ => Ok(()),
    }
}

fn check_host(head: &Parts) -> Result<(), Refusal> {
    let mut hosts = head.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => Err(Refusal::bad_request("host is given twice")),
        (None, None) if head.version == Version::HTTP_11 => Err(Refusal::bad_request("host is missing")),
        (Some(host), None) if !is_host(host.as_bytes()) => {
            let text = shortened(&host.as_bytes().escape_ascii().to_string());
            Err(Refusal::bad_request(format!(
                "host is '{text}': it must be a name or an address, and a port"
            )))
        }
        _ => Ok(()),
    }
}

/// True for the characters of a name or an address with a port.
fn is_host(host: &[u8]) -> bool {
    host.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(&byte))
}

/// Chunks are the one coding that is served: a value is stored as it comes, `Content-Encoding` and all.
fn check_codings(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut count = 0;
    for value in headers.get_all(TRANSFER_ENCODING) {
        for coding in value.as_bytes().split(|&byte| byte == b',') {
            count += 1;
            if !coding.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                let coding = shortened(&coding.trim_ascii().escape_ascii().to_string());
                let text = format!("transfer-encoding '{coding}' is not supported: only chunked is");
                return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, text));
            }
        }
    }
    match count {
        0 | 1 => Ok(()),
        _ => Err(Refusal::bad_request("transfer-encoding: chunked is given twice")),
    }
}

/// Refuses what a page of another origin would change. Errors: 403.
pub fn check_origin(head: &Parts) -> Result<(), Refusal> {
    if matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    match foreign(&head.headers) {
        None => Ok(()),
        Some(origin) => Err(Refusal::new(
            StatusCode::FORBIDDEN,
            format!("a page of another origin ({origin}) may not write: nothing was changed"),
        )),
    }
}

/// Where the page is from that asks, if it is not this server's own.
pub fn foreign(headers: &HeaderMap) -> Option<String> {
    let shown = |value: &HeaderValue| shortened(&value.as_bytes().escape_ascii().to_string());
    if let Some(origin) = headers.get(ORIGIN).filter(|origin| !is_own(origin, headers.get(HOST))) {
        return Some(shown(origin));
    }
    // A page of the same site may be another server's: ports and subdomains do not count there.
    let site = headers.get(FETCH_SITE)?;
    let is_own = matches!(site.as_bytes(), b"same-origin" | b"none");
    (!is_own).then(|| shown(site))
}

fn is_own(origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
    let origin = origin.as_bytes();
    // A proxy may have spoken TLS to the browser.
    let at = origin.strip_prefix(b"http://").or(origin.strip_prefix(b"https://"));
    at.zip(host).is_some_and(|(at, host)| at.eq_ignore_ascii_case(host.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    fn head(method: &str, version: Version, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).version(version).uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    #[test]
    fn ambiguous_heads_are_refused() {
        let once = Framing { lengths: 1, length_bytes: Some(3), has_coding: false };
        let twice = Framing { lengths: 2, ..once };
        let both = Framing { has_coding: true, ..once };
        let none = Framing::default();
        let cases = [
            (&[("host", "h")][..], none, 0),
            (&[("host", "[::1]:8098")], once, 0),
            (&[("host", "")], none, 0),
            (&[], none, 400),
            (&[("host", "h"), ("host", "h")], none, 400),
            (&[("host", "a/b")], none, 400),
            (&[("host", "me@h")], none, 400),
            (&[("host", "h")], twice, 400),
            (&[("host", "h"), ("transfer-encoding", "chunked")], both, 400),
            (&[("host", "h"), ("transfer-encoding", "Chunked")], none, 0),
            (&[("host", "h"), ("transfer-encoding", "gzip, chunked")], none, 501),
            (&[("host", "h"), ("transfer-encoding", "chunked, chunked")], none, 400),
            (&[("host", "h"), ("content-type", "a/b"), ("content-type", "a/b")], none, 400),
            (&[("host", "h"), ("x-riak-vclock", "a"), ("x-riak-vclock", "b")], none, 400),
            (
                &[("host", "h"), ("link", "<a>"), ("link", "<b>"), ("if-match", "a"), ("if-match", "b")],
                none,
                0,
            ),
            (&[("host", "h"), ("expect", "100-Continue")], none, 0),
            (&[("host", "h"), ("expect", "miracles")], none, 417),
        ];
        for (headers, framing, want) in cases {
            let outcome = check(&head("PUT", Version::HTTP_11, headers), Some(framing));
            assert_eq!(outcome.map_or_else(|refusal| refusal.status.as_u16(), |()| 0), want, "{headers:?}");
        }
        assert!(check(&head("GET", Version::HTTP_10, &[]), None).is_ok());
    }

    #[test]
    fn pages_of_other_origins_do_not_write() {
        let cases = [
            (&[][..], true),
            (&[("origin", "http://h:8098")], true),
            (&[("origin", "https://H:8098"), ("sec-fetch-site", "same-origin")], true),
            (&[("sec-fetch-site", "none")], true),
            (&[("origin", "http://evil.example")], false),
            (&[("origin", "http://h")], false),
            (&[("origin", "http://h:8098.evil.example")], false),
            (&[("origin", "null")], false),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "same-site")], false),
        ];
        for (headers, want) in cases {
            let headers = [&[("host", "h:8098")], headers].concat();
            for method in ["PUT", "POST", "DELETE"] {
                let outcome = check_origin(&head(method, Version::HTTP_11, &headers));
                assert_eq!(outcome.is_ok(), want, "{method} {headers:?}");
            }
            assert!(check_origin(&head("GET", Version::HTTP_11, &headers)).is_ok(), "{headers:?}");
        }
    }
}
