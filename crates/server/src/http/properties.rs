//! Bucket properties as Riak's JSON, and Oort's own beside them.
//!
//! What a `GET` answers can be sent back with a `PUT`: properties that cannot be changed are accepted when they
//! are as they are, and refused by name otherwise. So nothing a client asks for is silently ignored.

use bytes::Bytes;
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use oort_core::active::Fuel;
use oort_core::bucket::{ActiveDurability, ActiveLimit, BucketProperties, Conflict};
use oort_core::client::{Operation, Reply, Request};
use serde_json::{json, Map, Value};

use crate::http::body::{json_response, Body};
use crate::http::parameters::{Level, Parameters};
use crate::http::refusal::{shortened, Refusal};
use crate::http::route::{printable, Place};
use crate::http::shared::Shared;
use crate::http::upload::Upload;

/// The largest body of properties, in bytes.
const BODY_BYTES_MAX: u64 = 64 << 10;

/// Serves `.../props`.
pub async fn serve(
    shared: &Shared,
    head: &Parts,
    parameters: &Parameters,
    body: &mut Upload,
    place: &Place,
) -> Result<Response<Body>, Refusal> {
    match head.method {
        Method::PUT => set(shared, parameters, body, place).await,
        Method::DELETE => {
            let look = shared.handle.inspect(|inside| inside.node.buckets().properties(b"").clone());
            let defaults = look.await?;
            store(shared, parameters, place, defaults).await
        }
        _ => {
            let properties = current(shared, place).await?;
            Ok(json_response(&json!({ "props": properties })))
        }
    }
}

/// The properties in force, as `GET` shows them.
pub async fn current(shared: &Shared, place: &Place) -> Result<Value, Refusal> {
    let properties = shared.properties(&place.bucket).await?;
    Ok(Value::Object(to_json(&place.bucket, &properties)))
}

/// Changes the properties named in the body; the others stay.
pub async fn set(
    shared: &Shared,
    parameters: &Parameters,
    body: &mut Upload,
    place: &Place,
) -> Result<Response<Body>, Refusal> {
    let body = shared.read_body(body, BODY_BYTES_MAX).await?;
    let document: Value = serde_json::from_slice(&body)
        .map_err(|error| Refusal::bad_request(format!("malformed JSON: {error}")))?;
    let Some(changes) = document.get("props").and_then(Value::as_object) else {
        return Err(Refusal::bad_request("the body must be {\"props\":{...}}"));
    };
    let old = shared.properties(&place.bucket).await?;
    let new = changed(&place.bucket, &old, changes)?;
    store(shared, parameters, place, new).await
}

async fn store(
    shared: &Shared,
    parameters: &Parameters,
    place: &Place,
    properties: BucketProperties,
) -> Result<Response<Body>, Refusal> {
    let request = Request {
        operation: Operation::SetBucket { bucket: place.bucket.clone(), properties },
        timeout_ms: parameters.timeout_ms,
    };
    match shared.handle.request(request).await? {
        Reply::BucketSet => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            Ok(response)
        }
        other => Err(Shared::unexpected(&other)),
    }
}

fn to_json(bucket: &Bytes, properties: &BucketProperties) -> Map<String, Value> {
    let keeps_siblings = properties.conflict == Conflict::Siblings;
    let quorum = properties.n / 2 + 1;
    let fields = json!({
        "n_val": properties.n,
        "r": properties.r,
        "w": properties.w,
        "allow_mult": keeps_siblings,
        "last_write_wins": !keeps_siblings,
        // Oort's own.
        "conflict": properties.conflict,
        "default_ttl_ms": properties.default_ttl_ms,
        "value_bytes_max": properties.value_bytes_max,
        "active": properties.active,
        "aso_durability": properties.aso.durability,
        "aso_fuel": properties.aso.fuel,
        // What cannot be changed.
        "name": printable(bucket),
        "dw": properties.w,
        "rw": quorum,
        "pr": 0,
        "pw": 0,
        "basic_quorum": false,
        "notfound_ok": true,
        "dvv_enabled": true,
        "precommit": [],
        "postcommit": [],
    });
    match fields {
        Value::Object(mut fields) => {
            for limit in ActiveLimit::ALL {
                fields.insert(limit.name().into(), properties.aso.limit(limit).into());
            }
            fields
        }
        _ => unreachable!("the literal above is an object"),
    }
}

