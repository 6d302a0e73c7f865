//! A look at our tables: are they as this version writes them, and what do their sets hold.
//!
//! Owns reading tables, chains, rules, sets and elements. Leaves what to do about a difference to [`firewall`](super::firewall).
//!
//! Upholds I-03 (a table with our name and without our comment is a stranger's), I-05 (a look into which somebody wrote is taken again, and
//! is partial when that does not help).
//!
//! Rules are compared by their comment, which holds a hash of what we wrote, and never by their expressions: the kernel gives those back in
//! another form than it took them. Who replaces a rule makes a new one, and that has not our comment.

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;

use super::{
    super::{errno::Fault, socket::Channel},
    element::Element,
    encode::{Attributes, Body, GENERIC, Verb},
    rules::{network_rules, rules},
    shape::{ChainShape, Half, SetShape, chains, network_chain, network_of_chain, network_sets, sets},
};

/// Looks at tables that somebody writes into meanwhile.
const LOOKS: usize = 3;
/// Kinds of attributes without the two bits that say how they are packed.
const KIND: u16 = 0x3fff;
const TABLE_DORMANT: u32 = 0x1;

/// A table as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TableSeen {
    pub(super) flags: u32,
    comment: Vec<u8>,
}

impl TableSeen {
    pub(super) fn carries(&self, comment: &[u8]) -> bool {
        self.comment == comment
    }
}

/// Both of our tables as they were seen.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) inet: Option<TableSeen>,
    pub(super) bridge: Option<TableSeen>,
    /// Every chain, rule and set is there and as this version writes it, and there are no others.
    pub(super) intact: bool,
    pub(super) elements: BTreeSet<Element>,
    /// The generation of all rulesets that was looked at.
    pub(super) generation: u32,
    /// Why it may not be all.
    pub(super) cut: Option<String>,
}

impl Look {
    pub(super) fn table(&self, half: Half) -> Option<&TableSeen> {
        match half {
            Half::Inet => self.inet.as_ref(),
            Half::Bridge => self.bridge.as_ref(),
        }
    }
}

/// Looks at both tables in one state of the rulesets.
pub(super) async fn look(channel: &mut Channel, table: &str) -> Result<Look, Fault> {
    let mut before = generation(channel).await?;
    for _ in 1..LOOKS {
        let mut look = once(channel, table).await?;
        let after = generation(channel).await?;
        look.generation = after;
        if before == after && look.cut.is_none() {
            return Ok(look);
        }
        before = after;
    }
    let mut look = once(channel, table).await?;
    look.generation = generation(channel).await?;
    if look.generation != before {
        look.cut.get_or_insert_with(|| "other programs keep changing firewall rules".to_owned());
    }
    Ok(look)
}

/// The number that every change of any ruleset of the namespace makes another.
pub(super) async fn generation(channel: &mut Channel) -> Result<u32, Fault> {
    let body = Body::new(0, &Attributes::default());
    channel.get(Verb::GetGeneration.kind(), &body, |_, body| number(body.get(GENERIC..)?, 1)).await
}

async fn once(channel: &mut Channel, table: &str) -> Result<Look, Fault> {
    let mut look = Look { intact: true, ..Look::default() };
    let mut networks = BTreeSet::new();
    for half in Half::BOTH {
        let seen = self::table(channel, half, table).await?;
        look.intact &= seen.as_ref().is_some_and(|seen| seen.flags & TABLE_DORMANT == 0);
        if seen.is_some() {
            read_half(channel, half, table, &mut networks, &mut look).await?;
        }
        match half {
            Half::Inet => look.inet = seen,
            Half::Bridge => look.bridge = seen,
        }
    }
    Ok(look)
}

async fn table(channel: &mut Channel, half: Half, table: &str) -> Result<Option<TableSeen>, Fault> {
    let body = Body::new(half.family(), &Attributes::default().text(1, table));
    let parse = |_: u16, body: &[u8]| table_seen(body.get(GENERIC..)?);
    match channel.get(Verb::GetTable.kind(), &body, parse).await {
        Ok(seen) => Ok(Some(seen)),
        Err(fault) if fault.errno() == Some(Errno::ENOENT) => Ok(None),
        Err(fault) => Err(fault),
    }
}

pub(super) fn table_seen(attributes: &[u8]) -> Option<TableSeen> {
    let comment = value(attributes, 6).map(<[u8]>::to_vec).unwrap_or_default();
    Some(TableSeen { flags: number(attributes, 2)?, comment })
}

/// `networks`: those that a member of the halves so far leads to. Where no member has a port (guests have none) only the first half tells.
async fn read_half(
    channel: &mut Channel,
    half: Half,
    table: &str,
    networks: &mut BTreeSet<u32>,
    look: &mut Look,
) -> Result<(), Fault> {
    let mut cut = None;
    let of_table = || Attributes::default().text(1, table);
    let family = half.family();
    let found = dump(channel, Verb::GetSet, family, of_table(), &mut cut, set).await?;
    let mut known = 0;
    for shape in sets(half) {
        let elements = read_set(channel, half, table, shape, &found, &mut cut).await?;
        known += usize::from(elements.is_some());
        let elements = elements.unwrap_or_default();
        networks.extend(elements.iter().filter_map(|element| element.value));
        look.elements.extend(elements);
    }
    // A set of a network that no member leads to is none of ours.
    let of_networks: Vec<SetShape> = networks.iter().flat_map(|network| network_sets(half, *network)).collect();
    for shape in &of_networks {
        let elements = read_set(channel, half, table, shape, &found, &mut cut).await?;
        known += usize::from(elements.is_some());
        look.elements.extend(elements.unwrap_or_default());
    }
    look.intact &= known == sets(half).len() + of_networks.len() && known == found.len();

    let shapes: Vec<ChainShape> =
        chains(half).iter().cloned().chain(networks.iter().map(|network| network_chain(*network))).collect();
    let found = dump(channel, Verb::GetChain, family, Attributes::default(), &mut cut, chain).await?;
    let found: BTreeSet<Vec<u8>> = found.into_iter().filter_map(|(of, chain)| (of == table).then_some(chain)).collect();
    look.intact &= found == shapes.iter().map(expected_chain).collect();

    let found = dump(channel, Verb::GetRule, family, of_table(), &mut cut, rule).await?;
    let wanted = rules(half).into_iter().chain(networks.iter().flat_map(|network| network_rules(half, *network)));
    look.intact &= by_chain(found.into_iter()) == by_chain(wanted.map(|rule| (rule.chain.to_string(), rule.comment())));
    look.cut = look.cut.take().or(cut);
    Ok(())
}

