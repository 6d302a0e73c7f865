//! Our tables as objects: one ruleset, and its members.
//!
//! Owns the socket that holds the tables, and carrying out actions in one transaction each. Leaves the content of the transaction to the
//! other files of the room.
//!
//! Upholds I-03, I-04, I-08 (a ruleset that is intact is never written again), I-15.
//!
//! Where the kernel can (Linux 6.9), a table belongs to the socket that made it, and `flush ruleset` of another program passes it by. It stays
//! when the socket closes, and whoever knows it may take hold of it again: the next process of this instance does, when it first looks.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::{
    super::{
        conntrack,
        errno::Fault,
        socket::{CALL_LIMIT, Channel},
    },
    element::{self, Element},
    encode::{Attributes, Batch, Verb},
    expression::jump,
    held::{Change, Held},
    read::{self, Look},
    rules::{network_rules, rules},
    shape::{Half, chain_of, chains, network_chain, network_sets, sets, table_comment, table_name},
    watch::{OwnPort, Watch},
};
use crate::{
    action::Action,
    object::{Key, Mark, MemberSpec, RulesetSpec, Spec, Subsystem},
    observed::{Observation, Observed, Owner},
    platform::ActionError,
};

/// `NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST` (linux/netfilter/nf_tables.h).
const HELD_BY_SOCKET: u32 = 0x2 | 0x4;
const PERSIST: u32 = 0x4;
const NLM_F_APPEND: u16 = 0x800;
pub(super) const NLM_F_CREATE: u16 = 0x400;
/// Transactions in a row that another program's change may undo before it is an error.
const TRIES: usize = 4;
/// Bytes of elements in one attribute, whose length has 16 bits.
const ELEMENT_BYTES: usize = 48 * 1024;

/// Our tables, through one socket for the process's life.
pub(in crate::platform::linux) struct Firewall {
    channel: Channel,
    tracker: Channel,
    own_port: OwnPort,
    mark: Mark,
    table: String,
    /// Flags of our tables; `None` until the kernel was asked what it can.
    flags: Option<u32>,
    /// What the sets hold; `None` when that is not known.
    held: Option<Held>,
}

impl Firewall {
    /// Opens the sockets, in the namespace of the calling thread. `plain`: do without tables that belong to a socket.
    pub(in crate::platform::linux) fn open(mark: Mark, plain: bool) -> io::Result<Self> {
        Ok(Self {
            channel: Channel::open(NETLINK_NETFILTER)?,
            tracker: Channel::open(NETLINK_NETFILTER)?,
            own_port: OwnPort::default(),
            mark,
            table: table_name(mark),
            flags: plain.then_some(0),
            held: None,
        })
    }

    /// A subscription to what others change in our tables, and in the chains of our guests.
    pub(in crate::platform::linux) fn watch(&self) -> io::Result<Watch> {
        Watch::open(self.own_port.clone(), self.table.clone())
    }

    pub(super) fn mark(&self) -> Mark {
        self.mark
    }

    pub(super) fn channel(&mut self) -> &mut Channel {
        &mut self.channel
    }

    /// Sends a transaction. All of them go through here, so that their echo is known.
    pub(super) async fn send(&mut self, batch: Batch) -> Result<(), Fault> {
        self.own_port.set(self.channel.port());
        let outcome = self.channel.send(&mut batch.finish(), CALL_LIMIT).await;
        self.own_port.set(self.channel.port());
        outcome
    }

