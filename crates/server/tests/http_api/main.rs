//! The HTTP interface as a client sees it: the real server over a real node, spoken to through a socket.

mod bad_input;
mod client;
mod node;
mod objects;
mod reports;
