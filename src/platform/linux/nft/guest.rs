//! Our rules in another program's forward chain.
//!
//! Owns finding out whether such a chain drops what nobody there asked for, and the pairs of rules that ask it to let the overlay through.
//! Leaves whether they are wanted to [`reconcile::target`](crate::reconcile::target).
//!
//! Upholds I-03 (only rules whose comment carries our mark are ever deleted), I-08.
//!
//! Docker sets the policy of `FORWARD` to drop (A30), and no accept of another table takes that back. What these rules let through has passed
//! our own chain or still has to: isolation does not depend on them. They stand in `DOCKER-USER` where `FORWARD` leads there, because Docker
//! keeps that chain for others, and else at the top of `FORWARD` itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    super::errno::Fault,
    encode::{Attributes, Batch, Verb},
    expression::{Compare, FIRST, Verdict, bits, compare, counter, destination, source, verdict},
    firewall::{Firewall, NLM_F_CREATE},
    read::{attributes, dump, number, text, value},
    shape::comment,
};
use crate::{
    action::Action,
    ids::Cidr,
    object::{Family, GuestSpec, Key, Mark, Spec},
    observed::{Observation, Observed},
    platform::ActionError,
};

/// Where `iptables` keeps its filter rules, through whichever program they were written.
pub(super) const TABLE: &str = "filter";
pub(super) const FORWARD: &str = "FORWARD";
/// Docker's chain for the rules of others.
pub(super) const DOCKER_USER: &str = "DOCKER-USER";
/// `NF_DROP` (linux/netfilter.h).
const POLICY_DROP: u32 = 0;

/// Which end of a packet a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    From,
    To,
}

impl End {
    const BOTH: [End; 2] = [End::From, End::To];

    fn word(self) -> &'static str {
        match self {
            End::From => "from",
            End::To => "to",
        }
    }
}

/// A rule in a chain that is not ours.
struct GuestRule {
    chain: &'static str,
    handle: Vec<u8>,
    comment: Vec<u8>,
    leads_to: Option<String>,
}

/// The forward chain of one family as it was seen.
#[derive(Default)]
struct Host {
    drops: bool,
    rules: Vec<GuestRule>,
}

impl Host {
    /// The chain that is asked.
    fn chain(&self) -> &'static str {
        let leads = |rule: &GuestRule| rule.chain == FORWARD && rule.leads_to.as_deref() == Some(DOCKER_USER);
        if self.rules.iter().any(leads) { DOCKER_USER } else { FORWARD }
    }

    fn ours(&self, mark: Mark) -> impl Iterator<Item = &GuestRule> {
        let begin = comment_of(mark, "");
        self.rules.iter().filter(move |rule| text_of(&rule.comment).is_some_and(|text| text.starts_with(&begin)))
    }

    /// The networks for which both rules are there.
    fn networks(&self, mark: Mark) -> BTreeSet<Cidr> {
        let begin = comment_of(mark, "");
        let mut ends: BTreeMap<Cidr, usize> = BTreeMap::new();
        let said: BTreeSet<String> = self.ours(mark).filter_map(|rule| text_of(&rule.comment)).collect();
        for text in said {
            let network = text.strip_prefix(&begin).and_then(|rest| rest.split_once(' ')?.1.parse().ok());
            if let Some(network) = network {
                *ends.entry(network).or_default() += 1;
            }
        }
        ends.into_iter().filter(|(_, count)| *count == End::BOTH.len()).map(|(network, _)| network).collect()
    }
}

impl Firewall {
    /// Reports in which families forwarded packets are dropped by another program, and our rules against it; answers why that may not be all.
    pub(in crate::platform::linux) async fn report_guests(
        &mut self,
        observation: &mut Observation,
    ) -> Result<Option<String>, Fault> {
        let mut cut = None;
        for family in Family::ALL {
            let host = self.host(family, &mut cut).await?;
            if let (true, Some(surroundings)) = (host.drops, &mut observation.surroundings) {
                surroundings.forward_drop.insert(family);
            }
            if host.ours(self.mark()).next().is_some() {
                let spec = Spec::Guest(GuestSpec { networks: host.networks(self.mark()) });
                observation.objects.insert(Key::Guest(family), Observed::ours(spec));
            }
        }
        Ok(cut)
    }

