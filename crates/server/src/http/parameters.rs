//! Query parameters: Riak's names, read once into types. A known name with a bad value is refused; unknown names are
//! ignored, as Riak does.

use oort_core::bucket::BucketProperties;
use oort_core::client::Quorum;

use crate::http::refusal::{shortened, Refusal};
use crate::http::route::percent_decode;

/// The longest time to live that a client may ask for: a hundred years, in seconds.
pub const TTL_S_MAX: u64 = 100 * 365 * 86_400;

/// How many replicas, as Riak lets clients say it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// What the bucket says.
    Default,
    /// More than half of the bucket's `n`.
    Quorum,
    /// The bucket's `n`.
    All,
    Number(u8),
}

impl Level {
    /// Reads `one`, `quorum`, `all`, `default` or a number. Errors: 400, naming the parameter.
    pub fn parse(name: &str, text: &str) -> Result<Level, Refusal> {
        match text {
            "default" => Ok(Level::Default),
            "one" => Ok(Level::Number(1)),
            "quorum" => Ok(Level::Quorum),
            "all" => Ok(Level::All),
            _ => text.parse().map(Level::Number).map_err(|_| {
                invalid(name, text, "a number from 0 to 255, 'one', 'quorum', 'all' or 'default'")
            }),
        }
    }

    /// The number for a bucket of `n` replicas; `None` for what the bucket says.
    pub fn resolve(self, n: u8) -> Option<u8> {
        match self {
            Level::Default => None,
            Level::Quorum => Some(n / 2 + 1),
            Level::All => Some(n),
            Level::Number(number) => Some(number),
        }
    }
}

/// Whether and how a listing is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Listing {
    #[default]
    No,
    /// One JSON object.
    Whole,
    /// One JSON object per page.
    Stream,
}

/// Everything the query said.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Parameters {
    r: Option<Level>,
    w: Option<Level>,
    pr: Option<Level>,
    pw: Option<Level>,
    dw: Option<Level>,
    rw: Option<Level>,
    node_confirms: Option<Level>,
    n_val: Option<Level>,
    /// `notfound_ok=false`: one replica's answer that it has nothing is not enough.
    is_absence_doubted: bool,
    /// `basic_quorum=true`: a majority of such answers is enough.
    is_majority_believed: bool,
    pub timeout_ms: Option<u32>,
    pub return_body: bool,
    /// `returnvalue=true`: answer a change of a counter with its value.
    pub return_value: bool,
    pub vtag: Option<String>,
    pub ttl_s: Option<u64>,
    pub keys: Listing,
    pub buckets: Listing,
    /// `props=false` leaves the properties out of an old-style listing.
    pub without_properties: bool,
    /// Percent-encode all keys in a listing, not only those that are not UTF-8.
    pub encode_keys: bool,
    /// Each `arg`, in order: arguments for an active object.
    pub arguments: Vec<Vec<u8>>,
}

