//! `oort bucket`: the properties of buckets.

use clap::{Args, Subcommand};

use super::node::{Node, NodeArguments};
use super::{print, Failure};
use crate::resp::Value;

/// Show and change how buckets keep their objects
#[derive(Args)]
#[command(after_help = "\
Examples:
  oort bucket get default
  oort bucket set carts n=3 r=2 w=1 conflict=siblings
  oort bucket set sessions default_ttl_ms=3600000 conflict=lww
  oort bucket set limits aso_durability=quorum
  oort bucket list

A bucket needs no creation: it has the defaults until it is given properties of its own.")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print a bucket's properties
    ///
    /// in_force=false: n, r and w are wanted, and the ones before still hold. The data move to where they are to be;
    /// `oort cluster status` shows how far that is.
    Get {
        /// The bucket
        #[arg(value_name = "NAME")]
        bucket: String,
        #[command(flatten)]
        node: NodeArguments,
    },
    /// Change a bucket's properties on all nodes; those not named stay
    ///
    /// n: copies of each object. r: replicas that answer a get. w: durable copies before a put is acknowledged.
    /// conflict: siblings or lww. default_ttl_ms: milliseconds, or none. value_bytes_max: bytes. active: true or
    /// false, whether objects may carry code. aso_durability: quorum or async, when what their handlers change is
    /// kept; aso_async_ms: how late at most. aso_instructions, aso_memory_bytes, aso_wall_ms, aso_messages, aso_fuel:
    /// what each may use (docs/active-objects.md).
    Set {
        /// The bucket
        #[arg(value_name = "NAME")]
        bucket: String,
        /// What to change, such as n=3
        #[arg(value_name = "PROPERTY=VALUE", required = true)]
        properties: Vec<String>,
        #[command(flatten)]
        node: NodeArguments,
    },
    /// Print the names of the buckets that have properties of their own
    List {
        #[command(flatten)]
        node: NodeArguments,
    },
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Get { bucket, node } => get(&mut node.connect()?, &bucket),
        Command::Set { bucket, properties, node } => set(&bucket, &properties, &node),
        Command::List { node } => list(&mut node.connect()?),
    }
}

fn get(node: &mut Node, bucket: &str) -> Result<(), Failure> {
    let flat = match node.call(&["BUCKET", "GET", bucket])? {
        Value::Array(flat) => flat,
        Value::Map(pairs) => pairs.into_iter().flat_map(|(name, value)| [name, value]).collect(),
        _ => return Err(node.unexpected("BUCKET GET")),
    };
    let lines: Vec<String> = flat
        .chunks(2)
        .filter_map(|pair| Some(format!("{}={}\n", text(&pair[0]), text(pair.get(1)?))))
        .collect();
    print(lines.concat().as_bytes())
}

fn set(bucket: &str, properties: &[String], node: &NodeArguments) -> Result<(), Failure> {
    let mut command = vec!["BUCKET", "SET", bucket];
    for property in properties {
        let (name, value) = property.split_once('=').ok_or_else(|| Failure::Usage {
            text: format!("'{}': write property=value, such as n=3", property.escape_debug()),
        })?;
        command.extend([name, value]);
    }
    node.connect()?.call(&command).map(drop)
}

fn list(node: &mut Node) -> Result<(), Failure> {
    let Value::Array(names) = node.call(&["BUCKET", "LIST"])? else {
        return Err(node.unexpected("BUCKET LIST"));
    };
    let lines: Vec<String> = names.iter().map(|name| format!("{}\n", text(name))).collect();
    print(lines.concat().as_bytes())
}

/// A value as people and `oort bucket set` write it.
fn text(value: &Value) -> String {
    match value {
        Value::Bulk(bytes) => bytes.escape_ascii().to_string(),
        Value::Simple(text) => text.to_string(),
        Value::Integer(number) => number.to_string(),
        _ => "none".into(),
    }
}
