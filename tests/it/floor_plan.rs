//! Arrows only point down: which room may use which.
//!
//! The plan is data ([`ROOMS`], [`EXCEPTIONS`]). Paths are read from tokens and not from text, so that a use inside nested braces, in the
//! middle of an expression, behind `super::` or inside a macro counts, and one inside a comment does not. Test modules count too.

use std::{collections::BTreeSet, str::FromStr};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::source::sources;

/// A module, the floor it is on, and the room it belongs to. The longest path that fits a module decides.
struct Place {
    module: &'static str,
    floor: u8,
    room: &'static str,
}

const fn place(module: &'static str, floor: u8, room: &'static str) -> Place {
    Place { module, floor, room }
}

const ROOMS: &[Place] = &[
    place("ids", 0, "ids"),
    place("secret", 0, "secret"),
    place("clock", 0, "clock"),
    place("failure", 0, "failure"),
    place("object", 1, "object"),
    place("action", 1, "action"),
    place("wire", 2, "wire"),
    place("desired", 2, "desired"),
    place("observed", 2, "observed"),
    place("reconcile::target", 3, "reconcile"),
    place("reconcile::step", 3, "reconcile"),
    place("reconcile::plan", 3, "reconcile"),
    place("reconcile::view", 3, "reconcile"),
    place("reconcile::order", 3, "reconcile"),
    place("reconcile::explain", 3, "reconcile"),
    place("reconcile::ledger", 3, "reconcile"),
    place("platform", 3, "platform"),
    place("dns", 3, "dns"),
    place("nat", 3, "nat"),
    place("proxy", 3, "proxy"),
    place("client", 3, "client"),
    // Whoever names the room without a module of it could mean any of them, so the room counts as its highest floor.
    place("reconcile", 4, "reconcile"),
    place("daemon", 5, "daemon"),
    place("cli", 6, "cli"),
    place("main", 6, "main"),
    // Only in tests and with the feature `fuzzing`: it calls the file `fuzz` of each room that reads what others write.
    place("fuzzing", 6, "fuzzing"),
];

/// A use of a neighbour on the same floor, and why it is no mistake.
struct Exception {
    from: &'static str,
    to: &'static str,
    why: &'static str,
}

const EXCEPTIONS: &[Exception] = &[
    Exception {
        from: "action",
        to: "object",
        why: "An action is a change of an object; the two are one vocabulary, and object knows nothing of actions.",
    },
    Exception {
        from: "secret",
        to: "ids",
        why: "The public half of a key pair is an identifier, and a key that cannot be read is a bad identifier.",
    },
    Exception { from: "main", to: "cli", why: "The program is the command line and nothing else." },
];

/// One use of a path of this crate.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Use {
    line: usize,
    /// From the root of the crate.
    path: Vec<String>,
}

/// Every path of this crate that `tokens`, the inside of `module`, name.
fn uses(tokens: TokenStream, module: &[String], found: &mut Vec<Use>) {
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < trees.len() {
        match &trees[at] {
            TokenTree::Ident(word) if word == "mod" => {
                if let (Some(TokenTree::Ident(name)), Some(TokenTree::Group(body))) =
                    (trees.get(at + 1), trees.get(at + 2))
                {
                    let inner = [module, &[name.to_string()]].concat();
                    uses(body.stream(), &inner, found);
                    at += 3;
                    continue;
                }
                at += 1;
            }
            TokenTree::Ident(word) if starts_path(&trees, at) => {
                let base = match word.to_string().as_str() {
                    "crate" | "overlayd" => Vec::new(),
                    "self" => module.to_vec(),
                    _ => module[..module.len().saturating_sub(1)].to_vec(),
                };
                at = follow(&trees, at + 1, base, word.span().start().line, found);
            }
            TokenTree::Group(group) => {
                uses(group.stream(), module, found);
                at += 1;
            }
            TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => at += 1,
        }
    }
}

/// True for `crate::`, `self::`, `super::` and `overlayd::` where they begin a path.
fn starts_path(trees: &[TokenTree], at: usize) -> bool {
    let TokenTree::Ident(word) = &trees[at] else {
        return false;
    };
    let begins = ["crate", "self", "super", "overlayd"].iter().any(|root| word == root);
    let continues_another = at >= 1
        && matches!(&trees[at - 1], TokenTree::Punct(mark) if mark.as_char() == ':')
        && at >= 2
        && matches!(&trees[at - 2], TokenTree::Punct(mark) if mark.as_char() == ':');
    begins && !continues_another && is_separator(trees, at + 1)
}

