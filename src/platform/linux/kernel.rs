//! The backend's front: options, and which file executes which action.
//!
//! Owns the sockets for the process's life and the choice of the data plane. Leaves what each action means to the files of the subsystems.
//!
//! Upholds I-03 (an action on anything that hangs on a link begins with a look at that link's mark), I-04, I-15.
//!
//! The data plane is a property of each *link* (its kind says which), not of the process: after a kernel upgrade both can be present.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::mpsc::Sender,
};

use futures::stream::{self, BoxStream, StreamExt};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::{
    addresses,
    device_process::CURRENT_EXE,
    errno::Fault,
    files,
    inside::Visits,
    links::{self, FoundLink, KIND_TUN, KIND_WIREGUARD},
    monitor::{Busy, Monitor},
    nft::{Firewall, Watch},
    resolved::Resolved,
    routes,
    socket::Channel,
    surroundings, sysctls,
    userspace::Userspace,
    wireguard::WireGuard,
};
use crate::{
    action::Action,
    ids::{Cidr, IfName},
    object::{Key, Mark, RouteSpec, Setting, Spec, VethPeer},
    observed::Observation,
    platform::{ActionError, Hint, Interest, Kernel, ObserveError},
};

/// What carries the packets of a WireGuard link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataPlane {
    Kernel,
    /// A TUN that a device process serves.
    Userspace,
}

/// What new links are to be carried by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DataPlaneChoice {
    /// The kernel where it has WireGuard, else userspace.
    #[default]
    Auto,
    Kernel,
    Userspace,
}

const RUN_DIR: &str = "/run";

#[derive(Debug, Clone)]
pub struct LinuxOptions {
    pub mark: Mark,
    pub data_plane: DataPlaneChoice,
    /// Directory of the userspace devices' UAPI sockets.
    pub uapi_dir: PathBuf,
    /// Where other programs keep what they know at run time: `/run`.
    pub run_dir: PathBuf,
    /// Where the system looks for a resolver of one zone; `None` where it does not.
    pub resolver_dir: Option<PathBuf>,
    /// Make firewall tables that belong to no socket, as on a kernel before 6.9: for tests only.
    pub plain_tables: bool,
    /// What a userspace device is run by: this very program, or for tests the agent.
    pub device_program: PathBuf,
    /// Gets every WireGuard configuration message as sent, private keys included: for tests only.
    pub capture: Option<Sender<Vec<u8>>>,
}

impl LinuxOptions {
    pub fn new(mark: Mark, data_plane: DataPlaneChoice, uapi_dir: PathBuf) -> Self {
        Self {
            mark,
            data_plane,
            uapi_dir,
            run_dir: PathBuf::from(RUN_DIR),
            resolver_dir: None,
            plain_tables: false,
            device_program: PathBuf::from(CURRENT_EXE),
            capture: None,
        }
    }
}

/// The kernel of the network namespace in which the process lives.
pub struct LinuxKernel {
    pub(super) mark: Mark,
    pub(super) route: Channel,
    pub(super) wireguard: WireGuard,
    pub(super) userspace: Userspace,
    /// The way into containers.
    pub(super) visits: Visits,
    /// Where veths of ours lead, by the index of the host's end and the number of the far end's namespace.
    pub(super) peers: BTreeMap<(u32, i32), VethPeer>,
    pub(super) monitor: Monitor,
    pub(super) firewall: Firewall,
    pub(super) run_dir: PathBuf,
    pub(super) resolver_dir: Option<PathBuf>,
    pub(super) resolved: Resolved,
    pub(super) choice: DataPlaneChoice,
    /// Whether addresses tell who made them; `None` until it was looked at.
    address_protocol: Option<bool>,
    watch: Option<Watch>,
}

impl LinuxKernel {
    /// Opens the sockets, in the namespace of the calling thread. Needs a tokio runtime; changes nothing.
    ///
    /// # Errors
    /// When a netlink socket cannot be opened.
    pub fn open(options: LinuxOptions) -> io::Result<Self> {
        let route = Channel::open(NETLINK_ROUTE)?;
        let firewall = Firewall::open(options.mark, options.plain_tables)?;
        Ok(Self {
            mark: options.mark,
            monitor: Monitor::open(options.mark, route.port())?,
            wireguard: WireGuard::open(options.capture)?,
            userspace: Userspace::new(&options.uapi_dir, options.mark, options.device_program)?,
            watch: Some(firewall.watch()?),
            firewall,
            choice: options.data_plane,
            address_protocol: None,
            visits: Visits::new(),
            peers: BTreeMap::new(),
            resolved: Resolved::new(&options.run_dir),
            run_dir: options.run_dir,
            resolver_dir: options.resolver_dir,
            route,
        })
    }

