//! Luau's own interface, for what mlua does not offer or takes too long for. The only `unsafe` code of this crate.
//!
//! Luau calls us back at safepoints (a loop's turn, a call, a return, each step of a string pattern) and, while a
//! thread is single-stepped, before each instruction. mlua offers neither single steps nor a callback that costs a
//! few nanoseconds. And each value that passes through mlua costs a reference of its own, several a call: a [`Stack`]
//! starts handlers and reads what they return where it lies.
//!
//! What makes a [`Stack`] safe to use:
//! - Indices count from 1. Luau reads one beyond the top as no value, so every positive number may be asked for.
//! - Room is made before something is pushed. That fails without an error of Lua's.
//! - Handlers run in `lua_resume`, which catches what they raise. Whatever else here can raise an error of Lua's is
//!   within `exec_raw`, which catches it too; and while no handler runs there is no limit on memory to run into.
//! - Strings are copied, or borrowed from a `Stack` that cannot change meanwhile. The collector works between calls.

use std::ffi::{c_int, c_void};

use mlua::ffi::{self, lua_Debug, lua_State};
use mlua::{Lua, Table, Thread};

use crate::meter;

/// Lets a machine call the meter back.
pub(crate) fn install(lua: &Lua) {
    // SAFETY: the state is a live one of `lua`, whose callbacks live as long as the machine. The functions set are
    // of the signatures that Luau declares. They unwind as its C++ exceptions through frames of their own only,
    // which own nothing that is dropped.
    unsafe {
        let callbacks = ffi::lua_callbacks(lua.state());
        (*callbacks).interrupt = Some(safepoint);
        (*callbacks).debugstep = Some(instruction);
    }
}

// SAFETY of both: Luau hands them a live state.

unsafe extern "C-unwind" fn instruction(state: *mut lua_State, _: *mut lua_Debug) {
    if meter::at_instruction() {
        raise(state);
    }
}

unsafe extern "C-unwind" fn safepoint(state: *mut lua_State, gc: c_int) {
    // The collector calls too, where no error may be raised.
    if gc < 0 && meter::at_safepoint(ffi::lua_totalbytes(state, -1)) {
        raise(state);
    }
}

/// The text does not matter: whoever started the call asks the meter. It costs no allocation after the first time.
unsafe fn raise(state: *mut lua_State) -> ! {
    ffi::lua_rawcheckstack(state, 1);
    ffi::lua_pushlstring_(state, c"limit".as_ptr(), 5);
    ffi::lua_error(state)
}

/// The values of a thread that does not run: what a handler shall get, or what it has returned.
pub(crate) struct Stack<'a> {
    lua: &'a Lua,
    state: *mut lua_State,
}

/// A value of Lua's.
pub(crate) enum Item<'a> {
    Nil,
    Bool(bool),
    Integer(i64),
    Number(f64),
    Bytes(&'a [u8]),
    /// Where it lies.
    Table(*const c_void),
    Function(*const c_void),
    Thread,
    Userdata(*const c_void),
    Other,
}

/// How far a thread got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ran {
    /// The stack holds what it returned.
    ToItsEnd,
    /// It waits. The stack takes what it shall go on with.
    ToAYield,
}

