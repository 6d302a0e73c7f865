//! The backend's front: options, and which file executes which action.
//!
//! Owns the sockets for the process's life and the choice of the data plane. Leaves what each action means to the files of the subsystems.
//!
//! Upholds I-03 (an action on anything that hangs on a link begins with a look at that link's mark), I-04, I-15.
//!
//! The data plane is a property of each *link* (its kind says which), not of the process: after a kernel upgrade both can be present.

use std::{collections::BTreeSet, io, path::PathBuf, sync::mpsc::Sender};

use futures::stream::{self, BoxStream, StreamExt};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::{
    addresses,
    errno::Fault,
    links::{self, FoundLink, KIND_TUN, KIND_WIREGUARD},
    monitor::{Monitor, SharedScope},
    routes,
    socket::Channel,
    sysctls,
    userspace::Userspace,
    wireguard::WireGuard,
};
use crate::{
    action::Action,
    ids::{Cidr, IfName},
    object::{Key, LinkKind, LinkSpec, Mark, RouteSpec, Setting, Spec},
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

#[derive(Debug, Clone)]
pub struct LinuxOptions {
    pub mark: Mark,
    pub data_plane: DataPlaneChoice,
    /// Directory of the userspace devices' UAPI sockets.
    pub uapi_dir: PathBuf,
    /// Gets every WireGuard configuration message as sent, private keys included: for tests only.
    pub capture: Option<Sender<Vec<u8>>>,
}

impl LinuxOptions {
    pub fn new(mark: Mark, data_plane: DataPlaneChoice, uapi_dir: PathBuf) -> Self {
        Self { mark, data_plane, uapi_dir, capture: None }
    }
}

/// The kernel of the network namespace in which the process lives.
pub struct LinuxKernel {
    pub(super) mark: Mark,
    pub(super) route: Channel,
    pub(super) wireguard: WireGuard,
    pub(super) userspace: Userspace,
    pub(super) scope: SharedScope,
    choice: DataPlaneChoice,
    /// Whether addresses tell who made them; `None` until it was looked at.
    address_protocol: Option<bool>,
    monitor: Option<Monitor>,
}

impl LinuxKernel {
    /// Opens the sockets, in the namespace of the calling thread. Needs a tokio runtime; changes nothing.
    ///
    /// # Errors
    /// When a netlink socket cannot be opened.
    pub fn open(options: LinuxOptions) -> io::Result<Self> {
        let scope = SharedScope::default();
        let route = Channel::open(NETLINK_ROUTE)?;
        scope.lock().own_port = route.port();
        Ok(Self {
            mark: options.mark,
            monitor: Some(Monitor::open(options.mark, scope.clone())?),
            wireguard: WireGuard::open(options.capture)?,
            userspace: Userspace::new(&options.uapi_dir, options.mark)?,
            choice: options.data_plane,
            address_protocol: None,
            route,
            scope,
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
                        addresses::create(&mut self.route, &found, *address).await
                    }
                    Action::Delete { .. } => {
                        let what = format!("remove address {address} from {link}");
                        let told = self.has_address_protocol().await.map_err(|fault| fault.to_action(&what))?;
                        addresses::delete(&mut self.route, &found, link, *address, told).await
                    }
                }
            }
            Key::Route { destination, metric } => self.execute_route(destination, *metric, action).await,
            Key::Sysctl { link, setting } => self.execute_sysctl(link, *setting, action).await,
            Key::Device(device) => self.execute_device(device, action).await,
            Key::Peer { .. } => unreachable!("peers are executed in batches"),
            Key::Inside(_) | Key::Ruleset | Key::Member(_) | Key::Guest(_) | Key::File(_) => {
                Err(ActionError::Unsupported("being built".into()))
            }
        }
    }

    async fn ours(&mut self, name: &IfName) -> Result<FoundLink, ActionError> {
        links::find_ours(&mut self.route, self.mark, name).await
    }

    async fn execute_link(&mut self, name: &IfName, action: &Action) -> Result<(), ActionError> {
        match action {
            Action::Create { spec, .. } => {
                let spec = link_spec(spec)?;
                let link = self.create_link(name, spec).await?;
                self.scope.lock().indexes.insert(link.index);
                links::settle(&mut self.route, self.mark, &link, spec).await?;
                links::label(&mut self.route, self.mark, &link).await;
                Ok(())
            }
            Action::Update { to, .. } => {
                let link = self.ours(name).await?;
                links::settle(&mut self.route, self.mark, &link, link_spec(to)?).await
            }
            Action::Delete { .. } => match self.ours(name).await {
                Ok(link) => links::delete(&mut self.route, &link).await,
                Err(ActionError::Gone(_)) => Ok(()),
                Err(error) => Err(error),
            },
        }
    }

    async fn create_link(&mut self, name: &IfName, spec: &LinkSpec) -> Result<FoundLink, ActionError> {
        match &spec.kind {
            LinkKind::WireGuard => {}
            LinkKind::Bridge | LinkKind::Veth => return Err(ActionError::Unsupported("being built".into())),
            LinkKind::Other(kind) => return Err(ActionError::Failed(format!("overlayd does not make {kind} links"))),
        }
        if self.choice != DataPlaneChoice::Userspace {
            match links::create_wireguard(&mut self.route, self.mark, name, spec).await {
                Err(ActionError::Unsupported(reason)) if self.choice == DataPlaneChoice::Auto => {
                    tracing::debug!(link = %name, reason, "kernel WireGuard is not here; userspace carries the link");
                }
                outcome => return outcome,
            }
        }
        match links::find(&mut self.route, name).await {
            Ok(None) => self.userspace.create_link(name, spec)?,
            // Ours is what was wanted; a stranger's is told by the look below.
            Ok(Some(_)) => {}
            Err(fault) => return Err(fault.to_action(&format!("find link {name}"))),
        }
        self.ours(name).await
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
                self.ours(link).await?;
                sysctls::write(link, setting, *value)
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
            } else {
                outcomes.push(self.execute_one(first).await);
                rest = &rest[1..];
            }
        }
        outcomes
    }

    fn hints(&mut self) -> BoxStream<'static, Hint> {
        match self.monitor.take() {
            Some(monitor) => monitor.into_stream(),
            None => stream::pending().boxed(),
        }
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
            | Key::File(_) => false,
        })
        .count()
}

fn plane(link: &FoundLink) -> Option<DataPlane> {
    match link.kind.as_str() {
        KIND_WIREGUARD => Some(DataPlane::Kernel),
        KIND_TUN => Some(DataPlane::Userspace),
        _ => None,
    }
}

fn link_spec(spec: &Spec) -> Result<&LinkSpec, ActionError> {
    match spec {
        Spec::Link(link) => Ok(link),
        _ => Err(ActionError::Failed("a link's action must carry a link".into())),
    }
}

fn route_spec(spec: &Spec) -> Result<&RouteSpec, ActionError> {
    match spec {
        Spec::Route(route) => Ok(route),
        _ => Err(ActionError::Failed("a route's action must carry a route".into())),
    }
}
