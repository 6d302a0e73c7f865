//! Looking at a node without a running agent: the store is read without being opened, the kernel observed without being changed.

use std::{
    path::Path,
    sync::{Arc, RwLock},
};

use crate::{
    clock::SystemClock,
    desired::{Document, store},
    object::Mark,
    platform::{DataPlaneChoice, NativeKernel, NativeOptions},
    reconcile::{engine::Engine, target::Facts},
};

use super::args::InstanceArguments;

/// The document of a state directory, also while an agent has it open.
pub fn read_document(state_dir: &Path) -> Result<Document, Box<dyn std::error::Error>> {
    let contents = store::read_only(state_dir)?;
    Ok(Document::from_contents(&contents)?)
}

/// The mark of the instance with this state directory.
pub fn mark_of(state_dir: &Path) -> Mark {
    // A directory that is gone had, in all likelihood, no link in its path.
    let path = std::fs::canonicalize(state_dir)
        .or_else(|_| std::path::absolute(state_dir))
        .unwrap_or_else(|_| state_dir.to_owned());
    Mark::of_instance(&path.to_string_lossy())
}

/// An engine against this node's kernel. Needs a runtime.
pub fn engine(
    instance: &InstanceArguments,
    document: Document,
) -> Result<Engine<NativeKernel, SystemClock>, Box<dyn std::error::Error>> {
    let InstanceArguments { state_dir, started } = instance;
    let mark = mark_of(state_dir);
    let facts = Facts {
        mtu: started.mtu,
        resolver_dir: started.resolver_dir.clone(),
        served: started.dns.served()?,
        ..Facts::new(mark)
    };
    let options = NativeOptions {
        resolver_dir: started.resolver_dir.clone(),
        ..NativeOptions::new(mark, DataPlaneChoice::Auto, started.uapi_dir.clone())
    };
    let kernel = NativeKernel::open(options)?;
    Ok(Engine::new(kernel, SystemClock, Arc::new(RwLock::new(document)), facts))
}
