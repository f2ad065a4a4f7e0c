//! Edges between crates: an import of one of our crates points to a lower layer, and third-party
//! crates are used only where they belong.

use std::error::Error;
use std::process::Command;

use serde_json::Value;

use super::Finding;
use crate::tree::Tree;

/// All crates: folder, layer, and allowed imports. The root package is `app`. Tests of any crate
/// may use `testkit` besides.
const CRATES: &[(&str, u8, &str)] = &[
    ("abi", 0, ""),
    ("demo", 0, ""),
    ("model", 0, ""),
    ("engine", 1, "abi"),
    ("sampling", 1, "abi"),
    ("weights", 1, "abi model"),
    ("text", 1, "abi"),
    ("batch", 2, "abi engine model sampling"),
    ("sched", 2, "abi engine"),
    ("cpu", 3, "abi batch engine model weights"),
    ("cuda", 3, "abi batch engine model weights"),
    ("generation", 3, "abi engine sched text"),
    ("server", 4, "abi engine generation text"),
    ("testkit", 3, "abi engine model sampling weights"),
    ("xtask", 3, "abi"),
    (
        "app",
        5,
        "abi batch cpu cuda demo engine generation model sampling sched server text \
         weights",
    ),
];

/// Third-party crates that only some of ours may use, and why. Tests may use any.
const FENCES: &[(&str, &str, &str)] = &[
    (
        "axum axum-server http hyper hyper-util tower tower-http utoipa",
        "server",
        "only `server` knows HTTP",
    ),
    ("tokio", "app generation server", "libraries are called, they run no tasks"),
    (
        "serde_json",
        "app engine model server testkit text weights xtask",
        "JSON is the form of checkpoints, traces and the wire; elsewhere data are structs",
    ),
    (
        "fastrand getrandom rand rand_core",
        "",
        "random numbers come from `sampling`, keyed by seed and position",
    ),
    ("memmap2", "weights", "the one mmap call is there"),
    ("cudarc", "cuda", "all FFI is there"),
];

/// Crates that only compute from their arguments, and the third-party crates that they may use.
const PURE: &str = "abi model engine sampling sched";
const PURE_IMPORTS: &str = "bytemuck half libm serde serde_json thiserror";

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = unlinted(tree);
    match metadata(tree) {
        Ok(metadata) => findings.extend(judge(tree, &metadata)),
        Err(error) => {
            let text = format!("cargo metadata: {error}");
            findings.push(Finding::new("Cargo.toml", 1, text));
        }
    }
    findings
}

/// Manifests that do not take the workspace's lints. One that is a workspace of its own, as the
/// fuzz targets are, cannot.
fn unlinted(tree: &Tree) -> Vec<Finding> {
    let text = "the workspace's lints are off: add `[lints]` with `workspace = true`";
    let manifests = tree.files.iter().filter(|file| {
        let apart = file.path != "Cargo.toml" && file.text.contains("[workspace]\n");
        file.path.ends_with("Cargo.toml")
            && !apart
            && file.text.contains("[package]")
            && !file.text.contains("[lints]\nworkspace = true\n")
    });
    let findings = manifests.map(|file| Finding::new(&file.path, 1, text));
    findings.collect()
}