    /// Reports the ruleset and the members; answers why they may not be all.
    ///
    /// Tables of ours that no socket holds are taken hold of: that changes nothing of what they say or let through.
    pub(in crate::platform::linux) async fn report(
        &mut self,
        observation: &mut Observation,
    ) -> Result<Option<String>, Fault> {
        let look = read::look(&mut self.channel, &self.table).await?;
        if look.inet.is_none() && look.bridge.is_none() {
            self.held = Some(Held::default());
            return Ok(look.cut);
        }
        if let Some(half) = self.strangers_half(&look) {
            let owner = Owner::Stranger(self.stranger(half));
            let spec = Spec::Ruleset(RulesetSpec { intact: false, ..RulesetSpec::default() });
            observation.objects.insert(Key::Ruleset, Observed { spec, owner, stats: None });
            return Ok(look.cut);
        }
        self.take_hold(&look).await;
        let held = Held::new(look.elements);
        let mut spec = element::to_ruleset(&held.fixed);
        spec.intact &= look.intact && !held.has_strays();
        observation.objects.insert(Key::Ruleset, Observed::ours(Spec::Ruleset(spec)));
        for (address, member) in held.members() {
            observation.objects.insert(Key::Member(address), Observed::ours(Spec::Member(member)));
        }
        self.held = look.cut.is_none().then_some(held);
        Ok(look.cut)
    }

    /// The table that has our name and is not ours.
    fn strangers_half(&self, look: &Look) -> Option<Half> {
        let comment = table_comment(self.mark);
        Half::BOTH.into_iter().find(|half| look.table(*half).is_some_and(|seen| !seen.carries(&comment)))
    }

    fn stranger(&self, half: Half) -> String {
        format!("the table {} {} that overlayd did not make", half.word(), self.table)
    }

    /// Failing costs protection, not function: another program could remove the tables, and the next round would make them again.
    async fn take_hold(&mut self, look: &Look) {
        let is_free = |half: &Half| look.table(*half).is_some_and(|seen| seen.flags & HELD_BY_SOCKET == PERSIST);
        let flags = match self.flags().await {
            Ok(flags) if flags != 0 => flags,
            Ok(_) | Err(_) => return,
        };
        let mut batch = Batch::new(None);
        for half in Half::BOTH.into_iter().filter(is_free) {
            batch.create(Verb::NewTable, half.family(), &self.table_request(flags));
        }
        if batch.is_empty() {
            return;
        }
        if let Err(fault) = self.send(batch).await {
            tracing::debug!(reason = fault.words(), "the firewall tables are held by another process of this instance");
        }
    }

    /// What tables can be made with here. Asked once, by making a table and taking it back in one transaction.
    async fn flags(&mut self) -> Result<u32, Fault> {
        if let Some(flags) = self.flags {
            return Ok(flags);
        }
        let name = Attributes::default().text(1, &format!("{}_probe", self.table));
        let mut batch = Batch::new(None);
        let family = Half::Inet.family();
        batch.create(Verb::NewTable, family, &name.clone().number(2, HELD_BY_SOCKET));
        batch.push(Verb::DeleteTable, 0, family, &name);
        let flags = match self.send(batch).await {
            Ok(()) => HELD_BY_SOCKET,
            Err(fault) if matches!(fault.errno(), Some(Errno::EOPNOTSUPP | Errno::EINVAL)) => {
                tracing::info!(
                    "this kernel (before 6.9) does not protect tables; another program may remove them, and they are made again"
                );
                0
            }
            Err(fault) => return Err(fault),
        };
        self.flags = Some(flags);
        Ok(flags)
    }

    fn table_request(&self, flags: u32) -> Attributes {
        Attributes::default().text(1, &self.table).number(2, flags).bytes(6, &table_comment(self.mark))
    }

    /// Carries out an action on the ruleset.
    pub(in crate::platform::linux) async fn execute_ruleset(&mut self, action: &Action) -> Result<(), ActionError> {
        let outcome = match (action, action.result()) {
            (_, None) => self.remove().await,
            (Action::Update { from: Spec::Ruleset(from), .. }, Some(Spec::Ruleset(to))) if from.intact => {
                match self.adjust(to).await {
                    Ok(()) => Ok(()),
                    // Somebody was faster: look, and do what is needed then.
                    Err(_) => self.ensure(to).await,
                }
            }
            (_, Some(Spec::Ruleset(to))) => self.ensure(to).await,
            (_, Some(_)) => return Err(ActionError::Failed("the ruleset's action must carry a ruleset".into())),
        };
        if outcome.is_err() {
            self.held = None;
        }
        outcome
    }

