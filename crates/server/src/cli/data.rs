//! `oort get`, `oort put`, `oort del`: one key.

use std::io::{IsTerminal, Read};

use bytes::Bytes;
use clap::Args;
use oort_core::bucket::VALUE_BYTES_LIMIT;

use super::node::{Node, NodeArguments};
use super::{note, print, Failure};
use crate::resp::Value;

/// The key, and where it is.
#[derive(Args)]
pub(super) struct KeyArguments {
    /// The key, 1 to 4096 bytes
    #[arg(value_name = "KEY")]
    pub key: String,
    /// The bucket that the key is in
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    bucket: String,
    #[command(flatten)]
    node: NodeArguments,
}

/// Print the value of a key
///
/// Prints the bytes as they are, and a line break only on a terminal. Of concurrent values the newest is printed; a
/// notice tells that there are more. An active object is asked, and answers what its onGet() returns.
#[derive(Args)]
#[command(after_help = "\
Examples:
  oort get greeting
  oort get cart:7 --bucket carts --all     every sibling, and their context
  oort get greeting --r 1                  take the first replica's word")]
pub struct Get {
    #[command(flatten)]
    at: KeyArguments,
    /// Print all siblings, newest first, and the context that covers them
    #[arg(long)]
    all: bool,
    /// Replicas that must answer [default: the bucket's r]
    #[arg(long, value_name = "COUNT")]
    r: Option<u8>,
}

/// Store a value under a key
///
/// Replaces what is there, as a Redis SET does. With a context, replaces exactly what that context has seen, and keeps
/// what was written meanwhile as a sibling.
#[derive(Args)]
#[command(after_help = "\
Examples:
  oort put greeting hello
  oort put page - < index.html             the value from standard input
  oort put session:9 x --ttl-ms 60000
  oort put cart:7 '1,2,3' --bucket carts --context CONTEXT")]
pub struct Put {
    #[command(flatten)]
    at: KeyArguments,
    /// The value, or '-' to read it from standard input
    #[arg(value_name = "VALUE", allow_hyphen_values = true)]
    value: String,
    /// What the writer has seen: the context that 'oort get --all' printed
    #[arg(long, value_name = "CONTEXT")]
    context: Option<String>,
    /// Time to live, in milliseconds [default: the bucket's]
    #[arg(long, value_name = "MS")]
    ttl_ms: Option<u64>,
    /// Durable copies to wait for [default: the bucket's w]
    #[arg(long, value_name = "COUNT")]
    w: Option<u8>,
}

/// Delete a key
#[derive(Args)]
#[command(after_help = "\
Examples:
  oort del greeting
  oort del cart:7 --bucket carts --context CONTEXT     keeps what was written since")]
pub struct Del {
    #[command(flatten)]
    at: KeyArguments,
    /// What the writer has seen: the context that 'oort get --all' printed
    #[arg(long, value_name = "CONTEXT")]
    context: Option<String>,
    /// Durable copies to wait for [default: the bucket's w]
    #[arg(long, value_name = "COUNT")]
    w: Option<u8>,
}

/// The live siblings of a key, newest first, and the context that covers them.
struct Versions {
    context: Bytes,
    values: Vec<Bytes>,
}

pub fn get(arguments: Get) -> Result<(), Failure> {
    let mut node = arguments.at.open()?;
    let is_plain_get = !arguments.all && arguments.r.is_none();
    if is_plain_get && node.call(&["TYPE", &arguments.at.key])? == Value::Simple("aso".into()) {
        return super::aso::show(&node.call_resp3(&["GET", &arguments.at.key])?);
    }
    let versions = vget(&mut node, &arguments.at.key, arguments.r)?;
    let count = versions.values.len();
    let Some(newest) = versions.values.first() else {
        return Err(nothing_under(&arguments.at.key));
    };
    if arguments.all {
        return print_all(&versions);
    }
    print(newest)?;
    if std::io::stdout().is_terminal() {
        print(b"\n")?;
    }
    if count > 1 {
        note(&format!("this is the newest of {count} siblings; --all prints all"));
    }
    Ok(())
}

