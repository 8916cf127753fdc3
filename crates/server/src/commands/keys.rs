//! Commands on keys whatever their value: existence, deletion, expiry.

use oort_core::client::Reply;
use oort_core::mutation::{ExpiryCondition, Mutation};

use super::arguments::{TimeForm, AT_MILLIS, AT_SECONDS, MILLIS, SECONDS};
use super::batch::{Batch, Gather};
use super::errors::{refusal, shortened};
use super::plan::{delete, get_operation, object, update_operation, updated, Finish, Given, NOTHING};
use super::{one, Call, Outcome};
use crate::resp::Value;

/// `DEL key [key ...]`; also `UNLINK`.
pub fn del(call: &mut Call) -> Outcome {
    if call.count() == 2 {
        return one(update_operation(call.key(1)?, delete(), NOTHING), Finish::new(one_if_applied));
    }
    Batch::start(call, all_keys(call), Gather::AppliedCount(0), |batch, i| {
        update_operation(batch.key(i), delete(), NOTHING)
    })
}

/// 1 if the update changed anything.
pub fn one_if_applied(answer: Reply, _: Given) -> Value {
    Value::Integer(updated(answer).applied as i64)
}

/// `EXISTS key [key ...]`; also `TOUCH`.
pub fn exists(call: &mut Call) -> Outcome {
    if call.count() == 2 {
        return one(get_operation(call.key(1)?), Finish::new(one_if_live));
    }
    Batch::start(call, all_keys(call), Gather::LiveCount(0), |batch, i| get_operation(batch.key(i)))
}

fn one_if_live(answer: Reply, given: Given) -> Value {
    Value::Integer(object(answer).is_live(given.now_ms) as i64)
}

fn all_keys(call: &Call) -> Vec<u32> {
    (1..call.count() as u32).collect()
}

/// `TYPE key`
pub fn type_(call: &mut Call) -> Outcome {
    one(get_operation(call.key(1)?), Finish::new(type_of_get))
}

fn type_of_get(answer: Reply, given: Given) -> Value {
    let object = object(answer);
    match object.is_live(given.now_ms) {
        true if object.is_active(given.now_ms) => Value::Simple("aso".into()),
        true => Value::Simple("string".into()),
        false => Value::Simple("none".into()),
    }
}

/// `OBJECT ENCODING key`
pub fn object_encoding(call: &mut Call) -> Outcome {
    one(get_operation(call.key(2)?), Finish::new(encoding_of_get))
}

fn encoding_of_get(answer: Reply, given: Given) -> Value {
    let object = object(answer);
    match object.newest(given.now_ms) {
        None => Value::Null,
        Some(_) if object.is_active(given.now_ms) => Value::name("lua"),
        Some(sibling) if sibling.counter.is_some() => Value::name("int"),
        Some(sibling) if sibling.value.len() <= 44 => Value::name("embstr"),
        Some(_) => Value::name("raw"),
    }
}

/// `TTL key`
pub fn ttl(call: &mut Call) -> Outcome {
    look_at_expiry(call, SECONDS)
}

/// `PTTL key`
pub fn pttl(call: &mut Call) -> Outcome {
    look_at_expiry(call, MILLIS)
}

/// `EXPIRETIME key`
pub fn expiretime(call: &mut Call) -> Outcome {
    look_at_expiry(call, AT_SECONDS)
}

/// `PEXPIRETIME key`
pub fn pexpiretime(call: &mut Call) -> Outcome {
    look_at_expiry(call, AT_MILLIS)
}

fn look_at_expiry(call: &Call, form: TimeForm) -> Outcome {
    let numbers = [form.unit_ms, form.is_relative as i64];
    one(get_operation(call.key(1)?), Finish::with(expiry_of_get, numbers))
}

fn expiry_of_get(answer: Reply, given: Given) -> Value {
    let [unit_ms, is_relative] = given.numbers;
    let Some(sibling) = object(answer).newest(given.now_ms) else {
        return Value::Integer(-2);
    };
    let Some(expires_ms) = sibling.expires_ms else {
        return Value::Integer(-1);
    };
    let start_ms = if is_relative == 1 { given.now_ms } else { 0 };
    let millis = i64::try_from(expires_ms.saturating_sub(start_ms)).unwrap_or(i64::MAX);
    // Rounded to the nearest second, as Redis does.
    Value::Integer(millis.saturating_add(unit_ms / 2) / unit_ms)
}

/// `EXPIRE key seconds [NX | XX | GT | LT]`
pub fn expire(call: &mut Call) -> Outcome {
    change_expiry(call, SECONDS)
}

/// `PEXPIRE key milliseconds [NX | XX | GT | LT]`
pub fn pexpire(call: &mut Call) -> Outcome {
    change_expiry(call, MILLIS)
}

/// `EXPIREAT key unix-time-seconds [NX | XX | GT | LT]`
pub fn expireat(call: &mut Call) -> Outcome {
    change_expiry(call, AT_SECONDS)
}

/// `PEXPIREAT key unix-time-milliseconds [NX | XX | GT | LT]`
pub fn pexpireat(call: &mut Call) -> Outcome {
    change_expiry(call, AT_MILLIS)
}

fn change_expiry(call: &Call, form: TimeForm) -> Outcome {
    let condition = expiry_condition(call)?;
    let at_ms = Some(call.new_expiry(2, form)?);
    let change = Mutation::SetExpiry { at_ms, condition };
    one(update_operation(call.key(1)?, change, NOTHING), Finish::new(one_if_applied))
}

fn expiry_condition(call: &Call) -> Result<ExpiryCondition, Value> {
    let mut condition = ExpiryCondition::ALWAYS;
    let mut options = call.options(3);
    while let Some(word) = options.next_word() {
        let flag = match word.to_ascii_lowercase().as_slice() {
            b"nx" => &mut condition.if_none,
            b"xx" => &mut condition.if_some,
            b"gt" => &mut condition.if_later,
            b"lt" => &mut condition.if_earlier,
            _ => return Err(refusal(format!("ERR Unsupported option {}", shortened(word, 128)))),
        };
        *flag = true;
    }
    let ExpiryCondition { if_none, if_some, if_later, if_earlier } = condition;
    if if_none && (if_some || if_later || if_earlier) {
        return Err(refusal("ERR NX and XX, GT or LT options at the same time are not compatible"));
    }
    if if_later && if_earlier {
        return Err(refusal("ERR GT and LT options at the same time are not compatible"));
    }
    Ok(condition)
}

/// `PERSIST key`
pub fn persist(call: &mut Call) -> Outcome {
    let change = Mutation::SetExpiry { at_ms: None, condition: ExpiryCondition::ALWAYS };
    one(update_operation(call.key(1)?, change, NOTHING), Finish::new(one_if_applied))
}
