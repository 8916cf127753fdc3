//! Conditional requests: `If-Match`, `If-None-Match`, `If-Modified-Since` and `If-Unmodified-Since`.
//!
//! The tag of an object is [`Object::etag`](oort_core::object::Object::etag) in hexadecimal, whichever sibling or list
//! of siblings an answer shows, so that the tag a client read is the tag a write can be made to depend on. Source: RFC
//! 9110 §13.

use std::time::SystemTime;

use hyper::header::{HeaderMap, HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE};
use oort_core::mutation::Condition;

use crate::http::refusal::Refusal;

/// The tag of an object on the wire, with its quotes.
pub fn etag(tag: u64) -> String {
    format!("\"{tag:016x}\"")
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Tags {
    Any,
    List(Vec<Tag>),
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Tag {
    is_weak: bool,
    text: String,
}

/// The conditions of one request.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Conditions {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
    modified_since: Option<SystemTime>,
    unmodified_since: Option<SystemTime>,
}

/// What a read's conditions say about what was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Proceed,
    /// 304
    NotModified,
    /// 412
    Failed,
}

/// What a write's conditions ask of the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteCheck {
    /// Let the store decide, atomically.
    Condition(Condition),
    /// They cannot hold: 412.
    Never,
    /// Only if nothing was written after this time: read first, then depend on the tag that was read.
    UnmodifiedSince(SystemTime),
}

impl Conditions {
    /// Reads the headers. Errors: 400 for a malformed tag or a malformed `If-Unmodified-Since`; a malformed
    /// `If-Modified-Since` is ignored, since nothing is lost by answering.
    pub fn parse(headers: &HeaderMap) -> Result<Conditions, Refusal> {
        Ok(Conditions {
            if_match: tags(headers, IF_MATCH)?,
            if_none_match: tags(headers, IF_NONE_MATCH)?,
            modified_since: headers.get(IF_MODIFIED_SINCE).and_then(|value| {
                let text = value.to_str().ok()?;
                httpdate::parse_http_date(text).ok()
            }),
            unmodified_since: match headers.get(IF_UNMODIFIED_SINCE) {
                None => None,
                Some(value) => Some(
                    value
                        .to_str()
                        .ok()
                        .and_then(|text| httpdate::parse_http_date(text).ok())
                        .ok_or_else(|| Refusal::bad_request("If-Unmodified-Since: not an HTTP date"))?,
                ),
            },
        })
    }

    /// For a read that found a live object with this tag, last written at `modified`, in whole seconds.
    pub fn of_read(&self, tag: u64, modified: SystemTime) -> Outcome {
        let is_failed = match (&self.if_match, self.unmodified_since) {
            (Some(tags), _) => !tags.match_strongly(tag),
            (None, Some(since)) => modified > since,
            (None, None) => false,
        };
        if is_failed {
            return Outcome::Failed;
        }
        let is_unchanged = match (&self.if_none_match, self.modified_since) {
            (Some(tags), _) => tags.match_weakly(tag),
            (None, Some(since)) => modified <= since,
            (None, None) => false,
        };
        match is_unchanged {
            true => Outcome::NotModified,
            false => Outcome::Proceed,
        }
    }

    /// For a write. Errors: 400 for combinations that the store cannot decide atomically.
    pub fn of_write(&self) -> Result<WriteCheck, Refusal> {
        match (&self.if_match, &self.if_none_match) {
            (Some(_), Some(_)) => {
                Err(Refusal::bad_request("If-Match and If-None-Match cannot be combined on a write"))
            }
            (None, Some(_)) if self.unmodified_since.is_some() => Err(Refusal::bad_request(
                "If-None-Match and If-Unmodified-Since cannot be combined on a write",
            )),
            (Some(Tags::Any), None) => Ok(WriteCheck::Condition(Condition::IfPresent)),
            (None, Some(Tags::Any)) => Ok(WriteCheck::Condition(Condition::IfAbsent)),
            (Some(Tags::List(tags)), None) => Ok(match only("If-Match", tags)? {
                Some(Tag { is_weak: true, .. }) | None => WriteCheck::Never,
                Some(tag) => tag
                    .number()
                    .map_or(WriteCheck::Never, |number| WriteCheck::Condition(Condition::IfTag(number))),
            }),
            (None, Some(Tags::List(tags))) => {
                let number = only("If-None-Match", tags)?.and_then(Tag::number);
                Ok(WriteCheck::Condition(number.map_or(Condition::Always, Condition::UnlessTag)))
            }
            (None, None) => Ok(match self.unmodified_since {
                Some(since) => WriteCheck::UnmodifiedSince(since),
                None => WriteCheck::Condition(Condition::Always),
            }),
        }
    }
}

impl Tags {
    fn match_strongly(&self, tag: u64) -> bool {
        match self {
            Tags::Any => true,
            Tags::List(tags) => tags.iter().any(|t| !t.is_weak && t.number() == Some(tag)),
        }
    }

    fn match_weakly(&self, tag: u64) -> bool {
        match self {
            Tags::Any => true,
            Tags::List(tags) => tags.iter().any(|t| t.number() == Some(tag)),
        }
    }
}

impl Tag {
    /// The object's tag that this is; `None` for a text that no object's tag has.
    fn number(&self) -> Option<u64> {
        let number = u64::from_str_radix(&self.text, 16).ok()?;
        (format!("{number:016x}") == self.text).then_some(number)
    }
}

fn only<'a>(name: &str, tags: &'a [Tag]) -> Result<Option<&'a Tag>, Refusal> {
    match tags {
        [] => Ok(None),
        [tag] => Ok(Some(tag)),
        _ => Err(Refusal::bad_request(format!("{name} with {} tags: a write can depend on one", tags.len()))),
    }
}

