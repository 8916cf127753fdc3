//! The server around `oort_core`: the event loop, its protocols and its disk.
//!
//! The modules stand in reading order; each uses only modules above it.

pub mod errno;
pub mod descriptors;
pub mod token;
pub mod resp;
pub mod latency;
pub mod handle;
pub mod status;
pub mod http;
pub mod storage;
pub mod commands;
pub mod wire;
pub mod connection;
pub mod shard;
pub mod config;
pub mod server;
pub mod client;
pub mod dev;
pub mod cli;
