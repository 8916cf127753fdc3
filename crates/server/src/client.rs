//! A small blocking Redis client: one connection, one command at a time. For the command line and for tests.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use bytes::BytesMut;

use crate::config::words;
use crate::resp::reply::{ReplyError, ReplyParser};
use crate::resp::Value;

/// One connection to a node. After an error other than a refused command it is of no further use.
pub struct Client {
    stream: TcpStream,
    parser: ReplyParser,
    input: BytesMut,
}

/// Why a command has no answer.
#[derive(Debug)]
pub enum ClientError {
    /// No connection; nothing was sent.
    Connect { address: String, error: io::Error },
    /// The connection broke or stayed silent too long. The command may or may not have happened.
    Lost { address: String, error: io::Error },
    /// What came back is not the Redis protocol: another kind of server.
    Protocol { address: String, error: ReplyError },
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            ClientError::Connect { address, error } => {
                write!(f, "cannot connect to {address}: {}", words(error))?;
                if error.kind() == io::ErrorKind::ConnectionRefused {
                    write!(f, " (is a node running? try 'oort dev')")?;
                }
                Ok(())
            }
            ClientError::Lost { address, error } if is_timeout(error) => {
                write!(f, "no answer from {address} in time: the command may or may not have happened")
            }
            ClientError::Lost { address, error } => {
                write!(
                    f,
                    "connection to {address} lost: {}: the command may or may not have happened",
                    words(error)
                )
            }
            ClientError::Protocol { address, error } => {
                write!(f, "{address} does not speak the Redis protocol: {error}")
            }
        }
    }
}

impl std::error::Error for ClientError {}

impl Client {
    /// Connects to `address`, a `host:port`. `timeout` holds for connecting, and for each wait for an answer.
    pub fn connect(address: &str, timeout: Duration) -> Result<Client, ClientError> {
        let stream = open(address, timeout)
            .map_err(|error| ClientError::Connect { address: address.to_owned(), error })?;
        Ok(Client { stream, parser: ReplyParser::default(), input: BytesMut::new() })
    }

    /// Sends one command and waits for its answer, which may be a [`Value::Error`].
    pub fn call<A: AsRef<[u8]>>(&mut self, command: &[A]) -> Result<Value, ClientError> {
        let mut request = format!("*{}\r\n", command.len()).into_bytes();
        for argument in command {
            let argument = argument.as_ref();
            request.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            request.extend_from_slice(argument);
            request.extend_from_slice(b"\r\n");
        }
        self.stream.write_all(&request).map_err(|error| self.lost(error))?;
        loop {
            match self.parser.next(&mut self.input) {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => self.receive().map_err(|error| self.lost(error))?,
                Err(error) => return Err(ClientError::Protocol { address: self.address(), error }),
            }
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 << 10];
        match self.stream.read(&mut chunk)? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the node")),
            length => {
                self.input.extend_from_slice(&chunk[..length]);
                Ok(())
            }
        }
    }

    fn lost(&self, error: io::Error) -> ClientError {
        ClientError::Lost { address: self.address(), error }
    }

    fn address(&self) -> String {
        self.stream.peer_addr().map_or_else(|_| "the node".into(), |address| address.to_string())
    }
}

fn open(address: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no such host");
    for resolved in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&resolved, timeout) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
