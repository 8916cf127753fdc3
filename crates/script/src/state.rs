//! Writes the state of an object: from Lua's tables straight into bytes, after every call.
//!
//! A call is answered when its state is known to be one that can be kept, and a call that fails is undone by loading
//! the state before it. Both need the bytes of the state after every call, so they are made in one walk without a value
//! in between. The bytes are those that `codec` describes and reads.
//!
//! Things that the source makes anew are no part of the state: functions, tables that hold functions, globals that were
//! not changed. Such code must be what it was when the object was loaded, or the change would be lost with the next
//! load: the walk sums it up in one number, its print, without any regard to order.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};

use mlua::Table;
use oort_core::active::Value;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::codec::{self, LEVELS_MAX};
use crate::held;
use crate::limits::{ScriptError, Unkeepable, INTERVAL_SECONDS_MAX, INTERVAL_SECONDS_MIN};
use crate::raw::{Item, Stack};
use crate::value::{number_outside, Refusal};

/// What a name holds after the source has run.
pub(crate) enum Made {
    /// A function, or a table with functions or a metatable in it.
    Code,
    /// The bytes of data.
    Data(Vec<u8>),
}

/// What a source makes, by name.
pub(crate) type Names = BTreeMap<Vec<u8>, Made>;

/// One of the two tables of an object.
pub(crate) struct Root<'a> {
    pub table: &'a Table,
    pub made: &'a Names,
    /// Names under which the table at this place lies: the object's own.
    pub own: (&'a [&'a str], *const c_void),
    /// As error texts name it.
    pub name: &'a str,
}

/// Walks tables and writes their bytes.
pub(crate) struct Writer<'a> {
    out: &'a mut Vec<u8>,
    bytes_max: usize,
    /// The tables around the value that is being written.
    open: Vec<*const c_void>,
    /// The entries of the maps that are being written, those of the innermost last.
    entries: Vec<Entry>,
    print: u64,
    /// Values that went into it.
    prints: usize,
    /// Names of the object itself that were found.
    own_names: usize,
    /// The object has a timer.
    has_timer: bool,
    /// The object has a field `interval` that can be no timer's.
    is_interval_wrong: bool,
}

/// A key and its value in the bytes written.
#[derive(Clone, Copy)]
struct Entry {
    start: usize,
    value: usize,
    end: usize,
    key: Key,
}

/// In the order of keys, but for texts, which are compared where they were written.
#[derive(Clone, Copy)]
enum Key {
    Bool(bool),
    Number(Number),
    /// From here to the value.
    Text(usize),
}

#[derive(Clone, Copy, PartialEq)]
enum Number {
    Integer(i64),
    Float(f64),
}

/// Writes the state of an object in place of what is in `out`. Returns the print of its code.
///
/// Errors: `Unkeepable`, with the path to what cannot be kept; `TooLarge` beyond `bytes_max`.
pub(crate) fn write(out: &mut Vec<u8>, roots: [Root; 2], bytes_max: usize) -> Result<u64, ScriptError> {
    out.clear();
    out.extend_from_slice(&[codec::FORMAT, codec::ARRAY, roots.len() as u8]);
    let mut writer = Writer::new(out, bytes_max);
    for root in &roots {
        writer.root(root)?;
    }
    Ok(writer.print)
}

/// The bytes of one value. Errors: it cannot be kept.
pub(crate) fn value_bytes(value: &mlua::Value, bytes_max: usize) -> Result<Vec<u8>, Unkeepable> {
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out, bytes_max);
    let written = match value {
        mlua::Value::Nil => writer.plain(&Value::Nil),
        mlua::Value::Boolean(b) => writer.plain(&Value::Bool(*b)),
        mlua::Value::Integer(n) => writer.plain(&Value::Integer(*n)),
        mlua::Value::Number(n) => writer.plain(&number_outside(*n)),
        _ => Stack::with(value, |stack, at| writer.value(stack, at))
            .unwrap_or(Err(Unkeepable::Userdata.into())),
    };
    written.map_err(|refusal| refusal.reason)?;
    Ok(out)
}

