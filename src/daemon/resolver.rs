//! Keeps the overlay's resolver where the document says: at the node's overlay addresses and at every bridge's gateway.
//!
//! Owns the sockets. Leaves answering to [`dns`](crate::dns), and what it answers to the document.
//!
//! Upholds A25: whatever becomes of the resolver, the data plane does not notice.
//!
//! Sockets belong to a process: while no agent runs nobody answers, and that is all that a restart of the agent interrupts here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use super::{agent::Agent, metrics::Metrics, settings::ResolverSettings};
use crate::{
    desired::Document,
    dns::{Answering, Forwarder, Listening, Source, Witness},
};

/// How often a port that another program has is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Names that a report lists; how many there are it says of all.
const LISTED_MAX: usize = 1_000;

/// What the resolver's task shares with reports.
#[derive(Default)]
pub struct Resolver {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    listening: BTreeSet<SocketAddr>,
    /// Why an address is not listened on, for those that are not.
    trouble: BTreeMap<SocketAddr, String>,
    forwarder: Option<Arc<Forwarder>>,
}

impl Resolver {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change of it is one call on a map.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
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
    let forwarder = Arc::new(Forwarder::new(settings.configurations.clone()));
    agent.resolver.state().forwarder = Some(forwarder.clone());
    let answering = Arc::new(Answering {
        zone: settings.served.zone.clone(),
        document: agent.document.clone(),
        forwarder,
        witness: Arc::new(Counting(agent.clone())),
    });
    let mut running: BTreeMap<SocketAddr, Running> = BTreeMap::new();
    let mut covered = agent.covered.clone();
    let mut again = interval(TRY_AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let wanted = wanted(&agent.document(), settings.served.port);
        running.retain(|address, present| wanted.contains(address) && !present.0.is_finished());
        agent.resolver.state().trouble.retain(|address, _| wanted.contains(address));
        for address in wanted {
            if !running.contains_key(&address)
                && let Some(task) = start(&agent, address, &answering)
            {
                running.insert(address, Running(task));
            }
        }
        agent.resolver.state().listening = running.keys().copied().collect();
        tokio::select! {
            // Every edit is part of some round.
            changed = covered.changed() => if changed.is_err() { return },
            _ = again.tick() => {}
        }
    }
}

fn wanted(document: &Document, port: u16) -> BTreeSet<SocketAddr> {
    let own = document.node_addresses().into_iter().map(|own| own.ip);
    let nets = document.segments().keys().filter_map(|service| document.segment_net(service));
    let all: BTreeSet<IpAddr> = own.chain(nets.flat_map(|net| net.gateways)).collect();
    all.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
}

fn start(agent: &Agent, address: SocketAddr, answering: &Arc<Answering>) -> Option<JoinHandle<()>> {
    match Listening::open(address) {
        Ok(listening) => {
            if agent.resolver.state().trouble.remove(&address).is_some() {
                tracing::info!(%address, "the resolver listens here now");
            }
            Some(tokio::spawn(listening.serve(answering.clone())))
        }
        Err(error) => {
            if agent.resolver.state().trouble.insert(address, error.to_string()).is_none() {
                tracing::warn!(%address, %error, "the resolver cannot listen here; it is tried again");
            }
            None
        }
    }
}

/// The resolver, for `overlayd status`.
pub fn report(agent: &Agent, document: &Document) -> Value {
    let Some(ResolverSettings { served, .. }) = &agent.settings.resolver else { return json!({ "serves": false }) };
    let state = agent.resolver.state();
    let names = document.directory();
    let records =
        names.iter().take(LISTED_MAX).map(|(name, addresses)| json!({ "name": name, "addresses": addresses }));
    json!({
        "serves": true,
        "zone": served.zone,
        "names": names.len(),
        "records": records.collect::<Vec<_>>(),
        "listens": state.listening,
        "trouble": state.trouble.iter().map(|(address, why)| json!({ "address": address, "why": why })).collect::<Vec<_>>(),
        "asks": state.forwarder.as_ref().map(|forwarder| forwarder.servers()),
    })
}
