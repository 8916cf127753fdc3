//! The rules that no compiler checks: the order of modules, what the core may not touch, the shape of files.

use std::path::{Path, PathBuf};

/// A line longer than this is cut in reviews side by side. Texts in quotes may be longer: whoever searches for an
/// error must find it in one piece.
const LINE_CHARS_MAX: usize = 120;
/// A file longer than this has a seam somewhere.
const FILE_LINES_MAX: usize = 1000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All `.rs` files below `folder`, with their text, in order of their paths.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("the directory can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("sources are UTF-8");
                found.push((path, text));
            }
        }
    }
    found.sort();
    found
}

fn workspace() -> Vec<(PathBuf, String)> {
    let crates = std::fs::read_dir(root().join("crates")).expect("the workspace has crates");
    let folders = crates.flat_map(|entry| {
        let path = entry.expect("the directory can be read").path();
        ["src", "tests", "benches"].map(|folder| path.join(folder))
    });
    folders.flat_map(|folder| sources(&folder)).collect()
}

/// The modules named after `crate::` in a text: `crate::x`, `crate::x::y` and `crate::{x, y::z}`.
fn modules_used(text: &str) -> Vec<String> {
    let mut used = Vec::new();
    let word = |text: &str| -> String {
        text.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_' || c.is_ascii_digit()).collect()
    };
    for rest in text.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => used.push(word(rest)),
            Some(group) => {
                let (mut depth, mut expects_name) = (1, true);
                for (at, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' => expects_name = true,
                        c if depth == 1 && expects_name && !c.is_whitespace() => {
                            used.push(word(&group[at..]));
                            expects_name = false;
                        }
                        _ => {}
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
        }
    }
    used.retain(|name| !name.is_empty());
    used
}

#[test]
fn the_parser_of_uses_sees_every_form() {
    let text =
        "use crate::types::{A, B}; use crate::{codec, ring::{Ring, c}, get::Get}; let x = crate::put::Put;";
    assert_eq!(modules_used(text), ["types", "codec", "ring", "get", "put"]);
}

#[test]
fn a_module_of_the_core_uses_only_modules_above_it() {
    let source = root().join("crates/core/src");
    let lib = std::fs::read_to_string(source.join("lib.rs")).expect("the core has a lib.rs");
    let order: Vec<&str> = lib
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .collect();
    assert!(order.len() > 10, "lib.rs was read as {order:?}");
    let rank = |name: &str| order.iter().position(|module| *module == name);
    let mut checked = 0;
    for (path, text) in sources(&source) {
        let inner = path.strip_prefix(&source).expect("it lies below");
        let module = inner.iter().next().expect("it has a name").to_string_lossy().replace(".rs", "");
        if module == "lib" {
            continue;
        }
        let own = rank(&module).unwrap_or_else(|| panic!("{} is not in lib.rs", path.display()));
        for used in modules_used(&text) {
            let other = rank(&used).unwrap_or_else(|| panic!("{}: crate::{used} is unknown", path.display()));
            assert!(other <= own, "{} uses {used}, which stands below it", path.display());
            checked += 1;
        }
    }
    assert!(checked > 50, "only {checked} uses were found");
}

#[test]
fn the_core_has_no_clock_socket_thread_or_hash_ordered_map() {
    let forbidden = [
        "Instant",
        "SystemTime",
        "std::net",
        "std::thread",
        "std::fs",
        "std::env",
        "HashMap",
        "HashSet",
        "RandomState",
        "async fn",
        "tokio",
        "println!",
        "static mut",
    ];
    for (path, text) in sources(&root().join("crates/core/src")) {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or(line);
            for word in forbidden {
                assert!(!code.contains(word), "{}:{}: {word}", path.display(), number + 1);
            }
        }
    }
}

#[test]
fn files_start_with_their_docs_and_keep_their_shape() {
    let mut faults = Vec::new();
    let files = workspace();
    assert!(files.len() > 20, "only {} files were found", files.len());
    for (path, text) in files {
        let name = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
        if !text.starts_with("//!") {
            faults.push(format!("{name}: does not start with //!"));
        }
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            faults.push(format!("{name}: {lines} lines, more than {FILE_LINES_MAX}"));
        }
        for (number, line) in text.lines().enumerate() {
            let chars = line.chars().count();
            if chars > LINE_CHARS_MAX && (line.trim_start().starts_with("//") || !line.contains('"')) {
                faults.push(format!("{name}:{}: {chars} characters, more than {LINE_CHARS_MAX}", number + 1));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
