//! What objects do with convergent values: `comet.counter()`, `comet.set()`, `comet.map()`, `comet.register()`, and the
//! methods of what these make.
//!
//! ```text
//! counter:add(n)      adds a whole number from -2^53 to 2^53, 1 if none is given; returns the new number
//! counter:value()
//! set:add(x)          true if x was not in it; elements are strings, booleans and numbers
//! set:remove(x)       true if x was in it
//! set:has(x)
//! set:values()        an array: booleans, numbers by their size, strings
//! set:size()
//! map:set(k, v)       keys as elements of sets; v is any data but nil, and is copied
//! map:get(k)          a copy, or nil
//! map:remove(k)       true if k was in it
//! map:keys()          an array, in the order of a set's values
//! map:entries()       a table
//! register:set(v)     any data, nil too, which is copied
//! register:get()      a copy; nil before the first `set`
//! ```
//!
//! Each operation costs instructions in proportion to the bytes and elements that it touches. Errors are Lua errors
//! and change nothing.

use std::rc::Rc;

use mlua::{Lua, MetaMethod, Table, UserDataFields, UserDataMethods, UserDataRegistry};
use oort_core::active::Value;
use oort_core::causality::Dot;
use oort_core::types::ActorId;

use crate::codec::number;
use crate::convergent::{Convergent, Counter, Element, Encoded, Map, Payload, Register, Set, COUNTER_MAX};
use crate::held::Held;
use crate::host::{fault, Context};
use crate::limits::LimitError;
use crate::meter::{self, spend};
use crate::value::{self, into_lua, Taker};

/// Instructions that any operation costs: it takes some hundred nanoseconds.
const OPERATION_COST: usize = 16;
/// Instructions for each element that is handed out.
const ELEMENT_COST: usize = 4;
/// Bytes that are read or written for one instruction.
const BYTES_PER_INSTRUCTION: usize = 8;

type Registry<T> = UserDataRegistry<Held<T>>;
type Result<T> = mlua::Result<T>;

/// Adds the four constructors to the host functions, and their methods to the machine.
pub(crate) fn install(lua: &Lua, context: &Rc<Context>, functions: &Table) -> Result<()> {
    register(lua, context, functions, counter_methods)?;
    register(lua, context, functions, set_methods)?;
    register(lua, context, functions, map_methods)?;
    register(lua, context, functions, register_methods)
}

fn register<T: Convergent + 'static>(
    lua: &Lua,
    context: &Rc<Context>,
    functions: &Table,
    methods: fn(&mut Methods<T>),
) -> Result<()> {
    lua.register_userdata_type::<Held<T>>(|registry| {
        registry.add_meta_field(MetaMethod::Type, T::NAME);
        registry.add_meta_method(MetaMethod::ToString, |_, _, ()| Ok(T::NAME));
        methods(&mut Methods { registry, context: context.clone() });
    })?;
    let gauge = context.gauge.clone();
    let new = move |lua: &Lua, ()| {
        spend(OPERATION_COST as i64)?;
        lua.create_any_userdata(Held::new(T::default(), &gauge))
    };
    functions.raw_set(T::NAME, lua.create_function(new)?)
}

/// The methods of one kind.
struct Methods<'a, T: Convergent + 'static> {
    registry: &'a mut Registry<T>,
    context: Rc<Context>,
}

impl<T: Convergent + 'static> Methods<'_, T> {
    /// Adds a method of at most two arguments.
    fn add<R: mlua::IntoLuaMulti + 'static>(
        &mut self,
        name: &'static str,
        method: fn(&Lua, &Context, &mut Held<T>, [mlua::Value; 2]) -> Result<R>,
    ) {
        let context = self.context.clone();
        let wrong_self = move || {
            let kind = T::NAME;
            fault(&format!("{name} is a method of a {kind}: call it with a colon, as in self.x:{name}()"))
        };
        let function = move |lua: &Lua, (this, a, b): (mlua::Value, mlua::Value, mlua::Value)| {
            spend(OPERATION_COST as i64)?;
            let mlua::Value::UserData(this) = this else { return Err(wrong_self()) };
            let mut this = this.borrow_mut::<Held<T>>().map_err(|_| wrong_self())?;
            method(lua, &context, &mut this, [a, b])
        };
        self.registry.add_function(name, function);
    }
}

fn counter_methods(methods: &mut Methods<Counter>) {
    methods.add("add", |_, context, this, [n, _]| {
        let n = whole_number(&n)?;
        spend(this.value().len() as i64)?;
        let actor = ActorId(context.actor.get());
        match this.change(|counter| counter.add(actor, n)) {
            Some(value) => Ok(value as f64),
            None => Err(fault("the counter would leave the range from -2^53 to 2^53")),
        }
    });
    methods.add("value", |_, _, this, _| {
        spend(this.value().len() as i64)?;
        Ok(this.value().value() as f64)
    });
}

