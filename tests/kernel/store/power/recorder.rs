//! Writes down what a traced agent does to its state directory, and what it tells its clients.
//!
//! Owns reading finished system calls: paths, bytes, inodes. Leaves stopping threads to `tracer.rs` and the meaning to `platter.rs`.
//!
//! A write is written down when it is done, a reply before it is made: what a client may know must be on the disk by then.
//! `sync_file_range` promises nothing about a power cut and is left out, as are the copies of the checkpoint that a start makes to look at.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::platter::Op;
use crate::ptrace::{self, text};

/// A call that a thread is in.
#[derive(Debug, Clone, Copy)]
pub struct Entered {
    pub number: i64,
    pub arguments: [u64; 6],
    /// How many operations had been written down.
    pub began: usize,
}

/// The operations so far.
pub struct Recorder {
    root: PathBuf,
    pub ops: Vec<Op>,
    names: BTreeMap<PathBuf, u64>,
}

impl Recorder {
    pub fn new(root: &Path) -> Self {
        Self { root: root.into(), ops: Vec::new(), names: BTreeMap::new() }
    }

    /// A thread is about to make the call.
    pub fn entered(&mut self, tid: i32, call: &Entered) {
        let [descriptor, buffer, length, ..] = call.arguments;
        if !matches!(call.number, libc::SYS_sendto | libc::SYS_write) || !link(tid, descriptor).starts_with("socket:") {
            return;
        }
        let bytes = memory(tid, buffer, length);
        let mut rest = bytes.as_slice();
        // Frames of the contract; the metrics page begins otherwise.
        while let Some((head, more)) = rest.split_first_chunk::<4>().filter(|(_, more)| more.first() == Some(&b'{')) {
            let length = u32::from_le_bytes(*head) as usize;
            let body = more.get(..length).expect("a reply in one piece");
            let frame: Value = serde_json::from_slice(body).unwrap();
            if let (true, Some(id)) = (frame["frame"] == "response", frame["id"].as_u64()) {
                assert_eq!(frame["response"]["result"], "ok", "{frame}");
                self.ops.push(Op::Reply(id));
            }
            rest = &more[length..];
        }
    }

    /// The call is done, and gave `result`.
    pub fn left(&mut self, tid: i32, call: &Entered, result: u64) {
        let [first, second, third, fourth, ..] = call.arguments;
        match call.number {
            libc::SYS_openat => self.opened(tid, result, third),
            libc::SYS_pwrite64 => self.wrote(tid, first, fourth, memory(tid, second, result)),
            libc::SYS_write => {
                self.wrote(tid, first, position(tid, first).saturating_sub(result), memory(tid, second, result))
            }
            libc::SYS_ftruncate => {
                if let Some((_, inode)) = self.file(tid, first) {
                    self.ops.push(Op::Truncate(inode, second.try_into().unwrap()));
                }
            }
            libc::SYS_fsync | libc::SYS_fdatasync => self.waited(tid, first, call.began),
            libc::SYS_mkdirat => self.made(path_at(tid, first, second)),
            libc::SYS_unlinkat => self.removed(path_at(tid, first, second)),
            libc::SYS_renameat2 => self.renamed(path_at(tid, first, second), path_at(tid, third, fourth)),
            libc::SYS_writev | libc::SYS_pwritev | libc::SYS_fallocate => {
                assert!(self.file(tid, first).is_none(), "the agent writes by call {}: record it", call.number);
            }
            _ => self.left_old(tid, call, result),
        }
    }