/// `old` with the `changes` of a client.
///
/// When `n_val` changes and an `r` or `w` that is not given was the old quorum, it becomes the new one: that is what
/// Riak's `"quorum"` means. Errors: 400, naming the property.
fn changed(
    bucket: &Bytes,
    old: &BucketProperties,
    changes: &Map<String, Value>,
) -> Result<BucketProperties, Refusal> {
    let mut new = old.clone();
    if let Some(n) = changes.get("n_val") {
        new.n = integer("n_val", n, u8::MAX as u64)? as u8;
        let follow = |quorum: u8| match quorum == old.n / 2 + 1 {
            true => new.n / 2 + 1,
            false => quorum,
        };
        (new.r, new.w) = (follow(old.r), follow(old.w));
    }
    let fixed = to_json(bucket, old);
    for (name, value) in changes {
        match name.as_str() {
            "n_val" | "allow_mult" | "last_write_wins" | "conflict" => {}
            "r" => new.r = level(name, value, new.n, old.r)?,
            "w" => new.w = level(name, value, new.n, old.w)?,
            "default_ttl_ms" if value.is_null() => new.default_ttl_ms = None,
            "default_ttl_ms" => new.default_ttl_ms = Some(integer(name, value, u64::MAX / 2)?),
            "value_bytes_max" => new.value_bytes_max = integer(name, value, u64::MAX)?,
            "active" => new.active = boolean(name, value)?,
            "aso_durability" => {
                new.aso.durability = choice(name, value, ActiveDurability::ALL, ActiveDurability::name)?
            }
            "aso_fuel" => new.aso.fuel = choice(name, value, Fuel::ALL, Fuel::name)?,
            // Riak's clients send it along with `w`, and every acknowledgement is durable here.
            "dw" if level(name, value, new.n, old.w)? <= new.w.max(old.w) => {}
            name if let Some(limit) = limit_of(name) => {
                *new.aso.limit_mut(limit) = integer(name, value, u32::MAX.into())? as u32
            }
            _ => match fixed.get(name) {
                Some(current) if current == value => {}
                Some(current) => {
                    return Err(Refusal::bad_request(format!(
                        "property {name} cannot be changed: it is {current}"
                    )))
                }
                None => return Err(Refusal::bad_request(format!("unknown property '{}'", shortened(name)))),
            },
        }
    }
    if let Some(conflict) = conflict(changes)? {
        new.conflict = conflict;
    }
    match new.check() {
        Ok(()) => Ok(new),
        Err(error) => Err(Refusal::bad_request(error.to_string())),
    }
}

fn limit_of(name: &str) -> Option<ActiveLimit> {
    ActiveLimit::ALL.into_iter().find(|limit| limit.name() == name)
}

/// The one of `choices` that a property names.
fn choice<T: Copy, const N: usize>(
    name: &str,
    value: &Value,
    choices: [T; N],
    name_of: fn(T) -> &'static str,
) -> Result<T, Refusal> {
    let chosen = choices.into_iter().find(|choice| value.as_str() == Some(name_of(*choice)));
    chosen.ok_or_else(|| {
        let names = choices.map(|choice| format!("\"{}\"", name_of(choice))).join(" or ");
        Refusal::bad_request(format!("property {name} must be {names}"))
    })
}

/// The one conflict policy that `conflict`, `allow_mult` and `last_write_wins` together ask for.
fn conflict(changes: &Map<String, Value>) -> Result<Option<Conflict>, Refusal> {
    let flag = |name: &str| changes.get(name).map(|value| boolean(name, value)).transpose();
    let by_flags = match (flag("allow_mult")?, flag("last_write_wins")?) {
        (Some(true), Some(true)) => {
            return Err(Refusal::bad_request("allow_mult and last_write_wins cannot both be true"))
        }
        (Some(true), _) | (None, Some(false)) => Some(Conflict::Siblings),
        (Some(false), _) | (None, Some(true)) => Some(Conflict::Lww),
        (None, None) => None,
    };
    let by_name = match changes.get("conflict").map(Value::as_str) {
        None => None,
        Some(Some("siblings")) => Some(Conflict::Siblings),
        Some(Some("lww")) => Some(Conflict::Lww),
        Some(_) => return Err(Refusal::bad_request("property conflict must be \"siblings\" or \"lww\"")),
    };
    match (by_flags, by_name) {
        (Some(flags), Some(name)) if flags != name => {
            Err(Refusal::bad_request("property conflict contradicts allow_mult or last_write_wins"))
        }
        (flags, name) => Ok(flags.or(name)),
    }
}

