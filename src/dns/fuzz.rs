//! What must hold whatever a datagram or a connection brings to the overlay's resolver.
//!
//! Owns these claims for the fuzz target `dns` and for the tests that replay its corpus. Nothing that ships contains this file.
//!
//! Upholds I-15 and A26 by trying to break them: a claim that does not hold is a panic.
//!
//! Nothing is forwarded: there is no server to ask, so every other name ends in SERVFAIL.

use std::{
    net::SocketAddr,
    str::FromStr,
    sync::{Arc, LazyLock, RwLock},
    time::Duration,
};

use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::Record,
};
use hickory_server::net::xfer::Protocol;

use super::{
    Forwarder, Source, Witness,
    serve::{Answering, reply},
};
use crate::{
    clock::UnixTime,
    desired::{Context, Document, Edit, OverlayRequest, Policy, consider},
};

struct Nobody;

impl Witness for Nobody {
    fn answered(&self, _: &'static str) {}
    fn forwarded(&self, _: Source, _: Duration) {}
}

static ANSWERING: LazyLock<Arc<Answering>> = LazyLock::new(|| {
    let forwarder = Arc::new(Forwarder::new(Vec::new()));
    Arc::new(Answering::new(read("overlay"), Arc::new(RwLock::new(document())), forwarder, Arc::new(Nobody)))
});

fn read<T: FromStr>(text: &str) -> T {
    match text.parse() {
        Ok(read) => read,
        Err(_) => unreachable!("it was written for this"),
    }
}

/// An overlay with names of both families and one that has many addresses.
pub(super) fn document() -> Document {
    let mut document = Document::default();
    let mut edit = |edit: Edit| {
        let next = document.generation() + 1;
        let context = Context { next, now: UnixTime(1_700_000_000), policy: &Policy::default() };
        let Ok(change) = consider(&document, &edit, &context) else { unreachable!("nothing of it contradicts itself") };
        document.absorb(next, &change.mutations);
    };
    edit(Edit::EnsureOverlay(OverlayRequest {
        deployment: read("prod"),
        instance: read("0"),
        cluster: read("10.200.0.0/16,fd00:200::/48"),
        slice: Some(read("10.200.3.0/26,fd00:200:0:1::/64")),
        port: 51_820,
        host_adapter_mandatory: false,
        nat: None,
    }));
    for last in 1..=60 {
        edit(Edit::EnsureDns { name: read("many"), ip: [10, 200, 9, last].into() });
    }
    edit(Edit::EnsureDns { name: read("a.b"), ip: read("fd00:200::1") });
    document
}

/// Answers one message, by UDP and by TCP, to one who may ask and to one who may not.
pub fn message(bytes: &[u8]) {
    for (protocol, limit) in [(Protocol::Udp, 1_232), (Protocol::Tcp, usize::from(u16::MAX))] {
        for (from, may_ask) in [("127.0.0.1:9", true), ("192.0.2.1:9", false)] {
            let from: SocketAddr = read(from);
            let answered = futures::executor::block_on(reply(&ANSWERING, bytes.to_vec(), from, protocol));
            let Some(answer) = answered else { continue };
            assert!(answer.len() <= limit, "{} bytes by {protocol:?}", answer.len());
            let read = Message::from_vec(&answer);
            assert!(read.is_ok(), "an answer that cannot be read: {answer:?}");
            let Ok(answer) = read else { continue };
            assert_eq!(answer.metadata.id.to_be_bytes(), bytes[..2], "the question that was asked");
            if !may_ask {
                assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
                assert!(answer.answers.is_empty() && answer.authorities.is_empty());
            }
            let is_its_zone = |soa: &Record| answer.queries.iter().all(|question| soa.name.zone_of(question.name()));
            assert!(
                answer.authorities.iter().all(is_its_zone),
                "the SOA is that of a zone which the name is in: {answer}"
            );
            let code = answer.metadata.response_code;
            assert!(code != ResponseCode::NXDomain || answer.metadata.authoritative, "nobody was asked");
        }
    }
}

/// Questions of every kind that are answered, and of some that are not.
#[cfg(test)]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    use hickory_resolver::proto::{
        op::{Edns, MessageType, OpCode, Query},
        rr::{DNSClass, Name, RecordType},
    };
    let names = [
        "overlay.",
        "ns.overlay.",
        "many.overlay.",
        "A.b.OVERLAY.",
        "b.overlay.",
        "nobody.overlay.",
        "1.9.200.10.in-addr.arpa.",
        "200.10.in-addr.arpa.",
        "x.1.9.200.10.in-addr.arpa.",
        "1.9.200.010.in-addr.arpa.",
        "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.0.0.0.d.f.ip6.arpa.",
        "example.com.",
        ".",
    ];
    let mut all = Vec::new();
    for name in names {
        for kind in
            [RecordType::A, RecordType::AAAA, RecordType::PTR, RecordType::SOA, RecordType::ANY, RecordType::AXFR]
        {
            let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
            message.metadata.recursion_desired = kind != RecordType::ANY;
            let mut query = Query::query(Name::from_ascii(name).unwrap(), kind);
            if kind == RecordType::SOA {
                query.set_query_class(DNSClass::CH);
            }
            message.add_query(query);
            if kind == RecordType::A {
                let mut edns = Edns::new();
                edns.set_max_payload(4_096);
                message.edns = Some(edns);
            }
            all.push((format!("{}-{kind}", name.replace('.', "_")), message.to_vec().unwrap()));
        }
    }
    all
}
