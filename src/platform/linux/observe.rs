//! One look at the node: which dumps a round needs, and how sure each part is.
//!
//! Owns coverage. Leaves each dump to the file of its subsystem.
//!
//! Upholds I-03 (every object reported says whose it is), I-05 (what could not be dumped to the end is `Partial`, with the reason),
//! I-15 (one dump for each part, filtered in the kernel; never all routes, A8).
//!
//! Links are dumped in every look: addresses and routes name their link by an index, and which links are ours decides what else is read.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    LinuxKernel, addresses,
    errno::Fault,
    files,
    inside::InsideLook,
    links::{self, FoundLink, KIND_TUN, KIND_WIREGUARD},
    nft::Firewall,
    routes::{self, FoundRoute, Target},
    surroundings, sysctls,
};
use crate::{
    ids::IfName,
    object::{Key, RouteSpec, Setting, Spec, Subsystem},
    observed::{Coverage, Neighbour, Observation, Observed, Owner},
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

    fn name_of(&self, index: u32) -> Option<IfName> {
        self.all.get(&index)?.name.parse().ok()
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
        let inside = self.report_inside(&seen, interest, &mut observation).await;
        for subsystem in &interest.subsystems {
            let cut = match subsystem {
                Subsystem::Link => {
                    self.report_links(&seen, interest, &mut observation);
                    self.report_surroundings(&mut observation).await.map(|()| None)
                }
                Subsystem::Address => self.report_addresses(&seen, &mut observation).await,
                Subsystem::Route => self.report_routes(&seen, interest, &mut observation).await,
                Subsystem::Sysctl => self.report_sysctls(&seen, interest, &mut observation).await,
                // One dump brings both; the second of the two finds it done.
                Subsystem::Device | Subsystem::Peer => continue,
                Subsystem::Inside => inside.clone(),
                Subsystem::File => {
                    let resolver_dir = self.resolver_dir.as_deref();
                    Ok(files::observe(self.mark, &self.run_dir, resolver_dir, interest, &mut observation))
                }
                Subsystem::LinkDns => {
                    self.report_link_dns(&seen, interest, &mut observation).await;
                    Ok(None)
                }
                // Behind the links, which bring the surroundings that this adds to.
                Subsystem::Guest => self.firewall.report_guests(&mut observation).await,
                Subsystem::Ruleset | Subsystem::Member => continue,
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
        if Firewall::REPORTED.iter().any(|subsystem| interest.subsystems.contains(subsystem)) {
            let cut = self.firewall.report(&mut observation).await;
            for subsystem in Firewall::REPORTED {
                observation.coverage.insert(subsystem, coverage(&seen, cut.clone()));
            }
        }
        Ok(observation)
    }

    fn narrow_hints(&self, seen: &Seen, interest: &Interest) {
        let ours = seen.ours(self).into_iter().map(|(_, link)| link.clone());
        let names = interest.links.iter().map(ToString::to_string).collect();
        self.monitor.narrow(ours, names, self.route.port());
    }

    /// Comes before the links: by what is found here a veth's far end is named.
    async fn report_inside(
        &mut self,
        seen: &Seen,
        interest: &Interest,
        observation: &mut Observation,
    ) -> Result<Option<String>, Fault> {
        let enter = interest.subsystems.contains(&Subsystem::Inside);
        if !enter && !interest.subsystems.contains(&Subsystem::Link) {
            return Ok(None);
        }
        if seen.cut.is_none() {
            let is_there =
                |place: &(u32, i32)| seen.all.get(&place.0).is_some_and(|link| link.far_nsid == Some(place.1));
            self.peers.retain(|place, _| is_there(place));
        }
        let ours: BTreeMap<IfName, FoundLink> =
            seen.ours(self).into_iter().map(|(name, link)| (name, link.clone())).collect();
        let InsideLook { specs, cut } = self.look_inside(interest, &ours, enter).await?;
        let objects = specs.into_iter().map(|(veth, spec)| (Key::Inside(veth), Observed::ours(Spec::Inside(spec))));
        observation.objects.extend(objects);
        Ok(cut)
    }

    fn report_links(&self, seen: &Seen, interest: &Interest, observation: &mut Observation) {
        for link in seen.all.values() {
            let Ok(name) = link.name.parse::<IfName>() else {
                continue;
            };
            let owner = if link.is_ours(self.mark) {
                Owner::Ours
            } else if interest.links.contains(&name) {
                Owner::Stranger(link.described())
            } else {
                continue;
            };
            let master = link.master.and_then(|index| seen.name_of(index));
            let peer = link.far_nsid.and_then(|nsid| self.peers.get(&(link.index, nsid))).cloned();
            let spec = Spec::Link(link.spec(self.mark, master, peer));
            observation.objects.insert(Key::Link(name), Observed { spec, owner, stats: None });
        }
    }

    /// What the firewall knows of its surroundings is added by whoever looks at the firewall.
    async fn report_surroundings(&mut self, observation: &mut Observation) -> Result<(), Fault> {
        let mut found = surroundings::look(&mut self.route, self.mark, &self.run_dir).await?;
        if self.resolved.is_there().await {
            found.neighbours.insert(Neighbour::Resolved);
        }
        observation.surroundings = Some(found);
        Ok(())
    }

    async fn report_addresses(&mut self, seen: &Seen, observation: &mut Observation) -> Result<Option<String>, Fault> {
        let ours: BTreeMap<u32, (IfName, &FoundLink)> =
            seen.ours(self).into_iter().map(|(name, link)| (link.index, (name, link))).collect();
        let links: Vec<_> = ours.values().map(|(_, link)| *link).collect();
        let dump = addresses::dump(&mut self.route, &links).await?;
        let told = self.has_address_protocol().await?;
        for found in &dump.items {
            if let (Some((name, _)), Some(observed)) = (ours.get(&found.index), addresses::observed(found, told)) {
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

    /// Settings that are wanted, and all of our WireGuard links. Not those of a thousand veths of which nobody wants to know.
    async fn report_sysctls(
        &mut self,
        seen: &Seen,
        interest: &Interest,
        observation: &mut Observation,
    ) -> Result<Option<String>, Fault> {
        let ours: BTreeMap<IfName, &FoundLink> = seen.ours(self).into_iter().collect();
        let devices = ours.iter().filter(|(_, link)| [KIND_WIREGUARD, KIND_TUN].contains(&link.kind.as_str()));
        let of_devices = devices.flat_map(|(name, _)| Setting::ALL.map(|setting| (name.clone(), setting)));
        let wanted = interest.keys.iter().filter_map(|key| match key {
            Key::Sysctl { link, setting } => Some((link.clone(), *setting)),
            _ => None,
        });
        let uplinks = match &observation.surroundings {
            Some(surroundings) => surroundings.uplinks.clone(),
            None => surroundings::uplinks(&mut self.route, self.mark).await?,
        };
        // Whether anything is wanted on the way out is known only once it has been found.
        let raisable = Setting::ALL.into_iter().filter(|setting| setting.may_be_on_uplink());
        let of_uplinks = raisable.flat_map(|setting| uplinks.iter().map(move |link| (link.clone(), setting)));
        let asked: BTreeSet<(IfName, Setting)> = of_devices.chain(wanted).chain(of_uplinks).collect();
        for (link, setting) in asked {
            let Some(value) = sysctls::read(&link, setting)? else { continue };
            // A setting has no mark. On the way out the one that lets packets be sent on is ours to raise.
            let is_ours = ours.contains_key(&link) || (setting.may_be_on_uplink() && uplinks.contains(&link));
            let owner = if is_ours {
                Owner::Ours
            } else {
                Owner::Stranger("a setting of a link that is not overlayd's".to_owned())
            };
            let key = Key::Sysctl { link, setting };
            observation.objects.insert(key, Observed { spec: Spec::Sysctl(value), owner, stats: None });
        }
        Ok(None)
    }

    /// Of the links that carry an overlay, and no others: nobody tells a resolver about a container's port.
    async fn report_link_dns(&mut self, seen: &Seen, interest: &Interest, observation: &mut Observation) {
        let devices = seen.ours(self).into_iter();
        let devices = devices.filter(|(_, link)| [KIND_WIREGUARD, KIND_TUN].contains(&link.kind.as_str()));
        let devices: Vec<(IfName, u32)> = devices.map(|(name, link)| (name, link.index)).collect();
        self.resolved.report(&devices, interest, observation).await;
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