    /// Changes the elements that differ.
    async fn adjust(&mut self, to: &RulesetSpec) -> Result<(), ActionError> {
        let Some(held) = &self.held else { return Err(ActionError::Gone("the firewall's sets were not read".into())) };
        let wanted = element::of_ruleset(to);
        let mut batch = Batch::new(None);
        self.push_elements(&mut batch, Verb::DeleteElements, held.fixed.difference(&wanted));
        self.push_elements(&mut batch, Verb::NewElements, wanted.difference(&held.fixed));
        self.commit(batch).await.map_err(|fault| fault.to_action("change the firewall's sets"))?;
        if let Some(held) = &mut self.held {
            held.fixed = wanted;
        }
        Ok(())
    }

    /// Looks, and writes what is not as wanted: elements, or the tables as a whole with the members that are in them.
    async fn ensure(&mut self, to: &RulesetSpec) -> Result<(), ActionError> {
        const WHAT: &str = "write the firewall tables";
        // Asking changes the generation, so it comes before the look.
        let flags = self.flags().await.map_err(|fault| fault.to_action(WHAT))?;
        for _ in 0..TRIES {
            let look = read::look(&mut self.channel, &self.table).await.map_err(|fault| fault.to_action(WHAT))?;
            if let Some(half) = self.strangers_half(&look) {
                return Err(ActionError::Stranger(self.stranger(half)));
            }
            let held = Held::new(look.elements.iter().cloned());
            let is_held = |half: Half| look.table(half).is_some_and(|seen| seen.flags & PERSIST == flags & PERSIST);
            if look.intact && !held.has_strays() && Half::BOTH.into_iter().all(is_held) {
                self.held = Some(held);
                return self.adjust(to).await;
            }
            let mut next = held.mended();
            next.fixed = element::of_ruleset(to);
            let batch = self.whole(&look, &next, flags);
            match self.send(batch).await {
                Ok(()) => {
                    self.held = Some(next);
                    return Ok(());
                }
                // Another program changed rules since the look.
                Err(fault) if fault.errno() == Some(Errno::ERESTART) => {}
                Err(fault) => return Err(fault.to_action(WHAT)),
            }
        }
        Err(ActionError::Failed(format!("{WHAT}: other programs keep changing firewall rules; stop one of them")))
    }

    /// Both tables as they are to be, in place of those that are there.
    fn whole(&self, look: &Look, held: &Held, flags: u32) -> Batch {
        let table = &self.table;
        let mut batch = Batch::new(Some(look.generation));
        for half in Half::BOTH {
            let family = half.family();
            if look.table(half).is_some() {
                batch.push(Verb::DeleteTable, 0, family, &Attributes::default().text(1, table));
            }
            batch.create(Verb::NewTable, family, &self.table_request(flags));
            for (shape, number) in sets(half).iter().zip(1..) {
                batch.create(Verb::NewSet, family, &shape.request(table, number));
            }
            for shape in chains(half) {
                batch.create(Verb::NewChain, family, &shape.request(table));
            }
            for rule in rules(half) {
                batch.push(Verb::NewRule, NLM_F_CREATE | NLM_F_APPEND, family, &rule.request(table));
            }
        }
        self.push_networks(&mut batch, held.networks());
        self.push_elements(&mut batch, Verb::NewElements, held.elements());
        batch
    }

    async fn remove(&mut self) -> Result<(), ActionError> {
        const WHAT: &str = "remove the firewall tables";
        let look = read::look(&mut self.channel, &self.table).await.map_err(|fault| fault.to_action(WHAT))?;
        let comment = table_comment(self.mark);
        let mut batch = Batch::new(None);
        for half in Half::BOTH {
            if look.table(half).is_some_and(|seen| seen.carries(&comment)) {
                let name = Attributes::default().text(1, &self.table);
                batch.push(Verb::DeleteTable, 0, half.family(), &name);
            }
        }
        match self.commit(batch).await {
            Err(fault) if !fault.is_gone() => return Err(fault.to_action(WHAT)),
            Ok(()) | Err(_) => {}
        }
        self.held = Some(Held::default());
        Ok(())
    }

