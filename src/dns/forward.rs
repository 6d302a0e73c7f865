//! Questions that are not about the overlay: asked of the host's own resolvers, remembered, and never asked twice at a time.
//!
//! Owns which servers are asked and for how long. Leaves the overlay's own names to [`zone`](super::zone).
//!
//! Upholds I-15: questions under way, their time and the memory of answers have bounds.
//!
//! A server inside the overlay is never asked: it might ask us. A loop that goes by way of a server on this host ends too, because a question
//! that is under way is waited for and not asked again.
//!
//! Servers are asked as the C library does: in the order of the file, the next one when one is silent or refuses. What one says there is,
//! or is not, counts: they may know different things.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use hickory_resolver::{
    ResponseCache, TokioResolver, TtlConfig,
    config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, NoRecords, runtime::TokioRuntimeProvider},
    proto::{
        op::{Message, Query, ResponseCode},
        rr::{Name, RData, Record, RecordType},
    },
    system_conf::parse_resolv_conf,
};

use super::{
    shares::{Share, Shares},
    stamp::Stamp,
};

/// Time for which one server is waited for, and how often all are asked. All in all three seconds, less than a client waits.
const ASK_TIME: Duration = Duration::from_secs(1);
const ATTEMPTS: usize = 2;
const GIVE_UP_AFTER: Duration = Duration::from_secs(3);
/// Time for which a server that was silent is asked after the others.
const SILENT_FOR: Duration = Duration::from_secs(30);
/// Questions that are under way at a time. Of the places that are free one asker may have an eighth, and always a few.
const UNDER_WAY_MAX: usize = 512;
const SHARE: usize = 8;
const SHARE_MIN: usize = 2;
/// Longest answer that is passed on, bytes.
const ANSWER_MAX: usize = 16 << 10;
/// Answers that are remembered, and the longest among them, bytes: as many as fit into a datagram.
const REMEMBERED_MAX: u64 = 2_048;
const REMEMBERED_SIZE_MAX: usize = 1_232;
/// Longest time for which an answer is remembered, whatever it says.
const REMEMBERED_FOR_MAX: Duration = Duration::from_secs(3_600);
const NOTHING_REMEMBERED_FOR_MAX: Duration = Duration::from_secs(60);
/// How often the host's configuration is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Servers of one configuration; the C library uses three.
const SERVERS_MAX: usize = 8;

/// What the host's servers said.
#[derive(Debug, Clone)]
pub enum Forwarded {
    Answer(Vec<Record>),
    /// `NoError` or `NXDomain`, with what the server said on whose authority.
    Nothing {
        code: ResponseCode,
        authority: Vec<Record>,
    },
    /// Nobody could be asked, or nobody answered.
    Unknown(String),
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Memory,
    Servers,
}

type UnderWay = Shared<BoxFuture<'static, Forwarded>>;

/// Asks the servers that the host itself asks.
pub struct Forwarder {
    /// Files to read, the first that names a server counts.
    configurations: Vec<PathBuf>,
    configured: Mutex<Configured>,
    under_way: Mutex<HashMap<Query, WeakShared<BoxFuture<'static, Forwarded>>>>,
    waiting: Arc<Shares>,
}

/// What the files said when they were read.
#[derive(Default)]
struct Configured {
    looked: Option<Instant>,
    stamps: Vec<Option<Stamp>>,
    /// The servers of each file.
    named: Vec<Vec<IpAddr>>,
    left_out: Vec<IpAddr>,
    servers: Arc<Servers>,
}

/// The servers of one configuration, and what they said.
struct Servers {
    all: Vec<Server>,
    memory: ResponseCache,
}

