//! Takes the records of addresses that have rested out of the document.
//!
//! Owns only when. It changes nothing that anybody can see: an address that has rested long enough is given out with its record or without.

use std::{sync::Arc, time::Duration};

use super::agent::Agent;
use crate::{
    clock::Clock,
    desired::{AddressRecord, Edit},
};

/// Addresses rest for a minute; records of those that are over may be around for another.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Runs for as long as the process lives.
pub async fn keep_tidy(agent: Arc<Agent>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if has_rested(&agent)
            && let Err(error) = agent.editor.submit(Edit::ForgetRested, "tidying up".to_owned()).await
        {
            tracing::debug!(%error, "addresses that have rested stay on record; it is tried again");
        }
    }
}

fn has_rested(agent: &Agent) -> bool {
    let now = agent.clock.now().unix;
    let is_over = |record: &AddressRecord| matches!(record, AddressRecord::Resting { until, .. } if *until <= now);
    agent.document().addresses().values().any(is_over)
}
