//! The node that a command asks, and what its answers mean.

use std::time::Duration;

use clap::Args;

use super::Failure;
use crate::client::Client;
use crate::resp::Value;

/// Which node to ask.
#[derive(Args)]
pub struct NodeArguments {
    /// Redis address of the node to ask; any node will do
    #[arg(
        long,
        env = "OORT_NODE",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:6379",
        hide_env_values = true
    )]
    node: String,
    /// How long to wait for an answer, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    wait_ms: u64,
}

/// An open connection to a node.
pub struct Node {
    client: Client,
    address: String,
}

impl NodeArguments {
    /// Connects.
    pub fn connect(&self) -> Result<Node, Failure> {
        let address = match self.node.contains(':') {
            true => self.node.clone(),
            false => format!("{}:6379", self.node),
        };
        Node::at(&address, Duration::from_millis(self.wait_ms))
    }
}

impl Node {
    /// Connects to the node at `address`, as `host:port`.
    pub fn at(address: &str, timeout: Duration) -> Result<Node, Failure> {
        let client = Client::connect(address, timeout)?;
        Ok(Node { client, address: address.to_owned() })
    }

    /// Sends one command. A refusal becomes a failure.
    pub fn call<A: AsRef<[u8]>>(&mut self, command: &[A]) -> Result<Value, Failure> {
        match self.client.call(command)? {
            Value::Error(text) if text.starts_with("ERR unknown ") && text.contains("command") => {
                let text = format!("{} is no Oort node, or of another version: {text}", self.address);
                Err(Failure::Failed { text })
            }
            Value::Error(text) => Err(Failure::Failed { text: without_prefix(&text).to_owned() }),
            value => Ok(value),
        }
    }

    /// As [`Node::call`], with the answer in version 3 of the protocol: maps are told from arrays.
    pub fn call_resp3<A: AsRef<[u8]>>(&mut self, command: &[A]) -> Result<Value, Failure> {
        self.call(&["HELLO", "3"])?;
        self.call(command)
    }

    /// The failure when `command` is answered with something it never answers.
    pub fn unexpected(&self, command: &str) -> Failure {
        Failure::Failed { text: format!("{}: the answer to {command} cannot be read", self.address) }
    }
}

/// The text of an error reply without its first word, which is for programs.
fn without_prefix(text: &str) -> &str {
    match text.split_once(' ') {
        Some((word, rest)) if !word.is_empty() && word.bytes().all(|b| b.is_ascii_uppercase()) => rest,
        _ => text,
    }
}
