//! Questions that are not about the overlay: asked of the host's own resolvers, remembered, and never asked twice at a time.
//!
//! Owns which servers are asked and for how long. Leaves the overlay's own names to [`zone`](super::zone).
//!
//! Upholds I-15: questions under way, their time and the memory of answers have bounds.
//!
//! A server inside the overlay is never asked: it might ask us. A loop that goes by way of a server on this host ends too, because a question
//! that is under way is waited for and not asked again.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use hickory_resolver::{
    ResponseCache, TokioResolver, TtlConfig,
    config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::{Message, Query, ResponseCode},
        rr::{Name, RData, Record, RecordType},
    },
    system_conf::parse_resolv_conf,
};

use super::shares::Shares;

/// Time for which one server is waited for, and how often a question is sent. All in all three seconds, less than a client waits.
const ASK_TIME: Duration = Duration::from_secs(1);
const ATTEMPTS: usize = 2;
const GIVE_UP_AFTER: Duration = Duration::from_secs(3);
/// Questions that are under way at a time, and those of one asker who waits for an answer: where no server answers, each waits for seconds.
const UNDER_WAY_MAX: usize = 512;
const WAITING_OF_ONE_MAX: usize = 64;
/// Answers that are remembered.
const REMEMBERED_MAX: u64 = 8_192;
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
    memory: ResponseCache,
    servers: Mutex<Servers>,
    under_way: Mutex<HashMap<Query, WeakShared<BoxFuture<'static, Forwarded>>>>,
    waiting: Arc<Shares>,
}

#[derive(Default)]
struct Servers {
    looked: Option<Instant>,
    /// What the files were when they were read, and which servers were left out.
    read: Option<(Vec<Option<SystemTime>>, Vec<IpAddr>)>,
    addresses: Vec<SocketAddr>,
    resolver: Option<TokioResolver>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is under these locks is replaced as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Forwarder {
    /// `configurations`: files in the form of resolv.conf(5), the best first.
    pub fn new(configurations: Vec<PathBuf>) -> Self {
        let options = options();
        Self {
            configurations,
            memory: ResponseCache::new(REMEMBERED_MAX, TtlConfig::from_opts(&options)),
            servers: Mutex::default(),
            under_way: Mutex::default(),
            waiting: Shares::new(WAITING_OF_ONE_MAX),
        }
    }

    /// The servers that are asked now.
    pub fn servers(&self) -> Vec<SocketAddr> {
        lock(&self.servers).addresses.clone()
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
        if let Some(known) = self.memory.get(&query, Instant::now()) {
            return (understood(known), Source::Memory);
        }
        let unknown = |why: String| (Forwarded::Unknown(why), Source::Servers);
        let Some(_until_answered) = self.waiting.take(asker) else {
            return unknown(format!("{asker} waits for {WAITING_OF_ONE_MAX} answers"));
        };
        match self.join(query, is_ours) {
            Ok(under_way) => (under_way.await, Source::Servers),
            Err(why) => unknown(why),
        }
    }

    /// The same question under way, or a new one.
    fn join(self: &Arc<Self>, query: Query, is_ours: impl Fn(IpAddr) -> bool) -> Result<UnderWay, String> {
        let mut all = lock(&self.under_way);
        if let Some(same) = all.get(&query).and_then(WeakShared::upgrade) {
            return Ok(same);
        }
        if all.len() >= UNDER_WAY_MAX {
            // Of those that nobody waits for any more nothing comes.
            all.retain(|_, other| other.upgrade().is_some_and(|other| other.peek().is_none()));
        }
        if all.len() >= UNDER_WAY_MAX {
            return Err(format!("{UNDER_WAY_MAX} questions are under way"));
        }
        let resolver = self.resolver(is_ours)?;
        let (forwarder, asked) = (self.clone(), query.clone());
        let question = async move {
            let answer = ask_servers(&resolver, &asked).await;
            forwarder.memory.insert(asked.clone(), answer.clone(), Instant::now());
            lock(&forwarder.under_way).remove(&asked);
            understood(answer)
        };
        let shared = question.boxed().shared();
        all.extend(shared.downgrade().map(|weak| (query, weak)));
        Ok(shared)
    }

    fn resolver(&self, is_ours: impl Fn(IpAddr) -> bool) -> Result<TokioResolver, String> {
        let mut servers = lock(&self.servers);
        if servers.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
            servers.looked = Some(Instant::now());
            self.look(&mut servers, is_ours);
        }
        servers.resolver.clone().ok_or_else(|| "this host's resolver configuration names no server to ask".to_owned())
    }

