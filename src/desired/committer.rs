//! One thread through which every edit goes: considered, kept, published, in that order.
//!
//! Owns the document that edits are checked against, and the order of generations. Concurrent edits share one flush.
//! Leaves bytes to the [`Store`] and reactions to the listener.
//!
//! Upholds I-01 (a reply leaves only after the group it belongs to is durable), I-12, I-15 (the queue and a group are bounded).
//!
//! Readers never see an edit that is not durable yet: they read the *published* document, the edits are checked against the *staged* one.

use std::{
    sync::{
        Arc, RwLock,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use futures::channel::oneshot;

use super::{
    Document, Edit, Grant, Policy, Refusal, Touched,
    edit::{Change, Context, consider},
    record::Mutation,
    store::{Entry, Store, Write},
};
use crate::{clock::Clock, failure::with_causes};

/// Edits that share one flush at most: bounds the work between two replies.
const GROUP_MAX: usize = 256;
/// Edits that may wait for the thread; a sender beyond that waits itself.
const QUEUE_MAX: usize = 1024;
/// Pause of a sender that found the queue full.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(1);
/// Edits after which the store tidies up even when it is never quiet: its journal is only trimmed then.
const TIDY_AFTER: usize = 2000;
/// Quiet time after which the store may tidy up without a client waiting behind it.
const IDLE: Duration = Duration::from_millis(200);

/// What became of an accepted edit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Generation of the document that holds the edit.
    pub generation: u64,
    /// False when the document already said so.
    pub changed: bool,
    pub touched: Touched,
    pub grant: Grant,
}

/// Why an edit was not accepted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EditError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The document is as before; the caller may try again.
    #[error("the edit could not be kept and was not made: {0}")]
    NotKept(String),
    #[error("overlayd is stopping")]
    Stopping,
}

/// Told of every group after it is durable and published, before its replies leave; and how long the flush took.
pub type Listener = Box<dyn Fn(&[Committed], Duration) + Send>;

enum Order {
    Edit { edit: Box<Edit>, origin: String, reply: oneshot::Sender<Result<Committed, EditError>> },
    Settle(u64),
    Stop,
}

/// The thread. Dropping it without [`Committer::stop`] leaves the thread to end with its last [`Editor`].
pub struct Committer {
    orders: SyncSender<Order>,
    thread: JoinHandle<()>,
    published: Arc<RwLock<Document>>,
}

/// Submits edits; cheap to clone.
#[derive(Clone)]
pub struct Editor {
    orders: SyncSender<Order>,
}

impl Committer {
    /// Starts the thread with the document that was loaded from `store`.
    pub fn start(
        document: Document,
        store: Box<dyn Store>,
        clock: impl Clock,
        policy: Policy,
        listener: Listener,
    ) -> std::io::Result<Self> {
        let (orders, inbox) = sync_channel(QUEUE_MAX);
        let published = Arc::new(RwLock::new(document.clone()));
        let desk =
            Desk { staged: document, published: published.clone(), store, clock: Box::new(clock), policy, listener };
        let thread = std::thread::Builder::new().name("committer".into()).spawn(move || desk.run(&inbox))?;
        Ok(Self { orders, thread, published })
    }

    pub fn editor(&self) -> Editor {
        Editor { orders: self.orders.clone() }
    }

    /// The document as far as it is durable.
    pub fn document(&self) -> Arc<RwLock<Document>> {
        self.published.clone()
    }

    /// Ends the thread after the edits that are already queued; the store is tidied and closed.
    pub fn stop(self) {
        // A send error means that the thread has already ended.
        let _ = self.orders.send(Order::Stop);
        if self.thread.join().is_err() {
            tracing::error!("the committer thread panicked; every acknowledged edit is durable");
        }
    }
}

impl Editor {
    /// Puts an edit in the queue. Edits queued one after the other are considered in that order.
    ///
    /// # Errors
    /// Only [`EditError::Stopping`]; every other answer comes from the [`Submission`].
    pub async fn enqueue(&self, edit: Edit, origin: String) -> Result<Submission, EditError> {
        let (reply, answer) = oneshot::channel();
        let mut order = Order::Edit { edit: Box::new(edit), origin, reply };
        // The queue is full only under a flood; giving way here slows the flood and nobody else.
        loop {
            match self.orders.try_send(order) {
                Ok(()) => return Ok(Submission(answer)),
                Err(TrySendError::Disconnected(_)) => return Err(EditError::Stopping),
                Err(TrySendError::Full(back)) => order = back,
            }
            tokio::time::sleep(QUEUE_FULL_PAUSE).await;
        }
    }

    /// Submits an edit and waits until it is durable.
    ///
    /// # Errors
    /// See [`EditError`]; the document is unchanged.
    pub async fn submit(&self, edit: Edit, origin: String) -> Result<Committed, EditError> {
        self.enqueue(edit, origin).await?.kept().await
    }

    /// Notes that the loop has applied everything up to `generation`. Never waits; may be lost.
    pub fn settle(&self, generation: u64) {
        let _ = self.orders.try_send(Order::Settle(generation));
    }
}

/// An edit in the queue.
pub struct Submission(oneshot::Receiver<Result<Committed, EditError>>);

impl Submission {
    /// Waits until the edit is durable.
    ///
    /// *Guarantees*: `Ok` is returned only for an edit that survives a power cut (I-01).
    ///
    /// # Errors
    /// See [`EditError`]; the document is unchanged.
    pub async fn kept(self) -> Result<Committed, EditError> {
        self.0.await.unwrap_or(Err(EditError::Stopping))
    }
}

