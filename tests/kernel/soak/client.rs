//! One client with things of its own: it asks for changes of them at random, asks again when it got no answer, and remembers what it was told.
//!
//! Owns what is asked and what the document must hold because of the answers. Leaves comparing to the caller, by [`Belief::contradictions`].
//!
//! No two clients change the same thing, so each knows what its things are. Some only look, and some only send nonsense.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    net::{IpAddr, Ipv4Addr},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering},
    },
    time::Duration,
};

use overlayd::{
    client::Client as Connection,
    ids::WgPublicKey,
    wire::{OverlayMode, PeerScope, PeerSpec, Request, Response},
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::CLIENTS;
use crate::{
    container::Container,
    containers::scene::{Wish, bridge_of},
    dice::Dice,
};

/// The bounds of the agent are far below; a client that waits longer was forgotten.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Services that containers are attached to. They are never removed.
pub const SERVICES: [&str; 4] = ["web", "api", "red", "mail"];
const MODES: [OverlayMode; 4] = [OverlayMode::Auto, OverlayMode::Shared, OverlayMode::Dedicated, OverlayMode::Isolated];

/// What all threads of a run share.
pub struct Shared {
    socket: PathBuf,
    pub agent: AtomicI32,
    pub is_over: AtomicBool,
    /// How often the agent has died.
    pub deaths: AtomicU64,
    waits: Vec<Wait>,
    /// Who was told which address of a container.
    addresses: Mutex<BTreeMap<IpAddr, usize>>,
    bridges: Mutex<BTreeSet<String>>,
    faults: Mutex<Vec<String>>,
}

/// Whether a client waits for an answer, and after which death it found that none comes.
#[derive(Default)]
struct Wait {
    is_asking: AtomicBool,
    noticed: AtomicU64,
}

impl Shared {
    pub fn new(socket: PathBuf, agent: i32) -> Self {
        Self {
            socket,
            agent: AtomicI32::new(agent),
            is_over: AtomicBool::new(false),
            deaths: AtomicU64::new(0),
            waits: (0..CLIENTS).map(|_| Wait::default()).collect(),
            addresses: Mutex::default(),
            bridges: Mutex::default(),
            faults: Mutex::default(),
        }
    }

    /// Whether no client can still read an answer of the agent that died last.
    pub fn all_know(&self) -> bool {
        let deaths = self.deaths.load(Ordering::SeqCst);
        let knows =
            |wait: &Wait| !wait.is_asking.load(Ordering::SeqCst) || wait.noticed.load(Ordering::SeqCst) == deaths;
        self.waits.iter().all(knows)
    }

    pub fn fault(&self, what: String) {
        self.faults.lock().unwrap().push(what);
    }

    #[track_caller]
    pub fn assert_no_fault(&self) {
        assert_eq!(*self.faults.lock().unwrap(), [""; 0]);
    }
}

/// Records of the document by key: fields that they must have, or that there must be no such record.
type Known = BTreeMap<String, Option<Value>>;

/// What a client knows of its things.
pub enum Belief {
    Sure(Known),
    /// It asked and has no answer: it is the one or the other.
    Asking(Known, Known),
}

impl Belief {
    pub fn contradictions(&self, document: &BTreeMap<String, Value>) -> Vec<String> {
        match self {
            Belief::Sure(known) => contradictions(known, document),
            Belief::Asking(before, after) => {
                let (before, after) = (contradictions(before, document), contradictions(after, document));
                if before.is_empty() || after.is_empty() { Vec::new() } else { [before, after].concat() }
            }
        }
    }
}

fn contradictions(known: &Known, document: &BTreeMap<String, Value>) -> Vec<String> {
    let wrong = known.iter().filter(|(key, fields)| match (fields, document.get(*key)) {
        (None, found) => found.is_some(),
        (Some(_), None) => true,
        (Some(fields), Some(found)) => {
            fields.as_object().unwrap().iter().any(|(name, value)| found.get(name).unwrap_or(&Value::Null) != value)
        }
    });
    wrong.map(|(key, fields)| format!("{key} is {:?} and not {fields:?}", document.get(key))).collect()
}

/// What an answer says of the request.
fn outcome(response: &Response) -> &'static str {
    match response {
        Response::Err { message } if message.starts_with("kept as generation") => "kept, not in effect yet",
        Response::Err { .. } => "refused",
        _ => "granted",
    }
}