    /// Carries out actions on members that are all different, in one transaction; one that spoils it is found by trying each alone.
    pub(in crate::platform::linux) async fn execute_members(
        &mut self,
        actions: &[Action],
    ) -> Vec<Result<(), ActionError>> {
        let mut outcomes = Vec::with_capacity(actions.len());
        let together = self.change_members(actions).await;
        if actions.len() == 1 || together.is_ok() {
            outcomes.resize(actions.len(), together);
        } else {
            for action in actions {
                outcomes.push(self.change_members(std::slice::from_ref(action)).await);
            }
        }
        let moved = actions.iter().zip(&outcomes).filter(|(action, outcome)| outcome.is_ok() && changes_holder(action));
        let addresses: Vec<IpAddr> = moved.filter_map(|(action, _)| address_of(action)).collect();
        self.forget_flows(&addresses).await;
        outcomes
    }

    async fn change_members(&mut self, actions: &[Action]) -> Result<(), ActionError> {
        let mut wanted: BTreeMap<IpAddr, Option<MemberSpec>> = BTreeMap::new();
        for action in actions {
            let (Some(address), spec) = (address_of(action), action.result()) else {
                return Err(ActionError::Failed("a member's action must be about an address".into()));
            };
            let spec = match spec {
                None => None,
                Some(Spec::Member(spec)) => Some(spec.clone()),
                Some(_) => return Err(ActionError::Failed("a member's action must carry a member".into())),
            };
            wanted.insert(address, spec);
        }
        let what = match actions {
            [one] => format!("{} {}", one.verb(), one.key()),
            _ => format!("change {} members", actions.len()),
        };
        if let Some(held) = &self.held {
            let change = held.change(wanted.clone());
            match self.commit_change(change).await {
                Ok(()) => return Ok(()),
                Err(fault @ Fault::Timeout(_)) => return Err(fault.to_action(&what)),
                // What is there is not what was there; look, and try once more.
                Err(_) => {}
            }
        }
        self.reread().await.map_err(|fault| fault.to_action(&what))?;
        let change = self.held.get_or_insert_default().change(wanted);
        let outcome = self.commit_change(change).await;
        if outcome.is_err() {
            self.held = None;
        }
        outcome.map_err(|fault| fault.to_action(&what))
    }

    async fn reread(&mut self) -> Result<(), Fault> {
        self.held = None;
        let look = read::look(&mut self.channel, &self.table).await?;
        self.held = Some(Held::new(look.elements));
        Ok(())
    }

    async fn commit_change(&mut self, change: Change) -> Result<(), Fault> {
        if !change.is_empty() {
            let mut batch = Batch::new(None);
            self.push_networks(&mut batch, change.begun.iter().copied());
            self.push_elements(&mut batch, Verb::DeleteElements, &change.remove);
            self.push_elements(&mut batch, Verb::NewElements, &change.add);
            self.push_network_ends(&mut batch, &change.ended);
            self.commit(batch).await?;
        }
        if let Some(held) = &mut self.held {
            held.accept(change);
        }
        Ok(())
    }

    async fn commit(&mut self, batch: Batch) -> Result<(), Fault> {
        if batch.is_empty() {
            return Ok(());
        }
        self.send(batch).await
    }