/// Comments by chain, in the order of the rules.
fn by_chain(rules: impl Iterator<Item = (String, Vec<u8>)>) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut all: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for (chain, comment) in rules {
        all.entry(chain).or_default().push(comment);
    }
    all
}

/// The elements of a set; `None` when it is not there or of another shape.
async fn read_set(
    channel: &mut Channel,
    half: Half,
    table: &str,
    shape: &SetShape,
    found: &[(String, [u32; 4])],
    cut: &mut Option<String>,
) -> Result<Option<Vec<Element>>, Fault> {
    if !found.iter().any(|(name, fingerprint)| *name == shape.name && *fingerprint == shape.fingerprint()) {
        return Ok(None);
    }
    let of_set = Attributes::default().text(1, table).text(2, &shape.name);
    let parse = |body: &[u8]| elements(body, half, shape);
    let found = dump(channel, Verb::GetElements, half.family(), of_set, cut, parse).await?;
    Ok(Some(found.into_iter().flatten().collect()))
}

/// Dumps what `filter` names, of one family; `cut` is told why it may not be all.
pub(super) async fn dump<T>(
    channel: &mut Channel,
    verb: Verb,
    family: u8,
    filter: Attributes,
    cut: &mut Option<String>,
    parse: impl Fn(&[u8]) -> Option<T>,
) -> Result<Vec<T>, Fault> {
    let body = Body::new(family, &filter);
    let dump = channel.dump(verb.kind(), &body, |_, body| parse(body.get(GENERIC..)?)).await?;
    if let Some(reason) = dump.cut {
        cut.get_or_insert(reason);
    }
    Ok(dump.items)
}

/// Kind and value of each attribute; ends with `None` at one whose length is not possible.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = Option<(u16, &[u8])>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let number = |at: usize| Some(u16::from_ne_bytes(rest.get(at..at + 2)?.try_into().ok()?));
        let split = || {
            let length = usize::from(number(0)?);
            Some((number(2)? & KIND, rest.get(4..length)?, length))
        };
        let (found, behind) = match split() {
            Some((kind, value, length)) => (Some((kind, value)), rest.get(length.next_multiple_of(4)..)),
            None => (None, None),
        };
        rest = behind.unwrap_or_default();
        Some(found)
    })
}

/// The value of the first attribute of this kind.
pub(in crate::platform::linux) fn value(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).flatten().find(|(of, _)| *of == kind).map(|(_, value)| value)
}

pub(super) fn number(attributes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(value(attributes, kind)?.try_into().ok()?))
}

pub(super) fn text(attributes: &[u8], kind: u16) -> Option<String> {
    let bytes = value(attributes, kind)?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// What two chains are compared by.
fn expected_chain(shape: &ChainShape) -> Vec<u8> {
    let request = shape.request("");
    chain(request.as_bytes()).map(|(_, chain)| chain).unwrap_or_default()
}

/// A chain's table, and the rest of it as bytes.
pub(super) fn chain(attributes: &[u8]) -> Option<(String, Vec<u8>)> {
    let name = text(attributes, 3)?;
    let mut all = name.into_bytes();
    if let Some(hook) = value(attributes, 4) {
        all.push(0);
        all.extend(number(hook, 1)?.to_be_bytes());
        all.extend(number(hook, 2)?.to_be_bytes());
        all.extend(number(attributes, 5)?.to_be_bytes());
        all.extend(text(attributes, 7)?.bytes());
    }
    Some((text(attributes, 1)?, all))
}

/// A rule's chain and comment.
pub(super) fn rule(attributes: &[u8]) -> Option<(String, Vec<u8>)> {
    Some((text(attributes, 2)?, value(attributes, 7).map(<[u8]>::to_vec).unwrap_or_default()))
}

pub(super) fn set(attributes: &[u8]) -> Option<(String, [u32; 4])> {
    let absent = |kind| number(attributes, kind).unwrap_or(0);
    Some((text(attributes, 2)?, [absent(3), absent(4), absent(5), absent(6)]))
}

/// The elements of one message; `None` when one of them cannot be read.
pub(super) fn elements(attributes: &[u8], half: Half, shape: &SetShape) -> Option<Vec<Element>> {
    const RANGE_END: u32 = 1;
    // A set without elements answers with a message that has none.
    let list = value(attributes, 3).unwrap_or_default();
    self::attributes(list)
        .map(|element| {
            let (_, element) = element?;
            let key = value(value(element, 1)?, 1)?.to_vec();
            let leads_to = value(element, 2).and_then(|content| value(content, 2)).and_then(|verdict| text(verdict, 2));
            let network = leads_to.and_then(|chain| network_of_chain(&chain));
            let end = number(element, 3).unwrap_or(0) & RANGE_END != 0;
            Some(Element { half, set: shape.name.clone(), key, end, value: network })
        })
        .collect()
}
