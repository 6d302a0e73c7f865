//! Contents as plain data: applying an entry, and a digest that says whether two copies are equal.
//!
//! Owns the digest that the checkpoint's manifest and the last-known-good copy carry. Leaves where they are kept to others.
//!
//! Upholds I-02: a copy whose digest does not fit is unreadable, not short.
//!
//! The digest guards against rot and half-written copies, not against a person who wants to forge it: its key is public.

use std::collections::BTreeMap;
use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::port::{Contents, Entry, Write};

impl Contents {
    /// Takes in the entry that follows.
    pub(super) fn apply(&mut self, entry: &Entry) {
        for Write { key, value } in &entry.writes {
            match value {
                Some(bytes) => drop(self.records.insert(key.clone(), bytes.clone())),
                None => drop(self.records.remove(key)),
            }
        }
        self.generation = entry.generation;
    }

    /// A fingerprint of generation and records. `settled` is left out: it may lag, so copies that differ in it are still equal.
    pub(super) fn digest(&self) -> u64 {
        digest(self.generation, &self.records)
    }
}

pub(super) fn digest(generation: u64, records: &BTreeMap<String, Vec<u8>>) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(0x6f76_6572_6c61_7964, 0x7374_6f72_6520_7631);
    hasher.write_u64(generation.to_le());
    hasher.write_u64((records.len() as u64).to_le());
    for (key, value) in records {
        // Lengths go in first, or `ab`+`c` would equal `a`+`bc`.
        hasher.write_u64((key.len() as u64).to_le());
        hasher.write(key.as_bytes());
        hasher.write_u64((value.len() as u64).to_le());
        hasher.write(value);
    }
    hasher.finish()
}