fn metadata(tree: &Tree) -> Result<Value, Box<dyn Error>> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(&tree.root)
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn judge(tree: &Tree, metadata: &Value) -> Vec<Finding> {
    let root = metadata["workspace_root"].as_str().unwrap_or_default();
    let mut findings = Vec::new();
    for package in list(&metadata["packages"]) {
        let manifest = text(&package["manifest_path"]);
        let manifest = manifest.strip_prefix(root).unwrap_or(manifest);
        let manifest = manifest.trim_start_matches('/');
        let folder = folder(manifest);
        let name = text(&package["name"]);
        if short(name) != Some(folder) {
            let text = format!("package {name} in folder {folder}: name it kilotok-{folder}");
            findings.push(Finding::new(manifest, 1, text));
        }
        let Some((_, _, imports)) = CRATES.iter().find(|(name, ..)| *name == folder) else {
            let text = format!(
                "{folder} is not in the design: give it a row in crates/xtask/src/tidy/edges.rs"
            );
            findings.push(Finding::new(manifest, 1, text));
            continue;
        };
        for dependency in list(&package["dependencies"]) {
            let name = text(&dependency["name"]);
            let for_tests = dependency["kind"] == "dev";
            let fault = match short(name) {
                Some(ours) => fault_of_ours(folder, imports, ours, for_tests),
                None if for_tests => None,
                None => fault_of_others(folder, name),
            };
            if let Some(what) = fault {
                findings.push(Finding::new(manifest, line_of(tree, manifest, name), what));
            }
        }
    }
    findings
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn folder(manifest: &str) -> &str {
    match manifest.rsplit('/').nth(1) {
        Some(folder) => folder,
        None => "app",
    }
}

/// Our name for one of our packages.
fn short(package: &str) -> Option<&str> {
    match package {
        "kilotok" => Some("app"),
        "xtask" => Some("xtask"),
        _ => package.strip_prefix("kilotok-"),
    }
}

fn lists(words: &str, word: &str) -> bool {
    words.split(' ').any(|listed| listed == word)
}

fn fault_of_ours(folder: &str, imports: &str, ours: &str, for_tests: bool) -> Option<String> {
    let allowed = lists(imports, ours) || for_tests && ours == "testkit";
    let fault = || format!("{folder} may import [{imports}], not {ours}: cut this edge");
    (!allowed).then(fault)
}

fn fault_of_others(folder: &str, name: &str) -> Option<String> {
    if let Some((_, users, why)) = FENCES.iter().find(|(names, ..)| lists(names, name))
        && !lists(users, folder)
    {
        return Some(format!("{folder} may not use {name}, {why}: cut this edge"));
    }
    if lists(PURE, folder) && !lists(PURE_IMPORTS, name) {
        return Some(format!(
            "{folder} is pure, it may use [{PURE_IMPORTS}], not {name}: cut this edge"
        ));
    }
    None
}

fn line_of(tree: &Tree, path: &str, dependency: &str) -> usize {
    let text = tree.text(path).unwrap_or_default();
    let mut lines = (1..).zip(text.lines());
    let found = lines.find(|(_, line)| {
        let rest = line.strip_prefix(dependency);
        rest.is_some_and(|rest| rest.starts_with(['.', ' ', '=']))
    });
    found.map_or(1, |(line, _)| line)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn judge_one(folder: &str, name: &str, dependencies: &[(&str, Option<&str>)]) -> Vec<String> {
        let path = format!("crates/{folder}/Cargo.toml");
        let manifest = "[dependencies]\nkilotok-cpu.workspace = true\n";
        let dependencies: Vec<_> =
            dependencies.iter().map(|(name, kind)| json!({"name": name, "kind": kind})).collect();
        let metadata = json!({"workspace_root": "/r", "packages": [{
            "name": name,
            "manifest_path": format!("/r/{path}"),
            "dependencies": dependencies,
        }]});
        let findings = judge(&Tree::of(&[(&path, manifest)]), &metadata);
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn edges_point_down() {
        let layer = |name| CRATES.iter().find(|row| row.0 == name).map(|row| row.1);
        for (name, own, imports) in CRATES {
            for import in imports.split_whitespace() {
                assert!(layer(import).is_some_and(|layer| layer < *own), "{name} {import}");
            }
        }
    }

    #[test]
    fn forbidden_edges_are_found() {
        let good = [("kilotok-abi", None), ("kilotok-testkit", Some("dev")), ("serde", None)];
        assert!(judge_one("engine", "kilotok-engine", &good).is_empty());
        assert_eq!(
            judge_one("engine", "kilotok-engine", &[("kilotok-cpu", None)]),
            ["crates/engine/Cargo.toml:2: engine may import [abi], not cpu: cut this edge"]
        );
        let sideways = [("kilotok-sampling", Some("dev"))];
        assert_eq!(judge_one("engine", "kilotok-engine", &sideways).len(), 1);
        let normal_testkit = [("kilotok-testkit", None)];
        assert_eq!(judge_one("cpu", "kilotok-cpu", &normal_testkit).len(), 1);
    }

    #[test]
    fn crates_are_named_and_known() {
        assert!(judge_one("cpu", "kilotok-tpu", &[])[0].contains("name it kilotok-cpu"));
        assert!(judge_one("misc", "kilotok-misc", &[])[0].contains("not in the design"));
        assert!(judge_one("xtask", "xtask", &[]).is_empty());
    }

    #[test]
    fn crates_of_others_stay_where_they_belong() {
        for (folder, dependency, count) in [
            ("server", "axum", 0),
            ("cpu", "axum", 1),
            ("cpu", "rayon", 0),
            ("cpu", "rand", 1),
            ("sched", "tokio", 1),
            ("sched", "rayon", 1),
            ("sched", "serde_json", 1),
            ("model", "serde_json", 0),
        ] {
            let found = judge_one(folder, &format!("kilotok-{folder}"), &[(dependency, None)]);
            assert_eq!(found.len(), count, "{folder} {dependency}");
        }
        let for_tests = [("serde_json", Some("dev"))];
        assert!(judge_one("engine", "kilotok-engine", &for_tests).is_empty());
    }

    #[test]
    fn every_package_takes_the_lints() {
        let good = "[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n";
        let tree = Tree::of(&[("a/Cargo.toml", good), ("b/Cargo.toml", "[package]\n")]);
        let findings = unlinted(&tree);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].path, "b/Cargo.toml");
    }
}
