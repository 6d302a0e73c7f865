use std::sync::{Mutex, PoisonError};

use prometheus::{Registry, TextEncoder};

use super::{loops::Loop, node::Node, registrar::Registrar, resolver::Resolver, socket::Socket};
use crate::{desired::Document, reconcile::view::View};

/// Every figure of the process.
pub struct Metrics {
    registry: Registry,
    /// One page at a time: the peers' series are emptied and filled again for each.
    page: Mutex<()>,
    pub socket: Socket,
    pub reconcile: Loop,
    pub resolver: Resolver,
    node: Node,
}

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let registrar = Registrar(&registry);
        let (socket, reconcile) = (Socket::new(&registrar), Loop::new(&registrar));
        let (resolver, node) = (Resolver::new(&registrar), Node::new(&registrar));
        Self { registry, page: Mutex::new(()), socket, reconcile, resolver, node }
    }

    /// The page, with the gauges as they are now.
    pub fn render(&self, document: &Document, view: &View) -> String {
        let _one_at_a_time = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        self.node.refresh(document, view);
        let mut page = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut page) {
            tracing::error!(%error, "the metrics page could not be written");
        }
        page
    }
}
