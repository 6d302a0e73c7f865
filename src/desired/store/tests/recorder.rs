//! A disk that writes down what is asked of it, and can tell what a power cut would have left at any moment.
//!
//! The model is as unkind as POSIX allows: until `sync`, each 512-byte sector of a write may or may not be there, and so may a new
//! length; until `sync_dir`, each name that was made, moved or removed may or may not be. Syncing a file does not keep its name.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::super::disk::{Disk, DiskFile, RealDisk};

#[derive(Debug, Clone)]
pub enum Op {
    Mkdir(PathBuf),
    Create(PathBuf, usize),
    Write(usize, u64, Vec<u8>),
    Truncate(usize, u64),
    Sync(usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    SyncDir(PathBuf),
    /// The caller was told that everything up to this generation is kept.
    Acknowledged(u64),
    /// A fold may be under way from here on …
    FoldBegins,
    /// … and is done, with the checkpoint as it is in that directory.
    FoldEnds(PathBuf),
}

/// What can be made to fail, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fail {
    Write,
    Sync,
    Truncate,
    Create,
    SyncDir,
}

#[derive(Default)]
struct Log {
    ops: Vec<Op>,
    names: BTreeMap<PathBuf, usize>,
    inodes: usize,
    failures: Vec<(Fail, io::ErrorKind)>,
}

#[derive(Clone)]
pub struct Recorder {
    root: PathBuf,
    log: Arc<Mutex<Log>>,
}

struct RecordedFile {
    recorder: Recorder,
    inode: usize,
    file: Box<dyn DiskFile>,
}

impl Recorder {
    pub fn new(root: &Path) -> Self {
        Self { root: root.into(), log: Arc::default() }
    }

    pub fn note(&self, op: Op) {
        self.log.lock().unwrap().ops.push(op);
    }

    pub fn ops(&self) -> Vec<Op> {
        self.log.lock().unwrap().ops.clone()
    }

    pub fn fail(&self, what: Fail, kind: io::ErrorKind) {
        self.log.lock().unwrap().failures.push((what, kind));
    }

    pub fn heal(&self) {
        self.log.lock().unwrap().failures.clear();
    }

    fn due(&self, what: Fail) -> io::Result<()> {
        let mut log = self.log.lock().unwrap();
        match log.failures.iter().position(|(f, _)| *f == what) {
            Some(at) => Err(log.failures.remove(at).1.into()),
            None => Ok(()),
        }
    }

    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).unwrap().into()
    }
}

impl DiskFile for RecordedFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let fails = self.recorder.due(Fail::Write);
        let bytes = if fails.is_err() { &bytes[..bytes.len() / 2] } else { bytes };
        self.recorder.note(Op::Write(self.inode, offset, bytes.to_vec()));
        self.file.write_at(offset, bytes)?;
        fails
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.recorder.due(Fail::Truncate)?;
        self.recorder.note(Op::Truncate(self.inode, len));
        self.file.truncate(len)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.recorder.due(Fail::Sync)?;
        self.recorder.note(Op::Sync(self.inode));
        Ok(())
    }
}

impl Disk for Recorder {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.note(Op::Mkdir(self.relative(path)));
        RealDisk.create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.due(Fail::Create)?;
        let file = RealDisk.create(path)?;
        let name = self.relative(path);
        let mut log = self.log.lock().unwrap();
        let inode = match log.names.get(&name).copied() {
            Some(inode) => {
                log.ops.push(Op::Truncate(inode, 0));
                inode
            }
            None => {
                log.inodes += 1;
                let inode = log.inodes;
                log.names.insert(name.clone(), inode);
                log.ops.push(Op::Create(name, inode));
                inode
            }
        };
        Ok(Box::new(RecordedFile { recorder: self.clone(), inode, file }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let inode = self.log.lock().unwrap().names[&self.relative(path)];
        Ok(Box::new(RecordedFile { recorder: self.clone(), inode, file: RealDisk.open(path)? }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)?;
        let (from, to) = (self.relative(from), self.relative(to));
        let mut log = self.log.lock().unwrap();
        if let Some(inode) = log.names.remove(&from) {
            log.names.insert(to.clone(), inode);
        }
        log.ops.push(Op::Rename(from, to));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)?;
        let name = self.relative(path);
        let mut log = self.log.lock().unwrap();
        log.names.remove(&name);
        log.ops.push(Op::Remove(name));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.due(Fail::SyncDir)?;
        self.note(Op::SyncDir(self.relative(path)));
        Ok(())
    }
}

/// How a power cut treats what was not synced.
pub enum Cut<'a> {
    KeepsNothing,
    KeepsAll,
    /// Asked once per name, length and sector.
    Keeps(&'a mut dyn FnMut() -> bool),
}

impl Cut<'_> {
    fn keeps(&mut self) -> bool {
        match self {
            Self::KeepsNothing => false,
            Self::KeepsAll => true,
            Self::Keeps(chance) => chance(),
        }
    }
}

