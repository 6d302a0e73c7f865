//! Actions on links: what each kind needs before and after its request.
//!
//! Owns the choice between the two data planes, the way into a container for a veth's far end, and keeping our own changes out of the hints.
//! Leaves the requests to [`link_changes`](super::link_changes).
//!
//! Upholds I-03, I-04, A21 (a veth's far end goes into a namespace that was proven just before).
//!
//! One change of a link makes up to a dozen notifications, most of them without the number of the socket that asked. They are told from other
//! people's changes by *when* they come: while the request is under way, and the queue is read to its end before the next thing is done.

use super::{
    LinuxKernel,
    kernel::DataPlaneChoice,
    link_changes,
    links::{self, FoundLink, KIND_VETH},
    monitor::Busy,
    netns::{self, NetnsError},
    nsid::{RTM_GETNSID, nsid_request, parse_nsid},
    sysctls,
};
use crate::{
    action::Action,
    ids::IfName,
    object::{LinkKind, LinkSpec, Spec, VethPeer},
    platform::ActionError,
};

/// How a create request for a link ended.
#[derive(Debug, PartialEq, Eq)]
enum Made {
    /// A veth that was not there before: it leads where it was told to.
    Fresh,
    OrFound,
}

impl LinuxKernel {
    pub(super) async fn execute_link(&mut self, name: &IfName, action: &Action) -> Result<(), ActionError> {
        match action {
            Action::Create { spec, .. } => self.create_link(name, link_spec(spec)?).await,
            Action::Update { to, .. } => {
                let link = self.ours(name).await?;
                self.settle(&link, link_spec(to)?).await
            }
            Action::Delete { .. } => match self.ours(name).await {
                Ok(link) => self.delete_link(&link).await,
                Err(ActionError::Gone(_)) => Ok(()),
                Err(error) => Err(error),
            },
        }
    }

    async fn create_link(&mut self, name: &IfName, spec: &LinkSpec) -> Result<(), ActionError> {
        self.monitor.begin(Busy::Making(name.to_string()));
        let made = self.make(name, spec).await;
        self.monitor.drain();
        let found = match &made {
            Ok(_) => self.ours(name).await,
            Err(error) => Err(error.clone()),
        };
        if let Ok(link) = &found {
            self.monitor.know(link);
        }
        self.monitor.end();
        let link = found?;
        if let Some(peer) = &spec.peer {
            self.remember_far_end(name, &link, peer, made == Ok(Made::Fresh)).await?;
        }
        if made == Ok(Made::Fresh) && spec.master.is_some() {
            sysctls::without_ipv6(name);
        }
        self.settle(&link, spec).await?;
        if link.kind != KIND_VETH {
            self.monitor.begin(Busy::Changing(link.index));
            link_changes::label(&mut self.route, self.mark, &link).await;
            self.monitor.drain();
            self.monitor.end();
        }
        Ok(())
    }

    async fn make(&mut self, name: &IfName, spec: &LinkSpec) -> Result<Made, ActionError> {
        match &spec.kind {
            LinkKind::WireGuard => self.make_wireguard(name, spec).await.map(|()| Made::OrFound),
            LinkKind::Bridge => {
                link_changes::create_bridge(&mut self.route, self.mark, name).await.map(|()| Made::OrFound)
            }
            LinkKind::Veth => {
                let Some(peer) = &spec.peer else {
                    return Err(ActionError::Failed(format!("veth {name} has no far end to be made")));
                };
                let far =
                    netns::open(&peer.netns).map_err(|error| to_action(&error, &format!("create veth {name}")))?;
                let fresh = link_changes::create_veth(&mut self.route, self.mark, name, spec, peer, &far).await?;
                Ok(if fresh { Made::Fresh } else { Made::OrFound })
            }
            LinkKind::Other(kind) => Err(ActionError::Failed(format!("overlayd does not make {kind} links"))),
        }
    }

    /// Keeps where a veth leads, after a look at it when it was there already.
    async fn remember_far_end(
        &mut self,
        name: &IfName,
        link: &FoundLink,
        peer: &VethPeer,
        fresh: bool,
    ) -> Result<(), ActionError> {
        let elsewhere = || ActionError::Failed(format!("veth {name} is there and does not lead into {}", peer.netns));
        let nsid = link.far_nsid.ok_or_else(elsewhere)?;
        if !fresh {
            let what = format!("look where veth {name} leads");
            let far = netns::open(&peer.netns).map_err(|error| to_action(&error, &what))?;
            let asked = nsid_request(far.namespace());
            let known = self.route.get(RTM_GETNSID, &asked, parse_nsid).await;
            if known.map_err(|fault| fault.to_action(&what))? != nsid {
                return Err(elsewhere());
            }
        }
        self.peers.insert((link.index, nsid), peer.clone());
        Ok(())
    }

    async fn make_wireguard(&mut self, name: &IfName, spec: &LinkSpec) -> Result<(), ActionError> {
        if self.choice != DataPlaneChoice::Userspace {
            match link_changes::create_wireguard(&mut self.route, self.mark, name, spec).await {
                Err(ActionError::Unsupported(reason)) if self.choice == DataPlaneChoice::Auto => {
                    tracing::debug!(link = %name, reason, "kernel WireGuard is not here; userspace carries the link");
                }
                outcome => return outcome,
            }
        }
        match links::find(&mut self.route, name).await {
            Ok(None) => self.userspace.create_link(name, spec),
            // Ours is what was wanted; a stranger's is told by the look that follows.
            Ok(Some(_)) => Ok(()),
            Err(fault) => Err(fault.to_action(&format!("find link {name}"))),
        }
    }

    async fn settle(&mut self, link: &FoundLink, spec: &LinkSpec) -> Result<(), ActionError> {
        self.monitor.begin(Busy::Changing(link.index));
        let changed = link_changes::settle(&mut self.route, self.mark, link, spec).await;
        self.monitor.drain();
        let mut known = Ok(());
        if !matches!(changed, Ok(false)) {
            match links::find_index(&mut self.route, link.index).await {
                Ok(now) => self.monitor.know(&now),
                Err(fault) => known = Err(fault.to_action(&format!("look at link {}", link.name))),
            }
        }
        self.monitor.end();
        changed.and(known)
    }

    async fn delete_link(&mut self, link: &FoundLink) -> Result<(), ActionError> {
        self.monitor.begin(Busy::Removing(link.index));
        let outcome = link_changes::delete(&mut self.route, link).await;
        self.monitor.drain();
        if outcome.is_ok() {
            self.monitor.forget(link.index);
            self.peers.retain(|(index, _), _| *index != link.index);
        }
        self.monitor.end();
        outcome
    }
}

/// What an action failed by when its container could not be opened.
pub(super) fn to_action(error: &NetnsError, what: &str) -> ActionError {
    let text = format!("{what}: {error}");
    match error {
        NetnsError::NoProcess(_) | NetnsError::Ended(_) | NetnsError::Gone(..) => ActionError::Gone(text),
        NetnsError::Denied(..) => ActionError::Denied(text),
        // The agent's own network belongs to the host.
        NetnsError::OwnNamespace(_) => ActionError::Stranger(text),
        NetnsError::Failed(..) => ActionError::Failed(text),
    }
}

fn link_spec(spec: &Spec) -> Result<&LinkSpec, ActionError> {
    match spec {
        Spec::Link(link) => Ok(link),
        _ => Err(ActionError::Failed("a link's action must carry a link".into())),
    }
}
