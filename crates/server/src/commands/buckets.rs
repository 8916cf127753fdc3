//! `BUCKET`: a bucket's properties.

use bytes::Bytes;
use oort_core::active::Fuel;
use oort_core::bucket::{
    ActiveDurability, ActiveLimit, BucketProperties, Conflict, N_MAX, VALUE_BYTES_LIMIT,
};
use oort_core::client::{Operation, Reply};
use oort_core::mutation::parse_integer;
use oort_core::types::BUCKET_BYTES_MAX;

use super::errors::{self, refusal, shortened};
use super::plan::{Finish, Given};
use super::{one, reply, Call, Outcome};
use crate::resp::Value;

/// `BUCKET GET name`
///
/// `in_force`: false while the ring still changes to this `n`, `r` and `w`.
pub fn get(call: &mut Call) -> Outcome {
    let name = bucket_name(call)?;
    let properties = call.view.membership().buckets.properties(&name);
    let aso = properties.aso;
    let mut fields = vec![
        (Value::name("n"), Value::Integer(properties.n as i64)),
        (Value::name("r"), Value::Integer(properties.r as i64)),
        (Value::name("w"), Value::Integer(properties.w as i64)),
        (Value::name("conflict"), Value::name(conflict_name(properties.conflict))),
        (
            Value::name("default_ttl_ms"),
            properties.default_ttl_ms.map_or(Value::Null, |ttl| Value::Integer(ttl as i64)),
        ),
        (Value::name("value_bytes_max"), Value::Integer(properties.value_bytes_max as i64)),
        (Value::name("active"), Value::name(if properties.active { "true" } else { "false" })),
        (Value::name("aso_durability"), Value::name(aso.durability.name())),
        (Value::name("aso_fuel"), Value::name(aso.fuel.name())),
    ];
    let is_in_force = call.view.ring().is_none_or(|ring| {
        ring.replication(&name) == properties.replication() && !ring.state().changes(&name)
    });
    fields.push((Value::name("in_force"), Value::name(if is_in_force { "true" } else { "false" })));
    fields.extend(
        ActiveLimit::ALL.map(|limit| (Value::name(limit.name()), Value::Integer(aso.limit(limit).into()))),
    );
    reply(Value::Map(fields))
}

/// `BUCKET SET name property value [property value ...]`
///
/// Properties not named keep the value they have on this node.
pub fn set(call: &mut Call) -> Outcome {
    let bucket = bucket_name(call)?;
    if call.count().is_multiple_of(2) {
        return Err(errors::wrong_arity(call.container, call.spec));
    }
    let mut properties = call.view.membership().buckets.properties(&bucket).clone();
    for i in (3..call.count()).step_by(2) {
        set_property(&mut properties, call.arg(i), call.arg(i + 1))?;
    }
    properties.check().map_err(|error| refusal(format!("ERR {error}")))?;
    one(Operation::SetBucket { bucket, properties }, Finish::new(|_: Reply, _: Given| Value::OK))
}

/// `BUCKET LIST`
pub fn list(call: &mut Call) -> Outcome {
    let table = &call.view.membership().buckets;
    reply(Value::Array(table.entries().map(|(name, _)| Value::Bulk(name.clone())).collect()))
}

/// `BUCKET USE name`: as `SELECT`, for buckets whose name is no number.
pub fn use_bucket(call: &mut Call) -> Outcome {
    let name = bucket_name(call)?;
    call.session.use_bucket(name);
    reply(Value::OK)
}

fn bucket_name(call: &Call) -> Result<Bytes, Value> {
    let name = call.command.bytes(2);
    match name.is_empty() || name.len() > BUCKET_BYTES_MAX {
        true => Err(refusal(format!(
            "ERR bucket name of {} bytes: a bucket name has 1 to {BUCKET_BYTES_MAX} bytes",
            name.len()
        ))),
        false => Ok(name),
    }
}

fn set_property(properties: &mut BucketProperties, name: &[u8], value: &[u8]) -> Result<(), Value> {
    let lower = name.to_ascii_lowercase();
    match lower.as_slice() {
        b"n" => properties.n = number(name, value, N_MAX as u64)? as u8,
        b"r" => properties.r = number(name, value, N_MAX as u64)? as u8,
        b"w" => properties.w = number(name, value, N_MAX as u64)? as u8,
        b"value_bytes_max" => properties.value_bytes_max = number(name, value, VALUE_BYTES_LIMIT)?,
        b"default_ttl_ms" if value.eq_ignore_ascii_case(b"none") => properties.default_ttl_ms = None,
        b"default_ttl_ms" => properties.default_ttl_ms = Some(number(name, value, i64::MAX as u64)?),
        b"conflict" => {
            properties.conflict = [Conflict::Siblings, Conflict::Lww]
                .into_iter()
                .find(|conflict| value.eq_ignore_ascii_case(conflict_name(*conflict).as_bytes()))
                .ok_or_else(|| invalid(name, value, "siblings or lww"))?
        }
        b"active" => {
            properties.active = match value.to_ascii_lowercase().as_slice() {
                b"true" => true,
                b"false" => false,
                _ => return Err(invalid(name, value, "true or false")),
            }
        }
        b"aso_durability" => {
            properties.aso.durability = ActiveDurability::ALL
                .into_iter()
                .find(|durability| value.eq_ignore_ascii_case(durability.name().as_bytes()))
                .ok_or_else(|| invalid(name, value, "quorum or async"))?
        }
        b"aso_fuel" => {
            properties.aso.fuel = Fuel::ALL
                .into_iter()
                .find(|fuel| value.eq_ignore_ascii_case(fuel.name().as_bytes()))
                .ok_or_else(|| invalid(name, value, "exact or safepoints"))?
        }
        lower => {
            if let Some(limit) = ActiveLimit::ALL.into_iter().find(|limit| limit.name().as_bytes() == lower) {
                *properties.aso.limit_mut(limit) = limit_number(limit, name, value)?;
                return Ok(());
            }
            return Err(refusal(format!(
                "ERR unknown bucket property '{}': there are n, r, w, conflict, default_ttl_ms, value_bytes_max, \
                 active, aso_durability, aso_async_ms, aso_fuel, aso_instructions, aso_memory_bytes, aso_wall_ms and \
                 aso_messages",
                shortened(name, 128)
            )));
        }
    }
    Ok(())
}

fn conflict_name(conflict: Conflict) -> &'static str {
    match conflict {
        Conflict::Siblings => "siblings",
        Conflict::Lww => "lww",
    }
}

fn limit_number(limit: ActiveLimit, name: &[u8], value: &[u8]) -> Result<u32, Value> {
    let range = limit.range();
    let number = parse_integer(value).and_then(|number| u32::try_from(number).ok());
    number.filter(|number| range.contains(number)).ok_or_else(|| {
        let wanted = format!("a number from {} to {}", range.start(), range.end());
        invalid(name, value, &wanted)
    })
}

fn number(name: &[u8], value: &[u8], max: u64) -> Result<u64, Value> {
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
    number
        .filter(|&number| number > 0 && number <= max)
        .ok_or_else(|| invalid(name, value, &format!("a number from 1 to {max}")))
}

fn invalid(name: &[u8], value: &[u8], want: &str) -> Value {
    let (name, value) = (shortened(name, 128), shortened(value, 128));
    refusal(format!("ERR {name} is '{value}': it must be {want}"))
}
