//! The thread that visits namespaces.
//!
//! Owns going there and coming home again. Leaves what is done there to the work it is given.
//!
//! Upholds I-15 (a visit has a time limit; work that nobody waits for any more is passed over), A21.
//!
//! A thread in a container's namespace keeps that namespace alive, and would make the container's network outlive the container. So the
//! thread goes home after each piece of work, and no descriptor of a namespace is kept between two visits.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::mpsc::{Sender, channel},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use tokio::{sync::oneshot, time::timeout};

use super::{
    super::{
        errno::Fault,
        netns::{self, OpenNetns},
        nsid::{RTM_GETNSID, nsid_request, parse_nsid},
    },
    conversation::{Conversation, Deadline, RECEIVE_BYTES},
};

type Work = Box<dyn FnOnce(&mut Visitor) + Send>;

/// The way to the thread. It ends when this value is dropped.
pub(in super::super) struct Visits {
    work: Option<Sender<Work>>,
}

impl Visits {
    pub(in super::super) fn new() -> Self {
        Self { work: None }
    }

    /// Has the work done on the thread and waits for it, at most for `limit`. The thread is started, in the caller's namespace, when there is
    /// none yet or when the last one did not come home.
    pub(super) async fn visit<T: Send + 'static>(
        &mut self,
        limit: Duration,
        work: impl FnOnce(&mut Visitor) -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let (sender, receiver) = oneshot::channel();
        let deadline = Deadline::within(limit);
        let work: Work = Box::new(move |visitor| {
            if !sender.is_closed() {
                visitor.deadline = deadline;
                // Who asked may have given up meanwhile.
                let _ = sender.send(work(visitor));
            }
        });
        self.hand_over(work).map_err(|error| Fault::from_io(&error))?;
        match timeout(limit, receiver).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_)) => Err(Fault::Garbled("the thread that visits containers ended")),
            Err(_) => Err(deadline.missed()),
        }
    }

    fn hand_over(&mut self, work: Work) -> io::Result<()> {
        let work = match &self.work {
            Some(sender) => match sender.send(work) {
                Ok(()) => return Ok(()),
                Err(refused) => refused.0,
            },
            None => work,
        };
        let (sender, receiver) = channel::<Work>();
        let mut visitor = Visitor::new()?;
        thread::Builder::new().name("visitor".into()).spawn(move || {
            while let Ok(work) = receiver.recv() {
                work(&mut visitor);
                if let Err(error) = visitor.go_home() {
                    // A thread that is not at home must do nothing more; the next piece of work gets a new one.
                    tracing::error!(%error, "the thread that visits containers cannot come back; starting another");
                    return;
                }
            }
        })?;
        // The receiver is alive: the thread has just been started and waits.
        let _ = sender.send(work);
        self.work = Some(sender);
        Ok(())
    }
}

/// What the work has in its hands.
pub(super) struct Visitor {
    home: OwnedFd,
    home_identity: (u64, u64),
    is_away: bool,
    /// Talks in the home namespace, from wherever the thread is.
    at_home: Conversation,
    deadline: Deadline,
    buffer: Vec<u8>,
}

impl Visitor {
    fn new() -> io::Result<Self> {
        let home = netns::own()?;
        let now = Deadline::within(Duration::ZERO);
        Ok(Self {
            home_identity: netns::identity(&home)?,
            home,
            is_away: false,
            at_home: Conversation::begin(now, vec![0; RECEIVE_BYTES])?,
            deadline: now,
            buffer: vec![0; RECEIVE_BYTES],
        })
    }

    /// An error once the visit has taken too long.
    pub(super) fn check_time(&self) -> Result<(), Fault> {
        if self.deadline.left().is_zero() { Err(self.deadline.missed()) } else { Ok(()) }
    }

    /// Whether the namespace is the one that the home namespace knows by this number.
    pub(super) fn is_known_as(&mut self, namespace: &OpenNetns, nsid: i32) -> Result<bool, Fault> {
        self.at_home.set_deadline(self.deadline);
        let known = self.at_home.get(RTM_GETNSID, &nsid_request(namespace.namespace()), parse_nsid)?;
        Ok(known == nsid)
    }

    /// Goes into a namespace and talks there. The work that was begun ends with the thread at home again.
    pub(super) fn within<T>(
        &mut self,
        namespace: &OpenNetns,
        work: impl FnOnce(&mut Conversation) -> T,
    ) -> Result<T, Fault> {
        let identity = netns::identity(namespace.namespace()).map_err(|error| Fault::from_io(&error))?;
        if identity == self.home_identity {
            return Err(Fault::Garbled("this is the agent's own network namespace"));
        }
        setns(namespace.namespace().as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Fault::Refused(errno, String::new()))?;
        self.is_away = true;
        let buffer = std::mem::take(&mut self.buffer);
        let mut conversation = Conversation::begin(self.deadline, buffer).map_err(|error| Fault::from_io(&error))?;
        let done = work(&mut conversation);
        self.buffer = conversation.end();
        Ok(done)
    }

    fn go_home(&mut self) -> io::Result<()> {
        if self.is_away {
            setns(self.home.as_fd(), CloneFlags::CLONE_NEWNET)?;
            self.is_away = false;
        }
        // A visit that could not begin kept it.
        self.buffer.resize(RECEIVE_BYTES, 0);
        Ok(())
    }
}
