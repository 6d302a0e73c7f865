use std::{
    fmt,
    path::{Component, Path},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{BadId, text_identifier};

/// Longest path in bytes: `PATH_MAX` (linux/limits.h) without its terminating zero.
const PATH_MAX: usize = 4095;

/// The absolute path of a file, without `.` and `..` in it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FilePath(String);

impl FilePath {
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl FromStr for FilePath {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = |rule| BadId::new("file path", text, rule);
        if text.is_empty() || text.len() > PATH_MAX || text.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(bad("must have 1 to 4095 bytes and no control characters"));
        }
        let mut parts = Path::new(text).components();
        let is_plain = parts.next() == Some(Component::RootDir)
            && parts.clone().count() > 0
            && parts.all(|part| matches!(part, Component::Normal(_)));
        if !is_plain || text.ends_with('/') || text.contains("//") || text.contains("/./") || text.ends_with("/.") {
            return Err(bad("must be the absolute path of a file, without empty parts, '.' and '..'"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_identifier!(FilePath);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_absolute_path_is_one() {
        assert!("/run/systemd/network/10-a.network".parse::<FilePath>().is_ok());
        for bad in ["", "/", "a", "./a", "/a/../b", "/a/./b", "/a//b", "/a/", "/a\n"] {
            assert!(bad.parse::<FilePath>().is_err(), "{bad}");
        }
    }
}