impl<'a> Stack<'a> {
    /// The values of a thread of `lua`.
    pub fn of(lua: &'a Lua, thread: &'a Thread) -> Stack<'a> {
        Stack { lua, state: thread.state() }
    }

    /// Shows a value on a stack, at the index that `read` gets. `None`: it has no machine, being a plain number or the
    /// like, or there was no room for it.
    pub fn with<R>(value: &mlua::Value, read: impl FnOnce(&mut Stack, c_int) -> R) -> Option<R> {
        let lua = value.weak_lua()?.upgrade();
        let mut stack = Stack { lua: &lua, state: lua.state() };
        let top = stack.top();
        stack.push(value).ok()?;
        let result = read(&mut stack, top + 1);
        stack.truncate(top);
        Some(result)
    }

    /// Values on the stack.
    pub fn top(&self) -> c_int {
        // SAFETY: the state is live.
        unsafe { ffi::lua_gettop(self.state) }
    }

    /// Takes the values beyond the first `top` away.
    pub fn truncate(&mut self, top: c_int) {
        // SAFETY: the state is live, and the stack does not grow.
        unsafe { ffi::lua_settop(self.state, top.clamp(0, self.top())) }
    }

    /// Puts a value of mlua's on top. Errors: `MemoryError`.
    pub fn push(&mut self, value: &mlua::Value) -> mlua::Result<()> {
        self.reserve(2)?;
        self.lua.exec_raw_lua(|raw| {
            // SAFETY: both states are live and of one machine, and have room for the value.
            unsafe {
                make_room(raw.state(), 2)?;
                raw.push_value(value)?;
                ffi::lua_xmove(raw.state(), self.state, 1);
            }
            Ok(())
        })
    }

    /// Puts the function under `name` in a table on top, and above it the table itself if that is its first argument.
    /// False: there is none, and nothing was put.
    ///
    /// Errors: `MemoryError`.
    pub fn push_function(&mut self, table: &Table, name: &[u8], with_table: bool) -> mlua::Result<bool> {
        self.reserve(3)?;
        let top = self.top();
        self.push(&mlua::Value::Table(table.clone()))?;
        // SAFETY: there is room for the name, in whose place the function gets; below it lies the table.
        unsafe {
            ffi::lua_pushlstring_(self.state, name.as_ptr().cast(), name.len());
            if ffi::lua_rawget(self.state, -2) != ffi::LUA_TFUNCTION {
                self.truncate(top);
                return Ok(false);
            }
            match with_table {
                true => ffi::lua_insert(self.state, -2),
                false => ffi::lua_replace(self.state, -2),
            }
        }
        Ok(true)
    }

    /// Whether the thread is single-stepped, so that the meter sees each instruction.
    pub fn step_singly(&mut self, on: bool) {
        // SAFETY: the state is live; the call sets one flag of it.
        unsafe { ffi::lua_singlestep(self.state, c_int::from(on)) }
    }

    /// Runs the function at index 1 with what lies above it, or goes on with a yield that returns what is there.
    ///
    /// Errors: what the thread raised, with its trace; it is of no more use then.
    pub fn resume(&mut self) -> mlua::Result<Ran> {
        // SAFETY: both states are live, `from` is the one that runs. As many arguments as told are there.
        unsafe {
            let is_new = ffi::lua_status(self.state) == ffi::LUA_OK;
            let arguments = self.top() - c_int::from(is_new);
            if arguments < 0 {
                return Err(mlua::Error::RuntimeError("nothing to run".to_string()));
            }
            match ffi::lua_resume_(self.state, self.lua.state(), arguments) {
                ffi::LUA_OK => Ok(Ran::ToItsEnd),
                ffi::LUA_YIELD => {
                    self.truncate(0);
                    Ok(Ran::ToAYield)
                }
                // Nothing more is to be had then, a trace neither.
                ffi::LUA_ERRMEM => Err(out_of_memory()),
                _ => Err(self.error()),
            }
        }
    }

    /// The error that lies on top, with the thread's trace.
    fn error(&mut self) -> mlua::Error {
        let value = match self.take_top() {
            // Errors of mlua's own hold more than their text.
            Ok(mlua::Value::Error(error)) => return *error,
            Ok(value) => value,
            Err(error) => return error,
        };
        let thread = self.state;
        // SAFETY: `exec_raw` leaves room for three values beside its argument, and catches what is raised in it, where
        // nothing is owned that is dropped. The thread is live.
        let text = unsafe {
            self.lua.exec_raw::<mlua::LuaString>(value, |state| {
                let text = ffi::luaL_tolstring(state, 1, std::ptr::null_mut());
                ffi::luaL_traceback(state, thread, text, 0);
                ffi::lua_replace(state, 1);
                ffi::lua_settop(state, 1);
            })
        };
        match text {
            Ok(text) => mlua::Error::RuntimeError(text.to_string_lossy()),
            Err(error) => error,
        }
    }

    /// The value at an index.
    pub fn item(&self, at: c_int) -> Item<'_> {
        let at = at.max(1);
        // SAFETY: the state is live, and each function gets a value of its type. The string stays while it is on the
        // stack, which nobody changes while this borrow lives.
        unsafe {
            match ffi::lua_type(self.state, at) {
                ffi::LUA_TNIL | ffi::LUA_TNONE => Item::Nil,
                ffi::LUA_TBOOLEAN => Item::Bool(ffi::lua_toboolean(self.state, at) != 0),
                ffi::LUA_TNUMBER => Item::Number(ffi::lua_tonumber(self.state, at)),
                ffi::LUA_TINTEGER => {
                    Item::Integer(ffi::lua_tointeger64(self.state, at, std::ptr::null_mut()))
                }
                ffi::LUA_TSTRING => {
                    let mut len_bytes = 0;
                    let bytes = ffi::lua_tolstring(self.state, at, &mut len_bytes);
                    Item::Bytes(std::slice::from_raw_parts(bytes.cast(), len_bytes))
                }
                ffi::LUA_TTABLE => Item::Table(ffi::lua_topointer(self.state, at)),
                ffi::LUA_TFUNCTION => Item::Function(ffi::lua_topointer(self.state, at)),
                ffi::LUA_TTHREAD => Item::Thread,
                ffi::LUA_TUSERDATA => Item::Userdata(ffi::lua_topointer(self.state, at)),
                _ => Item::Other,
            }
        }
    }

    /// Puts the next key of the table at an index, and what is under it, on top. `after` is 0 at first, then what was
    /// returned; `None`: there are no more, or it is no table.
    ///
    /// Errors: `MemoryError`.
    pub fn push_next(&mut self, table: c_int, after: c_int) -> mlua::Result<Option<c_int>> {
        self.reserve(2)?;
        // SAFETY: there is room for two values, and the value is a table. Any number from 0 is a place in it.
        let next = unsafe {
            match ffi::lua_type(self.state, table.max(1)) {
                ffi::LUA_TTABLE => ffi::lua_rawiter(self.state, table.max(1), after.max(0)),
                _ => -1,
            }
        };
        Ok((next >= 0).then_some(next))
    }

    /// True if the value at an index has a metatable of its own.
    pub fn has_metatable(&mut self, at: c_int) -> bool {
        if self.reserve(1).is_err() {
            return true;
        }
        // SAFETY: there is room for the metatable, which is taken away again.
        unsafe {
            let has = ffi::lua_getmetatable(self.state, at.max(1)) != 0;
            if has {
                ffi::lua_settop(self.state, -2);
            }
            has
        }
    }

    /// True if the value at an index is a frozen table.
    pub fn is_frozen(&self, at: c_int) -> bool {
        // SAFETY: the state is live, and the value is a table.
        unsafe {
            let at = at.max(1);
            ffi::lua_type(self.state, at) == ffi::LUA_TTABLE && ffi::lua_getreadonly(self.state, at) != 0
        }
    }

    /// The value at an index as one of mlua's. Errors: `MemoryError`.
    pub fn value(&mut self, at: c_int) -> mlua::Result<mlua::Value> {
        if at < 1 || at > self.top() {
            return Ok(mlua::Value::Nil);
        }
        self.reserve(1)?;
        // SAFETY: there is a value at the index, and room for it.
        unsafe { ffi::lua_pushvalue(self.state, at) };
        self.take_top()
    }

    /// Takes the value on top away, as one of mlua's. Errors: `MemoryError`, or mlua has no room for it.
    fn take_top(&mut self) -> mlua::Result<mlua::Value> {
        self.lua.exec_raw_lua(|raw| {
            // SAFETY: there is a value on top, and where it goes there is room for it. What mlua does not take stays.
            unsafe {
                make_room(raw.state(), 2)?;
                ffi::lua_xmove(self.state, raw.state(), 1);
                let value = raw.pop();
                if value.is_err() {
                    ffi::lua_settop(raw.state(), -2);
                }
                value
            }
        })
    }

    /// Makes room for so many values.
    fn reserve(&mut self, count: c_int) -> mlua::Result<()> {
        // SAFETY: the state is live.
        unsafe { make_room(self.state, count) }
    }
}

/// SAFETY of the caller: the state is live.
unsafe fn make_room(state: *mut lua_State, count: c_int) -> mlua::Result<()> {
    match ffi::lua_checkstack(state, count) {
        0 => Err(out_of_memory()),
        _ => Ok(()),
    }
}

fn out_of_memory() -> mlua::Error {
    mlua::Error::MemoryError("not enough memory".to_string())
}
