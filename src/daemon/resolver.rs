//! Keeps the overlay's resolver where the document says: at the node's overlay addresses and at every bridge's gateway.
//!
//! Owns where that is. Leaves keeping sockets to [`listeners`](super::listeners), answering to [`dns`](crate::dns), and what is answered to the
//! document.
//!
//! Upholds A25: whatever becomes of the resolver, the data plane does not notice.
//!
//! Sockets belong to a process: while no agent runs nobody answers, and that is all that a restart of the agent interrupts here.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    agent::Agent,
    listeners::{Known, Listeners, News},
    metrics::Metrics,
    settings::ResolverSettings,
};
use crate::{
    desired::Document,
    dns::{Answering, Forwarder, Listening, Source, Witness},
};

/// Names that a report lists; how many there are it says of all.
const LISTED_MAX: usize = 1_000;

/// What the resolver's task shares with reports.
#[derive(Default)]
pub struct Resolver {
    known: Arc<Known<SocketAddr>>,
    forwarder: OnceLock<Arc<Forwarder>>,
}

/// Counts what the resolver does.
struct Counting(Arc<Agent>);

impl Witness for Counting {
    fn answered(&self, what: &'static str) {
        self.0.metrics.resolver.queries.with_label_values(&[what]).inc();
    }

    fn forwarded(&self, source: Source, took: Duration) {
        let metrics: &Metrics = &self.0.metrics;
        match source {
            Source::Memory => metrics.resolver.remembered.inc(),
            Source::Servers => metrics.resolver.forward_seconds.observe(took.as_secs_f64()),
        }
    }
}

/// Runs for as long as the process lives.
pub async fn keep(agent: Arc<Agent>) {
    let Some(settings) = agent.settings.resolver.clone() else {
        tracing::info!("the overlay's resolver is off");
        return;
    };
    let forwarder = agent.resolver.forwarder.get_or_init(|| Arc::new(Forwarder::new(settings.configurations))).clone();
    let witness = Arc::new(Counting(agent.clone()));
    let answering = Arc::new(Answering::new(settings.served.zone.clone(), agent.document.clone(), forwarder, witness));
    let mut listeners = Listeners::new(agent.resolver.known.clone(), agent.covered.clone());
    loop {
        let wanted = wanted(&agent.document(), settings.served.port);
        for address in listeners.missing(wanted).await.into_keys() {
            let opened = Listening::open(address).map(|listening| tokio::spawn(listening.serve(answering.clone())));
            match listeners.note(address, (), opened) {
                Some(News::Open) => tracing::info!(%address, "the resolver listens here now"),
                Some(News::Shut(error)) => {
                    tracing::warn!(%address, %error, "the resolver cannot listen here; it is tried again");
                }
                None => {}
            }
        }
        if !listeners.wait().await {
            return;
        }
    }
}

fn wanted(document: &Document, port: u16) -> BTreeMap<SocketAddr, ()> {
    let own = document.node_addresses().into_iter().map(|own| own.ip);
    let nets = document.segments().keys().filter_map(|service| document.segment_net(service));
    own.chain(nets.flat_map(|net| net.gateways)).map(|ip| (SocketAddr::new(ip, port), ())).collect()
}

/// The resolver, for `overlayd status`.
pub fn report(agent: &Agent, document: &Document) -> Value {
    let Some(ResolverSettings { served, .. }) = &agent.settings.resolver else { return json!({ "serves": false }) };
    let known = agent.resolver.known.lock();
    let names = document.directory();
    let records =
        names.iter().take(LISTED_MAX).map(|(name, addresses)| json!({ "name": name, "addresses": addresses }));
    json!({
        "serves": true,
        "zone": served.zone,
        "names": names.len(),
        "records": records.collect::<Vec<_>>(),
        "listens": known.open,
        "trouble": known.trouble.iter().map(|(address, why)| json!({ "address": address, "why": why })).collect::<Vec<_>>(),
        "asks": agent.resolver.forwarder.get().map(|forwarder| forwarder.servers()),
    })
}