fn tags(headers: &HeaderMap, name: HeaderName) -> Result<Option<Tags>, Refusal> {
    let mut list = Vec::new();
    let (mut lines, mut is_any) = (0, false);
    for value in headers.get_all(&name) {
        lines += 1;
        let malformed =
            || Refusal::bad_request(format!("malformed {name}: it must be * or a list of quoted tags"));
        let text = value.to_str().map_err(|_| malformed())?.trim();
        is_any |= text == "*";
        if is_any && lines > 1 {
            return Err(malformed());
        }
        if !is_any {
            parse_list(text, &mut list).ok_or_else(malformed)?;
        }
    }
    Ok((lines > 0).then_some(if is_any { Tags::Any } else { Tags::List(list) }))
}

/// Reads `"a", W/"b"`, and bare words too, which some Riak clients send.
fn parse_list(mut text: &str, list: &mut Vec<Tag>) -> Option<()> {
    while !text.is_empty() {
        let (is_weak, rest) = match text.strip_prefix("W/") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (tag, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => match rest.split_at(rest.find(',').unwrap_or(rest.len())) {
                (word, _) if word.trim() == "*" => return None, // any tag: it stands alone
                bare => bare,
            },
        };
        let rest = rest.trim_start();
        text = match rest.strip_prefix(',') {
            Some(rest) => rest.trim_start(),
            None if rest.is_empty() => "",
            None => return None,
        };
        list.push(Tag { is_weak, text: tag.trim().to_string() });
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn conditions(headers: &[(HeaderName, &str)]) -> Result<Conditions, Refusal> {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        Conditions::parse(&headers)
    }

    #[test]
    fn reads_depend_on_tags_and_dates() {
        let written = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let (before, at) = ("Mon, 12 Jan 1970 13:46:39 GMT", "Mon, 12 Jan 1970 13:46:40 GMT");
        let tag = "\"000000000000000a\"";
        let cases = [
            (vec![(IF_NONE_MATCH, tag)], Outcome::NotModified),
            (vec![(IF_NONE_MATCH, "W/\"000000000000000a\"")], Outcome::NotModified),
            (vec![(IF_NONE_MATCH, "\"x\", \"000000000000000a\"")], Outcome::NotModified),
            (vec![(IF_NONE_MATCH, "\"a\"")], Outcome::Proceed),
            (vec![(IF_MATCH, tag)], Outcome::Proceed),
            (vec![(IF_MATCH, "000000000000000a")], Outcome::Proceed),
            (vec![(IF_MATCH, "*")], Outcome::Proceed),
            (vec![(IF_MATCH, "W/\"000000000000000a\"")], Outcome::Failed),
            (vec![(IF_MATCH, "\"b\"")], Outcome::Failed),
            (vec![(IF_MODIFIED_SINCE, at)], Outcome::NotModified),
            (vec![(IF_MODIFIED_SINCE, before)], Outcome::Proceed),
            (vec![(IF_MODIFIED_SINCE, "yesterday")], Outcome::Proceed),
            (vec![(IF_MODIFIED_SINCE, at), (IF_NONE_MATCH, "\"b\"")], Outcome::Proceed),
            (vec![(IF_UNMODIFIED_SINCE, at)], Outcome::Proceed),
            (vec![(IF_UNMODIFIED_SINCE, before)], Outcome::Failed),
            (vec![(IF_UNMODIFIED_SINCE, before), (IF_MATCH, tag)], Outcome::Proceed),
        ];
        for (headers, want) in cases {
            assert_eq!(conditions(&headers).unwrap().of_read(10, written), want, "{headers:?}");
        }
    }

    #[test]
    fn writes_become_one_condition_of_the_store() {
        let check = |headers: &[(HeaderName, &str)]| conditions(headers).unwrap().of_write();
        let condition = |condition| Some(WriteCheck::Condition(condition));
        let cases = [
            (vec![], condition(Condition::Always)),
            (vec![(IF_NONE_MATCH, "*")], condition(Condition::IfAbsent)),
            (vec![(IF_MATCH, "*")], condition(Condition::IfPresent)),
            (vec![(IF_MATCH, "\"00000000000000ff\"")], condition(Condition::IfTag(255))),
            (vec![(IF_NONE_MATCH, "\"00000000000000ff\"")], condition(Condition::UnlessTag(255))),
            (vec![(IF_NONE_MATCH, "\"else\"")], condition(Condition::Always)),
            (vec![(IF_MATCH, "\"else\"")], Some(WriteCheck::Never)),
            (vec![(IF_MATCH, "\"+0000000000000ff\"")], Some(WriteCheck::Never)),
            (vec![(IF_MATCH, "\"a\", \"b\"")], None),
            (vec![(IF_MATCH, "*"), (IF_NONE_MATCH, "*")], None),
        ];
        for (headers, want) in cases {
            assert_eq!(check(&headers).ok(), want, "{headers:?}");
        }
    }

    #[test]
    fn malformed_conditions_are_refused() {
        for headers in [
            &[(IF_MATCH, "\"open")][..],
            &[(IF_NONE_MATCH, "\"a\" \"b\"")],
            &[(IF_UNMODIFIED_SINCE, "tomorrow")],
            &[(IF_MATCH, "*, \"a\"")],
            &[(IF_MATCH, "\"a\", *")],
        ] {
            assert_eq!(conditions(headers).expect_err("malformed").status, 400, "{headers:?}");
        }
        let mut twice = HeaderMap::new();
        twice.append(IF_MATCH, "*".parse().expect("a value"));
        twice.append(IF_MATCH, "\"a\"".parse().expect("a value"));
        assert_eq!(Conditions::parse(&twice).expect_err("malformed").status, 400);
    }
}