#[derive(Debug, Clone, Copy)]
enum Job {
    Peer,
    Name,
    Segment,
    Container,
    Address,
    Onlooker,
    Vandal,
}

impl Job {
    fn of(client: usize) -> Self {
        match client % 16 {
            0..4 => Job::Peer,
            4 | 5 => Job::Name,
            6 | 7 => Job::Segment,
            8..13 => Job::Container,
            13 => Job::Address,
            14 => Job::Onlooker,
            _ => Job::Vandal,
        }
    }
}

/// Requests by what became of them.
pub type Tally = BTreeMap<&'static str, u64>;

pub struct Client {
    number: usize,
    shared: Arc<Shared>,
    dice: Dice,
    runtime: Runtime,
    connection: Option<Connection>,
    belief: Arc<Mutex<Belief>>,
    known: Known,
    tally: Tally,
    container: Option<Container>,
    reserved: Vec<IpAddr>,
}

impl Client {
    pub fn new(number: usize, shared: Arc<Shared>) -> Self {
        Self {
            number,
            shared,
            dice: Dice::of(1, number as u64),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
            connection: None,
            belief: Arc::new(Mutex::new(Belief::Sure(Known::new()))),
            known: Known::new(),
            tally: Tally::new(),
            container: None,
            reserved: Vec::new(),
        }
    }

    pub fn belief(&self) -> Arc<Mutex<Belief>> {
        Arc::clone(&self.belief)
    }

    /// Lives until the run is over; hands on what it counted, and its container, which stays attached.
    pub fn live(mut self) -> (Tally, Option<Container>) {
        let job = Job::of(self.number);
        while !self.shared.is_over.load(Ordering::SeqCst) {
            match job {
                Job::Peer => self.change_a_peer(),
                Job::Name => self.change_a_name(),
                Job::Segment => self.change_a_segment(),
                Job::Container => self.move_a_container(),
                Job::Address => self.reserve_or_release(),
                Job::Onlooker => self.look(),
                Job::Vandal => self.send_nonsense(),
            }
            if self.dice.one_in(10) {
                self.connection = None;
            }
            std::thread::sleep(Duration::from_millis(self.dice.below(250) as u64));
        }
        (self.tally, self.container)
    }

    fn count(&mut self, word: &'static str) {
        *self.tally.entry(word).or_default() += 1;
    }

    /// Sends a request until it is answered; says whether it had to be sent again.
    fn ask(&mut self, request: &Request, after: Option<Known>) -> (Response, bool) {
        let wait = &self.shared.waits[self.number];
        if let Some(after) = after {
            *self.belief.lock().unwrap() = Belief::Asking(self.known.clone(), after);
        }
        wait.is_asking.store(true, Ordering::SeqCst);
        let mut is_repeated = false;
        loop {
            let socket = self.shared.socket.clone();
            let mut kept = self.connection.take();
            let once = async {
                let mut connection = match kept.take() {
                    Some(connection) => connection,
                    None => Connection::connect(&socket).await.ok()?,
                };
                let response = connection.request(request.clone()).await.ok()?;
                Some((connection, response))
            };
            let attempt = self.runtime.block_on(async { tokio::time::timeout(ANSWER_WITHIN, once).await });
            match attempt {
                Ok(Some((connection, response))) => {
                    self.connection = Some(connection);
                    self.count(outcome(&response));
                    return (response, is_repeated);
                }
                Ok(None) => {}
                Err(_) => self.shared.fault(format!("no answer to {request:?} within {ANSWER_WITHIN:?}")),
            }
            is_repeated = true;
            self.count("asked again");
            let wait = &self.shared.waits[self.number];
            wait.noticed.store(self.shared.deaths.load(Ordering::SeqCst), Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(5 + self.dice.below(20) as u64));
        }
    }

