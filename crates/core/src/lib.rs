//! Oort's distributed algorithm: a deterministic state machine without I/O.
//!
//! Modules stand in reading order; each uses only those above it.

pub mod types;
pub mod codec;
pub mod causality;
pub mod clock;
pub mod crdt;
pub mod object;
pub mod mutation;
pub mod bucket;
pub mod store;
pub mod client;
pub mod config;
pub mod ring;
pub mod detector;
pub mod membership;
pub mod metrics;
pub mod message;
pub mod node;
