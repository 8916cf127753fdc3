//! `oort aso`: active objects from the command line.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use oort_core::bucket::ActiveLimit;
use serde_json::{Map, Value as Json};

use super::data::{read_stdin, KeyArguments};
use super::{print, Failure};
use crate::resp::Value;

/// Create, call and look at active objects: values that carry Lua code
///
/// docs/active-objects.md teaches how to write one.
#[derive(Args)]
#[command(after_help = "\
Examples:
  oort aso put limiter limiter.lua         create one from a file
  oort aso call limiter hit alice          call its function hit('alice')
  oort aso get limiter                     what a GET answers: onGet() runs
  oort aso info limiter                    limits used, the timer, the last error
  oort aso reload limiter limiter.lua      new code; the state stays
  oort aso source limiter > limiter.lua
  oort del limiter                         deletes it, whatever its code says")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Store an active object, made by running Lua source; one that is there begins anew
    Put {
        #[command(flatten)]
        at: KeyArguments,
        /// A file with the source, or '-' to read it from standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Time to live, in milliseconds [default: the bucket's]
        #[arg(long, value_name = "MS")]
        ttl_ms: Option<u64>,
        /// Durable copies to wait for [default: the bucket's w]
        #[arg(long, value_name = "COUNT")]
        w: Option<u8>,
    },
    /// Give an active object new code; its fields stay, those that are new are added
    Reload {
        #[command(flatten)]
        at: KeyArguments,
        /// A file with the source, or '-' to read it from standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Call a function of an active object, and print what it returns
    Call {
        #[command(flatten)]
        at: KeyArguments,
        /// The function
        #[arg(value_name = "FUNCTION")]
        function: String,
        /// Its arguments, as strings; Lua computes with those that look like numbers
        #[arg(value_name = "ARGUMENT", allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Print what a GET answers: the object's onGet() runs
    Get {
        #[command(flatten)]
        at: KeyArguments,
    },
    /// Print the limits an object has used, its timer, its versions and its last error
    Info {
        #[command(flatten)]
        at: KeyArguments,
    },
    /// Print the source of an active object
    Source {
        #[command(flatten)]
        at: KeyArguments,
    },
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Put { at, file, ttl_ms, w } => {
            let source = read(&file)?;
            let (ttl, w) = (ttl_ms.map(|ms| ms.to_string()), w.map(|w| w.to_string()));
            let mut command: Vec<&[u8]> = vec![b"ASO.PUT", at.key.as_bytes(), &source];
            if let Some(ttl) = &ttl {
                command.extend([&b"PX"[..], ttl.as_bytes()]);
            }
            if let Some(w) = &w {
                command.extend([&b"W"[..], w.as_bytes()]);
            }
            at.open()?.call(&command).map(drop)
        }
        Command::Reload { at, file } => {
            let source = read(&file)?;
            at.open()?.call(&[b"ASO.RELOAD", at.key.as_bytes(), &source]).map(drop)
        }
        Command::Call { at, function, arguments } => {
            let mut command = vec!["ASO.CALL", &at.key, &function];
            command.extend(arguments.iter().map(String::as_str));
            show(&at.open()?.call_resp3(&command)?)
        }
        Command::Get { at } => show(&at.open()?.call_resp3(&["GET", &at.key])?),
        Command::Info { at } => {
            let mut node = at.open()?;
            let info = node.call_resp3(&["ASO.INFO", &at.key])?;
            match to_json(&info) {
                Json::Object(fields) => print(lines(&fields, 0).as_bytes()),
                _ => Err(node.unexpected("ASO.INFO")),
            }
        }
        Command::Source { at } => match at.open()?.call(&["ASO.SOURCE", &at.key])? {
            Value::Null => Err(Failure::Failed { text: "no such key".into() }),
            source => show(&source),
        },
    }
}

/// Reads a source. Errors: the file, or more than any bucket takes.
fn read(file: &PathBuf) -> Result<Vec<u8>, Failure> {
    let source = match file.as_os_str() == "-" {
        true => read_stdin()?,
        false => std::fs::read(file).map_err(|error| Failure::Usage {
            text: format!("{}: {}", file.display(), crate::config::words(&error)),
        })?,
    };
    let limit = *ActiveLimit::MemoryBytes.range().end() as usize;
    match source.len() <= limit {
        true => Ok(source),
        false => Err(Failure::Usage {
            text: format!("{}: {} bytes; an object has at most {limit}", file.display(), source.len()),
        }),
    }
}

/// Prints a string as it is, everything else as JSON.
pub(super) fn show(value: &Value) -> Result<(), Failure> {
    match value {
        Value::Bulk(bytes) => {
            print(bytes)?;
            match std::io::stdout().is_terminal() && !bytes.ends_with(b"\n") {
                true => print(b"\n"),
                false => Ok(()),
            }
        }
        value => print(format!("{}\n", to_json(value)).as_bytes()),
    }
}

fn to_json(value: &Value) -> Json {
    match value {
        Value::Null | Value::Nothing => Json::Null,
        Value::Boolean(truth) => Json::Bool(*truth),
        Value::Integer(number) => Json::from(*number),
        Value::Double(number) => Json::from(*number),
        Value::Bulk(bytes) | Value::Verbatim(_, bytes) => Json::from(String::from_utf8_lossy(bytes).as_ref()),
        Value::Simple(text) | Value::Error(text) | Value::BigNumber(text) => Json::from(text.as_ref()),
        Value::Array(items) | Value::Set(items) | Value::Push(items) => {
            Json::Array(items.iter().map(to_json).collect())
        }
        Value::Map(pairs) => {
            let name = |value: &Value| match to_json(value) {
                Json::String(text) => text,
                other => other.to_string(),
            };
            Json::Object(Map::from_iter(pairs.iter().map(|(key, item)| (name(key), to_json(item)))))
        }
    }
}

/// One line for each field, those of fields indented.
fn lines(fields: &Map<String, Json>, level: usize) -> String {
    let indent = "  ".repeat(level);
    let line = |(name, value): (&String, &Json)| match value {
        Json::Object(inner) => format!("{indent}{name}:\n{}", lines(inner, level + 1)),
        Json::String(text) => format!("{indent}{name}: {}\n", text.trim().replace('\n', "\n    ")),
        other => format!("{indent}{name}: {other}\n"),
    };
    fields.iter().map(line).collect()
}
