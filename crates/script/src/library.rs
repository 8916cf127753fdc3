//! What objects find in their globals: math, string, table, the safe part of the base functions, and `comet`.
//!
//! All of it is shared by the objects of a machine and read-only, the metatable of strings included. Left out is
//! whatever reads files, loads code, reaches other environments, ends determinism or cannot be bounded.

use std::rc::Rc;

use mlua::{Function, Lua, LuaString, Table};

use crate::failure::{failure, is_memory};
use crate::host::Context;
use crate::meter;
use crate::methods;

/// The names that objects see; everything else that Luau has is out of their reach.
const BASE: [&str; 21] = [
    "_VERSION",
    "assert",
    "error",
    "ipairs",
    "next",
    "pairs",
    "pcall",
    "rawequal",
    "rawget",
    "rawlen",
    "rawset",
    "select",
    "setmetatable",
    "tonumber",
    "tostring",
    "type",
    "typeof",
    "unpack",
    "xpcall",
    "comet",
    "dht",
];
const LIBRARIES: [&str; 3] = ["math", "string", "table"];
const REMOVED: [(&str, &[&str]); 2] =
    [("math", &["randomseed"]), ("string", &["pack", "unpack", "packsize"])];

/// Instructions that raising and catching an error is worth: it takes microseconds.
const CAUGHT_ERROR_COST: i64 = 100;

/// The shared globals and what `vm` needs to make objects.
pub(crate) struct Library {
    /// The metatable of every environment: it falls back to the shared globals.
    pub metatable: Table,
    /// `wrap(method, object)`.
    pub wrap: Function,
}

impl Library {
    pub fn new(lua: &Lua, context: &Rc<Context>) -> mlua::Result<Library> {
        let raw = lua.globals();
        for (library, names) in REMOVED {
            let library: Table = raw.get(library)?;
            for name in names {
                library.raw_remove(*name)?;
            }
        }
        let prelude: Function = lua.load(include_str!("prelude.lua")).set_name("=oort").into_function()?;
        let (comet, wrap): (Table, Function) = prelude.call((raw.clone(), host(lua, context)?))?;
        comet.set_readonly(true);
        raw.raw_set("comet", comet.clone())?;
        raw.raw_set("dht", comet)?;

        let base = lua.create_table()?;
        for name in BASE.iter().chain(&LIBRARIES) {
            base.raw_set(*name, raw.get::<mlua::Value>(*name)?)?;
        }
        for name in LIBRARIES {
            raw.get::<Table>(name)?.set_readonly(true);
        }
        base.set_readonly(true);
        if let Some(strings) = lua.type_metatable::<LuaString>() {
            strings.set_readonly(true);
        }
        let metatable = lua.create_table()?;
        metatable.raw_set("__index", base)?;
        metatable.raw_set("__metatable", false)?;
        metatable.set_readonly(true);
        Ok(Library { metatable, wrap })
    }
}

/// The functions that the prelude builds on.
fn host(lua: &Lua, context: &Rc<Context>) -> mlua::Result<Table> {
    let host = lua.create_table()?;
    host.raw_set("charge", lua.create_function(|_, cost: f64| charge(cost))?)?;
    host.raw_set("charge_sort", lua.create_function(|_, t: mlua::Value| charge(sort_cost(&t)))?)?;
    host.raw_set("caught", lua.create_function(|lua, error: mlua::Value| caught(lua, error))?)?;
    let c = context.clone();
    host.raw_set("random", lua.create_function(move |_, ()| Ok(c.random()))?)?;
    let c = context.clone();
    let request = move |_: &Lua, (name, arguments): (LuaString, mlua::Variadic<mlua::Value>)| {
        c.request(&name.to_string_lossy(), arguments.into())
    };
    host.raw_set("request", lua.create_function(request)?)?;
    host.raw_set("facts", facts(lua, context)?)?;
    Ok(host)
}

/// The host functions that answer at once, under all their names.
fn facts(lua: &Lua, context: &Rc<Context>) -> mlua::Result<Table> {
    let facts = lua.create_table()?;
    let c = context.clone();
    let time = lua.create_function(move |_, ()| Ok(c.now_ms.get() as f64))?;
    for name in ["systemTime", "getSystemTime", "sysTime"] {
        facts.raw_set(name, &time)?;
    }
    let c = context.clone();
    let key = lua.create_function(move |lua, ()| lua.create_string(&**c.key.borrow()))?;
    for name in ["getASOKey", "getKey", "key"] {
        facts.raw_set(name, &key)?;
    }
    let c = context.clone();
    let ip = lua.create_function(move |_, ()| Ok(c.node_ip.borrow().clone()))?;
    for name in ["getNodeIP", "getIP"] {
        facts.raw_set(name, &ip)?;
    }
    let c = context.clone();
    let id = lua.create_function(move |_, ()| Ok(c.node_id.borrow().clone()))?;
    for name in ["getNodeID", "getID"] {
        facts.raw_set(name, &id)?;
    }
    let c = context.clone();
    let delete = move |_: &Lua, ()| {
        c.is_deleted.set(true);
        Ok(())
    };
    facts.raw_set("deleteSelf", lua.create_function(delete)?)?;
    methods::install(lua, context, &facts)?;
    Ok(facts)
}

fn charge(cost: f64) -> mlua::Result<()> {
    // Too large a float becomes the greatest integer; none is NaN, being a product of lengths.
    meter::spend(cost as i64)
}

/// Comparisons of a sort without comparator, each dearer the longer the strings are.
fn sort_cost(table: &mlua::Value) -> f64 {
    let mlua::Value::Table(table) = table else { return 0.0 };
    let count = table.raw_len() as f64;
    let mut longest = 0;
    let _ = table.for_each_value(|value: mlua::Value| {
        if let mlua::Value::String(text) = value {
            longest = longest.max(text.as_bytes().len());
        }
        Ok(())
    });
    count * (count + 1.0).log2() * (1.0 + longest as f64 / 64.0)
}

/// Called with each error that `pcall` caught: limits are thrown on, and want of memory becomes one. Returns the error
/// as objects see it: those of host functions are their message.
fn caught(lua: &Lua, error: mlua::Value) -> mlua::Result<mlua::Value> {
    let is_memory = match &error {
        mlua::Value::String(text) => text.as_bytes()[..] == *b"not enough memory",
        mlua::Value::Error(error) => is_memory(error),
        _ => false,
    };
    if is_memory {
        meter::trip_working_memory();
    }
    meter::spend(CAUGHT_ERROR_COST)?;
    match error {
        mlua::Value::Error(error) => Ok(mlua::Value::String(lua.create_string(failure(&error).0)?)),
        other => Ok(other),
    }
}
