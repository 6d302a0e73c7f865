//! One look at the node: which dumps a round needs, and how sure each part is.
//!
//! Owns coverage. Leaves each dump to the file of its subsystem.
//!
//! Upholds I-03 (every object reported says whose it is), I-05 (what could not be dumped to the end is `Partial`, with the reason),
//! I-15 (one dump for each part, filtered in the kernel; never all routes, A8).
//!
//! Links are dumped in every look: addresses and routes name their link by an index, and which links are ours decides what else is read.

use std::collections::BTreeMap;

use super::{
    LinuxKernel, addresses,
    errno::Fault,
    links::{self, FoundLink, KIND_TUN, KIND_WIREGUARD},
    routes::{self, FoundRoute, Target},
    sysctls,
};
use crate::{
    ids::IfName,
    object::{Key, RouteSpec, Setting, Spec, Subsystem},
    observed::{Coverage, Observation, Observed, Owner},
    platform::{Interest, ObserveError},
};

/// The links of the namespace, and why they may not be all.
struct Seen {
    all: BTreeMap<u32, FoundLink>,
    cut: Option<String>,
}

impl Seen {
    /// Our links by name. A link with our mark whose name is no [`IfName`] was renamed by somebody; it cannot be named in a plan.
    fn ours(&self, kernel: &LinuxKernel) -> Vec<(IfName, &FoundLink)> {
        let ours = self.all.values().filter(|link| link.is_ours(kernel.mark));
        ours.filter_map(|link| Some((link.name.parse().ok()?, link))).collect()
    }
}

impl LinuxKernel {
    /// Looks at what a round is interested in; see [`Kernel::observe`](crate::platform::Kernel::observe).
    pub(super) async fn look(&mut self, interest: &Interest) -> Result<Observation, ObserveError> {
        let mut observation = Observation::default();
        if interest.subsystems.is_empty() {
            return Ok(observation);
        }
        let dump = links::dump(&mut self.route).await;
        let dump = dump.map_err(|fault| fault.to_observe("links"))?;
        let seen = Seen { all: dump.items.into_iter().map(|link| (link.index, link)).collect(), cut: dump.cut };
        self.narrow_hints(&seen, interest);
        for subsystem in &interest.subsystems {
            let cut = match subsystem {
                Subsystem::Link => {
                    self.report_links(&seen, interest, &mut observation);
                    Ok(None)
                }
                Subsystem::Address => self.report_addresses(&seen, &mut observation).await,
                Subsystem::Route => self.report_routes(&seen, interest, &mut observation).await,
                Subsystem::Sysctl => self.report_sysctls(&seen, &mut observation),
                // One dump brings both; the second of the two finds it done.
                Subsystem::Device | Subsystem::Peer => continue,
                Subsystem::Inside | Subsystem::Ruleset | Subsystem::Member | Subsystem::Guest | Subsystem::File => {
                    Ok(None)
                }
            };
            observation.coverage.insert(*subsystem, coverage(&seen, cut));
        }
        let wireguard = [Subsystem::Device, Subsystem::Peer];
        if wireguard.iter().any(|subsystem| interest.subsystems.contains(subsystem)) {
            let cut = self.report_devices(&seen, &mut observation).await;
            for subsystem in wireguard {
                observation.coverage.insert(subsystem, coverage(&seen, Ok(cut.clone())));
            }
        }
        Ok(observation)
    }

    fn narrow_hints(&self, seen: &Seen, interest: &Interest) {
        let mut scope = self.scope.lock();
        scope.indexes = seen.ours(self).iter().map(|(_, link)| link.index).collect();
        scope.names = interest.links.iter().map(ToString::to_string).collect();
        scope.own_port = self.route.port();
    }

    fn report_links(&self, seen: &Seen, interest: &Interest, observation: &mut Observation) {
        for link in seen.all.values() {
            let Ok(name) = link.name.parse::<IfName>() else {
                continue;
            };
            if link.is_ours(self.mark) || interest.links.contains(&name) {
                observation.objects.insert(Key::Link(name), link.observed(self.mark));
            }
        }
    }

