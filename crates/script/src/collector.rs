//! The garbage collector's pace. It works between calls only, so that what a call may allocate does not depend on its
//! neighbours, and as much as was allocated since: no call pays for long.

use mlua::Lua;

/// The collector does one step for each this many bytes allocated.
const COLLECT_STEP_BYTES: usize = 64 * 1024;

/// Lets the collector keep up with what is allocated, between calls.
pub(crate) struct Collector {
    /// The collector rests until the machine has grown to this.
    rest_until_bytes: usize,
    /// The size at which the next step is due.
    next_step_bytes: usize,
}

impl Collector {
    pub fn new(lua: &Lua) -> Collector {
        let parameters = mlua::state::GcIncParams::default()
            .step_multiplier(400)
            .step_size((COLLECT_STEP_BYTES / 1024) as _);
        lua.gc_set_mode(mlua::state::GcMode::Incremental(parameters));
        lua.gc_stop();
        let bytes = lua.used_memory();
        Collector { rest_until_bytes: 2 * bytes, next_step_bytes: bytes }
    }

    /// `bytes`: what the machine takes, with memory that Lua's values hold outside of Lua.
    pub fn pace(&mut self, lua: &Lua, bytes: usize) {
        if bytes < self.rest_until_bytes || bytes < self.next_step_bytes {
            return;
        }
        let outside_bytes = bytes.saturating_sub(lua.used_memory());
        let is_cycle_done = lua.gc_step().unwrap_or(false);
        // A step sets the collector going by itself again.
        lua.gc_stop();
        // What the step freed outside is seen at the next one.
        let bytes = lua.used_memory() + outside_bytes;
        self.next_step_bytes = bytes + COLLECT_STEP_BYTES;
        self.rest_until_bytes = if is_cycle_done { bytes + bytes / 2 + COLLECT_STEP_BYTES } else { 0 };
    }
}
