//! The last-known-good copies: the whole document as one JSON file that a person can read.
//!
//! Owns their format and which are kept. Leaves redaction for other eyes to the caller of [`super::export`].
//!
//! Upholds I-02: a copy with a wrong digest is no copy.
//!
//! Records keep their exact bytes: JSON goes in as it is, spaces included; anything else as `{"$base64": …}`. So does JSON that
//! looks like that wrapper.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::disk::{self, Disk, io_error, names_in};
use super::layout::{EXPORT, export_name, parse_export_name};
use super::port::{COPY_GENERATION_MAX, Contents, StoreError};

/// Two, so that there is one when the newest is hit by whatever made it needed.
pub(super) const KEPT: usize = 2;
const FORMAT: &str = "overlayd-export 1";

#[derive(Serialize, Deserialize)]
struct Copy {
    format: String,
    generation: u64,
    #[serde(default)]
    settled: u64,
    /// Missing where records were redacted or edited by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    records: BTreeMap<String, Box<RawValue>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapped {
    #[serde(rename = "$base64")]
    base64: String,
}

/// A copy that was found in `export/`.
#[derive(Debug)]
pub(super) struct Found {
    pub path: PathBuf,
    pub contents: Result<Contents, String>,
    /// As the file's name says.
    pub generation: u64,
}

/// All copies, oldest first, good or not.
pub(super) fn find(state_dir: &Path) -> Result<Vec<Found>, StoreError> {
    let dir = state_dir.join(EXPORT);
    let mut found = Vec::new();
    for name in names_in(&dir)? {
        let Some(generation) = parse_export_name(&name) else {
            continue;
        };
        let path = dir.join(&name);
        let contents = match fs::read(&path) {
            Ok(bytes) => String::from_utf8(bytes).map_err(|_| "it is not text".to_owned()),
            // A copy may be replaced by a newer one between listing and reading.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            // The last resort must not be in the way of what does not need it.
            Err(error) => Err(format!("it cannot be read: {error}")),
        };
        let contents = contents
            .as_deref()
            .map_err(Clone::clone)
            .and_then(parse)
            .and_then(|copy| copy.digest_checked.then_some(copy.contents).ok_or_else(|| "it has no digest".into()))
            .and_then(|c| (c.generation == generation).then_some(c).ok_or_else(|| "its name is not its own".into()));
        found.push(Found { path, contents, generation });
    }
    Ok(found)
}

/// Writes a copy and removes all but the newest [`KEPT`] good ones; the oldest generation that is still there.
pub(super) fn write(disk: &dyn Disk, state_dir: &Path, contents: &Contents) -> Result<u64, StoreError> {
    let dir = state_dir.join(EXPORT);
    if !dir.exists() {
        disk.create_dir(&dir).map_err(|source| io_error("create", &dir, source))?;
        disk.sync_dir(state_dir).map_err(|source| io_error("write", state_dir, source))?;
    }
    let text = render(contents).map_err(|e| io_error("encode", &dir, std::io::Error::other(e)))?;
    disk::replace(disk, &dir.join(export_name(contents.generation)), text.as_bytes())?;
    let found = find(state_dir)?;
    let good: Vec<u64> = found.iter().filter(|f| f.contents.is_ok()).map(|f| f.generation).collect();
    let oldest = good.iter().rev().take(KEPT).next_back().copied().unwrap_or(contents.generation);
    for old in found.iter().filter(|f| f.generation < oldest && !f.path.is_dir()) {
        disk.remove(&old.path).map_err(|source| io_error("remove", &old.path, source))?;
    }
    Ok(oldest)
}

/// The text of a copy, digest included.
pub(super) fn render(contents: &Contents) -> Result<String, serde_json::Error> {
    let mut records = BTreeMap::new();
    for (key, bytes) in &contents.records {
        records.insert(key.clone(), raw(bytes)?);
    }
    let digest = Some(format!("{:016x}", contents.digest()));
    let copy =
        Copy { format: FORMAT.into(), generation: contents.generation, settled: contents.settled, digest, records };
    Ok(serde_json::to_string_pretty(&copy)? + "\n")
}

/// The copy as a JSON value without a digest, each record changed by `redact`.
pub(super) fn redacted(
    contents: &Contents,
    redact: &dyn Fn(&str, &mut serde_json::Value),
) -> Result<serde_json::Value, serde_json::Error> {
    let mut records = serde_json::Map::new();
    for (key, bytes) in &contents.records {
        let mut value = serde_json::from_str(raw(bytes)?.get())?;
        redact(key, &mut value);
        records.insert(key.clone(), value);
    }
    Ok(serde_json::json!({
        "format": FORMAT,
        "generation": contents.generation,
        "settled": contents.settled,
        "records": records,
    }))
}

/// What a copy holds.
pub(super) struct Parsed {
    pub contents: Contents,
    /// False where the copy carries no digest; a digest that does not fit is an error.
    pub digest_checked: bool,
}

pub(super) fn parse(text: &str) -> Result<Parsed, String> {
    let copy: Copy = serde_json::from_str(text)
        // Where, but not what: serde_json's own text quotes values (I-14).
        .map_err(|e| format!("it is not such a copy (line {}, column {})", e.line(), e.column()))?;
    if copy.format != FORMAT {
        return Err(format!("its format is not {FORMAT:?}"));
    }
    if copy.generation > COPY_GENERATION_MAX {
        return Err(format!("its generation is above {COPY_GENERATION_MAX}, which was never given out"));
    }
    let mut records = BTreeMap::new();
    for (key, raw) in copy.records {
        let bytes = bytes_of(&raw).ok_or_else(|| format!("record {key} is not base64"))?;
        records.insert(key, bytes);
    }
    let contents = Contents { generation: copy.generation, records, settled: copy.settled.min(copy.generation) };
    if copy.digest.as_ref().is_some_and(|digest| *digest != format!("{:016x}", contents.digest())) {
        return Err("its digest does not fit its records".into());
    }
    Ok(Parsed { contents, digest_checked: copy.digest.is_some() })
}

fn raw(bytes: &[u8]) -> Result<Box<RawValue>, serde_json::Error> {
    let as_is = serde_json::from_slice::<Box<RawValue>>(bytes)
        .ok()
        .filter(|raw| raw.get().as_bytes() == bytes && serde_json::from_str::<Wrapped>(raw.get()).is_err());
    match as_is {
        Some(raw) => Ok(raw),
        None => serde_json::value::to_raw_value(&Wrapped { base64: STANDARD.encode(bytes) }),
    }
}

fn bytes_of(raw: &RawValue) -> Option<Vec<u8>> {
    match serde_json::from_str::<Wrapped>(raw.get()) {
        Ok(wrapped) => STANDARD.decode(wrapped.base64).ok(),
        Err(_) => Some(raw.get().as_bytes().to_vec()),
    }
}