#[derive(Default)]
struct Platter {
    /// `None` is a directory.
    names: BTreeMap<PathBuf, Option<usize>>,
    pending_names: Vec<Op>,
    files: BTreeMap<usize, Vec<u8>>,
    pending: BTreeMap<usize, Vec<Op>>,
}

/// Puts what is on the disk after those operations and a power cut into `target`.
pub fn after_cut(ops: &[Op], mut cut: Cut<'_>, target: &Path) {
    let mut platter = Platter::default();
    for op in ops {
        match op {
            Op::Mkdir(_) | Op::Create(..) | Op::Rename(..) | Op::Remove(_) => platter.pending_names.push(op.clone()),
            Op::Write(inode, ..) | Op::Truncate(inode, _) => {
                platter.pending.entry(*inode).or_default().push(op.clone());
            }
            Op::Sync(inode) => platter.settle_file(*inode, &mut Cut::KeepsAll),
            Op::SyncDir(dir) => platter.settle_names(Some(dir), &mut Cut::KeepsAll),
            Op::Acknowledged(_) | Op::FoldBegins | Op::FoldEnds(_) => {}
        }
    }
    let inodes: Vec<usize> = platter.pending.keys().copied().collect();
    inodes.into_iter().for_each(|inode| platter.settle_file(inode, &mut cut));
    platter.settle_names(None, &mut cut);
    for (name, inode) in &platter.names {
        let path = target.join(name);
        if !path.parent().unwrap().is_dir() {
            continue;
        }
        match inode {
            None => std::fs::create_dir(&path).unwrap(),
            Some(inode) => std::fs::write(&path, platter.files.get(inode).cloned().unwrap_or_default()).unwrap(),
        }
    }
}

impl Platter {
    fn settle_file(&mut self, inode: usize, cut: &mut Cut<'_>) {
        let bytes = self.files.entry(inode).or_default();
        for op in self.pending.remove(&inode).unwrap_or_default() {
            match op {
                Op::Truncate(_, len) if cut.keeps() => bytes.resize(len as usize, 0),
                Op::Write(_, offset, new) => write_sectors(bytes, offset as usize, &new, cut),
                _ => {}
            }
        }
    }

    fn settle_names(&mut self, dir: Option<&Path>, cut: &mut Cut<'_>) {
        for op in std::mem::take(&mut self.pending_names) {
            let (Op::Mkdir(name) | Op::Create(name, _) | Op::Rename(_, name) | Op::Remove(name)) = &op else {
                continue;
            };
            if dir.is_some_and(|dir| name.parent() != Some(dir)) {
                self.pending_names.push(op);
                continue;
            }
            let kept = cut.keeps();
            match op {
                Op::Mkdir(name) if kept => drop(self.names.insert(name, None)),
                Op::Create(name, inode) if kept => drop(self.names.insert(name, Some(inode))),
                Op::Remove(name) if kept => drop(self.names.remove(&name)),
                Op::Rename(from, to) if kept => {
                    if let Some(inode) = self.names.remove(&from) {
                        self.names.insert(to, inode);
                    }
                }
                _ => {}
            }
        }
    }
}

fn write_sectors(bytes: &mut Vec<u8>, offset: usize, new: &[u8], cut: &mut Cut<'_>) {
    let end = offset + new.len();
    // The new length may be there without the bytes.
    if cut.keeps() && bytes.len() < end {
        bytes.resize(end, 0);
    }
    let mut at = offset;
    while at < end {
        let next = ((at / 512 + 1) * 512).min(end);
        if cut.keeps() {
            if bytes.len() < next {
                bytes.resize(next, 0);
            }
            bytes[at..next].copy_from_slice(&new[at - offset..next - offset]);
        }
        at = next;
    }
}
