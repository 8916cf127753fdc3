//! `oort start`: one node, until it is told to stop.
//!
//! The flags come from the table of options, so this file knows none of them by name.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use rustix::process::{getpid, kill_process, Signal};
use tracing_subscriber::EnvFilter;

use super::{note, print, Failure};
use crate::config::options::{ConfigOption, OPTIONS};
use crate::config::{self, Config, Origin, Override};

const ABOUT: &str = "Run one node until Ctrl-C or SIGTERM";
const LONG_ABOUT: &str = "\
Run one node until Ctrl-C or SIGTERM

Each option can be a flag, an environment variable or a line in the configuration file; a flag overrides a variable, \
which overrides the file. The flag '--some-option' is the variable 'OORT_SOME_OPTION' and the key 'some_option'. \
SIGTERM finishes what is in flight, syncs, and tells the other nodes.";
const AFTER: &str = "\
Examples:
  oort start                               a node on its own, data in ./oort-data
  oort start --config /etc/oort.toml --log debug
  oort start --print-example-config        every option, explained
  oort start --name b --cluster-size 3 --join 10.0.0.1:7946 \\
      --peer 10.0.0.2:7946 --redis 10.0.0.2:6379 --http 10.0.0.2:8098";

/// A process whose parent is gone and that cannot stop gracefully within this time ends anyway.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);

/// What `oort start` was given.
pub struct Arguments {
    file: Option<PathBuf>,
    overrides: Vec<Override>,
    print_example: bool,
    check: bool,
    stop_with_stdin: bool,
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    if arguments.print_example {
        return print(config::example().as_bytes());
    }
    let config = config::load(arguments.file.as_deref(), &arguments.overrides)
        .map_err(|error| Failure::Usage { text: error.to_string() })?;
    if arguments.check {
        config.warnings().iter().for_each(|warning| note(&format!("warning: {warning}")));
        return print(b"the configuration is valid\n");
    }
    start_log(&config);
    config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    if arguments.stop_with_stdin {
        std::thread::spawn(stop_at_end_of_stdin);
    }
    crate::server::run(config).map_err(|error| Failure::Failed { text: error.to_string() })
}

fn start_log(config: &Config) {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&config.log).expect("the configuration was checked"))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .finish();
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        note("logging was started twice");
    }
}

/// Makes an end of standard input mean SIGTERM: whoever started this process is gone, however it ended.
fn stop_at_end_of_stdin() {
    let mut stdin = std::io::stdin();
    if stdin.is_terminal() {
        return;
    }
    let mut ignored = [0; 256];
    while matches!(stdin.read(&mut ignored), Ok(1..)) {}
    tracing::info!("standard input was closed: stopping");
    let _ = kill_process(getpid(), Signal::TERM);
    std::thread::sleep(ORPHAN_GRACE);
    tracing::error!("could not stop within {} s", ORPHAN_GRACE.as_secs());
    std::process::exit(1);
}

impl Args for Arguments {
    fn augment_args(command: Command) -> Command {
        let command = command
            .about(ABOUT)
            .long_about(LONG_ABOUT)
            .after_help(AFTER)
            .arg(
                Arg::new("config")
                    .long("config")
                    .short('c')
                    .value_name("FILE")
                    .env("OORT_CONFIG")
                    .hide_env(true)
                    .value_parser(clap::value_parser!(PathBuf))
                    .help("Configuration file, TOML"),
            )
            .arg(
                Arg::new("print-example-config")
                    .long("print-example-config")
                    .action(ArgAction::SetTrue)
                    .help("Print a configuration file with every option explained, and end"),
            )
            .arg(
                Arg::new("check-config")
                    .long("check-config")
                    .action(ArgAction::SetTrue)
                    .help("Check the configuration, and end"),
            )
            .arg(
                Arg::new("stop-with-stdin")
                    .long("stop-with-stdin")
                    .action(ArgAction::SetTrue)
                    .hide(true)
                    .help("Stop when standard input is closed"),
            );
        let defaults = Config::default();
        command.args(OPTIONS.iter().map(|option| flag(option, &defaults)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn flag(option: &'static ConfigOption, defaults: &Config) -> Arg {
    let first = option.doc.split_inclusive(". ").next().unwrap_or(option.doc);
    let short = first.trim_end().trim_end_matches('.');
    let default = option.toml(defaults);
    let default = match default.trim_matches(['"', '[', ']']) {
        "" => String::new(),
        value => format!(" [default: {value}]"),
    };
    Arg::new(option.key)
        .long(option.flag())
        .value_name(option.value_name)
        .env(option.variable())
        .hide_env(true)
        .help_heading(option.group)
        .help(format!("{short}{default}"))
        .long_help(format!("{}{default}", option.doc))
        .action(if option.is_list() { ArgAction::Append } else { ArgAction::Set })
}

impl FromArgMatches for Arguments {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Arguments, clap::Error> {
        Ok(Arguments {
            file: matches.get_one::<PathBuf>("config").cloned(),
            overrides: OPTIONS.iter().filter_map(|option| given(option, matches)).collect(),
            print_example: matches.get_flag("print-example-config"),
            check: matches.get_flag("check-config"),
            stop_with_stdin: matches.get_flag("stop-with-stdin"),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Arguments::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The value given for `option`, if any. A list flag that is given several times is one list.
fn given(option: &'static ConfigOption, matches: &ArgMatches) -> Option<Override> {
    let values: Vec<&str> = matches.get_many::<String>(option.key)?.map(String::as_str).collect();
    let origin = match matches.value_source(option.key)? {
        ValueSource::EnvVariable => Origin::Variable(option.variable()),
        _ => Origin::Flag(format!("--{}", option.flag())),
    };
    Some(Override { option, origin, text: values.join(",") })
}
