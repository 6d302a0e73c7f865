//! What happens in a history, and how histories are drawn.
//!
//! The pools are small on purpose (three services, five pids, four peers): what goes wrong goes wrong where things meet.

use std::{collections::BTreeSet, fmt};

use overlayd::{
    desired::{Edit, OverlayRequest, PeerRequest, PeerScope, SegmentMode, Subject},
    object::Subsystem,
};

use crate::{
    desk::{given, key, netns, pid, request, service, with},
    dice::Dice,
    world::{cidr, overlay, peer, peer_key},
};

const PIDS: usize = 5;
const SERVICES: [&str; 3] = ["web", "db", "job"];

/// What somebody does to an object of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    Remove,
    Change,
}

/// What goes wrong at the next opportunity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    FailsBeforeItsEffect,
    AnswerIsLost,
    DumpIsCut(Subsystem),
    NothingIsSeen,
    StoreRefuses,
}

#[derive(Clone)]
pub enum Event {
    /// A client asks, and asks again when it gets no reply.
    Edit(Box<Edit>),
    /// A client attaches the container that has this pid now.
    Attach {
        pid: u32,
        service: &'static str,
        network: Option<&'static str>,
        global: bool,
    },
    /// The round about what was edited.
    Round,
    /// A full round.
    Look,
    Wait(u64),
    /// A container's processes end; its pid may be another's from now on.
    End(u32),
    /// The agent notices which containers have ended.
    Notice,
    /// Somebody harms the object that has this place among those that are wanted.
    Harm(usize, Harm),
    /// Somebody takes a name of ours, if it is free.
    Stranger(usize),
    /// The strangers leave.
    StrangersLeave,
    Mishap(Mishap),
    Crash,
    /// The machine loses power and starts again: what was not flushed is gone, and so is everything in the kernel.
    PowerCut,
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Edit(edit) => write!(f, "edit {}", edit.summary()),
            Event::Attach { pid, service, network, global } => {
                write!(f, "attach {pid} to {service} network={network:?} global={global}")
            }
            Event::Round => f.write_str("round"),
            Event::Look => f.write_str("look"),
            Event::Wait(seconds) => write!(f, "wait {seconds}s"),
            Event::End(pid) => write!(f, "container {pid} ends"),
            Event::Notice => f.write_str("ends are noticed"),
            Event::Harm(place, harm) => write!(f, "{harm:?} wanted object number {place}"),
            Event::Stranger(place) => write!(f, "a stranger takes name number {place}"),
            Event::StrangersLeave => f.write_str("the strangers leave"),
            Event::Mishap(mishap) => write!(f, "mishap {mishap:?}"),
            Event::Crash => f.write_str("crash"),
            Event::PowerCut => f.write_str("power cut"),
        }
    }
}

/// Which kinds of trouble a history has.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// The kernel and the store fail, and the agent and the machine stop at any time.
    pub mishaps: bool,
    /// Somebody else changes things.
    pub strangers: bool,
}

/// The history of a seed.
pub fn draw(seed: u64, length: usize, weather: Weather) -> Vec<Event> {
    let (mut clients, mut others, mut fate) = (Dice::of(seed, 1), Dice::of(seed, 2), Dice::of(seed, 3));
    let mut events = vec![Event::Edit(Box::new(Edit::EnsureOverlay(overlay())))];
    while events.len() < length {
        events.push(client(&mut clients));
        if !clients.one_in(3) {
            events.push(Event::Round);
        }
        if others.one_in(5) {
            events.push(container(&mut others));
            // An agent that is killed notices ends sooner than one that lives on; a history that has to end the same knows no such difference.
            if !weather.mishaps {
                events.push(Event::Notice);
            }
        }
        if weather.strangers && others.one_in(4) {
            events.push(somebody(&mut others));
        }
        if weather.mishaps && fate.one_in(4) {
            events.push(mishap(&mut fate));
        }
        if fate.one_in(6) {
            events.push(Event::Look);
        }
    }
    events
}

fn container(dice: &mut Dice) -> Event {
    match dice.below(3) {
        0 => Event::Notice,
        1 => Event::Wait(dice.of_list(&[1, 30, 90])),
        _ => Event::End(a_pid(dice)),
    }
}

