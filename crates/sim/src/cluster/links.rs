//! Connections and what travels over them.

use bytes::Bytes;
use oort_core::membership::{Dials, Refusal};
use oort_core::message::{Control, Message, ReadOutcome};
use oort_core::node::Input;
use oort_core::object::Object;
use oort_core::types::NodeId;

use super::{Cluster, Ending, Event};
use crate::network::Connection;

impl Cluster {
    // Messages

    /// A node sends; what becomes of it is the network's choice.
    pub(super) fn send(&mut self, from: usize, to: NodeId, message: Message) {
        let peer = to;
        let Some(&to) = self.by_id.get(&peer) else { return };
        self.encoded.clear();
        message.encode(&mut self.encoded);
        self.trace.mix(&self.encoded);
        let Some(connection) = self.network.end(from, to).open else {
            return self.show_message_line("-/", from, to, &message);
        };
        let arrivals =
            self.network.send((from, to, self.encoded.len()), self.now_us, &self.plan, &mut self.rng);
        let arrow = match arrivals {
            [None, None] => "-x",
            [Some(_), None] => "->",
            _ => "=>",
        };
        self.show_message_line(arrow, from, to, &message);
        self.check_spoken(&message);
        self.check_vouched(from, to, &message);
        self.check_word(from, peer, &message);
        if let Message::Control(Control::Forget { rows, .. }) = &message {
            self.meet_forgetting(to, rows);
        }
        for at_us in arrivals.into_iter().flatten() {
            let bytes = Bytes::copy_from_slice(&self.encoded);
            self.at(at_us, Event::Arrive { from, to, connection, bytes });
        }
    }

    /// Nothing may be said of a write that is not stored.
    fn check_spoken(&mut self, message: &Message) {
        match message {
            Message::Write { key, object, .. } => {
                if let Ok(object) = Object::decode(object) {
                    self.check_born(&object, key, "a message");
                }
            }
            Message::ReadResult { outcome: ReadOutcome::Object(object), .. } => {
                let object = Object::decode(object).unwrap_or_default();
                let unborn = object.0.values().iter().find(|(dot, _)| !self.history.is_born(*dot));
                if let Some((dot, _)) = unborn {
                    let detail =
                        format!("{} in the answer to a read was never stored", self.history.name(*dot));
                    self.history.blame("durability", None, detail);
                }
            }
            _ => {}
        }
    }

    pub(super) fn arrive(&mut self, from: usize, to: usize, connection: Connection, bytes: Bytes) {
        if self.network.end(to, from).open != Some(connection) || !self.machines[to].is_up() {
            return;
        }
        self.trace.event(self.now_us, b'A', to);
        let message = match Message::decode(&bytes) {
            Ok(message) => message,
            Err(error) => {
                let detail = format!("n{to} cannot read a message of n{from}: {error}");
                return self.history.blame("encoding", None, detail);
            }
        };
        if let Message::ReadResult { outcome: ReadOutcome::Object(object), .. } = &message {
            if let Ok(object) = Object::decode(object) {
                self.history.show(to, self.now_us, &object);
            }
        }
        let from = self.machines[from].id.expect("who sends has an id");
        self.deliver(to, Input::Message { from, message });
    }

    // Connections

    pub(super) fn connect_wanted(&mut self, machine: usize, peer: NodeId, address: &str) {
        match (self.by_id.get(&peer), address.parse()) {
            (Some(&index), Ok(address)) if index != machine => self.want_link(machine, index, Some(address)),
            // Nobody answers as that node any more.
            (None, _) if self.lost.as_ref().is_some_and(|lost| lost.old == peer) => {}
            _ => {
                let detail = format!("n{machine} wants a link to {peer} at '{address}'");
                self.history.blame("formation", None, detail);
            }
        }
    }

    /// The machine does not dial `peer` any more.
    pub(super) fn dial_no_more(&mut self, machine: usize, peer: NodeId) {
        if let Some(&peer) = self.by_id.get(&peer) {
            self.network.end(machine, peer).wanted = false;
        }
    }

    pub(super) fn want_link(&mut self, machine: usize, peer: usize, address: Option<u64>) {
        let end = self.network.end(machine, peer);
        end.wanted = true;
        match address {
            Some(address) => end.address = address,
            None => end.is_named = true,
        }
        let delay_us = self.rng.below(2_000);
        self.schedule_dial(machine, peer, delay_us);
    }

    fn schedule_dial(&mut self, from: usize, to: usize, delay_us: u64) {
        let end = self.network.end(from, to);
        if end.open.is_some() || end.dialing || !end.wanted {
            return;
        }
        end.dialing = true;
        self.at(self.now_us + delay_us, Event::Dial { from, to });
    }

    pub(super) fn dial(&mut self, from: usize, to: usize) {
        let end = self.network.end(from, to);
        end.dialing = false;
        if end.open.is_some() || !end.wanted || !self.machines[from].is_up() {
            return;
        }
        let address = end.address;
        if !end.is_named && address != self.machines[to].address {
            return self.dial_stale(from, to, address);
        }
        let can_answer = self.machines[to].is_up() && !self.machines[to].is_stopping;
        let is_awake =
            !self.machines[from].is_stalled(self.now_us) && !self.machines[to].is_stalled(self.now_us);
        let passes = self.network.passes(from, to) && self.network.passes(to, from);
        if can_answer && is_awake && passes && !self.machines[from].is_stopping {
            return self.connect(from, to);
        }
        let delay_us = self.network.back_off_us(from, to, &mut self.rng);
        self.schedule_dial(from, to, delay_us);
    }

