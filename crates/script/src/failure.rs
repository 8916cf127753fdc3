//! What is told of an error of Lua: a message with its place in the object's source, and the trace of calls.

/// Longest message and trace of an error: they travel to clients and into logs.
const ERROR_TEXT_BYTES_MAX: usize = 2_000;

pub(crate) fn is_memory(error: &mlua::Error) -> bool {
    match error {
        mlua::Error::MemoryError(_) => true,
        mlua::Error::CallbackError { cause, .. } => is_memory(cause),
        _ => false,
    }
}

/// The message and Lua's trace of an error.
pub(crate) fn failure(error: &mlua::Error) -> (String, String) {
    let (message, mut trace) = match error {
        mlua::Error::RuntimeError(text) => (text.clone(), String::new()),
        mlua::Error::CallbackError { traceback, cause } => {
            let mut cause = cause;
            while let mlua::Error::CallbackError { cause: inner, .. } = &**cause {
                cause = inner;
            }
            (failure(cause).0, traceback.clone())
        }
        other => (other.to_string(), String::new()),
    };
    let (first, rest) = message.split_once("\nstack traceback:\n").unwrap_or((&message, ""));
    if trace.is_empty() {
        trace = rest.to_string();
    }
    (shortened(&placed(first, &trace)), shortened(&own_calls(&trace)))
}

/// Of a trace, the calls in the object's own code: the library's are nothing its author can change.
fn own_calls(trace: &str) -> String {
    let calls = trace.lines().map(str::trim).filter(|call| call.starts_with("aso:"));
    calls.collect::<Vec<_>>().join("\n")
}

/// A message that names its place in the object's source: errors in a wrapper of the library are its caller's, and
/// addresses of tables are nobody's business.
fn placed(message: &str, trace: &str) -> String {
    if let Some((kind, _)) = message.split_once(": 0x") {
        return format!("the error is a {kind}");
    }
    let inner = message.strip_prefix("oort:").and_then(|rest| rest.split_once(": "));
    let caller = trace.lines().find_map(|line| line.trim_start().strip_prefix("aso:")?.split(':').next());
    match (inner, caller) {
        (Some((_, text)), Some(line)) => format!("aso:{line}: {text}"),
        _ => message.to_string(),
    }
}

fn shortened(text: &str) -> String {
    let mut end = text.len().min(ERROR_TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_string()
}