struct Server {
    address: IpAddr,
    resolver: TokioResolver,
    silent_since: Mutex<Option<Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is under these locks is replaced as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Forwarder {
    /// `configurations`: files in the form of resolv.conf(5), the best first.
    pub fn new(configurations: Vec<PathBuf>) -> Self {
        Self { configurations, configured: Mutex::default(), under_way: Mutex::default(), waiting: Arc::default() }
    }

    /// The servers that are asked now.
    pub fn servers(&self) -> Vec<SocketAddr> {
        lock(&self.configured).servers.all.iter().map(|server| SocketAddr::new(server.address, PORT)).collect()
    }

    /// Asks for `asker`. `is_ours`: addresses at which nobody is asked, because it would be us, or would ask us.
    pub async fn ask(
        self: &Arc<Self>,
        name: Name,
        kind: RecordType,
        asker: IpAddr,
        is_ours: impl Fn(IpAddr) -> bool,
    ) -> (Forwarded, Source) {
        let query = Query::query(name, kind);
        let servers = self.servers_now(is_ours);
        if let Some(known) = servers.memory.get(&query, Instant::now()) {
            return (understood(known), Source::Memory);
        }
        match self.join(query, asker, servers) {
            Ok((under_way, _until_answered)) => (under_way.await, Source::Servers),
            Err(why) => (Forwarded::Unknown(why), Source::Servers),
        }
    }

    /// The same question under way, or a new one, and the asker's place.
    fn join(self: &Arc<Self>, query: Query, asker: IpAddr, servers: Arc<Servers>) -> Result<(UnderWay, Share), String> {
        let mut all = lock(&self.under_way);
        if all.len() >= UNDER_WAY_MAX {
            // Of those that nobody waits for any more nothing comes.
            all.retain(|_, other| other.upgrade().is_some_and(|other| other.peek().is_none()));
        }
        let free = UNDER_WAY_MAX.saturating_sub(all.len());
        let place = self.waiting.take(asker, (free / SHARE).max(SHARE_MIN));
        let place = place.ok_or_else(|| format!("{asker} waits for as many answers as it may"))?;
        if let Some(same) = all.get(&query).and_then(WeakShared::upgrade) {
            return Ok((same, place));
        }
        if free == 0 {
            return Err(format!("{UNDER_WAY_MAX} questions are under way"));
        }
        if servers.all.is_empty() {
            return Err("this host's resolver configuration names no server that can be asked".to_owned());
        }
        let (forwarder, asked) = (self.clone(), query.clone());
        let question = async move {
            let answer = servers.ask(&asked).await;
            lock(&forwarder.under_way).remove(&asked);
            understood(answer)
        };
        let shared = question.boxed().shared();
        all.extend(shared.downgrade().map(|weak| (query, weak)));
        Ok((shared, place))
    }

    fn servers_now(&self, is_ours: impl Fn(IpAddr) -> bool) -> Arc<Servers> {
        let mut configured = lock(&self.configured);
        if configured.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
            configured.look(&self.configurations, is_ours);
        }
        configured.servers.clone()
    }
}

impl Configured {
    fn look(&mut self, files: &[PathBuf], is_ours: impl Fn(IpAddr) -> bool) {
        self.looked = Some(Instant::now());
        let stamps: Vec<_> = files.iter().map(|path| Stamp::of(path)).collect();
        if stamps != self.stamps || self.named.is_empty() {
            self.stamps = stamps;
            self.named = files.iter().map(|path| named_in(path)).collect();
        }
        let (mut usable, mut left_out) = (Vec::new(), Vec::new());
        for named in &self.named {
            let (usable_here, others): (Vec<IpAddr>, _) =
                named.iter().partition(|ip| !is_ours(**ip) && !needs_a_link(ip));
            left_out.extend(others);
            if !usable_here.is_empty() {
                usable = usable_here;
                break;
            }
        }
        let same = usable.iter().eq(self.servers.all.iter().map(|server| &server.address));
        if same && left_out == self.left_out {
            return;
        }
        tracing::info!(asked = ?usable, ?left_out, "names outside the overlay are asked of these servers");
        self.left_out = left_out;
        if !same {
            // What others said is not what these would say.
            self.servers = Arc::new(Servers::new(&usable));
        }
    }
}