    async fn report_addresses(&mut self, seen: &Seen, observation: &mut Observation) -> Result<Option<String>, Fault> {
        let ours = seen.ours(self);
        let links: Vec<_> = ours.iter().map(|(_, link)| *link).collect();
        let dump = addresses::dump(&mut self.route, &links).await?;
        let told = self.has_address_protocol().await?;
        for found in &dump.items {
            let name = ours.iter().find(|(_, link)| link.index == found.index);
            if let (Some((name, _)), Some(observed)) = (name, addresses::observed(found, told)) {
                let key = Key::Address { link: name.clone(), address: found.net };
                observation.objects.insert(key, observed);
            }
        }
        Ok(dump.cut)
    }

    async fn report_routes(
        &mut self,
        seen: &Seen,
        interest: &Interest,
        observation: &mut Observation,
    ) -> Result<Option<String>, Fault> {
        let dump = routes::dump(&mut self.route).await?;
        for found in &dump.items {
            let key = Key::Route { destination: found.destination, metric: found.metric };
            let owner = if found.is_ours(self.mark) {
                Owner::Ours
            } else if interest.keys.contains(&key) {
                Owner::Stranger("a route of another overlayd instance".to_owned())
            } else {
                continue;
            };
            let observed = Observed { spec: Spec::Route(route_spec(found, seen)), owner, stats: None };
            observation.objects.insert(key, observed);
        }
        Ok(dump.cut)
    }

    fn report_sysctls(&self, seen: &Seen, observation: &mut Observation) -> Result<Option<String>, Fault> {
        for (link, _) in seen.ours(self) {
            for setting in Setting::ALL {
                if let Some(value) = sysctls::read(&link, setting)? {
                    let key = Key::Sysctl { link: link.clone(), setting };
                    observation.objects.insert(key, Observed::ours(Spec::Sysctl(value)));
                }
            }
        }
        Ok(None)
    }

    /// A device that cannot be read makes the part partial and hides no other device.
    async fn report_devices(&mut self, seen: &Seen, observation: &mut Observation) -> Option<String> {
        let mut cuts = Vec::new();
        for (name, link) in seen.ours(self) {
            let read = match link.kind.as_str() {
                KIND_WIREGUARD => match self.wireguard.observe(link, &name).await {
                    Ok(read) => Ok(read),
                    // It went away since the links were dumped; the next look has neither.
                    Err(fault) if fault.is_gone() => Err("its link went away meanwhile".to_owned()),
                    Err(fault) => Err(fault.words()),
                },
                KIND_TUN => match self.userspace.observe(&name).await {
                    Ok(objects) => Ok((objects, None)),
                    Err(error) => Err(error.to_string()),
                },
                _ => continue,
            };
            match read {
                Ok((objects, cut)) => {
                    observation.objects.extend(objects);
                    cuts.extend(cut.map(|cut| format!("{name}: {cut}")));
                }
                Err(reason) => cuts.push(format!("{name}: {reason}")),
            }
        }
        (!cuts.is_empty()).then(|| cuts.join("; "))
    }
}

fn coverage(seen: &Seen, cut: Result<Option<String>, Fault>) -> Coverage {
    let cut = match cut {
        Ok(cut) => cut,
        Err(fault) => Some(fault.words()),
    };
    match cut.or_else(|| seen.cut.clone()) {
        Some(reason) => Coverage::Partial(reason),
        None => Coverage::Whole,
    }
}

fn route_spec(found: &FoundRoute, seen: &Seen) -> RouteSpec {
    match &found.target {
        Target::Unreachable => RouteSpec::Unreachable,
        Target::Other(text) => RouteSpec::Other(text.clone()),
        Target::Device(index) => match seen.all.get(index).map(|link| link.name.parse()) {
            Some(Ok(name)) => RouteSpec::Through(name),
            Some(Err(_)) | None => RouteSpec::Other(format!("a route through link number {index}")),
        },
    }
}
