//! Commands on commands: `COMMAND`, and the `HELP` of commands with subcommands.

use super::errors::{self, refusal};
use super::table::{self, Keys, Spec, COMMANDS};
use super::{glob, reply, Call, Outcome};
use crate::resp::request::Command;
use crate::resp::Value;

/// Runs the subcommand that argument 1 names.
pub fn subcommand(call: &mut Call) -> Outcome {
    if call.is(1, "help") && call.count() == 2 {
        return reply(help(call.spec));
    }
    let container = call.spec;
    let Some((place, spec)) = table::find_in(container.subcommands, call.arg(1)) else {
        return Err(errors::unknown_subcommand(container, call.arg(1)));
    };
    call.session.mark = call.session.mark.of_subcommand(place);
    if !spec.accepts(call.count()) {
        call.session.mark = call.session.mark.rejected();
        return Err(errors::wrong_arity(Some(container), spec));
    }
    call.container = Some(container);
    call.spec = spec;
    (spec.run)(call)
}

fn help(container: &Spec) -> Value {
    let name = container.name.to_ascii_uppercase();
    let title = format!("{name} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:");
    let mut lines = vec![Value::Simple(title.into())];
    for spec in container.subcommands {
        lines.push(Value::Simple(spec.syntax.into()));
        lines.push(Value::Simple(format!("    {}", spec.summary).into()));
    }
    lines.push(Value::Simple("HELP".into()));
    lines.push(Value::Simple("    Print this help.".into()));
    Value::Array(lines)
}

/// `COMMAND`, and its subcommands.
pub fn command(call: &mut Call) -> Outcome {
    match call.count() {
        1 => reply(Value::Array(COMMANDS.iter().map(|spec| description(None, spec)).collect())),
        _ => subcommand(call),
    }
}

/// `COMMAND COUNT`
pub fn count(_: &mut Call) -> Outcome {
    reply(Value::Integer(COMMANDS.len() as i64))
}

/// `COMMAND INFO [command-name ...]`
pub fn info(call: &mut Call) -> Outcome {
    if call.count() == 2 {
        return reply(Value::Array(COMMANDS.iter().map(|spec| description(None, spec)).collect()));
    }
    let describe =
        |i| named(call.arg(i)).map_or(Value::Null, |(container, spec)| description(container, spec));
    reply(Value::Array((2..call.count()).map(describe).collect()))
}

/// `COMMAND DOCS [command-name ...]`
pub fn docs(call: &mut Call) -> Outcome {
    if call.count() == 2 {
        return reply(Value::Map(COMMANDS.iter().map(|spec| documentation(None, spec)).collect()));
    }
    let found = (2..call.count()).filter_map(|i| named(call.arg(i)));
    reply(Value::Map(found.map(|(container, spec)| documentation(container, spec)).collect()))
}

/// `COMMAND LIST [FILTERBY MODULE name | ACLCAT category | PATTERN pattern]`
pub fn list(call: &mut Call) -> Outcome {
    let pattern: Vec<u8> = match call.count() {
        2 => b"*".to_vec(),
        5 if call.is(2, "filterby") && call.is(3, "pattern") => call.arg(4).to_ascii_lowercase(),
        // There are neither modules nor access control lists.
        5 if call.is(2, "filterby") && (call.is(3, "module") || call.is(3, "aclcat")) => Vec::new(),
        _ => return Err(errors::SYNTAX),
    };
    let matching = COMMANDS.iter().filter(|spec| glob::matches(&pattern, spec.name.as_bytes()));
    reply(Value::Array(matching.map(|spec| Value::name(spec.name)).collect()))
}