fn set_methods(methods: &mut Methods<Set>) {
    methods.add("add", |_, context, this, [x, _]| {
        let element = element(&x, "an element of a set")?;
        let dot = next_dot(context, this.value().newest())?;
        let is_new = this.change(|set| set.put(element, dot, ()));
        bound(context, this.value().content_bytes())?;
        Ok(is_new)
    });
    methods.add("remove", |_, _, this, [x, _]| {
        let element = element(&x, "an element of a set")?;
        Ok(this.change(|set| set.remove(&element)))
    });
    methods.add("has", |_, _, this, [x, _]| Ok(this.value().has(&element(&x, "an element of a set")?)));
    methods.add("values", |lua, _, this, _| {
        let set = this.value();
        elements(lua, set.len(), set.content_bytes(), set.iter().map(|(element, _)| element))
    });
    methods.add("size", |_, _, this, _| Ok(this.value().len() as f64));
}

fn map_methods(methods: &mut Methods<Map>) {
    methods.add("set", |_, context, this, [key, value]| {
        let key = element(&key, "a key of a map")?;
        if value.is_nil() {
            return Err(fault("a value of a map cannot be nil: remove takes a key out"));
        }
        let value = data(context, &value)?;
        let dot = next_dot(context, this.value().newest())?;
        this.change(|map| map.put(key, dot, value));
        bound(context, this.value().content_bytes())
    });
    methods.add("get", |lua, _, this, [key, _]| {
        let key = element(&key, "a key of a map")?;
        shown(lua, this.value().get(&key))
    });
    methods.add("remove", |_, _, this, [key, _]| {
        let key = element(&key, "a key of a map")?;
        Ok(this.change(|map| map.remove(&key)))
    });
    methods.add("keys", |lua, _, this, _| {
        let map = this.value();
        elements(lua, map.len(), map.content_bytes(), map.iter().map(|(element, _)| element))
    });
    methods.add("entries", |lua, _, this, _| {
        let map = this.value();
        spend_on(map.len(), map.content_bytes())?;
        let table = lua.create_table_with_capacity(0, map.len())?;
        for (key, value) in map.iter() {
            table.raw_set(into_lua(lua, key.value())?, into_lua(lua, &value.value())?)?;
        }
        Ok(table)
    });
}

fn register_methods(methods: &mut Methods<Register>) {
    methods.add("set", |_, context, this, [value, _]| {
        let value = data(context, &value)?;
        let dot = next_dot(context, this.value().newest())?;
        this.change(|register| register.set(dot, value));
        Ok(())
    });
    methods.add("get", |lua, _, this, _| shown(lua, this.value().get()));
}

fn whole_number(n: &mlua::Value) -> Result<i64> {
    let n = match n {
        mlua::Value::Nil => 1.0,
        mlua::Value::Integer(n) => *n as f64,
        mlua::Value::Number(n) => *n,
        _ => f64::NAN,
    };
    match number(n) {
        Value::Integer(n) => Ok(n),
        Value::Number(n) if n.abs() == COUNTER_MAX as f64 => Ok(n as i64),
        Value::Number(0.0) => Ok(0),
        _ => Err(fault("a counter adds whole numbers from -2^53 to 2^53")),
    }
}

fn element(value: &mlua::Value, what: &str) -> Result<Element> {
    let taken = match value {
        mlua::Value::Boolean(b) => Element::new(Value::Bool(*b)),
        mlua::Value::Integer(n) => Element::new(Value::Integer(*n)),
        mlua::Value::Number(n) => Element::new(Value::Number(*n)),
        mlua::Value::String(text) => {
            spend((text.as_bytes().len() / BYTES_PER_INSTRUCTION) as i64)?;
            Element::new(Value::Bytes(text.as_bytes().to_vec()))
        }
        _ => None,
    };
    taken.ok_or_else(|| fault(&format!("{what} is a string, a number or a boolean, and not NaN")))
}

/// A copy of plain data.
fn data(context: &Context, value: &mlua::Value) -> Result<Encoded> {
    let taken = Taker::new(context.bytes_max.get(), value::Convergent::Refused).take(value);
    let value = Encoded::new(&taken.map_err(|refusal| fault(&refusal.at("the value").to_string()))?);
    spend((value.len() / BYTES_PER_INSTRUCTION) as i64)?;
    Ok(value)
}

fn shown(lua: &Lua, value: Option<&Encoded>) -> Result<mlua::Value> {
    let Some(value) = value else { return Ok(mlua::Value::Nil) };
    spend((value.len() / BYTES_PER_INSTRUCTION) as i64)?;
    into_lua(lua, &value.value())
}

fn elements<'a>(
    lua: &Lua,
    count: usize,
    bytes: usize,
    elements: impl Iterator<Item = &'a Element>,
) -> Result<Table> {
    spend_on(count, bytes)?;
    let table = lua.create_table_with_capacity(count, 0)?;
    for (at, element) in elements.enumerate() {
        table.raw_seti(at + 1, into_lua(lua, element.value())?)?;
    }
    Ok(table)
}

fn spend_on(elements: usize, bytes: usize) -> Result<()> {
    spend((elements * ELEMENT_COST + bytes / BYTES_PER_INSTRUCTION) as i64)
}

fn next_dot(context: &Context, seen: u64) -> Result<Dot> {
    context.next_dot(seen).ok_or_else(|| fault("the clock of this value has run out"))
}

/// Ends the call when one value alone takes more than the object may.
fn bound(context: &Context, bytes: usize) -> Result<()> {
    if bytes > context.bytes_max.get() {
        meter::trip(LimitError::Memory { limit_bytes: context.bytes_max.get() as u32 });
    }
    meter::end_if_tripped()
}