impl Parameters {
    /// Reads the part of the URI behind `?`.
    ///
    /// Errors: 400 for a bad value, a parameter given twice, or one that asks for what Oort does not do.
    pub fn parse(query: Option<&str>) -> Result<Parameters, Refusal> {
        let mut parameters = Parameters::default();
        let mut names_seen: Vec<&str> = Vec::new();
        for pair in query.unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if name == "arg" {
                parameters.arguments.push(percent_decode(value)?);
                continue;
            }
            let value = String::from_utf8(percent_decode(value)?)
                .map_err(|_| Refusal::bad_request(format!("{}: not UTF-8", shortened(name))))?;
            if !parameters.set(name, &value)? {
                continue;
            }
            if names_seen.contains(&name) {
                return Err(Refusal::bad_request(format!("{name} is given twice")));
            }
            names_seen.push(name);
        }
        Ok(parameters)
    }

    /// Takes over one parameter; false if its name is unknown.
    fn set(&mut self, name: &str, value: &str) -> Result<bool, Refusal> {
        let level = || Level::parse(name, value).map(Some);
        match name {
            "r" => self.r = level()?,
            "w" => self.w = level()?,
            "pr" => self.pr = level()?,
            "pw" => self.pw = level()?,
            "dw" => self.dw = level()?,
            "rw" => self.rw = level()?,
            "node_confirms" => self.node_confirms = level()?,
            "n_val" => self.n_val = level()?,
            "timeout" => self.timeout_ms = Some(number(name, value, u32::MAX as u64)? as u32),
            "ttl" => self.ttl_s = Some(ttl(name, value)?),
            "returnbody" => self.return_body = boolean(name, value)?,
            "vtag" => self.vtag = Some(value.to_string()),
            "keys" => self.keys = listing(name, value)?,
            "buckets" => self.buckets = listing(name, value)?,
            "props" => self.without_properties = !boolean(name, value)?,
            "encoding" => match value {
                "percent" => self.encode_keys = true,
                _ => return Err(invalid(name, value, "'percent'")),
            },
            "basic_quorum" => self.is_majority_believed = boolean(name, value)?,
            "notfound_ok" => self.is_absence_doubted = !boolean(name, value)?,
            "returnvalue" => self.return_value = boolean(name, value)?,
            // It skips a preparation that Oort does not have.
            "asis" => {
                boolean(name, value)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// True if [`Parameters::quorum`] depends on the bucket's properties.
    pub fn needs_properties(&self) -> bool {
        let floors = [self.dw, self.node_confirms, self.n_val];
        let levels = [self.r, self.w, self.pr, self.pw, self.rw];
        self.is_absence_doubted
            || floors.iter().any(Option::is_some)
            || levels.iter().any(|level| matches!(level, Some(Level::Quorum | Level::All)))
    }

    /// Refuses on a write the parameters that only reads have. Errors: 400, naming the parameter.
    pub fn check_write(&self) -> Result<(), Refusal> {
        match self.is_absence_doubted {
            false => Ok(()),
            true => Err(Refusal::bad_request(
                "notfound_ok=false is for reads: a write does not look for absent keys",
            )),
        }
    }

    /// How many replicas must say that they have nothing, where more are needed than a get of `r` asks.
    ///
    /// With `notfound_ok=false` only a replica that has the object counts towards `r`, so a key is absent when too few
    /// are left for that: when `n - r + 1` have nothing; with `basic_quorum=true` a majority of `n` is enough.
    pub fn absence(&self, properties: &BucketProperties, quorum: Quorum) -> Option<u8> {
        let n = properties.n;
        let r = quorum.r.unwrap_or(properties.r);
        let all = n.saturating_sub(r) + 1;
        let needed = if self.is_majority_believed { all.min(n / 2 + 1) } else { all };
        (self.is_absence_doubted && needed > r).then_some(needed)
    }

    /// The numbers for a bucket with `properties`.
    ///
    /// `dw` raises `w`: each acknowledgement is a durable copy. `node_confirms` raises both: each answer is another
    /// node's. `rw`, of old deletes, stands for an `r` or `w` not given. Errors: 400 for an `n_val` that is not the
    /// bucket's.
    pub fn quorum(&self, properties: &BucketProperties) -> Result<Quorum, Refusal> {
        let n = properties.n;
        let number = |level: Option<Level>| level.and_then(|level| level.resolve(n));
        if let Some(n_val) = number(self.n_val).filter(|&n_val| n_val != n) {
            return Err(Refusal::bad_request(format!(
                "n_val is {n_val}: it is a property of the bucket, and is {n}"
            )));
        }
        let at_least = |given: Option<u8>, of_bucket: u8, floors: &[Option<Level>]| {
            let floor = floors.iter().filter_map(|level| number(*level)).max();
            match floor {
                None => given,
                Some(floor) => Some(given.unwrap_or(of_bucket).max(floor)),
            }
        };
        Ok(Quorum {
            r: at_least(number(self.r.or(self.rw)), properties.r, &[self.node_confirms]),
            w: at_least(number(self.w.or(self.rw)), properties.w, &[self.dw, self.node_confirms]),
            primary_r: number(self.pr).unwrap_or(0),
            primary_w: number(self.pw).unwrap_or(0),
        })
    }
}

/// Reads a time to live in seconds. Errors: 400 unless it is 1 to [`TTL_S_MAX`].
pub fn ttl(name: &str, value: &str) -> Result<u64, Refusal> {
    match number(name, value, TTL_S_MAX)? {
        0 => Err(invalid(name, value, &format!("a number of seconds from 1 to {TTL_S_MAX}"))),
        seconds => Ok(seconds),
    }
}

fn number(name: &str, value: &str, max: u64) -> Result<u64, Refusal> {
    let is_digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    value
        .parse()
        .ok()
        .filter(|number| is_digits && *number <= max)
        .ok_or_else(|| invalid(name, value, &format!("a number up to {max}")))
}

fn boolean(name: &str, value: &str) -> Result<bool, Refusal> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(invalid(name, value, "'true' or 'false'")),
    }
}

