//! The doors that the backend has to the containers' side.
//!
//! Owns which of our veths belong to which container side. Leaves the visit to [`act`](super::act) and [`look`](super::look).
//!
//! Upholds I-05 (containers that were not reached in time make the part `Partial`; a dead one is simply not there), I-15.
//!
//! Taking a container side away is no condition for removing its veth: whatever is on the far end goes with it.

use std::{collections::BTreeMap, time::Duration};

use super::{
    act,
    look::{self, Sight, Wanted},
};
use crate::{
    action::Action,
    ids::IfName,
    object::{InsideSpec, Mark, Spec},
    platform::{
        ActionError, Interest,
        linux::{
            LinuxKernel,
            errno::Fault,
            links::{FoundLink, KIND_VETH},
        },
    },
};

/// Longest visit to one container: a thousand times what it takes.
const ACT_LIMIT: Duration = Duration::from_secs(2);
/// Longest look at all containers: several thousand of them.
const LOOK_LIMIT: Duration = Duration::from_secs(4);

/// The host's end of a veth: what the far end is known by.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostEnd {
    pub(super) index: u32,
    pub(super) far_index: u32,
    pub(super) far_nsid: i32,
    pub(super) mark: Mark,
}

impl HostEnd {
    fn of(link: &FoundLink, mark: Mark) -> Option<Self> {
        let is_veth = link.kind == KIND_VETH && link.is_ours(mark);
        let far_nsid = link.far_nsid.filter(|_| is_veth)?;
        Some(Self { index: link.index, far_index: link.far_index, far_nsid, mark })
    }
}

impl LinuxKernel {
    pub(in super::super) async fn execute_inside(&mut self, veth: &IfName, action: &Action) -> Result<(), ActionError> {
        let what = format!("set up {veth}'s container side");
        let link = match (self.ours(veth).await, action) {
            // It went with its veth.
            (Err(ActionError::Gone(_)), Action::Delete { .. }) => return Ok(()),
            (found, _) => found?,
        };
        let Some(host) = HostEnd::of(&link, self.mark) else {
            return Err(ActionError::Gone(format!("{what}: {veth} leads into no other namespace")));
        };
        let done = match action {
            Action::Create { spec, .. } => {
                let to = inside_spec(spec)?.clone();
                self.visits.visit(ACT_LIMIT, move |visitor| act::wire(visitor, host, None, &to)).await
            }
            Action::Update { from, to, .. } => {
                let (from, to) = (inside_spec(from)?.clone(), inside_spec(to)?.clone());
                self.visits.visit(ACT_LIMIT, move |visitor| act::wire(visitor, host, Some(&from), &to)).await
            }
            Action::Delete { was, .. } => {
                let was = inside_spec(was)?.clone();
                self.visits.visit(ACT_LIMIT, move |visitor| act::unwire(visitor, host, &was)).await
            }
        };
        done.map_err(|fault| fault.to_action(&what))?
    }

    /// Looks at the containers that are wanted: where their veths lead and, when `enter`, how it is inside.
    pub(in super::super) async fn look_inside(
        &mut self,
        interest: &Interest,
        ours: &BTreeMap<IfName, FoundLink>,
        enter: bool,
    ) -> Result<InsideLook, Fault> {
        let mut asked = Vec::new();
        for (veth, spec) in &interest.insides {
            let Some(host) = ours.get(veth).and_then(|link| HostEnd::of(link, self.mark)) else { continue };
            if enter || !self.peers.contains_key(&(host.index, host.far_nsid)) {
                asked.push(Wanted { veth: veth.clone(), spec: spec.clone(), host });
            }
        }
        let mut found = InsideLook { specs: BTreeMap::new(), cut: None };
        if asked.is_empty() {
            return Ok(found);
        }
        let sights = self.visits.visit(LOOK_LIMIT, move |visitor| look::at_all(visitor, asked, enter)).await?;
        let mut reasons = Vec::new();
        for Sight { wanted, leads_there, spec } in sights {
            let place = (wanted.host.index, wanted.host.far_nsid);
            match leads_there {
                Some(true) => {
                    self.peers.insert(
                        place,
                        crate::object::VethPeer { netns: wanted.spec.netns.clone(), name: wanted.spec.name.clone() },
                    );
                }
                Some(false) => drop(self.peers.remove(&place)),
                None => {}
            }
            match spec {
                Ok(Some(spec)) => drop(found.specs.insert(wanted.veth, spec)),
                Ok(None) => {}
                Err(reason) => reasons.push(format!("{}: {reason}", wanted.veth)),
            }
        }
        found.cut = summary(&reasons);
        Ok(found)
    }
}

/// The containers' sides as they were seen.
pub(in super::super) struct InsideLook {
    pub(in super::super) specs: BTreeMap<IfName, InsideSpec>,
    pub(in super::super) cut: Option<String>,
}

/// The first reason and how many more there are: a thousand containers may have one and the same.
fn summary(reasons: &[String]) -> Option<String> {
    let first = reasons.first()?;
    Some(match reasons.len() - 1 {
        0 => first.clone(),
        more => format!("{first}, and {more} more"),
    })
}

fn inside_spec(spec: &Spec) -> Result<&InsideSpec, ActionError> {
    match spec {
        Spec::Inside(inside) => Ok(inside),
        _ => Err(ActionError::Failed("a container side's action must carry a container side".into())),
    }
}
