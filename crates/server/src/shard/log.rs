//! The log's lines about the node's events.

use oort_core::node::Event;
use tracing::{debug, error, info, warn};

pub(super) fn log(event: &Event) {
    match event {
        Event::RingFormed { version, nodes, partitions, moving: false } => {
            info!(version, nodes, partitions, "the ring is formed")
        }
        Event::RingFormed { version, nodes, partitions, moving: true } => {
            info!(version, nodes, partitions, "the ring changes: data are moving")
        }
        Event::RingLost { version, nodes } => {
            error!(
                version,
                nodes,
                "another ring won: two operators changed it at once, or two groups of nodes founded one"
            )
        }
        Event::MemberChanged { member } => {
            let (address, stopped) = (&member.addresses.peer, member.stopped);
            info!(id = %member.id, name = member.name, address, stopped, "member")
        }
        Event::HealthChanged { peer, from, to } => info!(%peer, ?from, ?to, "health"),
        Event::CorruptRow { detail } => {
            error!(detail, "a row cannot be read: it is repaired from other replicas")
        }
        Event::ActorRenewed { why } => warn!(why, "writing under a new actor"),
        Event::StoreRefuses { detail } => error!(detail, "writes are refused"),
        Event::StoreAccepts => info!("writes are accepted again"),
        Event::ClockAhead { ahead_ms } => {
            error!(ahead_ms, "the clock is far from the peers': writes are refused")
        }
        Event::ClockCorrected { correction_ms: 0 } => info!("the clock is right again: it is read as it is"),
        Event::ClockCorrected { correction_ms } => error!(
            correction_ms,
            "the clock is off from most of the peers': this node goes by theirs. Set the clock"
        ),
        Event::ClockAgrees => info!("the clock agrees with the peers' again"),
        Event::DeadForgotten { key, .. } => debug!(?key, "a deleted object is forgotten"),
        Event::HandoffDone { owner, delivered } => info!(%owner, delivered, "hints delivered"),
    }
}