fn listing(name: &str, value: &str) -> Result<Listing, Refusal> {
    match value {
        "true" => Ok(Listing::Whole),
        "stream" => Ok(Listing::Stream),
        "false" => Ok(Listing::No),
        _ => Err(invalid(name, value, "'true', 'stream' or 'false'")),
    }
}

fn invalid(name: &str, value: &str, wanted: &str) -> Refusal {
    Refusal::bad_request(format!("{name} is '{}': it must be {wanted}", shortened(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quorum(query: &str) -> Quorum {
        let parameters = Parameters::parse(Some(query)).expect(query);
        parameters.quorum(&BucketProperties::default()).expect(query)
    }

    #[test]
    fn levels_become_numbers() {
        let q = |r, w, primary_r, primary_w| Quorum { r, w, primary_r, primary_w };
        let cases = [
            ("", q(None, None, 0, 0)),
            ("r=1&w=3", q(Some(1), Some(3), 0, 0)),
            ("r=one&w=all", q(Some(1), Some(3), 0, 0)),
            ("r=quorum&w=default&pr=quorum&pw=all", q(Some(2), None, 2, 3)),
            ("w=1&dw=2", q(None, Some(2), 0, 0)),
            ("dw=0", q(None, Some(2), 0, 0)),
            ("w=3&dw=1", q(None, Some(3), 0, 0)),
            ("rw=all", q(Some(3), Some(3), 0, 0)),
            ("node_confirms=3", q(Some(3), Some(3), 0, 0)),
            ("n_val=3&asis=true&basic_quorum=false&notfound_ok=true&_=17", q(None, None, 0, 0)),
        ];
        for (query, want) in cases {
            assert_eq!(quorum(query), want, "{query}");
        }
    }

    #[test]
    fn absence_can_be_doubted() {
        let cases = [
            ("", None),
            ("r=1", None),
            ("notfound_ok=true&r=1", None),
            ("notfound_ok=false", None),
            ("notfound_ok=false&r=1", Some(3)),
            ("notfound_ok=false&r=1&basic_quorum=true", Some(2)),
            ("basic_quorum=true&r=1", None),
            ("notfound_ok=false&r=all", None),
        ];
        for (query, want) in cases {
            let (parameters, properties) =
                (Parameters::parse(Some(query)).expect(query), BucketProperties::default());
            let quorum = parameters.quorum(&properties).expect(query);
            assert_eq!(parameters.absence(&properties, quorum), want, "{query}");
        }
    }

    #[test]
    fn bad_values_are_named() {
        let cases = [
            "r=two",
            "r=256",
            "r=-1",
            "w=",
            "timeout=soon",
            "timeout=4294967296",
            "timeout=%2B5",
            "returnbody=yes",
            "keys=all",
            "ttl=0",
            "ttl=1.5",
            "notfound_ok=maybe",
            "returnvalue=1",
            "r=1&r=2",
            "encoding=base64",
        ];
        for query in cases {
            let refusal = Parameters::parse(Some(query)).expect_err(query);
            let name = query.split('=').next().unwrap();
            assert_eq!(refusal.status, 400, "{query}");
            assert!(refusal.text.contains(name), "{query}: {}", refusal.text);
        }
        let parameters = Parameters::parse(Some("n_val=2")).unwrap();
        assert!(parameters.quorum(&BucketProperties::default()).is_err());
    }
}