    /// What carries a link of ours; `None` when there is no such link or it is of another kind.
    ///
    /// # Errors
    /// As for an action: the link is a stranger's, or could not be looked at.
    pub async fn data_plane(&mut self, name: &IfName) -> Result<Option<DataPlane>, ActionError> {
        match links::find_ours(&mut self.route, self.mark, name).await {
            Ok(link) => Ok(plane(&link)),
            Err(ActionError::Gone(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn has_address_protocol(&mut self) -> Result<bool, Fault> {
        if let Some(known) = self.address_protocol {
            return Ok(known);
        }
        let known = addresses::has_protocol(&mut self.route).await?;
        self.address_protocol = Some(known);
        Ok(known)
    }

    async fn execute_one(&mut self, action: &Action) -> Result<(), ActionError> {
        match action.key() {
            Key::Link(name) => self.execute_link(name, action).await,
            Key::Address { link, address } => {
                let found = match (self.ours(link).await, action) {
                    // An address goes with its link.
                    (Err(ActionError::Gone(_)), Action::Delete { .. }) => return Ok(()),
                    (found, _) => found?,
                };
                match action {
                    Action::Create { .. } | Action::Update { .. } => {
                        self.monitor.expect_address(found.index, *address);
                        addresses::create(&mut self.route, &found, *address).await
                    }
                    Action::Delete { .. } => {
                        let what = format!("remove address {address} from {link}");
                        let told = self.has_address_protocol().await.map_err(|fault| fault.to_action(&what))?;
                        self.monitor.expect_no_address(found.index, *address);
                        self.monitor.begin(Busy::Addressing(found.index));
                        let outcome = addresses::delete(&mut self.route, &found, link, *address, told).await;
                        self.monitor.drain();
                        self.monitor.end();
                        outcome
                    }
                }
            }
            Key::Route { destination, metric } => self.execute_route(destination, *metric, action).await,
            Key::Sysctl { link, setting } => self.execute_sysctl(link, *setting, action).await,
            Key::Device(device) => self.execute_device(device, action).await,
            Key::Peer { .. } => unreachable!("peers are executed in batches"),
            Key::Inside(veth) => self.execute_inside(veth, action).await,
            Key::File(path) => files::execute(self.mark, path, action),
            Key::LinkDns(link) => match (self.ours(link).await, action) {
                // What a resolver knows of a link goes with the link.
                (Err(ActionError::Gone(_)), Action::Delete { .. }) => Ok(()),
                (found, _) => self.resolved.execute(&found?, action).await,
            },
            Key::Ruleset => self.firewall.execute_ruleset(action).await,
            Key::Member(_) => unreachable!("members are executed in batches"),
            Key::Guest(family) => self.firewall.execute_guest(*family, action).await,
        }
    }

    pub(super) async fn ours(&mut self, name: &IfName) -> Result<FoundLink, ActionError> {
        links::find_ours(&mut self.route, self.mark, name).await
    }

    async fn execute_route(&mut self, destination: &Cidr, metric: u32, action: &Action) -> Result<(), ActionError> {
        let (route, mark) = (&mut self.route, self.mark);
        match action {
            Action::Create { spec, .. } => routes::create(route, mark, destination, metric, route_spec(spec)?).await,
            Action::Update { to, .. } => routes::update(route, mark, destination, metric, route_spec(to)?).await,
            Action::Delete { was, .. } => routes::delete(route, mark, destination, metric, route_spec(was)?).await,
        }
    }

    async fn execute_sysctl(&mut self, link: &IfName, setting: Setting, action: &Action) -> Result<(), ActionError> {
        match action.result() {
            Some(Spec::Sysctl(value)) => {
                let found = self.ours(link).await;
                if let Err(ActionError::Stranger(_)) = &found
                    && surroundings::may_set(setting, *value)
                    && surroundings::is_uplink(&mut self.route, self.mark, link).await?
                {
                    return sysctls::write(link, setting, *value);
                }
                self.monitor.begin(Busy::Setting(found?.index));
                let outcome = sysctls::write(link, setting, *value);
                self.monitor.drain();
                self.monitor.end();
                outcome
            }
            Some(_) => Err(ActionError::Failed("a setting's action must carry a value".into())),
            // A setting has no "not there": it goes with its link.
            None => Ok(()),
        }
    }

    async fn execute_device(&mut self, device: &IfName, action: &Action) -> Result<(), ActionError> {
        let link = match (self.ours(device).await, action) {
            (Err(ActionError::Gone(_)), Action::Delete { .. }) => return Ok(()),
            (found, _) => found?,
        };
        match plane(&link) {
            Some(DataPlane::Kernel) => self.wireguard.configure(&link, action).await,
            Some(DataPlane::Userspace) => self.userspace.configure(device, action).await,
            None => Err(ActionError::Failed(format!("{device} is a {} link", link.kind))),
        }
    }

    /// Consecutive peers of one device.
    async fn execute_peers(&mut self, device: &IfName, actions: &[Action]) -> Vec<Result<(), ActionError>> {
        let link = match self.ours(device).await {
            Ok(link) => link,
            Err(error) => {
                let outcome = |action: &Action| match (&error, action) {
                    // A peer goes with its device.
                    (ActionError::Gone(_), Action::Delete { .. }) => Ok(()),
                    (_, _) => Err(error.clone()),
                };
                return actions.iter().map(outcome).collect();
            }
        };
        match plane(&link) {
            Some(DataPlane::Kernel) => self.wireguard.apply(&link, actions).await,
            Some(DataPlane::Userspace) => self.userspace.apply(device, actions).await,
            None => {
                let error = ActionError::Failed(format!("{device} is a {} link", link.kind));
                vec![Err(error); actions.len()]
            }
        }
    }
}

impl Kernel for LinuxKernel {
    async fn observe(&mut self, interest: &Interest) -> Result<Observation, ObserveError> {
        self.look(interest).await
    }

    async fn execute(&mut self, actions: &[Action]) -> Vec<Result<(), ActionError>> {
        let mut outcomes = Vec::with_capacity(actions.len());
        let mut rest = actions;
        while let Some(first) = rest.first() {
            if let Key::Peer { device, .. } = first.key() {
                let (batch, after) = rest.split_at(batch_length(rest, device));
                outcomes.extend(self.execute_peers(device, batch).await);
                rest = after;
            } else if let Key::Member(_) = first.key() {
                let (batch, after) = rest.split_at(member_batch_length(rest));
                outcomes.extend(self.firewall.execute_members(batch).await);
                rest = after;
            } else {
                outcomes.push(self.execute_one(first).await);
                rest = &rest[1..];
            }
        }
        outcomes
    }

    fn hints(&mut self) -> BoxStream<'static, Hint> {
        let Some(watch) = self.watch.take() else {
            return stream::pending().boxed();
        };
        let of_kernel = stream::select(self.monitor.stream(), watch.into_stream());
        stream::select(of_kernel, self.resolved.hints()).boxed()
    }
}

/// How many actions at the beginning of `actions` are of different peers of `device`.
fn batch_length(actions: &[Action], device: &IfName) -> usize {
    let mut seen = BTreeSet::new();
    actions
        .iter()
        .take_while(|action| match action.key() {
            // The same peer twice is two steps, in order.
            Key::Peer { device: of, public_key } => of == device && seen.insert(*public_key),
            Key::Link(_)
            | Key::Address { .. }
            | Key::Route { .. }
            | Key::Sysctl { .. }
            | Key::Device(_)
            | Key::Inside(_)
            | Key::Ruleset
            | Key::Member(_)
            | Key::Guest(_)
            | Key::File(_)
            | Key::LinkDns(_) => false,
        })
        .count()
}

/// How many actions at the beginning of `actions` are of different members.
fn member_batch_length(actions: &[Action]) -> usize {
    let mut seen = BTreeSet::new();
    let is_new = |action: &&Action| matches!(action.key(), Key::Member(address) if seen.insert(*address));
    actions.iter().take_while(is_new).count()
}

fn plane(link: &FoundLink) -> Option<DataPlane> {
    match link.kind.as_str() {
        KIND_WIREGUARD => Some(DataPlane::Kernel),
        KIND_TUN => Some(DataPlane::Userspace),
        _ => None,
    }
}

fn route_spec(spec: &Spec) -> Result<&RouteSpec, ActionError> {
    match spec {
        Spec::Route(route) => Ok(route),
        _ => Err(ActionError::Failed("a route's action must carry a route".into())),
    }
}