fn is_separator(trees: &[TokenTree], at: usize) -> bool {
    let colon = |tree: Option<&TokenTree>| matches!(tree, Some(TokenTree::Punct(mark)) if mark.as_char() == ':');
    colon(trees.get(at)) && colon(trees.get(at + 1))
}

/// Reads `::a::b` or `::{…}` from `at` on and notes where it leads; answers where the path ends.
fn follow(trees: &[TokenTree], mut at: usize, mut path: Vec<String>, line: usize, found: &mut Vec<Use>) -> usize {
    while is_separator(trees, at) {
        match trees.get(at + 2) {
            Some(TokenTree::Ident(word)) if word == "super" => {
                path.pop();
            }
            Some(TokenTree::Ident(word)) if word == "self" => {}
            Some(TokenTree::Ident(word)) => path.push(word.to_string()),
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                branches(group.stream(), &path, found);
                return at + 3;
            }
            // A star, or the `<` of a turbofish.
            _ => {
                at += 2;
                break;
            }
        }
        at += 3;
    }
    found.push(Use { line, path });
    at
}

/// The inside of the braces of a use: paths that all begin with `base`.
fn branches(tokens: TokenStream, base: &[String], found: &mut Vec<Use>) {
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    let is_comma = |tree: &TokenTree| matches!(tree, TokenTree::Punct(mark) if mark.as_char() == ',');
    for branch in trees.split(is_comma) {
        let Some(TokenTree::Ident(first)) = branch.first() else {
            continue;
        };
        let mut path = base.to_vec();
        match first.to_string().as_str() {
            "self" => {}
            "super" => drop(path.pop()),
            name => path.push(name.to_owned()),
        }
        follow(branch, 1, path, first.span().start().line, found);
    }
}

fn place_of(module: &[String]) -> Option<&'static Place> {
    let fits = |place: &&Place| {
        let parts: Vec<&str> = place.module.split("::").collect();
        module.len() >= parts.len() && parts.iter().zip(module).all(|(part, is)| part == is)
    };
    ROOMS.iter().filter(fits).max_by_key(|place| place.module.len())
}

/// What is wrong with `from` using `to`, and what to do about it; `None` when nothing is.
fn fault(from: &[String], to: &[String]) -> Option<String> {
    let (Some(user), Some(used)) = (place_of(from), place_of(to)) else {
        let stranger = if place_of(from).is_none() { from } else { to };
        return Some(format!(
            "{} is in no room; give it a floor in ROOMS of tests/it/floor_plan.rs",
            stranger.join("::")
        ));
    };
    let (up, down) = (user.floor, used.floor);
    if down < up || (user.room == used.room && down == up) {
        return None;
    }
    if down > up {
        return Some(format!(
            "upward: {} is on F{up}, {} on F{down}; pass what is needed in as an argument or a trait, or move it down",
            user.module, used.module
        ));
    }
    let is_allowed = EXCEPTIONS.iter().any(|exception| exception.from == user.room && exception.to == used.room);
    (!is_allowed).then(|| {
        format!(
            "sideways: {} and {} are neighbours on F{up} and do not know each other; let a room above bring them together, or move what they share down",
            user.module, used.module
        )
    })
}

/// Every breach in one file, as `file:line: from -> to: what and what to do`.
fn breaches(file: &str, module: &[String], text: &str) -> Vec<String> {
    let mut found = Vec::new();
    uses(TokenStream::from_str(text).unwrap(), module, &mut found);
    let named = found.into_iter().filter(|found| !found.path.is_empty());
    let mut lines = Vec::new();
    for Use { line, path } in named {
        if let Some(why) = fault(module, &path) {
            lines.push(format!("{file}:{line}: {} -> {}: {why}", module.join("::"), path.join("::")));
        }
    }
    lines
}

#[test]
fn no_room_uses_one_above_or_beside_it() {
    let house = sources();
    let breaches: Vec<String> = house
        .iter()
        .filter(|source| !source.module().is_empty())
        .flat_map(|source| breaches(&source.path, &source.module(), &source.text))
        .collect();
    assert!(breaches.is_empty(), "the floor plan is broken:\n{}", breaches.join("\n"));
}

