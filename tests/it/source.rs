//! The crate's own source files, read for the tests that hold them against the rules of the house.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// One file below `src/`.
pub struct Source {
    /// Relative to the crate, with `/`: `src/desired/edit.rs`.
    pub path: String,
    pub text: String,
}

impl Source {
    /// The module that the file holds: `["desired", "edit"]`. `lib.rs` is the empty path, `main.rs` is `["main"]`.
    pub fn module(&self) -> Vec<String> {
        let inner = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        let mut module: Vec<String> = inner.split('/').map(String::from).collect();
        if module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        if module == ["lib"] { Vec::new() } else { module }
    }

    pub fn is_mod_file(&self) -> bool {
        self.path.ends_with("/mod.rs")
    }
}

/// Every Rust file below `src/`, sorted by path. A folder named `tests` holds the body of a `#[cfg(test)] mod tests` and is left out.
pub fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    collect(&root.join("src"), &mut found);
    found.sort();
    assert!(found.len() > 20, "the sources are read from the wrong place");
    found
        .iter()
        .map(|path| Source {
            path: path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/"),
            text: fs::read_to_string(path).unwrap(),
        })
        .collect()
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.ends_with("tests") {
            continue;
        }
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}