    fn look(&self, servers: &mut Servers, is_ours: impl Fn(IpAddr) -> bool) {
        let changed: Vec<Option<SystemTime>> =
            self.configurations.iter().map(|path| path.metadata().and_then(|of| of.modified()).ok()).collect();
        let named = self.configurations.iter().map(|path| named_in(path));
        let (usable, left_out) = named
            .map(|all| all.into_iter().partition::<Vec<IpAddr>, _>(|ip| !is_ours(*ip)))
            .find(|(usable, _)| !usable.is_empty())
            .unwrap_or_default();
        if servers.read.as_ref().is_some_and(|read| *read == (changed.clone(), left_out.clone())) {
            return;
        }
        servers.resolver = build(&usable);
        servers.addresses = usable.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect();
        tracing::info!(asked = ?usable, ?left_out, "names outside the overlay are asked of these servers");
        servers.read = Some((changed, left_out));
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
            tracing::warn!(path = %path.display(), %error, "a resolver configuration cannot be read; its servers are not asked");
            Vec::new()
        }
    }
}

fn options() -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = ASK_TIME;
    options.attempts = ATTEMPTS;
    options.cache_size = 0;
    options.edns0 = true;
    options.use_hosts_file = ResolveHosts::Never;
    options.preserve_intermediates = true;
    options.positive_max_ttl = Some(REMEMBERED_FOR_MAX);
    options.negative_max_ttl = Some(NOTHING_REMEMBERED_FOR_MAX);
    options
}

fn build(servers: &[IpAddr]) -> Option<TokioResolver> {
    if servers.is_empty() {
        return None;
    }
    let servers = servers.iter().map(|ip| NameServerConfig::udp_and_tcp(*ip)).collect();
    let config = ResolverConfig::from_parts(None, Vec::new(), servers);
    let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options());
    match builder.build() {
        Ok(resolver) => Some(resolver),
        Err(error) => {
            tracing::warn!(%error, "the host's servers cannot be asked");
            None
        }
    }
}

async fn ask_servers(resolver: &TokioResolver, query: &Query) -> Result<Message, NetError> {
    let lookup = resolver.lookup(query.name().clone(), query.query_type());
    match tokio::time::timeout(GIVE_UP_AFTER, lookup).await {
        Ok(Ok(lookup)) => Ok(lookup.message().clone()),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(NetError::Timeout),
    }
}

fn understood(answer: Result<Message, NetError>) -> Forwarded {
    match answer {
        Ok(message) => Forwarded::Answer(message.answers),
        Err(NetError::Dns(DnsError::NoRecordsFound(nothing)))
            if matches!(nothing.response_code, ResponseCode::NoError | ResponseCode::NXDomain) =>
        {
            let soa = nothing.soa.map(|soa| {
                let mut record = Record::from_rdata(soa.name.clone(), soa.ttl, RData::SOA(soa.data.clone()));
                record.ttl = record.ttl.min(nothing.negative_ttl.unwrap_or(record.ttl));
                record
            });
            Forwarded::Nothing { code: nothing.response_code, authority: soa.into_iter().collect() }
        }
        Err(error) => Forwarded::Unknown(error.to_string()),
    }
}
