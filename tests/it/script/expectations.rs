//! What a story expects to find.

use futures::executor::block_on;
use overlayd::{clock::Clock, object::Key, reconcile::ledger::Condition};

use super::{
    edits::protocol,
    fields::with_fields,
    language::{Step, Stop, duration, parsed},
    play::Play,
    stage::Stage,
};

impl<S: Stage> Play<S> {
    /// Looks for what the story expects here.
    ///
    /// # Errors
    /// [`Stop::Wrong`] when it is otherwise.
    pub(super) fn expect(&mut self, step: &Step, what: &[&str]) -> Result<(), Stop> {
        let hold = |holds: bool, why: std::fmt::Arguments<'_>| if holds { Ok(()) } else { Err(step.wrong(why)) };
        match what {
            ["plan", "empty"] => match block_on(self.engine.inspect()) {
                Ok(diff) => hold(diff.is_empty(), format_args!("there is a difference:\n{}", diff.to_text())),
                Err(error) => Err(step.wrong(format_args!("nothing can be seen: {error}"))),
            },
            ["in-sync"] => hold(self.last.in_sync, format_args!("not in sync: {:#?}", self.last)),
            ["not", "in-sync"] => hold(!self.last.in_sync, format_args!("in sync: {:#?}", self.last)),
            ["no", "action"] => hold(self.acted.is_empty(), format_args!("{:#?}", self.acted)),
            ["action", verb, object @ ..] => {
                let wanted = format!("{verb} {}", self.cast.object(step, object)?);
                hold(self.acted.contains(&wanted), format_args!("no {wanted} in {:#?}", self.acted))
            }
            ["untouched", object @ ..] => self.expect_untouched(step, object),
            ["present", object @ ..] => self.expect_present(step, object),
            ["absent", object @ ..] => {
                let key = self.cast.object(step, object)?;
                hold(self.stage.see(&key).is_none(), format_args!("{key} is there"))
            }
            ["drift", count] => {
                let (drift, count) = (&self.last.drift, parsed::<usize>(step, count)?);
                hold(drift.len() == count, format_args!("{drift:#?}"))
            }
            ["retry", when] => {
                let at = self.last.again_at.map(|at| at.saturating_duration_since(self.clock.now().instant));
                let wanted = if *when == "none" { None } else { Some(duration(step, when)?) };
                hold(at == wanted, format_args!("it is tried again after {at:?}: {:#?}", self.last))
            }
            ["published", port, "to", name] => {
                let (leads, first) = (self.published(step, port)?, self.cast.actor(step, name)?.addresses.first());
                hold(
                    leads.is_some() && leads.as_ref() == first,
                    format_args!("it leads to {leads:?}, not to {first:?}"),
                )
            }
            ["unpublished", port] => {
                let leads = self.published(step, port)?;
                hold(leads.is_none(), format_args!("it leads to {leads:?}"))
            }
            [condition @ ("realized" | "pending" | "blocked" | "failing" | "forgotten"), object @ ..] => {
                let key = self.cast.object(step, object)?;
                let view = self.engine.view();
                let is = view.read().ledger.condition(&key).cloned();
                let word = is.as_ref().map_or("forgotten", Condition::word);
                hold(word == *condition, format_args!("{key} is {word}: {is:?}"))
            }
            _ => Err(step.malformed("say what is expected: the last block of steps in tests/it/script/language.rs")),
        }
    }

    /// No action since the last edit or disturbance was about the object, and no session of it was ever lost.
    fn expect_untouched(&self, step: &Step, object: &[&str]) -> Result<(), Stop> {
        let key = self.cast.object(step, object)?;
        let about = format!(" {key}");
        let touched: Vec<&String> = self.acted.iter().filter(|action| action.ends_with(&about)).collect();
        if !touched.is_empty() {
            return Err(step.wrong(format_args!("{touched:?}")));
        }
        match &key {
            Key::Peer { device, public_key } if self.stage.sessions_lost(device, public_key)? > 0 => {
                Err(step.wrong(format_args!("{key} lost a session")))
            }
            _ => Ok(()),
        }
    }

    fn expect_present(&self, step: &Step, object: &[&str]) -> Result<(), Stop> {
        let key = self.cast.object(step, object)?;
        let is = self.stage.see(&key).ok_or_else(|| step.wrong(format_args!("{key} is not there")))?;
        let wanted = with_fields(step, &is)?;
        if is == wanted { Ok(()) } else { Err(step.wrong(format_args!("{key} is {is:?}, not {wanted:?}"))) }
    }

    /// Where the document lets a port of the host lead.
    fn published(&self, step: &Step, port: &str) -> Result<Option<std::net::IpAddr>, Stop> {
        let (port, protocol) = (parsed::<u16>(step, port)?, protocol(step)?);
        let document = self.document.read().unwrap();
        let mut attached = document.attachments().values();
        let leads_there = attached.find(|record| {
            record.forwards.iter().any(|forward| (forward.host_port, forward.protocol) == (port, protocol))
        });
        Ok(leads_there.and_then(|record| record.addresses.first().copied()))
    }
}