/// True for an address that means nothing without a link. The library asks at addresses alone.
fn needs_a_link(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

impl Default for Servers {
    fn default() -> Self {
        Self::new(&[])
    }
}

impl Servers {
    fn new(addresses: &[IpAddr]) -> Self {
        Self {
            all: addresses.iter().filter_map(|address| Server::new(*address)).collect(),
            memory: ResponseCache::new(REMEMBERED_MAX, TtlConfig::from_opts(&options())),
        }
    }

    /// What the servers say, without what nobody asked for.
    async fn ask(&self, query: &Query) -> Result<Message, NetError> {
        let answer = tokio::time::timeout(GIVE_UP_AFTER, self.ask_in_turn(query)).await;
        let mut answer = answer.unwrap_or(Err(NetError::Timeout));
        let mut length = 0;
        match &mut answer {
            Ok(message) => {
                message.authorities.clear();
                message.additionals.clear();
                length = message.to_vec().map_or(usize::MAX, |bytes| bytes.len());
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(nothing))) => (nothing.ns, nothing.authorities) = (None, None),
            Err(_) => {}
        }
        if length > ANSWER_MAX {
            return Err(NetError::Msg(format!("an answer of more than {ANSWER_MAX} bytes")));
        }
        if is_final(&answer) && length <= REMEMBERED_SIZE_MAX {
            self.memory.insert(query.clone(), answer.clone(), Instant::now());
        }
        answer
    }

    async fn ask_in_turn(&self, query: &Query) -> Result<Message, NetError> {
        let mut answer = Err(NetError::Timeout);
        for _ in 0..ATTEMPTS {
            let (silent, others): (Vec<_>, _) = self.all.iter().partition(|server| server.is_silent());
            for server in others.into_iter().chain(silent) {
                answer = server.ask(query).await;
                if is_final(&answer) {
                    return answer;
                }
            }
        }
        answer
    }
}

/// Where servers are asked.
const PORT: u16 = 53;

/// The servers that a file names; none when it cannot be read.
fn named_in(path: &Path) -> Vec<IpAddr> {
    let Ok(text) = std::fs::read(path) else { return Vec::new() };
    match parse_resolv_conf(text) {
        Ok((config, _)) => {
            let mut all: Vec<IpAddr> = Vec::new();
            for server in config.name_servers() {
                if !all.contains(&server.ip) && all.len() < SERVERS_MAX {
                    all.push(server.ip);
                }
            }
            all
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a resolver configuration names no server that can be asked");
            Vec::new()
        }
    }
}

fn options() -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = ASK_TIME;
    options.attempts = 0;
    options.cache_size = 0;
    options.edns0 = true;
    options.use_hosts_file = ResolveHosts::Never;
    options.preserve_intermediates = true;
    options.positive_max_ttl = Some(REMEMBERED_FOR_MAX);
    options.negative_max_ttl = Some(NOTHING_REMEMBERED_FOR_MAX);
    options
}

impl Server {
    fn new(address: IpAddr) -> Option<Self> {
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![NameServerConfig::udp_and_tcp(address)]);
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        match builder.with_options(options()).build() {
            Ok(resolver) => Some(Self { address, resolver, silent_since: Mutex::default() }),
            Err(error) => {
                tracing::warn!(%address, %error, "this server of the host cannot be asked");
                None
            }
        }
    }

    fn is_silent(&self) -> bool {
        lock(&self.silent_since).is_some_and(|since| since.elapsed() < SILENT_FOR)
    }

    async fn ask(&self, query: &Query) -> Result<Message, NetError> {
        let lookup = self.resolver.lookup(query.name().clone(), query.query_type());
        let answer = tokio::time::timeout(ASK_TIME, lookup).await.unwrap_or(Err(NetError::Timeout));
        // One that refuses is there.
        let is_there = matches!(answer, Ok(_) | Err(NetError::Dns(_)));
        *lock(&self.silent_since) = (!is_there).then(Instant::now);
        answer.map(|lookup| lookup.message().clone())
    }
}

/// True when a server said what there is, or that there is nothing.
fn is_final(answer: &Result<Message, NetError>) -> bool {
    match answer {
        Ok(_) => true,
        Err(error) => as_nothing(error).is_some(),
    }
}

/// What a server said of a name that has no such records, or that is none; `None` for every other reason to have no answer.
fn as_nothing(error: &NetError) -> Option<&NoRecords> {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(nothing))
            if matches!(nothing.response_code, ResponseCode::NoError | ResponseCode::NXDomain) =>
        {
            Some(nothing)
        }
        _ => None,
    }
}

fn understood(answer: Result<Message, NetError>) -> Forwarded {
    let error = match answer {
        Ok(message) => return Forwarded::Answer(message.answers),
        Err(error) => error,
    };
    let Some(nothing) = as_nothing(&error) else { return Forwarded::Unknown(error.to_string()) };
    let soa = nothing.soa.as_ref().map(|soa| {
        let mut record = Record::from_rdata(soa.name.clone(), soa.ttl, RData::SOA(soa.data.clone()));
        record.ttl = record.ttl.min(nothing.negative_ttl.unwrap_or(record.ttl));
        record
    });
    Forwarded::Nothing { code: nothing.response_code, authority: soa.into_iter().collect() }
}