pub fn put(arguments: Put) -> Result<(), Failure> {
    let value = match arguments.value.as_str() {
        "-" => read_stdin()?,
        text => text.as_bytes().to_vec(),
    };
    let mut node = arguments.at.open()?;
    let key = &arguments.at.key;
    let context = match (arguments.context, arguments.w) {
        (Some(context), _) => Some(Bytes::from(context)),
        // SET takes no `w`, and VPUT replaces only what its context covers: let that be what one replica holds.
        (None, Some(_)) => Some(vget(&mut node, key, Some(1))?.context),
        (None, None) => None,
    };
    let mut command: Vec<&[u8]> = match &context {
        Some(context) => vec![b"VPUT", key.as_bytes(), &value, b"CONTEXT", context],
        None => vec![b"SET", key.as_bytes(), &value],
    };
    let (ttl, w) = (digits(arguments.ttl_ms), digits(arguments.w));
    add_option(&mut command, b"PX", &ttl);
    add_option(&mut command, b"W", &w);
    note_siblings(node.call(&command)?);
    Ok(())
}

pub fn del(arguments: Del) -> Result<(), Failure> {
    let mut node = arguments.at.open()?;
    let key = &arguments.at.key;
    if arguments.context.is_none() && arguments.w.is_none() {
        return match node.call(&["DEL", key])? {
            Value::Integer(0) => Err(nothing_under(key)),
            _ => Ok(()),
        };
    }
    let mut command: Vec<&[u8]> = vec![b"VDEL", key.as_bytes()];
    let (context, w) = (arguments.context, digits(arguments.w));
    add_option(&mut command, b"CONTEXT", &context);
    add_option(&mut command, b"W", &w);
    note_siblings(node.call(&command)?);
    Ok(())
}

impl KeyArguments {
    /// Connects to the node and selects the bucket.
    pub fn open(&self) -> Result<Node, Failure> {
        let mut node = self.node.connect()?;
        if self.bucket != "default" {
            node.call(&["BUCKET", "USE", &self.bucket])?;
        }
        Ok(node)
    }
}

impl Versions {
    /// Reads the answer of `VGET`, `VPUT` and `VDEL`: the context, then the values.
    fn parse(value: Value) -> Option<Versions> {
        let Value::Array(parts) = value else { return None };
        let [Value::Bulk(context), Value::Array(values)] = <[Value; 2]>::try_from(parts).ok()? else {
            return None;
        };
        let bytes = |value| match value {
            Value::Bulk(bytes) => Some(bytes),
            _ => None,
        };
        Some(Versions { context, values: values.into_iter().map(bytes).collect::<Option<_>>()? })
    }
}

fn vget(node: &mut Node, key: &str, r: Option<u8>) -> Result<Versions, Failure> {
    let mut command: Vec<&[u8]> = vec![b"VGET", key.as_bytes()];
    let r = digits(r);
    add_option(&mut command, b"R", &r);
    let answer = node.call(&command)?;
    Versions::parse(answer).ok_or_else(|| node.unexpected("VGET"))
}

fn add_option<'a>(command: &mut Vec<&'a [u8]>, name: &'static [u8], value: &'a Option<String>) {
    if let Some(value) = value {
        command.extend([name, value.as_bytes()]);
    }
}

fn digits(number: Option<impl ToString>) -> Option<String> {
    number.map(|number| number.to_string())
}

fn print_all(versions: &Versions) -> Result<(), Failure> {
    let count = versions.values.len();
    let mut out = [b"context ", &versions.context[..], b"\n"].concat();
    for (i, value) in versions.values.iter().enumerate() {
        out.extend_from_slice(format!("sibling {} of {count}, {} bytes\n", i + 1, value.len()).as_bytes());
        out.extend_from_slice(value);
        out.push(b'\n');
    }
    print(&out)
}

/// Tells if a write left more than one value.
fn note_siblings(answer: Value) {
    if let Some(count) =
        Versions::parse(answer).map(|versions| versions.values.len()).filter(|count| *count > 1)
    {
        note(&format!("there are {count} siblings now; 'oort get --all' prints them"));
    }
}

fn nothing_under(key: &str) -> Failure {
    Failure::Failed { text: format!("nothing is stored under '{}'", key.escape_debug()) }
}

pub(super) fn read_stdin() -> Result<Vec<u8>, Failure> {
    let mut value = Vec::new();
    let read = std::io::stdin().take(VALUE_BYTES_LIMIT + 1).read_to_end(&mut value);
    match read {
        Err(error) => {
            Err(Failure::Failed { text: format!("standard input: {}", crate::config::words(&error)) })
        }
        Ok(bytes) if bytes as u64 > VALUE_BYTES_LIMIT => Err(Failure::Failed {
            text: format!("standard input: a value has at most {VALUE_BYTES_LIMIT} bytes"),
        }),
        Ok(_) => Ok(value),
    }
}
