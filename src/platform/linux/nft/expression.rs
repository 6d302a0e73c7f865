//! Expressions of rules, as the kernel takes them and as `nft` prints them.
//!
//! Owns the encoding of each expression. Leaves which of them make a rule to [`rules`](super::rules).
//!
//! Upholds I-06 (the same rule has the same bytes, and so the same hash).
//!
//! Registers are chosen as `nft` chooses them: number 1 is the first 16 bytes, 8 to 23 are the same memory in words of four bytes. A key
//! made of two parts begins in 1 and goes on in the word behind its first part; only so does `nft` print it again as `a . b`.

use super::encode::Attributes;
use crate::object::Family;

const LIST_ELEMENT: u16 = 1;
const NAME: u16 = 1;
const CONTENT: u16 = 2;
const VALUE: u16 = 1;

/// The first register.
pub(super) const FIRST: u32 = 1;
/// Register 0 is the verdict itself.
const VERDICT_REGISTER: u32 = 0;
/// The word behind an interface name, which has sixteen bytes.
pub(super) const BEHIND_NAME: u32 = 12;

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
pub(super) const ETHER_IPV4: u16 = 0x0800;
pub(super) const ETHER_ARP: u16 = 0x0806;
pub(super) const ETHER_IPV6: u16 = 0x86dd;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;

/// Fields of a packet's surroundings (`enum nft_meta_keys`).
#[derive(Debug, Clone, Copy)]
pub(super) enum Meta {
    Protocol = 1,
    InputName = 6,
    OutputName = 7,
    Nfproto = 15,
    L4Protocol = 16,
}

