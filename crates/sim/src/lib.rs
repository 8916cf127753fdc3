//! A whole Oort cluster in one thread, with faults, judged by checkers: the same core the server runs, driven by
//! a discrete-event simulator.
//!
//! One seed is one history. Virtual time moves from event to event; the only source of chance is one generator fed
//! with the seed, and nothing iterates in hash order, so a seed that fails replays exactly, here and on any machine.
//! `docs/simulation.md` says what is simulated and what is not.
//!
//! Reading order: what is recorded (`trace`, `history`), the world (`disk`, `faults`, `network`, `workload`), what is
//! demanded of it (`check`), how a failure is told (`chronicle`), the event loop (`machine`, `cluster`), failures kept
//! (`story`), made smaller (`shrink`) and looked for all night (`soak`), the command line (`cli`). Beside them stands
//! `balance`: how evenly rings spread load, without running anything, and `detection`: how fast crashes are noticed.
//! `linear` and `regular` judge what clients saw of any cluster, of real processes too.
//!
//! Source: FoundationDB's simulation and TigerBeetle's VOPR; swarm testing (Groce et al., 2012): every seed draws its
//! own subset of faults and its own rates, because a bug often needs some faults to be absent.

pub mod trace;
pub mod history;
pub mod disk;
pub mod faults;
pub mod skips;
pub mod network;
pub mod workload;
pub mod evaluation;
pub mod check;
pub mod chronicle;
pub mod machine;
pub mod panics;
pub mod cluster;
pub mod story;
pub mod parallel;
pub mod shrink;
pub mod soak;
pub mod cli;
pub mod balance;
pub mod detection;
pub mod linear;
pub mod regular;
