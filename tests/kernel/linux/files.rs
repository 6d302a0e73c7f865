//! Files for the programs that configure links.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

struct Run(tempfile::TempDir);

impl Run {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("systemd")).unwrap();
        Self(dir)
    }

    fn kernel(&self) -> LinuxKernel {
        LinuxKernel::open(LinuxOptions { run_dir: self.0.path().to_owned(), ..options(mark()) }).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn key(&self, name: &str) -> Key {
        Key::File(self.path(name).to_str().unwrap().parse().unwrap())
    }
}

fn text(rest: &str) -> Spec {
    Spec::File(FileSpec { content: format!("# overlayd {}\n{rest}", mark()) })
}

fn interest(keys: &[&Key]) -> Interest {
    Interest {
        subsystems: [Subsystem::File].into(),
        keys: keys.iter().copied().cloned().collect(),
        ..Interest::default()
    }
}

const NETWORK: &str = "systemd/network/05-overlayd.network";

#[test]
fn a_file_is_made_seen_changed_and_removed() {
    in_namespace(|| async {
        let run_dir = Run::new();
        let mut kernel = run_dir.kernel();
        let key = run_dir.key(NETWORK);
        for wanted in [text("one"), text("two")] {
            for _ in 0..2 {
                run(&mut kernel, create(key.clone(), wanted.clone())).await.unwrap();
            }
            let seen = look(&mut kernel, interest(&[])).await;
            assert_eq!(seen.objects.get(&key), Some(&Observed::ours(wanted)));
            assert_eq!(seen.coverage[&Subsystem::File], Coverage::Whole);
        }
        let mode = std::fs::metadata(run_dir.path(NETWORK)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o644);
        let names: Vec<_> = std::fs::read_dir(run_dir.path("systemd/network")).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        for _ in 0..2 {
            run(&mut kernel, delete(key.clone(), text("two"))).await.unwrap();
        }
        assert!(look(&mut kernel, interest(&[&key])).await.objects.is_empty());
        let nowhere = run_dir.key("no/such/dir/file");
        assert!(run(&mut kernel, create(nowhere, text(""))).await.is_err());
        let unsigned = Spec::File(FileSpec { content: "[Match]\n".into() });
        assert!(matches!(run(&mut kernel, create(key, unsigned)).await, Err(ActionError::Failed(_))));
    });
}

#[test]
fn what_somebody_else_put_there_stays_byte_for_byte() {
    in_namespace(|| async {
        let run_dir = Run::new();
        let mut kernel = run_dir.kernel();
        std::fs::create_dir(run_dir.path("systemd/network")).unwrap();
        let precious = run_dir.path("precious");
        std::fs::write(&precious, format!("# overlayd {}\n", mark())).unwrap();
        symlink(&precious, run_dir.path("systemd/network/link")).unwrap();
        symlink("nowhere", run_dir.path("systemd/network/dangling")).unwrap();
        std::fs::create_dir(run_dir.path("systemd/network/dir")).unwrap();
        std::fs::write(run_dir.path("systemd/network/persons"), "[Match]\n").unwrap();
        std::fs::write(run_dir.path("systemd/network/twins"), format!("# overlayd {}\n", other_mark())).unwrap();
        for (name, words) in [
            ("link", "symbolic link"),
            ("dangling", "symbolic link"),
            ("dir", "no plain file"),
            ("persons", "person"),
            ("twins", "another overlayd instance"),
        ] {
            let path = format!("systemd/network/{name}");
            let key = run_dir.key(&path);
            let seen = look(&mut kernel, interest(&[&key])).await;
            assert!(matches!(owner(&seen, &key), Some(Owner::Stranger(text)) if text.contains(words)), "{seen:?}");
            for action in [create(key.clone(), text("x")), delete(key.clone(), text("x"))] {
                let outcome = run(&mut kernel, action).await;
                assert!(matches!(outcome, Err(ActionError::Stranger(_))), "{name}: {outcome:?}");
            }
            assert!(std::fs::symlink_metadata(run_dir.path(&path)).is_ok());
        }
        assert_eq!(std::fs::read_to_string(run_dir.path("systemd/network/persons")).unwrap(), "[Match]\n");
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), format!("# overlayd {}\n", mark()));
        assert!(look(&mut kernel, interest(&[])).await.objects.is_empty());
    });
}

#[test]
fn the_programs_that_configure_links_are_noticed() {
    in_namespace(|| async {
        let run_dir = Run::new();
        let mut kernel = run_dir.kernel();
        let links = || Interest { subsystems: [Subsystem::Link].into(), ..Interest::default() };
        assert!(look(&mut kernel, links()).await.surroundings.unwrap().neighbours.is_empty());
        std::fs::create_dir(run_dir.path("systemd/netif")).unwrap();
        std::fs::create_dir(run_dir.path("NetworkManager")).unwrap();
        let found = look(&mut kernel, links()).await.surroundings.unwrap().neighbours;
        assert_eq!(found, [Neighbour::Networkd, Neighbour::NetworkManager].into());
        assert!(look(&mut kernel, interest(&[])).await.surroundings.is_none());
    });
}