/// Where a header field is counted from (`enum nft_payload_bases`).
#[derive(Debug, Clone, Copy)]
pub(super) enum Base {
    Network = 1,
    Transport = 2,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Compare {
    Equal = 0,
    Different = 1,
    AtLeast = 5,
}

/// What becomes of the packet.
#[derive(Debug, Clone, Copy)]
pub(super) enum Verdict {
    Drop,
    Accept,
    Return,
    Jump(&'static str),
}

/// One expression, ready to be put into a rule.
pub(super) type Expression = Attributes;

fn expression(name: &str, content: &Attributes) -> Expression {
    let inner = Attributes::default().text(NAME, name).nest(CONTENT, content);
    Attributes::default().nest(LIST_ELEMENT, &inner)
}

fn value(bytes: &[u8]) -> Attributes {
    Attributes::default().bytes(VALUE, bytes)
}

pub(super) fn meta(key: Meta, register: u32) -> Expression {
    expression("meta", &Attributes::default().number(2, key as u32).number(1, register))
}

pub(super) fn payload(base: Base, offset: u32, length: u32, register: u32) -> Expression {
    let content = Attributes::default().number(1, register).number(2, base as u32).number(3, offset).number(4, length);
    expression("payload", &content)
}

pub(super) fn compare(how: Compare, register: u32, with: &[u8]) -> Expression {
    let content = Attributes::default().number(1, register).number(2, how as u32).nest(3, &value(with));
    expression("cmp", &content)
}

/// Goes on only when the register's value is an element of the set.
pub(super) fn within(set: &str, register: u32) -> Expression {
    expression("lookup", &Attributes::default().text(1, set).number(2, register))
}

/// Goes on only when the register's value is no element of the set.
pub(super) fn outside(set: &str, register: u32) -> Expression {
    const INVERT: u32 = 1;
    expression("lookup", &Attributes::default().text(1, set).number(2, register).number(5, INVERT))
}

/// Goes where the map leads for the register's value; goes on when it leads nowhere.
pub(super) fn decided_by(map: &str, register: u32) -> Expression {
    expression("lookup", &Attributes::default().text(1, map).number(2, register).number(3, VERDICT_REGISTER))
}

pub(super) fn bits(register: u32, mask: &[u8]) -> Expression {
    let length = u32::try_from(mask.len()).unwrap_or_else(|_| unreachable!("masks have at most 16 bytes"));
    let content = Attributes::default()
        .number(1, register)
        .number(2, register)
        .number(3, length)
        .nest(4, &value(mask))
        .nest(5, &value(&vec![0; mask.len()]));
    expression("bitwise", &content)
}

pub(super) fn counter() -> Expression {
    expression("counter", &Attributes::default().bytes(1, &[0; 8]).bytes(2, &[0; 8]))
}

pub(super) fn masquerade() -> Expression {
    expression("masq", &Attributes::default())
}

pub(super) fn verdict(verdict: Verdict) -> Expression {
    let content = match verdict {
        Verdict::Drop => decision(0, None),
        Verdict::Accept => decision(1, None),
        Verdict::Return => decision(-5, None),
        Verdict::Jump(chain) => jump(chain),
    };
    expression("immediate", &Attributes::default().number(1, VERDICT_REGISTER).nest(2, &content))
}

/// The jump to a chain, as the content of a register or of a map's element.
pub(super) fn jump(chain: &str) -> Attributes {
    decision(-3, Some(chain))
}

fn decision(code: i32, chain: Option<&str>) -> Attributes {
    let mut inner = Attributes::default().number(1, code.cast_unsigned());
    if let Some(chain) = chain {
        inner = inner.text(2, chain);
    }
    Attributes::default().nest(2, &inner)
}

/// Goes on only for packets of a connection that is known, or that belongs to one.
pub(super) fn known_connection() -> Vec<Expression> {
    const STATE: u32 = 0;
    const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
    vec![
        expression("ct", &Attributes::default().number(2, STATE).number(1, FIRST)),
        bits(FIRST, &ESTABLISHED_OR_RELATED.to_ne_bytes()),
        compare(Compare::Different, FIRST, &[0; 4]),
    ]
}

/// Lowers the maximum segment size of a TCP handshake to what the route of the packet carries.
pub(super) fn clamp_segments() -> Vec<Expression> {
    const ROUTE_SEGMENT_SIZE: u32 = 3;
    const TO_NETWORK: u32 = 1;
    const SEGMENT_SIZE_OPTION: u8 = 2;
    const TCP_OPTION: u32 = 1;
    vec![
        expression("rt", &Attributes::default().number(2, ROUTE_SEGMENT_SIZE).number(1, FIRST)),
        expression(
            "byteorder",
            &Attributes::default().number(1, FIRST).number(2, FIRST).number(3, TO_NETWORK).number(4, 2).number(5, 2),
        ),
        expression(
            "exthdr",
            &Attributes::default()
                .number(7, FIRST)
                .bytes(2, &[SEGMENT_SIZE_OPTION])
                .number(3, 2)
                .number(4, 2)
                .number(6, TCP_OPTION),
        ),
    ]
}

pub(super) fn protocol(is: u16) -> Vec<Expression> {
    vec![meta(Meta::Protocol, FIRST), compare(Compare::Equal, FIRST, &is.to_be_bytes())]
}

pub(super) fn nfproto(family: Family) -> Vec<Expression> {
    let number = match family {
        Family::Ipv4 => NFPROTO_IPV4,
        Family::Ipv6 => NFPROTO_IPV6,
    };
    vec![meta(Meta::Nfproto, FIRST), compare(Compare::Equal, FIRST, &[number])]
}

pub(super) fn l4protocol(is: u8) -> Vec<Expression> {
    vec![meta(Meta::L4Protocol, FIRST), compare(Compare::Equal, FIRST, &[is])]
}

pub(super) fn source(family: Family, register: u32) -> Expression {
    match family {
        Family::Ipv4 => payload(Base::Network, 12, 4, register),
        Family::Ipv6 => payload(Base::Network, 8, 16, register),
    }
}

pub(super) fn destination(family: Family, register: u32) -> Expression {
    match family {
        Family::Ipv4 => payload(Base::Network, 16, 4, register),
        Family::Ipv6 => payload(Base::Network, 24, 16, register),
    }
}
