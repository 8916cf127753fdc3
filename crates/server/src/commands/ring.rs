//! `RING`: changing which nodes hold what.
//!
//! A node is named by its id, or by its name: if several members are called so, the one is meant that is in the ring,
//! and where a node is to come into the ring, the one that is not. With `PLAN` at the end nothing is changed; with
//! `FORCE` a node is given up although that may lose data. The answer is what moves; the move itself goes on in the
//! background, see `CLUSTER STATUS`. What may be changed is decided by the core (`guard`), not here.

use oort_core::client::{NodePlan, Operation, Reply, RingPlan};
use oort_core::membership::Member;
use oort_core::ring::{Ring, RingChange};
use oort_core::types::NodeId;

use super::errors::{refusal, shortened, wrong_arity};
use super::plan::{Finish, Given};
use super::{one, Call, Outcome};
use crate::resp::Value;

/// `RING JOIN node [PLAN]`
pub fn join(call: &mut Call) -> Outcome {
    let node = member(call, 2, Place::Outside)?.ring_node();
    change(call, 3, RingChange::Join { node })
}

/// `RING LEAVE node [PLAN]`
pub fn leave(call: &mut Call) -> Outcome {
    let node = node(call, 2)?;
    change(call, 3, RingChange::Leave { node })
}

/// `RING REMOVE node [PLAN] [FORCE]`
pub fn remove(call: &mut Call) -> Outcome {
    let node = node(call, 2)?;
    change(call, 3, RingChange::Remove { node })
}

/// `RING REPLACE old new [GONE [FORCE]] [PLAN]`
pub fn replace(call: &mut Call) -> Outcome {
    let (old, new) = (node(call, 2)?, member(call, 3, Place::Outside)?.ring_node());
    let gone = (4..call.count()).any(|index| call.arg(index).eq_ignore_ascii_case(b"gone"));
    change(call, 4, RingChange::Replace { old, new, gone })
}

/// `RING WEIGHT node weight [PLAN]`
pub fn weight(call: &mut Call) -> Outcome {
    let node = node(call, 2)?;
    let text = call.arg(3);
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<u16>().ok());
    let weight = number.ok_or_else(|| {
        let text = shortened(text, 64);
        refusal(format!("ERR weight is '{text}': it must be a number from 1 to 1000"))
    })?;
    change(call, 4, RingChange::Weight { node, weight })
}

/// `RING ZONE node zone [PLAN]`
pub fn zone(call: &mut Call) -> Outcome {
    let node = node(call, 2)?;
    let zone = std::str::from_utf8(call.arg(3)).map_err(|_| refusal("ERR a zone's name is text"))?;
    let zone = zone.to_string();
    change(call, 4, RingChange::Zone { node, zone })
}

/// Carries the change out, or plans it, as the words behind the first `arity` arguments say.
fn change(call: &Call, arity: usize, change: RingChange) -> Outcome {
    let (mut plan_only, mut force) = (false, false);
    for index in arity..call.count() {
        match &call.arg(index).to_ascii_lowercase()[..] {
            b"plan" => plan_only = true,
            b"force" if change.given_up().is_some() => force = true,
            b"gone" if matches!(change, RingChange::Replace { .. }) => {}
            _ => return Err(wrong_arity(call.container, call.spec)),
        }
    }
    one(Operation::ChangeRing { change, plan_only, force }, Finish::new(|reply: Reply, _: Given| show(reply)))
}

fn show(reply: Reply) -> Value {
    let Reply::RingPlan(RingPlan { version, slots_moved, slots, nodes }) = reply else {
        return Value::OK;
    };
    let number = |number: u32| Value::Integer(number.into());
    let node = |NodePlan { node, before, after, receives }: NodePlan| {
        Value::Map(vec![
            (Value::name("node"), Value::text(node.to_string())),
            (Value::name("before"), number(before)),
            (Value::name("after"), number(after)),
            (Value::name("receives"), number(receives)),
        ])
    };
    Value::Map(vec![
        (Value::name("version"), Value::Integer(version as i64)),
        (Value::name("slots"), number(slots)),
        (Value::name("slots_moved"), number(slots_moved)),
        (Value::name("nodes"), Value::Array(nodes.into_iter().map(node).collect())),
    ])
}

/// Which of several members of one name is meant.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    InRing,
    Outside,
}

/// The member that an argument names.
fn member(call: &Call, index: usize, place: Place) -> Result<Member, Value> {
    let text = call.arg(index);
    let members = || call.view.membership().members.values();
    if let Some(member) = members().find(|member| member.id.to_string().as_bytes() == text) {
        return Ok(member.clone());
    }
    let named: Vec<&Member> = members().filter(|member| member.name.as_bytes() == text).collect();
    let ring = call.view.ring().map(Ring::state);
    let is_placed = |member: &&&Member| {
        let is_in = ring.is_some_and(|ring| ring.contains(member.id));
        is_in == (place == Place::InRing)
    };
    let placed: Vec<&Member> = named.iter().filter(is_placed).copied().collect();
    let name = shortened(text, 128);
    match (&named[..], &placed[..]) {
        ([member], _) | (_, [member]) => Ok((*member).clone()),
        ([], _) => {
            let mut names: Vec<&str> = members().map(|member| member.name.as_str()).collect();
            names.sort_unstable();
            let names = shortened(names.join(", ").as_bytes(), 512);
            Err(refusal(format!("ERR unknown node '{name}': the members are {names}")))
        }
        _ => Err(refusal(format!("ERR several nodes are called '{name}': give an id"))),
    }
}

/// The id of a member, or of a node that nobody tells of any more.
fn node(call: &Call, index: usize) -> Result<NodeId, Value> {
    let text = std::str::from_utf8(call.arg(index)).unwrap_or_default();
    match member(call, index, Place::InRing) {
        Ok(member) => Ok(member.id),
        Err(error) => match u64::from_str_radix(text, 16) {
            Ok(id) if text.len() == 16 => Ok(NodeId(id)),
            _ => Err(error),
        },
    }
}