    /// What is there once for each network. A chain that is there already gets the same rules anew.
    fn push_networks(&self, batch: &mut Batch, networks: impl Iterator<Item = u32>) {
        const FIRST_NUMBER: u32 = 1000;
        let table = &self.table;
        let mut number = FIRST_NUMBER;
        for network in networks {
            for half in Half::BOTH {
                let family = half.family();
                for shape in network_sets(half, network) {
                    batch.create(Verb::NewSet, family, &shape.request(table, number));
                    number += 1;
                }
                batch.create(Verb::NewChain, family, &network_chain(network).request(table));
                let of_chain = Attributes::default().text(1, table).text(2, &chain_of(network));
                batch.push(Verb::DeleteRule, 0, family, &of_chain);
                for rule in network_rules(half, network) {
                    batch.push(Verb::NewRule, NLM_F_CREATE | NLM_F_APPEND, family, &rule.request(table));
                }
            }
        }
    }

    fn push_network_ends(&self, batch: &mut Batch, networks: &BTreeSet<u32>) {
        let of_table = || Attributes::default().text(1, &self.table);
        for (network, half) in networks.iter().flat_map(|network| Half::BOTH.map(|half| (*network, half))) {
            batch.push(Verb::DeleteChain, 0, half.family(), &of_table().text(3, &chain_of(network)));
            for shape in network_sets(half, network) {
                batch.push(Verb::DeleteSet, 0, half.family(), &of_table().text(2, &shape.name));
            }
        }
    }

    fn push_elements<'a, I>(&self, batch: &mut Batch, verb: Verb, elements: I)
    where
        I: IntoIterator<Item = &'a Element>,
    {
        let mut by_set: BTreeMap<(Half, &str), Vec<&Element>> = BTreeMap::new();
        for element in elements {
            by_set.entry((element.half, &element.set)).or_default().push(element);
        }
        for ((half, set), mut elements) in by_set {
            // Where one range ends and the next begins the kernel wants to hear of the end first.
            elements.sort_by_key(|element| (&element.key, !element.end));
            let mut list = Attributes::default();
            for element in elements {
                list = list.join(&encoded(element));
                if list.len() >= ELEMENT_BYTES {
                    self.push_list(batch, verb, half, set, &std::mem::take(&mut list));
                }
            }
            if !list.is_empty() {
                self.push_list(batch, verb, half, set, &list);
            }
        }
    }

    fn push_list(&self, batch: &mut Batch, verb: Verb, half: Half, set: &str, list: &Attributes) {
        let request = Attributes::default().text(1, &self.table).text(2, set).nest(3, list);
        let flags = if verb == Verb::NewElements { NLM_F_CREATE } else { 0 };
        batch.push(verb, flags, half.family(), &request);
    }

    /// Ends what the kernel remembers of connections from and to these addresses: their next holder must not get the last one's answers
    /// (A27).
    pub(in crate::platform::linux) async fn forget_flows(&mut self, addresses: &[IpAddr]) {
        if let Err(fault) = conntrack::forget(&mut self.tracker, addresses).await {
            tracing::warn!(reason = fault.words(), "connections of addresses that changed hands could not be ended");
        }
    }

    /// The subsystems that [`report`](Self::report) tells of in one look.
    pub(in crate::platform::linux) const REPORTED: [Subsystem; 2] = [Subsystem::Ruleset, Subsystem::Member];
}

pub(super) fn encoded(element: &Element) -> Attributes {
    const RANGE_END: u32 = 1;
    let mut inner = Attributes::default().nest(1, &Attributes::default().bytes(1, &element.key));
    if let Some(network) = element.value {
        inner = inner.nest(2, &jump(&chain_of(network)));
    }
    if element.end {
        inner = inner.number(3, RANGE_END);
    }
    Attributes::default().nest(1, &inner)
}

fn address_of(action: &Action) -> Option<IpAddr> {
    match action.key() {
        Key::Member(address) => Some(*address),
        _ => None,
    }
}

/// True when somebody else may have the address from now on.
fn changes_holder(action: &Action) -> bool {
    match action {
        Action::Create { .. } => false,
        Action::Delete { .. } => true,
        Action::Update { from: Spec::Member(from), to: Spec::Member(to), .. } => from != to,
        Action::Update { .. } => false,
    }
}