    /// From now on the client is sure.
    fn is_sure(&mut self, known: Known) {
        self.known = known.clone();
        *self.belief.lock().unwrap() = Belief::Sure(known);
        self.shared.waits[self.number].is_asking.store(false, Ordering::SeqCst);
    }

    /// Asks for a change of one record that a repeated request does not change again.
    fn change(&mut self, request: &Request, key: &str, record: Option<Value>) -> Response {
        let mut after = self.known.clone();
        after.insert(key.to_owned(), record);
        let (response, _) = self.ask(request, Some(after.clone()));
        let known = if outcome(&response) == "refused" { self.known.clone() } else { after };
        self.is_sure(known);
        response
    }

    fn change_a_peer(&mut self) {
        let number = u8::try_from(self.number).unwrap();
        let public_key = WgPublicKey::from_bytes([number + 1; 32]).to_string();
        let key = format!("peer/node/{public_key}");
        if self.dice.one_in(4) {
            let request = Request::RemovePeer { pubkey: public_key, scope: PeerScope::Global };
            self.change(&request, &key, None);
            return;
        }
        let networks = (0..1 + self.dice.below(3)).map(|network| format!("10.{}.{network}.0/24", 100 + number));
        let mut networks: Vec<String> = networks.collect();
        networks.push(format!("fd00:200:1{number:02x}::/64"));
        let keepalive = self.dice.below(3) as u64;
        let request = Request::AddPeer {
            peer: PeerSpec {
                public_key,
                endpoint: format!("192.0.2.{}:{}", number + 1, 1000 + self.dice.below(9)),
                allowed_ips: networks.join(","),
                persistent_keepalive_secs: keepalive,
                candidates: Vec::new(),
            },
            scope: PeerScope::Global,
        };
        self.change(&request, &key, Some(json!({ "allowed_ips": networks, "keepalive": keepalive })));
    }

    fn change_a_name(&mut self) {
        let name = format!("n{}.zone", self.number);
        let key = format!("dns/{name}");
        if self.dice.one_in(3) {
            self.change(&Request::UnregisterDns { name }, &key, None);
            return;
        }
        let ip = Ipv4Addr::from([10, 200, 0, u8::try_from(self.dice.below(250)).unwrap()]);
        // A name has all the addresses that were registered for it.
        let record = self.known.get(&key).cloned().flatten().unwrap_or_else(|| json!({ "a": [] }));
        let mut addresses: BTreeSet<Ipv4Addr> = serde_json::from_value(record["a"].clone()).unwrap();
        addresses.insert(ip);
        let request = Request::RegisterDns { name, ip: ip.into() };
        self.change(&request, &key, Some(json!({ "a": addresses })));
    }

    fn change_a_segment(&mut self) {
        let service = format!("job-{}", self.number);
        let key = format!("segment/{service}");
        if self.dice.one_in(3) {
            self.change(&Request::TeardownServiceOverlay { service }, &key, None);
            return;
        }
        let mode = self.dice.of_list(&MODES);
        let word = json!({ "mode": serde_json::to_value(mode).unwrap() });
        let response = self.change(&Request::SetupServiceOverlay { service, mode }, &key, Some(word));
        if matches!(response, Response::BridgeName { .. } | Response::ServiceOverlay(_)) {
            self.shared.bridges.lock().unwrap().insert(bridge_of(&response));
        }
    }

    fn move_a_container(&mut self) {
        match self.container.take() {
            Some(container) if self.dice.one_in(3) => {
                self.forget_owned();
                if self.dice.one_in(2) {
                    let key = format!("attachment/pid/{}", container.pid);
                    self.change(&container.detach(), &key, None);
                }
                // What becomes of its attachment is the agent's business from here on.
                self.is_sure(Known::new());
                drop(container);
            }
            kept => {
                self.attach(kept.unwrap_or_else(Container::new));
            }
        }
    }

