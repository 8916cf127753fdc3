//! Two concurrent states of one object: its convergent values are joined where they stand at equal places.

use std::collections::BTreeMap;

use mlua::{Lua, Table};
use oort_core::active::Value;

use crate::codec::{order, unveiled};
use crate::held::{self, Gauge};
use crate::limits::ScriptError;
use crate::value::into_lua;

/// Joins the convergent values among the entries of a state into a table. Those that it lacks are made in it, with the
/// tables around them; whatever else stands at their place stays. False if so something was left out.
///
/// Errors: `BadState`.
pub(crate) fn join_table<'a>(
    lua: &Lua,
    gauge: &Gauge,
    table: &Table,
    entries: impl Iterator<Item = &'a (Value, Value)>,
) -> Result<bool, ScriptError> {
    let mut is_whole = true;
    for (key, value) in entries {
        if has_convergent(value) {
            is_whole &= join_entry(lua, gauge, table, into_lua(lua, key)?, value)?;
        }
    }
    Ok(is_whole)
}

fn join_entry(
    lua: &Lua,
    gauge: &Gauge,
    table: &Table,
    key: mlua::Value,
    value: &Value,
) -> Result<bool, ScriptError> {
    let ours: mlua::Value = table.raw_get(&key)?;
    match (ours, unveiled(value)) {
        (mlua::Value::UserData(ours), Some(theirs)) => held::join(&ours, theirs),
        (mlua::Value::Nil, _) if table.is_readonly() => Ok(false),
        (mlua::Value::Nil, Some(theirs)) => {
            table.raw_set(key, held::make(lua, gauge, theirs)?)?;
            Ok(true)
        }
        (mlua::Value::Nil, None) => {
            let inner = lua.create_table()?;
            table.raw_set(key, &inner)?;
            join_table(lua, gauge, &inner, entries(value).iter())
        }
        (mlua::Value::Table(inner), None) => join_table(lua, gauge, &inner, entries(value).iter()),
        _ => Ok(false),
    }
}

/// True if two tables of states are equal but for convergent values and tables of nothing else.
pub(crate) fn differ_in_convergent_only(ours: &[(Value, Value)], theirs: &[(Value, Value)]) -> bool {
    let mut pairs: BTreeMap<Key, [Option<&Value>; 2]> = BTreeMap::new();
    for (at, entries) in [ours, theirs].into_iter().enumerate() {
        for (key, value) in entries {
            pairs.entry(Key(key)).or_default()[at] = Some(value);
        }
    }
    pairs.values().all(|[ours, theirs]| match (ours, theirs) {
        (Some(ours), Some(theirs)) => are_alike(ours, theirs),
        (Some(one), None) | (None, Some(one)) => is_convergent_only(one),
        (None, None) => true,
    })
}

fn are_alike(ours: &Value, theirs: &Value) -> bool {
    match (unveiled(ours), unveiled(theirs)) {
        (Some(ours), Some(theirs)) => ours.first() == theirs.first(),
        (None, None) if is_table(ours) && is_table(theirs) => {
            match has_convergent(ours) || has_convergent(theirs) {
                true => differ_in_convergent_only(&entries(ours), &entries(theirs)),
                false => ours == theirs,
            }
        }
        (None, None) => ours == theirs,
        _ => false,
    }
}

fn is_convergent_only(value: &Value) -> bool {
    let inner = || entries(value).iter().all(|(_, value)| is_convergent_only(value));
    unveiled(value).is_some() || has_convergent(value) && inner()
}

fn has_convergent(value: &Value) -> bool {
    match value {
        _ if unveiled(value).is_some() => true,
        Value::Array(items) => items.iter().any(has_convergent),
        Value::Map(entries) => entries.iter().any(|(_, value)| has_convergent(value)),
        _ => false,
    }
}

fn is_table(value: &Value) -> bool {
    matches!(value, Value::Array(_) | Value::Map(_))
}

/// The entries of a table, those of an array under their numbers.
fn entries(value: &Value) -> Vec<(Value, Value)> {
    match value {
        Value::Array(items) => (1..).map(Value::Integer).zip(items.iter().cloned()).collect(),
        Value::Map(entries) => entries.clone(),
        _ => Vec::new(),
    }
}

/// Keys of tables, in their order.
struct Key<'a>(&'a Value);

impl Ord for Key<'_> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        order(self.0, other.0)
    }
}
impl PartialOrd for Key<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Key<'_> {}