impl<'a> Writer<'a> {
    fn new(out: &'a mut Vec<u8>, bytes_max: usize) -> Writer<'a> {
        Writer {
            out,
            bytes_max,
            open: Vec::new(),
            entries: Vec::new(),
            print: 0,
            prints: 0,
            own_names: 0,
            has_timer: false,
            is_interval_wrong: false,
        }
    }

    fn root(&mut self, root: &Root) -> Result<(), ScriptError> {
        let shown = mlua::Value::Table(root.table.clone());
        let written = Stack::with(&shown, |stack, at| {
            let Item::Table(place) = stack.item(at) else { return Err(Unkeepable::Userdata.into()) };
            self.open.push(place);
            if root.own.0.is_empty() {
                if stack.is_frozen(at) {
                    return Err(Unkeepable::Frozen.into());
                }
                self.print = self.print.wrapping_add(u64::from(stack.has_metatable(at)));
            }
            let start = self.begin(codec::MAP);
            let first = self.entries.len();
            self.walk(stack, at, |writer, stack, key_at| writer.root_entry(stack, key_at, root))?;
            self.open.pop();
            // One of them holds a function, or nothing.
            if self.own_names < root.own.0.len() {
                return Err(Unkeepable::OwnName.into());
            }
            if self.has_timer && self.is_interval_wrong {
                return Err(Refusal::from(Unkeepable::Interval).within(|| Value::from("interval")));
            }
            self.end_map(start, first, false)
        });
        written.unwrap_or(Err(Unkeepable::Userdata.into())).map_err(|refusal: Refusal| refusal.at(root.name))
    }

    /// An entry of the object or of its globals, unless the source makes it anew.
    fn root_entry(&mut self, stack: &mut Stack, key_at: c_int, root: &Root) -> Result<(), Refusal> {
        if let Item::Bytes(name) = stack.item(key_at) {
            let seed = self.open.len() as u64 + root.own.0.len() as u64;
            match stack.item(key_at + 1) {
                Item::Function(place) => {
                    self.has_timer |= root.own.0.is_empty() && name == b"onTimer";
                    self.print = self.print.wrapping_add(xxh3_64_with_seed(name, seed ^ place as u64));
                    return Ok(());
                }
                Item::Table(place) if place == root.own.1 && is_among(name, root.own.0) => {
                    self.own_names += 1;
                    return Ok(());
                }
                _ if is_among(name, root.own.0) => {
                    let refusal = Refusal::from(Unkeepable::OwnName);
                    return Err(refusal.within(|| Value::Bytes(name.to_vec())));
                }
                Item::Table(_) if matches!(root.made.get(name), Some(Made::Code)) => {
                    let hash = xxh3_64_with_seed(name, seed);
                    let print = self.print_of(stack, key_at + 1, hash)?;
                    self.print = self.print.wrapping_add(print);
                    return Ok(());
                }
                Item::Number(n) if (INTERVAL_SECONDS_MIN..=INTERVAL_SECONDS_MAX).contains(&n) => {}
                _ => self.is_interval_wrong |= root.own.0.is_empty() && name == b"interval",
            }
        }
        self.entry(stack, key_at)?;
        let entry = *self.entries.last().expect("it was just made");
        if let Key::Text(text) = entry.key {
            let made = match root.own.0 {
                // Fields that were not changed are part of the state all the same.
                [] => None,
                _ => root.made.get(&self.out[text..entry.value]),
            };
            if matches!(made, Some(Made::Data(data)) if self.out[entry.value..] == data[..]) {
                self.entries.pop();
                self.out.truncate(entry.start);
            }
        }
        Ok(())
    }

    /// The sum of all that a table of code holds. The path to it goes into `hash`.
    ///
    /// Errors: `TooLarge`, also of tables that share their parts, which could unfold into any size.
    fn print_of(&mut self, stack: &mut Stack, at: c_int, hash: u64) -> Result<u64, Refusal> {
        let leaf = |bytes: &[u8]| xxh3_64_with_seed(bytes, hash);
        self.prints += 1;
        if self.prints > self.bytes_max {
            return Err(Unkeepable::TooLarge { bytes_max: self.bytes_max }.into());
        }
        Ok(match stack.item(at) {
            Item::Nil => leaf(b"nil"),
            Item::Bool(b) => leaf(&[u8::from(b)]),
            Item::Integer(n) => leaf(&n.to_le_bytes()),
            Item::Number(n) => leaf(&n.to_bits().to_le_bytes()),
            Item::Bytes(bytes) => leaf(bytes),
            Item::Function(place) => leaf(&(place as u64).to_le_bytes()),
            Item::Userdata(place) => match stack.value(at) {
                Ok(mlua::Value::UserData(data)) => leaf(&held::bytes(&data).unwrap_or_default()),
                _ => leaf(&(place as u64).to_le_bytes()),
            },
            Item::Thread | Item::Other => leaf(b"other"),
            Item::Table(place) if self.open.len() > LEVELS_MAX || self.open.contains(&place) => {
                leaf(&(place as u64).to_le_bytes())
            }
            Item::Table(place) => {
                self.open.push(place);
                let mut sum = leaf(b"table");
                self.walk(stack, at, |writer, stack, key_at| {
                    let key = match stack.item(key_at) {
                        // Tables as keys are not looked into.
                        Item::Table(place) => xxh3_64_with_seed(&(place as u64).to_le_bytes(), hash),
                        _ => writer.print_of(stack, key_at, hash)?,
                    };
                    sum = sum.wrapping_add(writer.print_of(stack, key_at + 1, key)?);
                    Ok(())
                })?;
                self.open.pop();
                sum
            }
        })
    }

    fn plain(&mut self, value: &Value) -> Result<(), Refusal> {
        codec::put(value, self.out);
        self.bound()
    }

    fn bound(&self) -> Result<(), Refusal> {
        match self.out.len() > self.bytes_max {
            true => Err(Unkeepable::TooLarge { bytes_max: self.bytes_max }.into()),
            false => Ok(()),
        }
    }

    fn value(&mut self, stack: &mut Stack, at: c_int) -> Result<(), Refusal> {
        match stack.item(at) {
            Item::Nil => self.out.push(codec::NIL),
            Item::Bool(b) => self.out.push(if b { codec::TRUE } else { codec::FALSE }),
            Item::Integer(n) => codec::put_integer(n, self.out),
            Item::Number(n) => codec::put(&number_outside(n), self.out),
            Item::Bytes(bytes) => codec::put_bytes(codec::BYTES, bytes, self.out),
            Item::Table(place) => self.table(stack, at, place)?,
            Item::Function(_) => return Err(Unkeepable::Function.into()),
            Item::Thread => return Err(Unkeepable::Thread.into()),
            Item::Other => return Err(Unkeepable::Userdata.into()),
            Item::Userdata(_) => match stack.value(at) {
                Ok(mlua::Value::UserData(data)) => {
                    let bytes = held::bytes(&data).ok_or(Unkeepable::Userdata)?;
                    codec::put_bytes(codec::CONVERGENT, &bytes, self.out);
                }
                _ => return Err(Unkeepable::Userdata.into()),
            },
        }
        self.bound()
    }

    fn table(&mut self, stack: &mut Stack, at: c_int, place: *const c_void) -> Result<(), Refusal> {
        if self.open.contains(&place) {
            return Err(Unkeepable::Cycle.into());
        }
        if self.open.len() >= LEVELS_MAX {
            return Err(Unkeepable::TooDeep { levels_max: LEVELS_MAX }.into());
        }
        if stack.has_metatable(at) {
            return Err(Unkeepable::Metatable.into());
        }
        self.open.push(place);
        // Known before any value is written: tables within tables would else be written again at each level.
        match self.array_count(stack, at) {
            Some(count) => self.array(stack, at, count)?,
            None => self.map(stack, at)?,
        }
        self.open.pop();
        Ok(())
    }

    /// How many values a table has if its keys come as 1 to n.
    fn array_count(&mut self, stack: &mut Stack, at: c_int) -> Option<u64> {
        let mut count = 0;
        let walked = self.walk(stack, at, |_, stack, key_at| match stack.item(key_at) {
            Item::Number(n) if n == (count + 1) as f64 => {
                count += 1;
                Ok(())
            }
            _ => Err(Unkeepable::TableKey.into()),
        });
        walked.is_ok().then_some(count)
    }

    /// Writes the values of a table whose keys come as 1 to `count`.
    fn array(&mut self, stack: &mut Stack, at: c_int, count: u64) -> Result<(), Refusal> {
        self.out.push(codec::ARRAY);
        codec::put_varint(count, self.out);
        let mut place = 0;
        self.walk(stack, at, |writer, stack, key_at| {
            place += 1;
            writer.value(stack, key_at + 1).map_err(|refusal| refusal.within(|| Value::Integer(place)))
        })
    }

    fn map(&mut self, stack: &mut Stack, at: c_int) -> Result<(), Refusal> {
        let start = self.begin(codec::MAP);
        let first = self.entries.len();
        self.walk(stack, at, |writer, stack, key_at| writer.entry(stack, key_at))?;
        self.end_map(start, first, true)
    }

    /// Writes a key and the value above it.
    fn entry(&mut self, stack: &mut Stack, key_at: c_int) -> Result<(), Refusal> {
        let start = self.out.len();
        let key = match stack.item(key_at) {
            Item::Number(n) if n.is_nan() => return Err(Unkeepable::NanKey.into()),
            Item::Bool(b) => Key::Bool(b),
            Item::Integer(n) => Key::Number(Number::Integer(n)),
            Item::Number(n) => match number_outside(n) {
                Value::Integer(n) => Key::Number(Number::Integer(n)),
                _ => Key::Number(Number::Float(n)),
            },
            Item::Bytes(bytes) => {
                codec::put_bytes(codec::BYTES, bytes, self.out);
                Key::Text(self.out.len() - bytes.len())
            }
            _ => return Err(Unkeepable::TableKey.into()),
        };
        if !matches!(key, Key::Text(_)) {
            self.value(stack, key_at)?;
        }
        let value = self.out.len();
        if let Err(refusal) = self.value(stack, key_at + 1) {
            let shown = match key {
                Key::Bool(b) => Value::Bool(b),
                Key::Number(Number::Integer(n)) => Value::Integer(n),
                Key::Number(Number::Float(n)) => Value::Number(n),
                Key::Text(from) => Value::Bytes(self.out[from..value].to_vec()),
            };
            return Err(refusal.within(|| shown));
        }
        self.entries.push(Entry { start, value, end: self.out.len(), key });
        Ok(())
    }

    fn begin(&mut self, tag: u8) -> usize {
        let start = self.out.len();
        // One byte for the count, which is seldom longer.
        self.out.extend_from_slice(&[tag, 0]);
        start
    }

    fn set_count(&mut self, start: usize, count: u64) {
        if count < 0x80 {
            self.out[start + 1] = count as u8;
            return;
        }
        let mut varint = Vec::new();
        codec::put_varint(count, &mut varint);
        drop(self.out.splice(start + 1..start + 2, varint));
    }

    /// Puts the entries from `first` on in order of their keys. `may_be_array`: keys of exactly 1 to n make an array.
    fn end_map(&mut self, start: usize, first: usize, may_be_array: bool) -> Result<(), Refusal> {
        let out = &mut *self.out;
        let entries = &mut self.entries[first..];
        let is_sorted = entries.is_sorted_by(|a, b| order(out, a, b).is_le());
        if !is_sorted {
            entries.sort_by(|a, b| order(out, a, b));
        }
        let is_one_to_n =
            |(entry, at): (&Entry, i64)| matches!(entry.key, Key::Number(Number::Integer(n)) if n == at);
        let is_array = may_be_array && entries.iter().zip(1..).all(is_one_to_n);
        if is_array || !is_sorted {
            let from = start + 2;
            let mut body = Vec::with_capacity(out.len() - from);
            for entry in entries.iter() {
                let part = if is_array { entry.value } else { entry.start };
                body.extend_from_slice(&out[part..entry.end]);
            }
            out.truncate(from);
            out.extend_from_slice(&body);
        }
        if is_array {
            out[start] = codec::ARRAY;
        }
        let count = entries.len() as u64;
        self.entries.truncate(first);
        self.set_count(start, count);
        self.bound()
    }

    /// Visits the entries of a table. `visit` gets the index of a key, above which its value lies.
    fn walk(
        &mut self,
        stack: &mut Stack,
        at: c_int,
        mut visit: impl FnMut(&mut Self, &mut Stack, c_int) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let top = stack.top();
        let mut place = 0;
        let walked = loop {
            match stack.push_next(at, place) {
                Ok(Some(next)) => place = next,
                Ok(None) => break Ok(()),
                // Of Lua's memory, in which there is no room to show it.
                Err(_) => break Err(Unkeepable::TooLarge { bytes_max: self.bytes_max }.into()),
            }
            if let Err(refusal) = visit(self, stack, top + 1) {
                break Err(refusal);
            }
            stack.truncate(top);
        };
        stack.truncate(top);
        walked
    }
}

/// As `codec::order` has it.
fn order(out: &[u8], a: &Entry, b: &Entry) -> std::cmp::Ordering {
    let rank = |entry: &Entry| match entry.key {
        Key::Bool(_) => 0,
        Key::Number(_) => 1,
        Key::Text(_) => 2,
    };
    let value = |number| match number {
        Number::Integer(n) => Value::Integer(n),
        Number::Float(n) => Value::Number(n),
    };
    match (a.key, b.key) {
        (Key::Bool(one), Key::Bool(two)) => one.cmp(&two),
        (Key::Text(one), Key::Text(two)) => out[one..a.value].cmp(&out[two..b.value]),
        (Key::Number(Number::Integer(one)), Key::Number(Number::Integer(two))) => one.cmp(&two),
        (Key::Number(one), Key::Number(two)) => codec::order(&value(one), &value(two)),
        _ => rank(a).cmp(&rank(b)),
    }
}

fn is_among(name: &[u8], names: &[&str]) -> bool {
    names.iter().any(|one| one.as_bytes() == name)
}
