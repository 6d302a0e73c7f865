//! A disk as a power cut leaves it.
//!
//! Owns the model, which is as unkind as POSIX allows: until a wait for the file, each sector of a write and each new length is there or not;
//! until a wait for the directory, so is each name that was made, moved or removed. A wait for a file does not keep its name.
//!
//! A wait covers what was written when it began, not what came meanwhile.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::dice::Dice;

const SECTOR: usize = 512;

/// One thing that the traced agent did, in the order in which it was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    MakeDir(PathBuf),
    Create(PathBuf, u64),
    Write(u64, usize, Vec<u8>),
    Truncate(u64, usize),
    /// The inode; `None` is a directory.
    Rename(PathBuf, PathBuf, Option<u64>),
    Remove(PathBuf),
    /// A wait for a file, and how many operations there were when it began.
    Sync(u64, usize),
    SyncDir(PathBuf, usize),
    /// A client is about to be told that its request with this number is kept.
    Reply(u64),
}

/// What becomes of that which was not waited for.
pub enum Fate<'a> {
    NothingStays,
    AllStays,
    Chance(&'a mut Dice),
}

impl Fate<'_> {
    fn stays(&mut self) -> bool {
        match self {
            Self::NothingStays => false,
            Self::AllStays => true,
            Self::Chance(chance) => chance.one_in(2),
        }
    }
}

#[derive(Default)]
struct Platter {
    /// `None` is a directory.
    names: BTreeMap<PathBuf, Option<u64>>,
    files: BTreeMap<u64, Vec<u8>>,
    /// With the number of each operation.
    open_names: Vec<(usize, Op)>,
    open_writes: BTreeMap<u64, Vec<(usize, Op)>>,
}

/// Puts what is on the disk after those operations and a power cut into the empty directory `target`.
pub fn after_cut(ops: &[Op], mut fate: Fate<'_>, target: &Path) {
    let mut platter = Platter::default();
    for (number, op) in ops.iter().enumerate() {
        match op {
            Op::MakeDir(_) | Op::Create(..) | Op::Rename(..) | Op::Remove(_) => {
                platter.open_names.push((number, op.clone()));
            }
            Op::Write(inode, ..) | Op::Truncate(inode, _) => {
                platter.open_writes.entry(*inode).or_default().push((number, op.clone()));
            }
            Op::Sync(inode, began) => platter.settle_file(*inode, *began, &mut Fate::AllStays),
            Op::SyncDir(directory, began) => platter.settle_names(Some(directory), *began, &mut Fate::AllStays),
            Op::Reply(_) => {}
        }
    }
    let inodes: Vec<u64> = platter.open_writes.keys().copied().collect();
    inodes.into_iter().for_each(|inode| platter.settle_file(inode, usize::MAX, &mut fate));
    platter.settle_names(None, usize::MAX, &mut fate);
    for (name, inode) in &platter.names {
        let path = target.join(name);
        if !path.parent().unwrap().is_dir() {
            continue;
        }
        match inode {
            None => fs::create_dir(&path).unwrap(),
            Some(inode) => {
                fs::write(&path, platter.files.get(inode).map_or(&[][..], Vec::as_slice)).unwrap();
            }
        }
    }
}

impl Platter {
    fn settle_file(&mut self, inode: u64, before: usize, fate: &mut Fate<'_>) {
        let bytes = self.files.entry(inode).or_default();
        let (due, later): (Vec<_>, Vec<_>) =
            self.open_writes.remove(&inode).unwrap_or_default().into_iter().partition(|(number, _)| *number < before);
        for (_, op) in due {
            match op {
                Op::Truncate(_, length) if fate.stays() => bytes.resize(length, 0),
                Op::Write(_, offset, new) => write_sectors(bytes, offset, &new, fate),
                _ => {}
            }
        }
        self.open_writes.insert(inode, later);
    }

    fn settle_names(&mut self, directory: Option<&Path>, before: usize, fate: &mut Fate<'_>) {
        for (number, op) in std::mem::take(&mut self.open_names) {
            let (Op::MakeDir(name) | Op::Create(name, _) | Op::Rename(_, name, _) | Op::Remove(name)) = &op else {
                unreachable!("only names are kept there")
            };
            if number >= before || directory.is_some_and(|directory| name.parent() != Some(directory)) {
                self.open_names.push((number, op));
            } else if fate.stays() {
                self.rename_or_make(op);
            }
        }
    }

    fn rename_or_make(&mut self, op: Op) {
        match op {
            Op::MakeDir(name) => drop(self.names.insert(name, None)),
            Op::Create(name, inode) => drop(self.names.insert(name, Some(inode))),
            Op::Remove(name) => drop(self.names.remove(&name)),
            Op::Rename(from, to, Some(inode)) => {
                self.names.remove(&from);
                self.names.insert(to, Some(inode));
            }
            Op::Rename(from, to, None) => {
                let below: Vec<PathBuf> = self.names.keys().filter(|name| name.starts_with(&from)).cloned().collect();
                for name in below {
                    let inode = self.names.remove(&name).unwrap();
                    let rest = name.strip_prefix(&from).unwrap();
                    let moved = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
                    self.names.insert(moved, inode);
                }
            }
            Op::Write(..) | Op::Truncate(..) | Op::Sync(..) | Op::SyncDir(..) | Op::Reply(_) => {}
        }
    }
}

fn write_sectors(bytes: &mut Vec<u8>, offset: usize, new: &[u8], fate: &mut Fate<'_>) {
    let end = offset + new.len();
    // The new length may be there without the bytes.
    if fate.stays() && bytes.len() < end {
        bytes.resize(end, 0);
    }
    let mut at = offset;
    while at < end {
        let next = ((at / SECTOR + 1) * SECTOR).min(end);
        if fate.stays() {
            bytes.resize(bytes.len().max(next), 0);
            bytes[at..next].copy_from_slice(&new[at - offset..next - offset]);
        }
        at = next;
    }
}
