//! What the process does around the loop's rounds: it announces edits before them, and after them it counts, answers, remembers and logs.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::sync::watch;

use super::{agent::Agent, health::PeerHealth};
use crate::{
    clock::{Clock, SystemClock},
    desired::{Committed, Listener},
    object::{Key, Subsystem},
    reconcile::{
        runtime::{Finished, Inbox},
        view::{Progress, Round},
    },
    wire::Event,
};

/// Wakes the loop for every durable edit.
pub fn announce(inbox: Arc<Inbox>, agent: Arc<OnceLock<Arc<Agent>>>) -> Listener {
    Box::new(move |group: &[Committed], flush: Duration| {
        let at = SystemClock.now().instant;
        if let Some(agent) = agent.get()
            && group.iter().any(|committed| committed.changed)
        {
            agent.metrics.reconcile.fsync_seconds.observe(flush.as_secs_f64());
        }
        for committed in group {
            inbox.announce(&committed.touched, committed.generation, at);
        }
    })
}

/// What happens after every round: figures, waiting replies, peers' health, the watermark, one line of log.
pub fn after_each(agent: Arc<Agent>, covered: watch::Sender<u64>) -> impl FnMut(Finished<'_>) + Send {
    let mut health = PeerHealth::default();
    let mut settled = agent.document().settled();
    move |finished: Finished<'_>| {
        agent.metrics.reconcile.round(&finished);
        let progress = agent.view.read().progress;
        covered.send_replace(progress.covered);
        let told = told_up_to(progress, finished.round);
        if told > settled && knows_every_endpoint(&agent) {
            settled = told;
            agent.editor.settle(settled);
        }
        if finished.round.full {
            let now = agent.clock.now().unix;
            for event in health.compare(&agent.view.read().snapshot, now) {
                tracing::info!(?event, "peer health");
                publish(&agent, event);
            }
        }
        log_round(&finished);
    }
}

/// The generation up to which the kernel was told of the document, as far as this round can say.
fn told_up_to(progress: Progress, round: &Round) -> u64 {
    match (&round.blind, round.full) {
        (Some(_), _) => 0,
        // What an earlier process committed and did not live to settle is part of the first full round, though no edit announced it.
        (None, true) if !round.left.keys().any(|(part, _)| *part == Subsystem::Peer) => {
            progress.covered.max(round.generation)
        }
        (None, _) => progress.covered,
    }
}

/// True when the kernel was told of every peer's endpoint as far as rounds have come. What else is blocked or failing does not matter: were it
/// to hold the watermark back, the next start would push back the endpoints of all peers that have roamed since (A5).
fn knows_every_endpoint(agent: &Agent) -> bool {
    let document = agent.document();
    let view = agent.view.read();
    view.ledger.troubled().keys().all(|key| match key {
        Key::Peer { device, public_key } => {
            let scope = document.scope_of_device(device);
            let wanted = scope.and_then(|scope| document.peers_of(&scope).get(public_key));
            wanted.is_none_or(|peer| view.ledger.realized_at(key) == Some(peer.since))
        }
        Key::Link(_)
        | Key::Address { .. }
        | Key::Route { .. }
        | Key::Sysctl { .. }
        | Key::Device(_)
        | Key::Inside(_)
        | Key::Ruleset
        | Key::Member(_)
        | Key::Guest(_)
        | Key::File(_)
        | Key::LinkDns(_) => true,
    })
}

fn publish(agent: &Agent, event: Event) {
    // No receiver is no error: nobody is connected.
    let _ = agent.events.send(event);
}

fn log_round(finished: &Finished<'_>) {
    let round = finished.round;
    if let Some(why) = &round.blind {
        tracing::error!(%why, "the node could not be looked at; nothing was changed");
        return;
    }
    for action in &round.actions {
        match &action.error {
            None => tracing::debug!(object = %action.key, action = action.verb, "done"),
            Some(why) => {
                tracing::warn!(object = %action.key, action = action.verb, result = action.result, %why, "not done")
            }
        }
    }
    for (key, cause) in &round.drift {
        tracing::warn!(object = %key, cause, "drift: it changed though the document did not; repaired");
    }
    if round.actions.is_empty() {
        tracing::debug!(cause = finished.cause, in_sync = round.in_sync, "round");
    } else {
        tracing::info!(
            cause = finished.cause,
            generation = round.generation,
            changes = round.actions.len(),
            drift = round.drift.len(),
            in_sync = round.in_sync,
            micros = u64::try_from(finished.since_woken.as_micros()).unwrap_or(u64::MAX),
            "round"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_round_settles_what_an_earlier_process_left_unsettled_and_a_blind_one_settles_nothing() {
        let progress = Progress { covered: 3, ..Progress::default() };
        let full = Round { full: true, generation: 7, ..Round::default() };
        assert_eq!(told_up_to(progress, &full), 7);
        assert_eq!(told_up_to(progress, &Round { generation: 7, ..Round::default() }), 3);
        let unfinished = Round { left: [((Subsystem::Peer, "update"), 1)].into(), ..full.clone() };
        assert_eq!(told_up_to(progress, &unfinished), 3);
        let blind = Round { blind: Some("no answer".into()), ..full };
        assert_eq!(told_up_to(progress, &blind), 0);
    }
}
