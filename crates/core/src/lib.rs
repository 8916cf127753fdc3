//! Oort's distributed algorithm: a deterministic state machine without I/O.
//!
//! Modules stand in reading order; each uses only those above it.

pub mod types;
pub mod codec;
pub mod causality;
pub mod clock;
pub mod peer_clocks;
pub mod crdt;
pub mod active;
pub mod object;
pub mod mutation;
pub mod bucket;
pub mod store;
pub mod placement;
pub mod ring;
pub mod client;
pub mod config;
pub mod detector;
pub mod vivaldi;
pub mod membership;
pub mod guard;
pub mod message;
pub mod forwards;
pub mod metrics;
pub mod known;
pub mod census;
pub mod tree;
pub mod timers;
pub mod admission;
pub mod placed;
pub mod replica;
pub mod get;
pub mod put;
pub mod scan;
pub mod handoff;
pub mod entropy;
pub mod transfer;
pub mod collect;
pub mod tasks;
pub mod node;
