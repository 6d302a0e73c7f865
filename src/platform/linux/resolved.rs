//! systemd-resolved, as far as it knows of our links: which names it asks for there, and of whom.
//!
//! Owns the connection to the system bus and its time limits. Leaves which names those are to [`reconcile`](crate::reconcile), and whose a link
//! is to [`kernel`](super::kernel).
//!
//! Upholds A25 (a resolver or a bus that fails or hangs is the matter of the objects named here and of no other), B1, I-13, I-15.
//!
//! Nothing is asked of the name `org.freedesktop.resolve1`, because that could start the program: it is spoken to by the name that the bus gave
//! to the process which is there.

use std::{
    collections::HashMap,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use serde::Deserialize;
use tokio::{
    net::UnixStream,
    sync::Notify,
    task::JoinHandle,
    time::{Instant, timeout},
};
use zbus::{
    Connection, Message, connection,
    fdo::{DBusProxy, NameOwnerChangedStream},
    names::{BusName, OwnedUniqueName, WellKnownName},
    zvariant::{DynamicType, OwnedObjectPath, Signature, Type, Value, as_value},
};

use super::{addresses, links::FoundLink};
use crate::{
    action::Action,
    ids::IfName,
    object::{Key, LinkDnsSpec, ResolverFeature, Spec, Subsystem},
    observed::{Observation, Observed, Owner},
    platform::{ActionError, Hint, Interest},
};

const NAME: WellKnownName<'static> = WellKnownName::from_static_str_unchecked("org.freedesktop.resolve1");
const PATH: &str = "/org/freedesktop/resolve1";
const MANAGER: &str = "org.freedesktop.resolve1.Manager";
const LINK: &str = "org.freedesktop.resolve1.Link";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// Below the directory of running programs: the bus, and what is there while the program runs, and at times afterwards.
const BUS: &str = "dbus/system_bus_socket";
const TRACE: &str = "systemd/resolve";

/// Longest wait for the bus and the program behind it. Both answer within a few milliseconds.
const LIMIT: Duration = Duration::from_secs(1);
/// Whoever did not answer is not asked for so long: a look waits for nobody more than a twentieth of the time.
const PAUSE: Duration = Duration::from_secs(20);
const DNS_PORT: u16 = 53;
/// `AF_INET` and `AF_INET6`, as the program numbers families.
const FAMILIES: (i32, i32) = (libc::AF_INET, libc::AF_INET6);

/// Errors that have a meaning of their own, by their names on the bus.
const LINK_BUSY: &str = "org.freedesktop.resolve1.LinkBusy";
const NO_SUCH_LINK: &str = "org.freedesktop.resolve1.NoSuchLink";
const GONE: [&str; 4] = [
    NO_SUCH_LINK,
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.UnknownObject",
];
const DENIED: [&str; 2] =
    ["org.freedesktop.DBus.Error.AccessDenied", "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"];
const UNSUPPORTED: [&str; 2] =
    ["org.freedesktop.DBus.Error.UnknownMethod", "org.freedesktop.DBus.Error.UnknownInterface"];

/// Why there was no answer, or not the wanted one.
#[derive(Debug, Clone)]
enum Trouble {
    Timeout,
    /// The program or the bus said no.
    Refused {
        name: String,
        words: String,
    },
    /// The connection is of no more use.
    Lost(String),
}

impl Trouble {
    fn words(&self) -> String {
        match self {
            Trouble::Timeout => format!("no answer within {} ms", LIMIT.as_millis()),
            Trouble::Refused { name, words } if words.is_empty() => name.clone(),
            Trouble::Refused { words, .. } | Trouble::Lost(words) => words.clone(),
        }
    }

    fn is(&self, names: &[&str]) -> bool {
        matches!(self, Trouble::Refused { name, .. } if names.contains(&name.as_str()))
    }

    fn to_action(&self, what: &str) -> ActionError {
        let text = format!("{what}: {}", self.words());
        match self {
            Trouble::Timeout => ActionError::Timeout(u64::try_from(LIMIT.as_millis()).unwrap_or(u64::MAX)),
            _ if self.is(&[LINK_BUSY]) => ActionError::Stranger(text),
            _ if self.is(&GONE) => ActionError::Gone(text),
            _ if self.is(&DENIED) => ActionError::Denied(text),
            _ if self.is(&UNSUPPORTED) => ActionError::Unsupported(text),
            Trouble::Refused { .. } | Trouble::Lost(_) => ActionError::Failed(text),
        }
    }
}

impl From<zbus::Error> for Trouble {
    fn from(error: zbus::Error) -> Self {
        match error {
            zbus::Error::MethodError(name, words, _) => {
                Trouble::Refused { name: name.to_string(), words: words.unwrap_or_default() }
            }
            other => Trouble::Lost(other.to_string()),
        }
    }
}

/// A connection to the bus, and the task that listens for the program's coming and going.
struct Bus {
    connection: Connection,
    listener: JoinHandle<()>,
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Bus {
    /// `None` where there is no bus.
    async fn open(socket: &Path, changed: Arc<Notify>) -> Result<Option<Self>, Trouble> {
        let stream = match UnixStream::connect(socket).await {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(Trouble::Lost(format!("{}: {error}", socket.display()))),
        };
        let connection = connection::Builder::unix_stream(stream).build().await?;
        let proxy = DBusProxy::new(&connection).await?;
        let changes = proxy.receive_name_owner_changed_with_args(&[(0, NAME.as_str())]).await?;
        Ok(Some(Self { connection, listener: tokio::spawn(listen(changes, changed)) }))
    }
}

/// Tells of every change, and of the end of the bus.
async fn listen(mut changes: NameOwnerChangedStream, changed: Arc<Notify>) {
    while changes.next().await.is_some() {
        changed.notify_one();
    }
    changed.notify_one();
}

/// The program that has the name now.
struct Session {
    connection: Connection,
    owner: OwnedUniqueName,
}

/// What a link's object says of itself, as far as it is ours to say.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LinkProperties {
    #[serde(rename = "DNSEx", with = "as_value")]
    servers: Vec<(i32, Vec<u8>, u16, String)>,
    #[serde(rename = "Domains", with = "as_value")]
    domains: Vec<(String, bool)>,
    #[serde(rename = "DefaultRoute", with = "as_value")]
    default_route: bool,
    #[serde(rename = "LLMNR", with = "as_value")]
    llmnr: String,
    #[serde(rename = "MulticastDNS", with = "as_value")]
    multicast_dns: String,
    #[serde(rename = "DNSOverTLS", with = "as_value")]
    dns_over_tls: String,
    #[serde(rename = "DNSSEC", with = "as_value")]
    dnssec: String,
}

impl Type for LinkProperties {
    const SIGNATURE: &'static Signature = <HashMap<String, Value<'static>> as Type>::SIGNATURE;
}

impl LinkProperties {
    /// `None` for a link of which nobody said anything.
    fn spec(&self) -> Option<LinkDnsSpec> {
        if self.servers.is_empty() && self.domains.is_empty() {
            return None;
        }
        let mode = |feature| match feature {
            ResolverFeature::Llmnr => &self.llmnr,
            ResolverFeature::MulticastDns => &self.multicast_dns,
            ResolverFeature::DnsOverTls => &self.dns_over_tls,
            ResolverFeature::Dnssec => &self.dnssec,
        };
        // An older program has no word for some of them.
        let is_on = |feature: &ResolverFeature| !["", "no"].contains(&mode(*feature).as_str());
        let domain = |(name, routing_only): &(String, bool)| format!("{}{name}", if *routing_only { "~" } else { "" });
        Some(LinkDnsSpec {
            servers: self.servers.iter().filter_map(|(_, bytes, port, _)| server(bytes, *port)).collect(),
            domains: self.domains.iter().map(domain).collect(),
            default_route: self.default_route,
            features: ResolverFeature::ALL.into_iter().filter(is_on).collect(),
        })
    }
}

fn server(bytes: &[u8], port: u16) -> Option<SocketAddr> {
    Some(SocketAddr::new(addresses::ip(bytes)?, if port == 0 { DNS_PORT } else { port }))
}

/// A server as the program takes it; no name, because it would be for TLS only.
fn as_argument(server: &SocketAddr) -> (i32, Vec<u8>, u16, &'static str) {
    match server.ip() {
        IpAddr::V4(ip) => (FAMILIES.0, ip.octets().to_vec(), server.port(), ""),
        IpAddr::V6(ip) => (FAMILIES.1, ip.octets().to_vec(), server.port(), ""),
    }
}

impl Session {
    /// `None` when the program does not run.
    async fn begin(connection: Connection) -> Result<Option<Self>, Trouble> {
        let proxy = DBusProxy::new(&connection).await?;
        match proxy.get_name_owner(BusName::from(NAME)).await {
            Ok(owner) => Ok(Some(Self { connection, owner })),
            Err(zbus::fdo::Error::NameHasNoOwner(_)) => Ok(None),
            Err(error) => Err(zbus::Error::from(error).into()),
        }
    }

    async fn call(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        body: &(impl serde::Serialize + DynamicType + Sync),
    ) -> Result<Message, Trouble> {
        let owner = BusName::from(&self.owner);
        Ok(self.connection.call_method(Some(owner), path, Some(interface), method, body).await?)
    }

    async fn read(&self, links: &[(IfName, u32)]) -> Result<Vec<(IfName, LinkDnsSpec)>, Trouble> {
        let mut found = Vec::new();
        for (name, index) in links {
            match self.read_one(number(*index)).await {
                Ok(spec) => found.extend(spec.map(|spec| (name.clone(), spec))),
                // It does not know of the link yet, or no more.
                Err(trouble) if trouble.is(&GONE) => {}
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(found)
    }

    async fn read_one(&self, index: i32) -> Result<Option<LinkDnsSpec>, Trouble> {
        let object = self.call(PATH, MANAGER, "GetLink", &(index,)).await?;
        let object: OwnedObjectPath = object.body().deserialize()?;
        let properties = self.call(object.as_str(), PROPERTIES, "GetAll", &(LINK,)).await?;
        Ok(properties.body().deserialize::<LinkProperties>()?.spec())
    }

    /// The servers come last: until then nothing is asked of them that they are not for.
    async fn tell(&self, index: i32, spec: &LinkDnsSpec) -> Result<(), Trouble> {
        self.call(PATH, MANAGER, "SetLinkDefaultRoute", &(index, spec.default_route)).await?;
        for feature in ResolverFeature::ALL {
            let mode = if spec.features.contains(&feature) { "yes" } else { "no" };
            let method = format!("SetLink{}", feature.word());
            self.call(PATH, MANAGER, &method, &(index, mode)).await?;
        }
        let domains: Vec<(&str, bool)> = spec
            .domains
            .iter()
            .map(|domain| domain.strip_prefix('~').map_or((domain.as_str(), false), |name| (name, true)))
            .collect();
        self.call(PATH, MANAGER, "SetLinkDomains", &(index, domains)).await?;
        let servers: Vec<_> = spec.servers.iter().map(as_argument).collect();
        self.call(PATH, MANAGER, "SetLinkDNSEx", &(index, servers)).await?;
        Ok(())
    }

    async fn forget(&self, index: i32) -> Result<(), Trouble> {
        match self.call(PATH, MANAGER, "RevertLink", &(index,)).await {
            Ok(_) => Ok(()),
            // What it does not know of it has forgotten.
            Err(trouble) if trouble.is(&GONE) => Ok(()),
            Err(trouble) => Err(trouble),
        }
    }
}

/// Links are numbered from 1 up to what the kernel's `int` holds.
fn number(index: u32) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}

/// The way to the program, where it runs.
pub(super) struct Resolved {
    socket: PathBuf,
    trace: PathBuf,
    bus: Option<Bus>,
    /// Until when nothing is asked, because there was no answer.
    silent_until: Option<Instant>,
    changed: Arc<Notify>,
}

impl Resolved {
    /// Opens nothing yet.
    pub(super) fn new(run_dir: &Path) -> Self {
        Self {
            socket: run_dir.join(BUS),
            trace: run_dir.join(TRACE),
            bus: None,
            silent_until: None,
            changed: Arc::default(),
        }
    }

    /// A hint whenever the program came, went or was replaced.
    pub(super) fn hints(&self) -> BoxStream<'static, Hint> {
        stream::unfold(self.changed.clone(), |changed| async {
            changed.notified().await;
            Some((Hint::Changed(Subsystem::LinkDns), changed))
        })
        .boxed()
    }

    /// Whether the program runs. While nobody answers, its directory tells.
    pub(super) async fn is_there(&mut self) -> bool {
        match self.session().await {
            Ok(session) => session.is_some(),
            Err(_) => self.trace.exists(),
        }
    }

    /// Reports what it knows of `links`. Where it cannot be asked, what it is to know is not ours to change.
    pub(super) async fn report(&mut self, links: &[(IfName, u32)], interest: &Interest, observation: &mut Observation) {
        let read = match self.session().await {
            Ok(None) => return,
            Ok(Some(session)) => self.within(session.read(links)).await,
            Err(trouble) => Err(trouble),
        };
        match read {
            Ok(found) => {
                let objects =
                    found.into_iter().map(|(name, spec)| (Key::LinkDns(name), Observed::ours(Spec::LinkDns(spec))));
                observation.objects.extend(objects);
            }
            Err(trouble) => {
                let owner = Owner::Stranger(format!("systemd-resolved cannot be asked: {}", trouble.words()));
                let blocked = Observed { spec: Spec::LinkDns(LinkDnsSpec::default()), owner, stats: None };
                let wanted = interest.keys.iter().filter(|key| matches!(key, Key::LinkDns(_)));
                observation.objects.extend(wanted.map(|key| (key.clone(), blocked.clone())));
            }
        }
    }

    /// Tells it about a link of ours, or makes it forget what it was told.
    pub(super) async fn execute(&mut self, link: &FoundLink, action: &Action) -> Result<(), ActionError> {
        let what = format!("tell systemd-resolved about {}", link.name);
        let session = self.session().await.map_err(|trouble| trouble.to_action(&what))?;
        let index = number(link.index);
        let told = match (session, action.result()) {
            (Some(session), Some(Spec::LinkDns(spec))) => self.within(session.tell(index, spec)).await,
            (Some(session), None) => self.within(session.forget(index)).await,
            (None, None) => return Ok(()),
            (None, Some(_)) => return Err(ActionError::Gone("systemd-resolved does not run".into())),
            (Some(_), Some(_)) => return Err(ActionError::Failed("the action must carry a link's names".into())),
        };
        told.map_err(|trouble| trouble.to_action(&what))
    }

    async fn session(&mut self) -> Result<Option<Session>, Trouble> {
        if self.silent_until.is_some_and(|until| Instant::now() < until) {
            return Err(Trouble::Timeout);
        }
        if self.bus.as_ref().is_none_or(|bus| bus.listener.is_finished()) {
            let (socket, changed) = (self.socket.clone(), self.changed.clone());
            self.bus = self.within(async move { Bus::open(&socket, changed).await }).await?;
        }
        let Some(bus) = &self.bus else { return Ok(None) };
        let connection = bus.connection.clone();
        self.within(Session::begin(connection)).await
    }

    async fn within<T>(&mut self, work: impl Future<Output = Result<T, Trouble>> + Send) -> Result<T, Trouble> {
        self.silent_until = None;
        let outcome = timeout(LIMIT, work).await.unwrap_or(Err(Trouble::Timeout));
        match &outcome {
            Ok(_) | Err(Trouble::Refused { .. }) => {}
            Err(Trouble::Lost(_)) => self.bus = None,
            Err(Trouble::Timeout) => {
                self.bus = None;
                self.silent_until = Some(Instant::now() + PAUSE);
            }
        }
        outcome
    }
}
