//! A document to try edits about segments and attachments on, and small words for what they talk about.

use std::net::IpAddr;

use overlayd::{
    clock::UnixTime,
    desired::{
        AttachRequest, AttachmentId, Change, Context, Document, Edit, GivenId, Grant, OverlayRequest, Pid, Policy,
        RecordKey, Refusal, SegmentMode, Subject, consider, store::Contents,
    },
    ids::{Netns, ServiceName},
    object::KeyPair,
    secret::PrivateKey,
};

use crate::world::overlay;

/// How long an address rests, seconds.
pub const REST: u64 = 60;

/// A document, the time, and nothing else.
pub struct Desk {
    pub document: Document,
    pub now: u64,
    pub policy: Policy,
    /// Draws a new key for each edit, as the agent does.
    pub keys: u8,
}

impl Desk {
    pub fn empty() -> Self {
        Self { document: Document::default(), now: 1_000_000, policy: Policy::default(), keys: 0 }
    }

    /// With the overlay `prod`/`0`, 10.200.0.0/16 and the slice 10.200.3.0/26.
    pub fn new() -> Self {
        let mut desk = Self::empty();
        desk.edit(&Edit::EnsureOverlay(overlay()));
        desk
    }

    pub fn consider(&self, wanted: &Edit) -> Result<Change, Refusal> {
        let next = self.document.generation() + 1;
        consider(&self.document, wanted, &Context { next, now: UnixTime(self.now), policy: &self.policy })
    }

    pub fn attempt(&mut self, wanted: &Edit) -> Result<Change, Refusal> {
        let change = self.consider(wanted)?;
        if !change.mutations.is_empty() {
            self.document.absorb(self.document.generation() + 1, &change.mutations);
        }
        Ok(change)
    }

    #[track_caller]
    pub fn edit(&mut self, wanted: &Edit) -> Change {
        self.attempt(wanted).unwrap_or_else(|refusal| panic!("{wanted:?}: {refusal}"))
    }

    #[track_caller]
    pub fn refused(&self, wanted: &Edit) -> Refusal {
        self.consider(wanted).expect_err("a refusal")
    }

    pub fn fresh(&mut self) -> KeyPair {
        self.keys = self.keys.wrapping_add(1);
        key(self.keys)
    }

    pub fn setup(&mut self, name: &str, mode: SegmentMode) -> Change {
        let fresh = self.fresh();
        self.edit(&Edit::EnsureSegment { service: service(name), mode, fresh })
    }

    /// Attaches the container of process `pid` and answers its address.
    pub fn attach(&mut self, pid: u32, name: &str) -> IpAddr {
        ip(&self.edit(&container(pid, name)))
    }

    /// What a restart makes of it.
    pub fn reload(&mut self) {
        self.document = Document::from_contents(&contents(&self.document)).unwrap();
    }
}

pub fn contents(document: &Document) -> Contents {
    let records = keys(document).into_iter().map(|key| (key.to_string(), document.record(&key).unwrap().encode()));
    Contents { generation: document.generation(), records: records.collect(), settled: document.settled() }
}

pub fn keys(document: &Document) -> Vec<RecordKey> {
    let mut keys: Vec<RecordKey> = document.segments().keys().cloned().map(RecordKey::Segment).collect();
    keys.extend(document.attachments().keys().cloned().map(RecordKey::Attachment));
    keys.extend(document.addresses().keys().copied().map(RecordKey::Address));
    keys.extend(document.peers().keys().copied().map(RecordKey::Peer));
    for service in document.services_with_peers() {
        let own = |key: &_| RecordKey::ServicePeer(service.clone(), *key);
        keys.extend(document.service_peers(service).keys().map(own));
    }
    keys.extend([RecordKey::Node, RecordKey::NodeKey, RecordKey::Overlay, RecordKey::SharedBridge]);
    keys.retain(|key| document.record(key).is_some());
    keys
}

pub fn key(number: u8) -> KeyPair {
    KeyPair::from_private(PrivateKey::from_random_bytes([number; 32]))
}

pub fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

pub fn given(id: &str) -> GivenId {
    id.parse().unwrap()
}

pub fn netns(pid: u32, start_time: u64) -> Netns {
    Netns { pid, start_time, boot_id: "first".into(), device: 4, inode: 4_026_000_000 + u64::from(pid) }
}

pub fn pid(number: u32) -> AttachmentId {
    AttachmentId::Container(Pid::new(number).unwrap())
}

pub fn request(subject: Subject, name: &str) -> AttachRequest {
    AttachRequest {
        subject,
        service: service(name),
        join_global: false,
        ephemeral: false,
        isolation_network: None,
        dns_server: None,
        dns_domain: Default::default(),
    }
}

pub fn container(number: u32, name: &str) -> Edit {
    Edit::Attach(request(Subject::Container(netns(number, 1)), name))
}

pub fn host_shared(id: &str, name: &str) -> Edit {
    Edit::Attach(request(Subject::HostShared(given(id)), name))
}

pub fn guest(id: &str, name: &str, fresh: KeyPair) -> Edit {
    Edit::Attach(request(Subject::Guest { id: given(id), fresh }, name))
}

pub fn with(wanted: Edit, change: impl FnOnce(&mut AttachRequest)) -> Edit {
    let Edit::Attach(mut request) = wanted else { panic!("{wanted:?}") };
    change(&mut request);
    Edit::Attach(request)
}

pub fn ip(change: &Change) -> IpAddr {
    match &change.grant {
        Grant::Attached { ip, .. } | Grant::Address(ip) => *ip,
        Grant::Guest(guest) => guest.overlay_ip,
        other => panic!("{other:?}"),
    }
}

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn dual() -> OverlayRequest {
    OverlayRequest {
        cluster: "10.200.0.0/16,fd00:200::/48".parse().unwrap(),
        slice: Some("10.200.3.0/26,fd00:200:0:3::/64".parse().unwrap()),
        ..overlay()
    }
}