/// What the thread works on.
struct Desk {
    staged: Document,
    published: Arc<RwLock<Document>>,
    store: Box<dyn Store>,
    clock: Box<dyn Clock>,
    policy: Policy,
    listener: Listener,
}

/// An edit that passed its checks, waiting for the flush of its group.
struct Accepted {
    committed: Committed,
    reply: oneshot::Sender<Result<Committed, EditError>>,
}

impl Desk {
    fn run(mut self, inbox: &Receiver<Order>) {
        let mut untidy = 0;
        loop {
            let first = match inbox.recv_timeout(IDLE) {
                Ok(order) => order,
                Err(RecvTimeoutError::Timeout) => {
                    if std::mem::take(&mut untidy) > 0 {
                        self.tidy();
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut orders = vec![first];
            while orders.len() < GROUP_MAX {
                match inbox.try_recv() {
                    Ok(order) => orders.push(order),
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            }
            untidy += orders.len();
            if self.group(orders) {
                break;
            }
            if untidy >= TIDY_AFTER {
                untidy = 0;
                self.tidy();
            }
        }
        if let Err(error) = self.store.close() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the store was not tidied; the next start does it"
            );
        }
    }

    fn tidy(&mut self) {
        if let Err(error) = self.store.tidy() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the journal could not be folded; it is kept and tried again"
            );
        }
    }

    /// Handles one group of orders; true when the thread is to end.
    fn group(&mut self, orders: Vec<Order>) -> bool {
        let mut stop = false;
        let mut entries = Vec::new();
        let mut undo = Vec::new();
        let mut mutations = Vec::new();
        let mut accepted = Vec::new();
        let mut refused = Vec::new();
        let mut settled = None;
        let before = self.staged.generation();
        for order in orders {
            match order {
                Order::Stop => stop = true,
                Order::Settle(generation) => settled = settled.max(Some(generation)),
                Order::Edit { edit, origin, reply } => {
                    let (next, now) = (self.staged.generation() + 1, self.clock.now().unix);
                    match consider(&self.staged, &edit, &Context { next, now, policy: &self.policy }) {
                        Err(refusal) => refused.push((reply, EditError::from(refusal))),
                        Ok(change) => {
                            let committed = self.stage(change, origin, &mut entries, &mut undo, &mut mutations);
                            accepted.push(Accepted { committed, reply });
                        }
                    }
                }
            }
        }
        let kept = self.keep(before, &entries, undo, &mutations, accepted);
        for (reply, refusal) in refused {
            // It may rest on an edit of this group that is not there after all.
            let answer = kept.clone().map_err(EditError::NotKept).and(Err(refusal));
            let _ = reply.send(answer);
        }
        if let Some(generation) = settled
            && let Err(error) = self.store.settle(generation)
        {
            tracing::debug!(error = &error as &dyn std::error::Error, "the watermark could not be kept");
        }
        stop
    }

    fn stage(
        &mut self,
        change: Change,
        origin: String,
        entries: &mut Vec<Entry>,
        undo: &mut Vec<Vec<Mutation>>,
        mutations: &mut Vec<(u64, Vec<Mutation>)>,
    ) -> Committed {
        let changed = !change.mutations.is_empty();
        if changed {
            let generation = self.staged.generation() + 1;
            for note in &change.notes {
                tracing::info!(generation, %origin, "{note}");
            }
            tracing::info!(generation, %origin, edit = %change.summary, "edit");
            undo.push(self.staged.inverse(&change.mutations));
            self.staged.absorb(generation, &change.mutations);
            entries.push(Entry {
                generation,
                at: self.clock.now().unix,
                origin,
                summary: change.summary,
                writes: change.mutations.iter().map(write).collect(),
            });
            mutations.push((generation, change.mutations));
        } else {
            tracing::debug!(%origin, edit = %change.summary, "edit changes nothing");
        }
        Committed { generation: self.staged.generation(), changed, touched: change.touched, grant: change.grant }
    }

    /// Makes the group durable, publishes it and answers its edits; or takes it back and says why.
    fn keep(
        &mut self,
        before: u64,
        entries: &[Entry],
        undo: Vec<Vec<Mutation>>,
        mutations: &[(u64, Vec<Mutation>)],
        accepted: Vec<Accepted>,
    ) -> Result<(), String> {
        let started = self.clock.now().instant;
        if !entries.is_empty()
            && let Err(error) = self.store.commit(entries)
        {
            tracing::error!(error = &error as &dyn std::error::Error, edits = entries.len(), "edits could not be kept");
            for inverse in undo.into_iter().rev() {
                self.staged.absorb(before, &inverse);
            }
            let why = with_causes(&error);
            for Accepted { reply, .. } in accepted {
                let _ = reply.send(Err(EditError::NotKept(why.clone())));
            }
            return Err(why);
        }
        let flush = self.clock.now().instant.duration_since(started);
        if !mutations.is_empty() {
            let mut published = match self.published.write() {
                Ok(guard) => guard,
                Err(poisoned) => poisoned.into_inner(),
            };
            for (generation, group) in mutations {
                published.absorb(*generation, group);
            }
        }
        let committed: Vec<Committed> = accepted.iter().map(|edit| edit.committed.clone()).collect();
        if !committed.is_empty() {
            (self.listener)(&committed, flush);
        }
        for Accepted { committed, reply } in accepted {
            // The client may have gone away; its edit stands.
            let _ = reply.send(Ok(committed));
        }
        Ok(())
    }
}

fn write(mutation: &Mutation) -> Write {
    Write { key: mutation.key.to_string(), value: mutation.record.as_ref().map(super::record::Record::encode) }
}