#[test]
fn every_exception_has_a_reason_and_is_needed() {
    let mut edges = BTreeSet::new();
    for source in sources() {
        let (module, mut found) = (source.module(), Vec::new());
        uses(TokenStream::from_str(&source.text).unwrap(), &module, &mut found);
        for Use { path, .. } in found {
            if let (Some(from), Some(to)) = (place_of(&module), place_of(&path)) {
                edges.insert((from.room, to.room));
            }
        }
    }
    let under_construction = !edges.iter().any(|(from, _)| *from == "main");
    for Exception { from, to, why } in EXCEPTIONS {
        assert!(why.ends_with('.') && why.len() > 20, "{from} -> {to} needs a sentence that says why");
        assert!(
            edges.contains(&(*from, *to)) || (*from == "main" && under_construction),
            "{from} -> {to} is allowed and nobody needs it; remove the exception"
        );
    }
}

/// The breaches in a text that stands in `module`.
fn breaches_in(module: &str, text: &str) -> Vec<String> {
    let module: Vec<String> = module.split("::").map(String::from).collect();
    breaches("src/example.rs", &module, text)
}

#[test]
fn an_upward_use_is_caught_with_its_line() {
    let found = breaches_in("desired::document", "// one\nuse crate::reconcile::plan::Plan;\n");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("src/example.rs:2: desired::document -> reconcile::plan::Plan: upward"), "{found:?}");
}

#[test]
fn a_sideways_use_is_caught() {
    let found = breaches_in("wire::frame", "use crate::desired::Document;");
    assert!(found.len() == 1 && found[0].contains("sideways"), "{found:?}");
    assert_eq!(breaches_in("object::key", "use crate::action::Action;").len(), 1);
    assert_eq!(breaches_in("platform::linux", "use crate::reconcile::plan::Plan;").len(), 1);
}

#[test]
fn an_upward_use_in_nested_braces_is_caught() {
    let found = breaches_in(
        "observed::snapshot",
        "use crate::{\n    ids::{Cidr, IfName},\n    object::{Key, Spec},\n    reconcile::{target::{Facts, Scope}, plan},\n};",
    );
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().all(|line| line.contains("example.rs:4") && line.contains("upward")), "{found:?}");
}

#[test]
fn an_upward_use_in_the_middle_of_an_expression_is_caught() {
    let text = "fn f(x: &[u8]) -> usize { x.iter().map(|_| crate::daemon::limit::<u8>()).sum() }";
    assert_eq!(breaches_in("clock", text).len(), 1);
    assert_eq!(breaches_in("clock", "macro_rules! m { () => { $crate::object::Key } }").len(), 1);
    assert_eq!(breaches_in("clock", "fn f() { assert_eq!(crate::cli::VERSION, 1) }").len(), 1);
}

#[test]
fn a_use_that_leaves_the_room_through_super_is_caught() {
    assert_eq!(breaches_in("desired::document", "use super::super::platform::Kernel;").len(), 1);
    assert_eq!(breaches_in("desired::document", "mod tests { use super::super::super::platform::Kernel; }").len(), 1);
    assert_eq!(
        breaches_in("desired::document", "mod tests { use super::*; use super::super::edit; }"),
        Vec::<String>::new()
    );
}

#[test]
fn a_test_module_counts() {
    assert_eq!(breaches_in("ids::cidr", "#[cfg(test)] mod tests { use crate::object::Key; }").len(), 1);
}

#[test]
fn the_pure_half_of_the_loop_may_not_use_the_other() {
    assert_eq!(breaches_in("reconcile::plan", "use super::engine::Engine;").len(), 1);
    assert_eq!(
        breaches_in("reconcile::engine", "use super::{plan::Plan, target::{Facts, Target}};"),
        Vec::<String>::new()
    );
}

#[test]
fn a_module_without_a_floor_is_an_error() {
    let found = breaches_in("attic", "use crate::ids::Cidr;");
    assert!(found.len() == 1 && found[0].contains("give it a floor"), "{found:?}");
}

#[test]
fn what_points_down_what_stays_inside_and_what_is_a_comment_are_fine() {
    let text = "
        //! See [`reconcile`](crate::reconcile).
        use crate::{clock::UnixTime, ids::Cidr, object::Key};
        use super::record::Record;
        // use crate::daemon::Thing;
        pub(crate) fn f(self_: &str) -> &str { self::g(self_) }
    ";
    assert_eq!(breaches_in("desired::document", text), Vec::<String>::new());
}