    /// Calls that only older processors have.
    #[cfg(target_arch = "x86_64")]
    fn left_old(&mut self, tid: i32, call: &Entered, result: u64) {
        let [first, second, ..] = call.arguments;
        let text = |at| PathBuf::from(text(tid, at));
        match call.number {
            libc::SYS_open => self.opened(tid, result, second),
            libc::SYS_mkdir => self.made(text(first)),
            libc::SYS_unlink | libc::SYS_rmdir => self.removed(text(first)),
            libc::SYS_rename => self.renamed(text(first), text(second)),
            _ => {}
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn left_old(&mut self, _tid: i32, _call: &Entered, _result: u64) {}

    fn opened(&mut self, tid: i32, descriptor: u64, flags: u64) {
        let Some((name, inode)) = self.file(tid, descriptor) else { return };
        let has = |flag: i32| flags & flag as u64 != 0;
        if has(libc::O_CREAT) && self.names.get(&name) != Some(&inode) {
            self.names.insert(name.clone(), inode);
            self.ops.push(Op::Create(name, inode));
        } else if has(libc::O_TRUNC) {
            self.ops.push(Op::Truncate(inode, 0));
        }
    }

    fn wrote(&mut self, tid: i32, descriptor: u64, offset: u64, bytes: Vec<u8>) {
        if let Some((_, inode)) = self.file(tid, descriptor) {
            self.ops.push(Op::Write(inode, offset.try_into().unwrap(), bytes));
        }
    }

    fn waited(&mut self, tid: i32, descriptor: u64, began: usize) {
        let path = PathBuf::from(link(tid, descriptor));
        match self.relative(&path) {
            Some(name) if path.is_dir() => self.ops.push(Op::SyncDir(name, began)),
            _ => {
                if let Some((_, inode)) = self.file(tid, descriptor) {
                    self.ops.push(Op::Sync(inode, began));
                }
            }
        }
    }

    fn made(&mut self, path: PathBuf) {
        if let Some(name) = self.relative(&path).filter(|name| !name.as_os_str().is_empty()) {
            self.ops.push(Op::MakeDir(name));
        }
    }

    fn removed(&mut self, path: PathBuf) {
        if let Some(name) = self.relative(&path) {
            self.names.remove(&name);
            self.ops.push(Op::Remove(name));
        }
    }

    fn renamed(&mut self, from: PathBuf, to: PathBuf) {
        let (Some(from), Some(to)) = (self.relative(&from), self.relative(&to)) else { return };
        let inode = self.names.remove(&from);
        match inode {
            Some(inode) => drop(self.names.insert(to.clone(), inode)),
            None => {
                for name in self.names.keys().filter(|name| name.starts_with(&from)).cloned().collect::<Vec<_>>() {
                    let inode = self.names.remove(&name).unwrap();
                    self.names.insert(to.join(name.strip_prefix(&from).unwrap()), inode);
                }
            }
        }
        self.ops.push(Op::Rename(from, to, inode));
    }

    /// The name, below the state directory, and the inode of a descriptor that is a file there.
    fn file(&self, tid: i32, descriptor: u64) -> Option<(PathBuf, u64)> {
        let name = self.relative(Path::new(&link(tid, descriptor)))?;
        let found = fs::metadata(format!("/proc/{tid}/fd/{descriptor}")).ok()?;
        found.is_file().then(|| (name, found.ino()))
    }

    fn relative(&self, path: &Path) -> Option<PathBuf> {
        let name = path.strip_prefix(&self.root).ok()?;
        let is_look = name.components().any(|part| part.as_os_str().to_string_lossy().starts_with("sled.look-"));
        (!is_look).then(|| name.into())
    }
}

fn link(tid: i32, descriptor: u64) -> String {
    ptrace::descriptor(tid, descriptor).map_or_else(String::new, |path| path.display().to_string())
}

fn path_at(tid: i32, directory: u64, path: u64) -> PathBuf {
    let path = PathBuf::from(text(tid, path));
    // AT_FDCWD is a negative number in 32 bits.
    if path.is_absolute() || directory as i32 == libc::AT_FDCWD {
        path
    } else {
        Path::new(&link(tid, directory)).join(path)
    }
}

fn position(tid: i32, descriptor: u64) -> u64 {
    let text = fs::read_to_string(format!("/proc/{tid}/fdinfo/{descriptor}")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("pos:"));
    line.and_then(|line| line.trim().parse().ok()).unwrap_or(0)
}

fn memory(tid: i32, at: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length.try_into().unwrap()];
    ptrace::memory(tid).unwrap().read_exact_at(&mut bytes, at).unwrap();
    bytes
}