    /// Carries out an action on the rules of a family: those that are there make room for those that are wanted, in one transaction.
    pub(in crate::platform::linux) async fn execute_guest(
        &mut self,
        family: Family,
        action: &Action,
    ) -> Result<(), ActionError> {
        const WHAT: &str = "write rules into another program's forward chain";
        let wanted = match action.result() {
            None => BTreeSet::new(),
            Some(Spec::Guest(spec)) => spec.networks.clone(),
            Some(_) => return Err(ActionError::Failed("the action must carry networks".into())),
        };
        let mut cut = None;
        let host = self.host(family, &mut cut).await.map_err(|fault| fault.to_action(WHAT))?;
        if let Some(reason) = cut {
            return Err(ActionError::Failed(format!("{WHAT}: {reason}")));
        }
        let mut batch = Batch::new(None);
        for rule in host.ours(self.mark()) {
            batch.push(Verb::DeleteRule, 0, number_of(family), &in_chain(rule.chain).bytes(3, &rule.handle));
        }
        for (network, end) in wanted.iter().flat_map(|network| End::BOTH.map(|end| (network, end))) {
            let request = in_chain(host.chain())
                .nest(4, &expressions(network, end))
                .bytes(7, &comment(&comment_of(self.mark(), &format!("{} {network}", end.word()))));
            // Without "append" a rule is put at the top.
            batch.push(Verb::NewRule, NLM_F_CREATE, number_of(family), &request);
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.send(batch).await.map_err(|fault| fault.to_action(WHAT))
    }

    async fn host(&mut self, family: Family, cut: &mut Option<String>) -> Result<Host, Fault> {
        let of = number_of(family);
        let channel = self.channel();
        let chains = dump(channel, Verb::GetChain, of, Attributes::default(), cut, chain).await?;
        let mut host = Host { drops: chains.iter().any(|(name, drops)| name == FORWARD && *drops), rules: Vec::new() };
        for name in [FORWARD, DOCKER_USER] {
            if chains.iter().any(|(chain, _)| chain == name) {
                let rule = |attributes: &[u8]| rule(name, attributes);
                host.rules.extend(dump(channel, Verb::GetRule, of, in_chain(name), cut, rule).await?);
            }
        }
        Ok(host)
    }
}

/// `NFPROTO_IPV4`, `NFPROTO_IPV6` (linux/netfilter.h).
fn number_of(family: Family) -> u8 {
    match family {
        Family::Ipv4 => 2,
        Family::Ipv6 => 10,
    }
}

fn in_chain(chain: &str) -> Attributes {
    Attributes::default().text(1, TABLE).text(2, chain)
}

/// The text of a rule's comment: it says whose it is and what it lets through.
fn comment_of(mark: Mark, what: &str) -> String {
    format!("overlayd {mark} {what}")
}

/// A comment as text, without the frame that `nft` puts around it.
fn text_of(comment: &[u8]) -> Option<String> {
    let text = comment.get(2..)?.strip_suffix(&[0])?;
    String::from_utf8(text.to_vec()).ok()
}

fn expressions(network: &Cidr, end: End) -> Attributes {
    let family = Family::of(&network.network());
    let field = match end {
        End::From => source(family, FIRST),
        End::To => destination(family, FIRST),
    };
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mask = bits(FIRST, &octets(network.net().netmask()));
    let same = compare(Compare::Equal, FIRST, &octets(network.network()));
    let all = [field, mask, same, counter(), verdict(Verdict::Accept)];
    all.iter().fold(Attributes::default(), Attributes::join)
}

/// Name of a chain of the filter table, and whether it drops what it does not know.
pub(super) fn chain(attributes: &[u8]) -> Option<(String, bool)> {
    let drops = value(attributes, 4).is_some() && number(attributes, 5) == Some(POLICY_DROP);
    let name = if text(attributes, 1)? == TABLE { text(attributes, 3)? } else { String::new() };
    Some((name, drops))
}

fn rule(chain: &'static str, rule: &[u8]) -> Option<GuestRule> {
    let leads_to = attributes(value(rule, 4).unwrap_or_default()).flatten().find_map(|(_, expression)| {
        let decision = value(value(value(expression, 2)?, 2)?, 2)?;
        text(decision, 2)
    });
    Some(GuestRule {
        chain,
        handle: value(rule, 3)?.to_vec(),
        comment: value(rule, 7).unwrap_or_default().to_vec(),
        leads_to,
    })
}

/// Reads a rule of either chain.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn check_rule(attributes: &[u8]) {
    let mark = Mark::of_instance("/var/lib/overlayd");
    let rules = [FORWARD, DOCKER_USER].into_iter().filter_map(|name| rule(name, attributes)).collect();
    let host = Host { drops: true, rules };
    let count = host.ours(mark).count();
    assert!(host.networks(mark).len() <= count, "networks of no rule");
    assert!([FORWARD, DOCKER_USER].contains(&host.chain()));
}
