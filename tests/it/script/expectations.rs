//! What a story expects to find.

use futures::executor::block_on;
use overlayd::{clock::Clock, object::Key, reconcile::ledger::Condition};

use super::{
    edits::protocol,
    fields::with_fields,
    language::{Step, duration, parsed},
    play::Play,
    stage::{Stage, Unsupported},
};

impl<S: Stage> Play<S> {
    /// Looks for what the story expects here; what is not found is a panic with the line.
    pub(super) fn expect(&mut self, step: &Step, what: &[&str]) -> Result<(), Unsupported> {
        let line = step.line;
        match what {
            ["plan", "empty"] => {
                let diff = block_on(self.engine.inspect()).unwrap();
                assert!(diff.is_empty(), "line {line}: there is a difference:\n{}", diff.to_text());
            }
            ["in-sync"] => assert!(self.last.in_sync, "line {line}: not in sync: {:#?}", self.last),
            ["not", "in-sync"] => assert!(!self.last.in_sync, "line {line}: in sync: {:#?}", self.last),
            ["no", "action"] => assert!(self.acted.is_empty(), "line {line}: {:#?}", self.acted),
            ["action", verb, object @ ..] => {
                let wanted = format!("{verb} {}", self.cast.object(step, object));
                assert!(self.acted.contains(&wanted), "line {line}: no {wanted} in {:#?}", self.acted);
            }
            ["untouched", object @ ..] => self.expect_untouched(step, object)?,
            ["present", object @ ..] => self.expect_present(step, object),
            ["absent", object @ ..] => {
                let key = self.cast.object(step, object);
                assert!(self.stage.see(&key).is_none(), "line {line}: {key} is there");
            }
            ["drift", count] => {
                let drift = &self.last.drift;
                assert_eq!(drift.len(), parsed::<usize>(step, count), "line {line}: {drift:#?}");
            }
            ["retry", when] => {
                let at = self.last.again_at.map(|at| at.saturating_duration_since(self.clock.now().instant));
                let wanted = (*when != "none").then(|| duration(when));
                assert_eq!(at, wanted, "line {line}: {:#?}", self.last);
            }
            ["published", port, "to", name] => {
                assert_eq!(self.published(step, port), Some(self.cast.actor(step, name).addresses[0]), "line {line}");
            }
            ["unpublished", port] => assert_eq!(self.published(step, port), None, "line {line}"),
            [condition, object @ ..] => {
                let key = self.cast.object(step, object);
                let view = self.engine.view();
                let is = view.read().ledger.condition(&key).cloned();
                let word = is.as_ref().map_or("forgotten", Condition::word);
                assert_eq!(word, *condition, "line {line}: {key}: {is:?}");
            }
            [] => panic!("line {line}: expect what?"),
        }
        Ok(())
    }

    /// No action since the last edit or disturbance was about the object, and no session of it was ever lost.
    fn expect_untouched(&self, step: &Step, object: &[&str]) -> Result<(), Unsupported> {
        let key = self.cast.object(step, object);
        let about = format!(" {key}");
        let touched: Vec<&String> = self.acted.iter().filter(|action| action.ends_with(&about)).collect();
        assert!(touched.is_empty(), "line {}: {touched:?}", step.line);
        if let Key::Peer { device, public_key } = &key {
            assert_eq!(self.stage.sessions_lost(device, public_key)?, 0, "line {}: {key} lost a session", step.line);
        }
        Ok(())
    }

    fn expect_present(&self, step: &Step, object: &[&str]) {
        let key = self.cast.object(step, object);
        let Some(is) = self.stage.see(&key) else {
            panic!("line {}: {key} is not there", step.line);
        };
        assert_eq!(is, with_fields(step, &is), "line {}: {key}", step.line);
    }

    /// Where the document lets a port of the host lead.
    fn published(&self, step: &Step, port: &str) -> Option<std::net::IpAddr> {
        let (port, protocol) = (parsed::<u16>(step, port), protocol(step));
        let document = self.document.read().unwrap();
        let mut attached = document.attachments().values();
        let leads_there = attached.find(|record| {
            record.forwards.iter().any(|forward| (forward.host_port, forward.protocol) == (port, protocol))
        });
        leads_there.and_then(|record| record.addresses.first().copied())
    }
}
