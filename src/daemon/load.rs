//! From a state directory to a document: the first thing that happens, before the kernel is even opened (I-02).

use std::path::{Path, PathBuf};

use rand_core::{OsRng, TryRngCore};

use super::failed::RunError;
use crate::{
    clock::{Clock, SystemClock},
    desired::{
        Document, Record, RecordKey,
        store::{DiskStore, Opened, Write},
    },
    object::KeyPair,
    secret::PrivateKey,
};

/// A store that is ours now, and what is in it.
pub struct Loaded {
    pub store: DiskStore,
    pub document: Document,
    /// The canonical path of the state directory: what the instance's mark is made from.
    pub identity: String,
}

/// Reads the store on a thread of its own: disks may be slow, and a signal must not wait for one.
pub async fn load(state_dir: PathBuf) -> Result<Loaded, RunError> {
    match tokio::task::spawn_blocking(move || open_store(&state_dir)).await {
        Ok(opened) => opened,
        Err(panic) => Err(RunError::Process("read the store", std::io::Error::other(panic))),
    }
}

/// Opens or makes the store and reads the document.
fn open_store(state_dir: &Path) -> Result<Loaded, RunError> {
    // Drawn before the store is opened and used only when there is none yet: the key is made once and kept.
    let mut bytes = [0; 32];
    OsRng.try_fill_bytes(&mut bytes).map_err(|error| {
        RunError::Process("draw random bytes for the node's key", std::io::Error::other(error.to_string()))
    })?;
    let first_records = || {
        let key = Record::NodeKey(KeyPair::from_private(PrivateKey::from_random_bytes(bytes)));
        vec![Write { key: RecordKey::NodeKey.to_string(), value: Some(key.encode()) }]
    };
    // Its notes are in the log already.
    let Opened { store, contents, notes: _ } = DiskStore::open(state_dir, SystemClock.now().unix, first_records)?;
    let document = Document::from_contents(&contents)?;
    if document.node_key().is_none_or(|key| key.private.is_none()) {
        return Err(RunError::NoKey);
    }
    let identity = std::fs::canonicalize(state_dir)
        .map_err(|error| RunError::Process("find the path of the state directory", error))?;
    Ok(Loaded { store, document, identity: identity.to_string_lossy().into_owned() })
}