    fn attach(&mut self, container: Container) {
        let service = self.dice.of_list(&SERVICES);
        let mut wish = Wish::to(service);
        let network = self.dice.of_list(&[None, Some("red"), Some("blue")]);
        wish.network = network;
        if self.dice.one_in(2) {
            wish = wish.global();
        }
        let key = format!("attachment/pid/{}", container.pid);
        let after = BTreeMap::from([(key.clone(), Some(json!({ "service": service, "network": network })))]);
        // A refused attach is taken back, and whatever was there before may be gone with it: only the answer makes sure.
        self.is_sure(Known::new());
        self.forget_owned();
        let (response, _) = self.ask(&wish.of(&container), None);
        match response {
            Response::Attached(attached) => {
                let other = self.shared.addresses.lock().unwrap().insert(attached.ip, self.number);
                if let Some(other) = other.filter(|other| *other != self.number) {
                    self.shared.fault(format!("{} was given to clients {other} and {}", attached.ip, self.number));
                }
                self.is_sure(after);
                self.container = Some(container);
            }
            Response::Err { message } => {
                self.count("attach refused");
                println!("client {}: an attach was refused: {message}", self.number);
                let (response, _) = self.ask(&container.detach(), None);
                if !matches!(response, Response::Ok) {
                    self.count("detach not in effect yet");
                }
                self.is_sure(BTreeMap::from([(key, None)]));
                self.container = Some(container);
            }
            other => self.shared.fault(format!("an attach was answered {other:?}")),
        }
    }

    fn forget_owned(&mut self) {
        let number = self.number;
        self.shared.addresses.lock().unwrap().retain(|_, owner| *owner != number);
    }

    fn reserve_or_release(&mut self) {
        if self.reserved.len() > 3 {
            let at = self.dice.below(self.reserved.len());
            let ip = self.reserved.swap_remove(at);
            let mut without = self.known.clone();
            without.remove(&format!("address/{ip}"));
            self.known.clone_from(&without);
            // It may rest for a while, so there is nothing to be sure of.
            let (response, is_repeated) = self.ask(&Request::ReleaseIp { ip }, Some(without.clone()));
            if !matches!(response, Response::Ok) && !is_repeated {
                self.shared.fault(format!("release of {ip}: {response:?}"));
            }
            self.is_sure(without);
            return;
        }
        let service = self.dice.of_list(&SERVICES);
        // A lost answer leaves an address reserved that nobody knows of: the contract has no name for it.
        let (response, _) = self.ask(&Request::AllocateIp { service: service.into(), join_global: false }, None);
        let mut known = self.known.clone();
        if let Response::Ip { ip } = response {
            known.insert(format!("address/{ip}"), Some(json!({ "state": "reserved" })));
            self.reserved.push(ip);
        }
        self.is_sure(known);
    }

    fn look(&mut self) {
        let bridges = self.shared.bridges.lock().unwrap().clone();
        let shown = bridges.into_iter().chain(SERVICES.iter().map(|service| format!("zl-e2e-0-{service}-b"))).collect();
        let prune = Request::PruneOrphanBridges { live_bridge_names: shown };
        let request =
            self.dice.of_list(&[Request::Status, Request::Status, Request::NatStatus, Request::NatTick, prune]);
        let (response, _) = self.ask(&request, None);
        if outcome(&response) == "refused" {
            self.shared.fault(format!("{request:?}: {response:?}"));
        }
        self.is_sure(Known::new());
    }

    /// Half a frame, no JSON, a frame without an end, a request that must be refused.
    fn send_nonsense(&mut self) {
        let Ok(mut stream) = UnixStream::connect(&self.shared.socket) else { return };
        let mut noise = |bytes: &[u8]| drop(stream.write_all(bytes));
        match self.dice.below(4) {
            0 => noise(&[9, 0]),
            1 => noise(b"\x04\0\0\0nono"),
            2 => noise(&[0xff; 16]),
            _ => noise(b"\x02\0\0\0{}"),
        }
        self.count("nonsense");
        let cidr = "10.0.0.1/8".to_owned();
        let pubkey = WgPublicKey::from_bytes([250; 32]).to_string();
        let (response, _) = self.ask(&Request::AddAllowedIp { pubkey, cidr, scope: PeerScope::Global }, None);
        if !matches!(response, Response::Err { .. }) {
            self.shared.fault(format!("a network with host bits and no peer was answered {response:?}"));
        }
        self.is_sure(Known::new());
    }
}