fn integer(name: &str, value: &Value, max: u64) -> Result<u64, Refusal> {
    value
        .as_u64()
        .filter(|number| *number <= max)
        .ok_or_else(|| Refusal::bad_request(format!("property {name} must be a whole number up to {max}")))
}

fn boolean(name: &str, value: &Value) -> Result<bool, Refusal> {
    value.as_bool().ok_or_else(|| Refusal::bad_request(format!("property {name} must be true or false")))
}

fn level(name: &str, value: &Value, n: u8, current: u8) -> Result<u8, Refusal> {
    match value.as_str() {
        Some(text) => Ok(Level::parse(name, text)?.resolve(n).unwrap_or(current)),
        None => Ok(integer(name, value, u8::MAX as u64)? as u8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(changes: Value) -> Result<BucketProperties, Refusal> {
        let changes = changes.as_object().expect("an object").clone();
        changed(&Bytes::from("carts"), &BucketProperties::default(), &changes)
    }

    #[test]
    fn what_is_read_can_be_written_back() {
        let old = BucketProperties {
            n: 5,
            r: 1,
            w: 4,
            conflict: Conflict::Lww,
            default_ttl_ms: Some(60_000),
            ..BucketProperties::default()
        };
        let bucket = Bytes::from("carts");
        assert_eq!(changed(&bucket, &old, &to_json(&bucket, &old)).expect("as it was"), old);
    }

    #[test]
    fn properties_change_one_by_one() {
        let old = BucketProperties::default();
        let new = |change: fn(&mut BucketProperties)| {
            let mut new = old.clone();
            change(&mut new);
            new
        };
        let cases = [
            (json!({}), old.clone()),
            (json!({"n_val": 1}), new(|p| (p.n, p.r, p.w) = (1, 1, 1))),
            (json!({"n_val": 5, "w": "all"}), new(|p| (p.n, p.r, p.w) = (5, 3, 5))),
            (json!({"r": "one", "w": 3, "dw": 2}), new(|p| (p.r, p.w) = (1, 3))),
            (json!({"allow_mult": false}), new(|p| p.conflict = Conflict::Lww)),
            (json!({"allow_mult": false, "last_write_wins": false}), new(|p| p.conflict = Conflict::Lww)),
            (json!({"last_write_wins": true}), new(|p| p.conflict = Conflict::Lww)),
            (json!({"conflict": "lww"}), new(|p| p.conflict = Conflict::Lww)),
            (json!({"value_bytes_max": 10, "active": false}), {
                new(|p| (p.value_bytes_max, p.active) = (10, false))
            }),
            (json!({"default_ttl_ms": 5}), new(|p| p.default_ttl_ms = Some(5))),
        ];
        for (changes, want) in cases {
            assert_eq!(change(changes.clone()).expect("valid"), want, "{changes}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let cases = [
            (json!({"n_val": 0}), "n is 0"),
            (json!({"n_val": 2, "r": 3}), "r is 3"),
            (json!({"n_val": "three"}), "n_val"),
            (json!({"w": -1}), "w"),
            (json!({"w": 300}), "w"),
            (json!({"r": "most"}), "r is 'most'"),
            (json!({"dw": 3}), "dw"),
            (json!({"pw": 1}), "pw"),
            (json!({"precommit": [{"mod": "m"}]}), "precommit"),
            (json!({"allow_mult": "true"}), "allow_mult"),
            (json!({"allow_mult": true, "last_write_wins": true}), "both"),
            (json!({"allow_mult": true, "conflict": "lww"}), "contradicts"),
            (json!({"name": "other"}), "name"),
            (json!({"speed": 11}), "unknown property 'speed'"),
            (json!({"value_bytes_max": 1u64 << 40}), "value_bytes_max"),
        ];
        for (changes, want) in cases {
            let refusal = change(changes.clone()).expect_err("invalid");
            assert_eq!(refusal.status, 400, "{changes}");
            assert!(refusal.text.contains(want), "{changes}: {}", refusal.text);
        }
    }
}