fn somebody(dice: &mut Dice) -> Event {
    match dice.below(8) {
        0 => Event::Stranger(dice.below(64)),
        1 => Event::StrangersLeave,
        2 | 3 => Event::Harm(dice.below(64), Harm::Remove),
        _ => Event::Harm(dice.below(64), Harm::Change),
    }
}

fn mishap(dice: &mut Dice) -> Event {
    match dice.below(9) {
        0 => Event::Crash,
        1 => Event::PowerCut,
        2 | 3 => Event::Mishap(Mishap::FailsBeforeItsEffect),
        4 | 5 => Event::Mishap(Mishap::AnswerIsLost),
        6 => Event::Mishap(Mishap::DumpIsCut(dice.of_list(&Subsystem::ALL))),
        7 => Event::Mishap(Mishap::NothingIsSeen),
        _ => Event::Mishap(Mishap::StoreRefuses),
    }
}

fn a_pid(dice: &mut Dice) -> u32 {
    u32::try_from(dice.below(PIDS)).unwrap() + 1
}

fn client(dice: &mut Dice) -> Event {
    let edit = match dice.below(24) {
        0..8 => {
            let (pid, service) = (a_pid(dice), dice.of_list(&SERVICES));
            let network = dice.of_list(&[None, None, Some("red"), Some("blue")]);
            return Event::Attach { pid, service, network, global: dice.one_in(4) };
        }
        8 | 9 => Edit::Detach(pid(a_pid(dice))),
        10..13 => {
            let modes = [SegmentMode::Auto, SegmentMode::Shared, SegmentMode::Dedicated, SegmentMode::Isolated];
            let fresh = key(u8::try_from(dice.below(250)).unwrap());
            Edit::EnsureSegment { service: service(dice.of_list(&SERVICES)), mode: dice.of_list(&modes), fresh }
        }
        13 => Edit::RemoveSegment(service(dice.of_list(&SERVICES))),
        14..18 => a_peer(dice),
        18 => Edit::EnsureOverlay(an_overlay(dice)),
        19 => guest_or_shared(dice),
        20 => Edit::Prune(BTreeSet::from(["zl-prod-0-web-b".parse().unwrap()])),
        21 => Edit::ForgetRested,
        22 if dice.one_in(3) => Edit::RemoveOverlay,
        _ => Edit::EnsurePeer(peer(u16::try_from(dice.below(4)).unwrap() + 1)),
    };
    Event::Edit(Box::new(edit))
}

fn a_peer(dice: &mut Dice) -> Edit {
    let named = u16::try_from(dice.below(4)).unwrap() + 1;
    let scope = match dice.below(4) {
        0 => PeerScope::Service(service(dice.of_list(&SERVICES))),
        _ => PeerScope::Node,
    };
    let allowed_ip = cidr(dice.of_list(&["10.200.7.0/26", "10.200.8.0/26", "10.9.0.0/24", "10.201.0.1/32"]));
    match dice.below(4) {
        0 => Edit::RemovePeer { scope, peer: peer_key(named) },
        1 => Edit::RemoveAllowedIp { scope, peer: peer_key(named), allowed_ip },
        2 => Edit::EnsureAllowedIp { scope, peer: peer_key(named), allowed_ip },
        _ => Edit::EnsurePeer(PeerRequest { scope, allowed_ips: [allowed_ip].into(), ..peer(named) }),
    }
}

fn an_overlay(dice: &mut Dice) -> OverlayRequest {
    match dice.below(3) {
        0 => OverlayRequest { slice: Some(cidr("10.200.90.64/26").into()), ..overlay() },
        1 => OverlayRequest { instance: "1".parse().unwrap(), port: 51825, ..overlay() },
        _ => overlay(),
    }
}

fn guest_or_shared(dice: &mut Dice) -> Edit {
    let subject = match dice.below(2) {
        0 => Subject::HostShared(given("a")),
        _ => Subject::Guest { id: given("b"), fresh: key(u8::try_from(dice.below(250)).unwrap()) },
    };
    Edit::Attach(request(subject, dice.of_list(&SERVICES)))
}

/// The edit of an attach in the `life`-th life of a pid.
pub fn attach(pid: u32, life: u64, name: &str, network: Option<&str>, global: bool) -> Edit {
    with(Edit::Attach(request(Subject::Container(netns(pid, life)), name)), |wanted| {
        wanted.isolation_network = network.map(|name| name.parse().unwrap());
        wanted.join_global = global;
    })
}