/// `COMMAND GETKEYS command [arg ...]`
pub fn getkeys(call: &mut Call) -> Outcome {
    let Some(spec) = table::find(call.arg(2)) else {
        return Err(refusal("ERR Invalid command specified"));
    };
    let arguments: Vec<&[u8]> = call.command.iter().skip(2).collect();
    if !spec.accepts(arguments.len()) {
        return Err(refusal("ERR Invalid number of arguments specified for command"));
    }
    let places = key_places(spec, &Command::new(&arguments));
    match places.is_empty() {
        true => Err(refusal("ERR The command has no key arguments")),
        false => reply(Value::Array(places.into_iter().map(|i| Value::text(arguments[i])).collect())),
    }
}

/// The places of the arguments of `command` that are keys.
pub fn key_places(spec: &Spec, command: &Command) -> Vec<usize> {
    let Keys { first, last, step } = spec.keys;
    if first == 0 {
        return Vec::new();
    }
    let last = match last {
        last if last < 0 => command.len() as i64 + last as i64,
        last => last as i64,
    };
    (first as usize..=last.max(0) as usize).step_by(step as usize).filter(|&i| i < command.len()).collect()
}

/// A command, or `container|subcommand`.
fn named(name: &[u8]) -> Option<(Option<&'static Spec>, &'static Spec)> {
    match name.iter().position(|&byte| byte == b'|') {
        None => Some((None, table::find(name)?)),
        Some(at) => {
            let container = table::find(&name[..at])?;
            Some((Some(container), table::find_in(container.subcommands, &name[at + 1..])?.1))
        }
    }
}

/// The ten fields of Redis 7.
fn description(container: Option<&Spec>, spec: &'static Spec) -> Value {
    let Keys { first, last, step } = spec.keys;
    let flags = spec.flag_names().map(|name| Value::Simple(name.into())).collect();
    let categories = spec.categories().map(|name| Value::Simple(name.into())).collect();
    let subcommands = spec.subcommands.iter().map(|sub| description(Some(spec), sub)).collect();
    Value::Array(vec![
        Value::text(errors::full_name(container, spec)),
        Value::Integer(spec.arity as i64),
        Value::Set(flags),
        Value::Integer(first as i64),
        Value::Integer(last as i64),
        Value::Integer(step as i64),
        Value::Set(categories),
        Value::Array(Vec::new()),
        Value::Array(key_specs(spec)),
        Value::Array(subcommands),
    ])
}

/// Where keys stand, in the newer form that some clients read instead of the three numbers.
fn key_specs(spec: &Spec) -> Vec<Value> {
    let Keys { first, last, step } = spec.keys;
    if first == 0 {
        return Vec::new();
    }
    let flag = if spec.is_write() { "RW" } else { "RO" };
    let last = if last < 0 { last } else { last - first };
    let begin = vec![
        (Value::name("type"), Value::name("index")),
        (Value::name("spec"), Value::Map(vec![(Value::name("index"), Value::Integer(first as i64))])),
    ];
    let find = vec![
        (Value::name("type"), Value::name("range")),
        (
            Value::name("spec"),
            Value::Map(vec![
                (Value::name("lastkey"), Value::Integer(last as i64)),
                (Value::name("keystep"), Value::Integer(step as i64)),
                (Value::name("limit"), Value::Integer(0)),
            ]),
        ),
    ];
    vec![Value::Map(vec![
        (Value::name("flags"), Value::Set(vec![Value::Simple(flag.into())])),
        (Value::name("begin_search"), Value::Map(begin)),
        (Value::name("find_keys"), Value::Map(find)),
    ])]
}

fn documentation(container: Option<&Spec>, spec: &'static Spec) -> (Value, Value) {
    let mut fields = vec![
        (Value::name("summary"), Value::name(spec.summary)),
        (Value::name("since"), Value::name("1.0.0")),
        (Value::name("group"), Value::name(spec.group.name())),
    ];
    if !spec.subcommands.is_empty() {
        let subcommands = spec.subcommands.iter().map(|sub| documentation(Some(spec), sub)).collect();
        fields.push((Value::name("subcommands"), Value::Map(subcommands)));
    }
    (Value::text(errors::full_name(container, spec)), Value::Map(fields))
}