    /// `to` is not where it was: nobody answers there, or another machine.
    fn dial_stale(&mut self, from: usize, to: usize, address: u64) {
        let delay_us = self.network.back_off_us(from, to, &mut self.rng);
        self.schedule_dial(from, to, delay_us);
        let tenant = (0..self.machines.len()).find(|index| self.machines[*index].address == address);
        let Some(tenant) = tenant.filter(|tenant| *tenant != from) else { return };
        let end = self.network.end(from, tenant);
        if end.open.is_none() && !end.dialing {
            // The greeting says who answers, and the caller goes on with that one.
            self.want_link(from, tenant, Some(address));
        }
    }

    /// Both ends introduce themselves, check the other, and have a link.
    fn connect(&mut self, from: usize, to: usize) {
        let mut hellos = Vec::new();
        for (a, b) in [(from, to), (to, from)] {
            let machine = &self.machines[b];
            let node = machine.node.as_ref().expect("both ends are up");
            let hello = node.hello(machine.now(self.now_us));
            let node = self.machines[a].node.as_ref().expect("both ends are up");
            let dials = Dials { we: self.network.end(a, b).wanted, they: self.network.end(b, a).wanted };
            if let Err(refusal) = node.check(&hello, dials) {
                let is_final = node.is_settled() && hello.is_settled;
                return self.refused(from, to, (a, b), &refusal, is_final);
            }
            hellos.push((a, b, hello));
        }
        self.trace.event(self.now_us, b'C', from);
        self.trace.line(self.now_us, || format!("n{from} and n{to} are linked"));
        for (a, b) in [(from, to), (to, from)] {
            // The other end may not have noticed that the old connection is gone.
            if self.network.end(a, b).open.is_some() {
                let peer = self.machines[b].id.expect("who was linked has an id");
                self.deliver(a, Input::LinkDown { peer });
            }
        }
        self.network.open(from, to, self.now_us);
        for (a, _, hello) in hellos {
            self.deliver(a, Input::LinkUp { hello });
        }
    }

    /// `a` refuses `b`, which is right only if `b` did not ask, if `a` takes the former life of `b` for alive, or if
    /// two rings were founded at once and one of the two has not been given up yet.
    ///
    /// `is_final`: neither of the two gives up its founding.
    fn refused(&mut self, from: usize, to: usize, (a, b): (usize, usize), refusal: &Refusal, is_final: bool) {
        match refusal {
            Refusal::Founding { .. } if is_final => {
                let detail = format!("n{a} refuses n{b} for ever: {refusal}");
                self.history.blame("formation", None, detail);
            }
            Refusal::Unasked | Refusal::Copy { .. } | Refusal::Founding { .. } => {
                self.trace.line(self.now_us, || format!("n{a} refuses n{b}: {refusal}"));
                let delay_us = self.network.back_off_us(from, to, &mut self.rng);
                self.schedule_dial(from, to, delay_us);
            }
            _ => {
                let detail = format!("n{a} refuses n{b}: {refusal}");
                self.history.blame("formation", None, detail);
            }
        }
    }

    /// The node finds that a peer is not of its cluster, and closes their link.
    pub(super) fn refuse(&mut self, machine: usize, peer: NodeId) {
        let Some(&peer) = self.by_id.get(&peer) else { return };
        self.trace.line(self.now_us, || format!("n{machine} refuses n{peer}"));
        let Some(connection) = self.network.end(machine, peer).open else { return };
        let at_us = self.now_us + self.network.travel_us(&mut self.rng);
        self.at(at_us, Event::LinkClosed { machine: peer, peer: machine, connection });
        self.link_closed(machine, peer, connection);
    }

    /// One end learns that its connection is gone.
    pub(super) fn link_closed(&mut self, machine: usize, peer: usize, connection: Connection) {
        let end = self.network.end(machine, peer);
        if end.open != Some(connection) {
            return;
        }
        end.open = None;
        self.trace.event(self.now_us, b'D', machine);
        self.trace.line(self.now_us, || format!("n{machine} lost its link to n{peer}"));
        let id = self.machines[peer].id.expect("who was linked has an id");
        self.deliver(machine, Input::LinkDown { peer: id });
        let delay_us = self.network.back_off_us(machine, peer, &mut self.rng);
        self.schedule_dial(machine, peer, delay_us);
    }

    /// A process ended: its own ends are gone, the others will notice, after a power failure perhaps late.
    pub(super) fn drop_links(&mut self, machine: usize, ending: Ending) {
        let is_silent = ending == Ending::PowerLoss && self.rng.chance(1, 2);
        for peer in 0..self.machines.len() {
            if peer == machine {
                continue;
            }
            let end = self.network.end(machine, peer);
            end.wanted = false;
            end.is_named = false;
            end.failures = 0;
            let Some(connection) = end.open.take() else { continue };
            let delay_us = match is_silent || !self.network.passes(machine, peer) {
                true => 100_000 + self.rng.below(8_000_000),
                false => self.network.travel_us(&mut self.rng),
            };
            self.at(self.now_us + delay_us, Event::LinkClosed { machine: peer, peer: machine, connection });
        }
    }

    /// Breaks the connection between two machines, which notice at their own time.
    pub(super) fn reset_link(&mut self, a: usize, b: usize, late_us_max: u64) {
        for (machine, peer) in [(a, b), (b, a)] {
            if let Some(connection) = self.network.end(machine, peer).open {
                let at_us = self.now_us + self.rng.below(late_us_max);
                self.at(at_us, Event::LinkClosed { machine, peer, connection });
            }
        }
    }
}
