//! A change in the making: the document as it would be, as far as the edit has got.
//!
//! Owns the order in which mutations are absorbed: what is freed comes before what takes it (I-11).
//!
//! The document itself is never copied, so that an edit costs what it changes and not what there is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    super::{
        Document,
        attachment::{AddressRecord, AttachmentId, AttachmentRecord},
        record::{Mutation, OverlayRecord, PeerRecord, Record, RecordKey},
        segment::{SegmentRecord, SharedBridgeRecord},
    },
    change::{Change, Grant, Touched},
    context::Context,
    refusal::Refusal,
    request::PeerScope,
};
use crate::{
    clock::UnixTime,
    ids::{ServiceName, WgPublicKey},
};

pub(super) struct Draft<'a> {
    pub(super) document: &'a Document,
    pub(super) context: Context<'a>,
    /// In the order of the first mention.
    mutations: Vec<Mutation>,
    /// Where in `mutations` a record is.
    places: BTreeMap<RecordKey, usize>,
    pub(super) touched: Touched,
    pub(super) grant: Grant,
    pub(super) notes: Vec<String>,
    /// Whether addresses are held, where this draft has changed that.
    occupied: BTreeMap<IpAddr, bool>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(document: &'a Document, context: Context<'a>) -> Self {
        Self {
            document,
            context,
            mutations: Vec::new(),
            places: BTreeMap::new(),
            touched: Touched::Nothing,
            grant: Grant::Nothing,
            notes: Vec::new(),
            occupied: BTreeMap::new(),
        }
    }

    /// Brings a record about, or removes it.
    pub(super) fn set(&mut self, key: RecordKey, record: Option<Record>) {
        match self.places.get(&key) {
            Some(place) => self.mutations[*place].record = record,
            None => {
                self.places.insert(key.clone(), self.mutations.len());
                self.mutations.push(Mutation { key, record });
            }
        }
    }

    pub(super) fn set_peer(&mut self, scope: &PeerScope, key: WgPublicKey, record: Option<PeerRecord>) {
        match scope {
            PeerScope::Node => self.set(RecordKey::Peer(key), record.map(Record::Peer)),
            PeerScope::Service(service) => {
                self.set(RecordKey::ServicePeer(service.clone(), key), record.map(Record::ServicePeer));
            }
        }
    }

    /// What the draft has said about a record, if anything.
    fn pending(&self, key: &RecordKey) -> Option<Option<&Record>> {
        self.places.get(key).map(|place| self.mutations[*place].record.as_ref())
    }

    /// # Errors
    /// [`Refusal::NoOverlay`].
    pub(super) fn overlay(&self) -> Result<&'a OverlayRecord, Refusal> {
        self.document.overlay().ok_or(Refusal::NoOverlay)
    }

    pub(super) fn segment(&self, service: &ServiceName) -> Option<SegmentRecord> {
        match self.pending(&RecordKey::Segment(service.clone())) {
            Some(Some(Record::Segment(record))) => Some(record.clone()),
            Some(_) => None,
            None => self.document.segments().get(service).cloned(),
        }
    }

    pub(super) fn set_segment(&mut self, service: &ServiceName, record: Option<SegmentRecord>) {
        self.set(RecordKey::Segment(service.clone()), record.map(Record::Segment));
    }

    /// Every segment as it would be.
    pub(super) fn segments(&self) -> Vec<(ServiceName, SegmentRecord)> {
        let mut names: BTreeSet<&ServiceName> = self.document.segments().keys().collect();
        names.extend(self.mutations.iter().filter_map(|mutation| match &mutation.key {
            RecordKey::Segment(service) => Some(service),
            _ => None,
        }));
        names.into_iter().filter_map(|name| Some((name.clone(), self.segment(name)?))).collect()
    }

    pub(super) fn shared_bridge(&self) -> Option<SharedBridgeRecord> {
        match self.pending(&RecordKey::SharedBridge) {
            Some(Some(Record::SharedBridge(record))) => Some(record.clone()),
            Some(_) => None,
            None => self.document.shared_bridge().cloned(),
        }
    }

    pub(super) fn attachment(&self, id: &AttachmentId) -> Option<AttachmentRecord> {
        match self.pending(&RecordKey::Attachment(id.clone())) {
            Some(Some(Record::Attachment(record))) => Some(record.clone()),
            Some(_) => None,
            None => self.document.attachments().get(id).cloned(),
        }
    }

    pub(super) fn set_attachment(&mut self, id: &AttachmentId, record: Option<AttachmentRecord>) {
        for address in self.attachment(id).iter().flat_map(AttachmentRecord::held) {
            self.occupied.insert(*address, false);
        }
        for address in record.iter().flat_map(AttachmentRecord::held) {
            self.occupied.insert(*address, true);
        }
        self.set(RecordKey::Attachment(id.clone()), record.map(Record::Attachment));
    }

    /// How many attachments a service would have.
    pub(super) fn attached_count(&self, service: &ServiceName) -> usize {
        let mut count = self.document.attached_count(service);
        for mutation in &self.mutations {
            let RecordKey::Attachment(id) = &mutation.key else { continue };
            let is_one = matches!(&mutation.record, Some(Record::Attachment(record)) if record.service == *service);
            let was_one = self.document.attachments().get(id).is_some_and(|record| record.service == *service);
            count = count + usize::from(is_one) - usize::from(was_one);
        }
        count
    }

    pub(super) fn set_address(&mut self, address: IpAddr, record: Option<AddressRecord>) {
        self.occupied.insert(address, record.is_some());
        self.set(RecordKey::Address(address), record.map(Record::Address));
    }

    /// Keeps an address from being given out for a while: somebody may still remember its holder.
    pub(super) fn rest(&mut self, address: IpAddr, was: String) {
        let until = UnixTime(self.context.now.0.saturating_add(self.context.policy.address_rest.as_secs()));
        self.set_address(address, Some(AddressRecord::Resting { until, was }));
    }

    /// Takes a free address: nothing that rested long enough is left of it, and nobody else gets it in this edit.
    pub(super) fn claim(&mut self, address: IpAddr) {
        if self.document.addresses().contains_key(&address) {
            self.set_address(address, None);
        }
        self.occupied.insert(address, true);
    }

    /// Whether an address is held, if this draft has changed that.
    pub(super) fn is_occupied(&self, address: &IpAddr) -> Option<bool> {
        self.occupied.get(address).copied()
    }

    /// What an edit's draft has come to.
    pub(super) fn into_change(self, summary: String) -> Change {
        let document = self.document;
        let mut mutations = self.mutations;
        mutations.retain(|mutation| document.record(&mutation.key) != mutation.record);
        mutations.sort_by_key(rank);
        let touched = if makes_or_ends_a_router(document, &mutations) { Touched::Everything } else { self.touched };
        Change { mutations, touched, grant: self.grant, summary, notes: self.notes }
    }
}

/// True when this node begins or ceases to serve others: that changes how the whole node is built, not only what the edit names.
fn makes_or_ends_a_router(document: &Document, mutations: &[Mutation]) -> bool {
    let before = document.segments().len() + document.attachments().len();
    let (mut came, mut went) = (0, 0);
    for mutation in mutations {
        let is_there = match &mutation.key {
            RecordKey::Segment(service) => document.segments().contains_key(service),
            RecordKey::Attachment(id) => document.attachments().contains_key(id),
            _ => continue,
        };
        match (is_there, mutation.record.is_some()) {
            (false, true) => came += 1,
            (true, false) => went += 1,
            (false, false) | (true, true) => {}
        }
    }
    (before > 0) != (before + came > went)
}

/// What is removed comes first, what takes an address that an attachment may have let go comes last.
fn rank(mutation: &Mutation) -> u8 {
    match (&mutation.key, &mutation.record) {
        (_, None) => 0,
        (RecordKey::Address(_), Some(_)) => 2,
        (_, Some(_)) => 1,
    }
}
