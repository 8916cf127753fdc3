//! Free ports: those asked for, or others where those are taken.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};

use super::{DevError, FirstPorts};

/// The ports of one node, all on 127.0.0.1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ports {
    pub redis: u16,
    pub http: u16,
    pub peer: u16,
}

/// Picks the ports of `count` nodes; tells of every port that is not the one asked for.
///
/// A port counts as taken if it cannot be bound now. Another program may still take it before the node does; then
/// the node fails to start and says so.
pub fn choose(first: FirstPorts, count: u16, tell: &mut dyn FnMut(&str)) -> Result<Vec<Ports>, DevError> {
    let mut used = BTreeSet::new();
    let mut columns = Vec::new();
    for (kind, base) in [("redis", first.redis), ("http", first.http), ("peer", first.peer)] {
        if base == 0 || base.checked_add(count - 1).is_none() {
            let detail = format!(
                "--{kind}-port {base}: {count} nodes need ports {base} to {}",
                base as u32 + count as u32 - 1
            );
            return Err(DevError::Ports { detail: format!("{detail}: a port is 1 to 65535") });
        }
        let wanted = base..=base + (count - 1);
        let mut got: Vec<Option<u16>> = wanted.clone().map(|port| take(port, &mut used)).collect();
        let mut spare = base + (count - 1);
        for (node, port) in got.iter_mut().enumerate().filter(|(_, port)| port.is_none()) {
            spare = next_free(spare, &mut used)?;
            tell(&format!("port {} is taken: node{} uses {spare} for {kind}", base + node as u16, node + 1));
            *port = Some(spare);
        }
        columns.push(got);
    }
    let port = |kind: usize, node: usize| columns[kind][node].expect("every gap was filled");
    Ok((0..count as usize).map(|n| Ports { redis: port(0, n), http: port(1, n), peer: port(2, n) }).collect())
}

fn next_free(after: u16, used: &mut BTreeSet<u16>) -> Result<u16, DevError> {
    (after..u16::MAX)
        .map(|port| port + 1)
        .find_map(|port| take(port, used))
        .ok_or_else(|| DevError::Ports { detail: format!("no free port from {after} to 65535") })
}

fn take(port: u16, used: &mut BTreeSet<u16>) -> Option<u16> {
    let is_free = !used.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    is_free.then(|| {
        used.insert(port);
        port
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_replaced_and_told() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let base = taken.local_addr().unwrap().port();
        if base > 65_000 {
            return; // too near the end for the numbers below
        }
        let mut told = Vec::new();
        let first = FirstPorts { redis: base, http: base + 100, peer: base + 101 };
        let ports = choose(first, 2, &mut |line| told.push(line.to_owned())).unwrap();
        assert_ne!(ports[0].redis, base);
        let mut all: Vec<u16> = ports.iter().flat_map(|p| [p.redis, p.http, p.peer]).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 6, "no port is given twice: {ports:?}");
        assert!(told[0].starts_with(&format!("port {base} is taken: node1 uses ")), "{told:?}");
    }

    #[test]
    fn ports_end_at_65535() {
        let first = FirstPorts { redis: 65_534, http: 1, peer: 1 };
        let error = choose(first, 3, &mut |_| {}).unwrap_err().to_string();
        assert_eq!(error, "--redis-port 65534: 3 nodes need ports 65534 to 65536: a port is 1 to 65535");
    }
}
