//! Files that tell other programs to leave our links alone, or to ask the overlay about its names.
//!
//! Owns which file is ours and how one is written. Leaves what stands in them to [`reconcile`](crate::reconcile).
//!
//! Upholds I-03 (the first line names the owner; a file without it, and anything that is no plain file, is a stranger's), I-04 (the name comes
//! into being with the whole text behind it).
//!
//! A link is never followed, also not by looking at it first: the last part of a path is opened with `O_NOFOLLOW`, so what is read is what
//! stands there.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::errno::Errno;

use super::errno::Fault;
use crate::{
    action::Action,
    ids::FilePath,
    object::{FileSpec, Key, Mark, Spec},
    observed::{Observation, Observed, Owner},
    platform::{ActionError, Interest},
};

/// Where files of ours are, below the directory of running programs.
const DIRECTORIES: [&str; 3] = ["systemd/network", "systemd/networkd.conf.d", "NetworkManager/conf.d"];
/// What ours begin with; behind it stands the mark.
const SIGNATURE: &str = "# overlayd ";
/// Many times what we write. Of a stranger's file only the beginning is read.
const READ_MAX: u64 = 64 * 1024;
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;

/// What stands at a path.
enum Found {
    Nothing,
    Ours(String),
    Stranger(String),
}

fn find(mark: Mark, path: &Path) -> io::Result<Found> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = match file {
        Ok(file) => file,
        // The second: a part of the path is a file.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Found::Nothing);
        }
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Ok(Found::Stranger("a symbolic link".to_owned()));
        }
        // What a socket answers.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            return Ok(Found::Stranger("no plain file".to_owned()));
        }
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Ok(Found::Stranger("no plain file".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(READ_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let first = text.lines().next().unwrap_or_default();
    Ok(if is_signed(first, mark) {
        Found::Ours(text)
    } else if first.starts_with(SIGNATURE) {
        Found::Stranger("a file of another overlayd instance".to_owned())
    } else {
        Found::Stranger("a file of another program, or of a person".to_owned())
    })
}

/// Whether a first line names this instance. What follows the mark is for people.
fn is_signed(first: &str, mark: Mark) -> bool {
    let behind = first.strip_prefix(SIGNATURE).and_then(|rest| rest.strip_prefix(&mark.to_string()));
    behind.is_some_and(|rest| !rest.starts_with(|letter: char| letter.is_ascii_alphanumeric()))
}

/// Reports the files of interest and every file of ours; gives why the look may not be whole.
pub(super) fn observe(
    mark: Mark,
    run_dir: &Path,
    resolver_dir: Option<&Path>,
    interest: &Interest,
    observation: &mut Observation,
) -> Option<String> {
    let mut paths: BTreeSet<FilePath> = BTreeSet::new();
    let mut cuts = Vec::new();
    let directories = DIRECTORIES.map(|directory| run_dir.join(directory));
    for directory in directories.into_iter().chain(resolver_dir.map(Path::to_owned)) {
        match listing(&directory) {
            Ok(listed) => paths.extend(listed),
            Err(error) => cuts.push(format!("{}: {error}", directory.display())),
        }
    }
    let wanted: BTreeSet<&FilePath> = interest
        .keys
        .iter()
        .filter_map(|key| match key {
            Key::File(path) => Some(path),
            _ => None,
        })
        .collect();
    paths.extend(wanted.iter().copied().cloned());
    for path in paths {
        let (content, owner) = match find(mark, path.as_path()) {
            Ok(Found::Nothing) => continue,
            Ok(Found::Ours(content)) => (content, Owner::Ours),
            Ok(Found::Stranger(what)) if wanted.contains(&path) => (String::new(), Owner::Stranger(what)),
            Ok(Found::Stranger(_)) => continue,
            Err(error) => {
                cuts.push(format!("{path}: {error}"));
                continue;
            }
        };
        let spec = Spec::File(FileSpec { content });
        observation.objects.insert(Key::File(path), Observed { spec, owner, stats: None });
    }
    (!cuts.is_empty()).then(|| cuts.join("; "))
}

fn listing(directory: &Path) -> io::Result<Vec<FilePath>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry?;
        // A name that is no path of ours is nothing that we made.
        let path = entry.path().to_str().and_then(|path| path.parse().ok());
        if entry.file_type()?.is_file() {
            paths.extend(path);
        }
    }
    Ok(paths)
}

/// Makes, replaces or removes a file, unless a stranger's stands there.
pub(super) fn execute(mark: Mark, path: &FilePath, action: &Action) -> Result<(), ActionError> {
    let failed = |what: &str, error: &io::Error| Fault::from_io(error).to_action(&format!("{what} {path}"));
    let found = find(mark, path.as_path()).map_err(|error| failed("look at", &error))?;
    if let Found::Stranger(what) = &found {
        return Err(ActionError::Stranger(format!("{path} is {what}")));
    }
    match action.result() {
        Some(Spec::File(FileSpec { content })) => {
            if !is_signed(content.lines().next().unwrap_or_default(), mark) {
                return Err(ActionError::Failed(format!("{path} would not begin with {SIGNATURE}{mark}")));
            }
            write(path.as_path(), content).map_err(|error| failed("write", &error))
        }
        Some(_) => Err(ActionError::Failed("a file's action must carry a file".into())),
        None => match (found, fs::remove_file(path.as_path())) {
            (Found::Nothing, _) | (_, Ok(())) => Ok(()),
            (_, Err(error)) if error.kind() == ErrorKind::NotFound => Ok(()),
            (_, Err(error)) => Err(failed("remove", &error)),
        },
    }
}

/// Characters of a file's name that are part of the name beside it.
const NAME_KEPT: usize = 200;

/// Writes beside and renames over: a reader sees the old text or the new one.
fn write(path: &Path, content: &str) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(Errno::EINVAL));
    };
    match DirBuilder::new().mode(DIRECTORY_MODE).create(directory) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // The dot keeps it from those who read a directory by the ends of names, and the end from those who do not look at the dot. A name may
    // be as long as the file system allows.
    let name: String = name.to_string_lossy().chars().take(NAME_KEPT).collect();
    let beside: PathBuf = directory.join(format!(".{name}.overlayd-new"));
    // What a process left that died on the way.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let written = write_new(&beside, content).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // The error that is told is the first one.
        let _ = fs::remove_file(&beside);
    }
    written?;
    File::open(directory)?.sync_all()
}

fn write_new(path: &Path, content: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)?;
    // The process's own mask may have taken bits away.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(FILE_MODE))?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_instances_signature_counts() {
        let mark = Mark::of_instance("/a");
        assert!(is_signed(&format!("# overlayd {mark}"), mark));
        assert!(is_signed(&format!("# overlayd {mark}: do not edit"), mark));
        for other in
            [format!("# overlayd {mark}0"), format!("#overlayd {mark}"), format!(" # overlayd {mark}"), String::new()]
        {
            assert!(!is_signed(&other, mark), "{other:?}");
        }
        assert!(!is_signed(&format!("# overlayd {}", Mark::of_instance("/b")), mark));
    }
}
