//! Folders in which files are missing, are not regular files, or contradict their index.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::good::{Files, Model, Stored, safetensors, write};
use crate::{accepts, assert_refused, read_all, refuses};

const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "model_pp0_ep0_shard0.safetensors";
const SECOND: &str = "model_pp0_ep1_shard0.safetensors";
const EXPERT: &str = "model.layers.1.mlp.experts.1.up_proj.weight";
const NORM: &str = "model.norm.weight";

type Shards = [Vec<Stored>; 2];

fn sharded(edit: impl FnOnce(&mut Map<String, Value>, &mut Shards)) -> Files {
    Model::good().sharded(edit)
}

fn with_index(text: &str) -> Files {
    let mut files = sharded(|_, _| {});
    files.insert(INDEX.to_owned(), text.as_bytes().to_vec());
    files
}

fn moved(tensor: &str, file: &str) -> Files {
    sharded(|index, _| {
        index.insert(tensor.to_owned(), file.into());
    })
}

/// A folder with good files, which `edit` then changes.
fn folder(edit: impl FnOnce(&Path)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(&Model::good().files(), folder.path());
    edit(folder.path());
    folder
}

#[test]
fn indices_that_lie() {
    refuses(&moved(EXPERT, FIRST), &[SECOND, EXPERT, &format!("is in {FIRST} by the index")]);
    refuses(
        &moved(EXPERT, "other.safetensors"),
        &["other.safetensors: cannot be opened", "is in other.safetensors by the index"],
    );
    refuses(
        &moved("extra.weight", FIRST),
        &[INDEX, "extra.weight", &format!("is said to be in {FIRST}, which lacks it")],
    );
    let unlisted = sharded(|index, _| {
        index.remove(NORM);
    });
    refuses(&unlisted, &[FIRST, NORM, "is not in the index"]);
    let absent = sharded(|_, shards| shards[0].retain(|tensor| tensor.name != NORM));
    refuses(&absent, &[INDEX, NORM, "is said to be in", "is missing"]);
    let twice = sharded(|_, shards| {
        let again = shards[1][0].clone();
        shards[0].push(again);
    });
    refuses(&twice, &[SECOND, "is in model_pp0_ep0_shard0.safetensors too"]);
}

#[test]
fn indices_that_lead_elsewhere() {
    for name in [
        "../model.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "sub\\model.safetensors",
        "./model.safetensors",
        "C:model.safetensors",
        "..",
        "",
        "model.safetensors/",
        "model.safetensors\0",
        "model.bin",
        "config.json",
    ] {
        let named = format!("names {name:?}, which is no plain *.safetensors file");
        refuses(&moved(EXPERT, name), &[INDEX, &named]);
    }
}

#[test]
fn indices_that_are_none() {
    refuses(&with_index("not JSON"), &[INDEX, "is no index", "expected"]);
    refuses(&with_index(""), &[INDEX, "is no index", "EOF"]);
    refuses(&with_index("{}"), &[INDEX, "is no index", "missing field `weight_map`"]);
    refuses(&with_index("{\"weight_map\": []}"), &[INDEX, "is no index", "expected an object"]);
    refuses(&with_index("{\"weight_map\": {}}"), &[INDEX, "names no tensor"]);
    refuses(&with_index("{\"weight_map\": {\"a\": 3}}"), &[INDEX, "is no index", "a: "]);
    refuses(&with_index("{\"weight_map\": {}, \"weight_map\": {}}"), &[INDEX, "duplicate field"]);
    let twice = format!("{{\"weight_map\": {{\"a\": \"{FIRST}\", \"a\": \"{SECOND}\"}}}}");
    refuses(&with_index(&twice), &[INDEX, "a stands twice"]);
    let mut files = with_index("");
    files.insert(INDEX.to_owned(), b"{\"weight_map\": {\"\xff\": \"a\"}}".to_vec());
    refuses(&files, &[INDEX, "is not UTF-8"]);
}

#[test]
fn shards_that_are_missing_or_damaged() {
    let mut files = sharded(|_, _| {});
    files.remove(SECOND);
    refuses(&files, &[&format!("{SECOND}: cannot be opened: No such file")]);
    let mut files = sharded(|_, _| {});
    files.get_mut(SECOND).unwrap().truncate(100);
    refuses(&files, &[SECOND, "says that its header has"]);
    // The tensors of an unreadable file are not reported one by one.
    let folder = tempfile::tempdir().unwrap();
    write(&files, folder.path());
    assert!(!read_all(folder.path()).unwrap_err().contains("is missing"));
    // Even without an index, a tensor must not be in two files.
    let mut files = sharded(|_, shards| {
        let again = shards[1][0].clone();
        shards[0].push(again);
    });
    files.remove(INDEX);
    refuses(&files, &[SECOND, "is in model_pp0_ep0_shard0.safetensors too"]);
}

#[test]
fn good_shards_are_accepted() {
    accepts(&sharded(|_, _| {}));
    let mut files = sharded(|_, _| {});
    files.insert("left_over.safetensors".to_owned(), vec![1, 2, 3]);
    accepts(&files);
    files.remove("left_over.safetensors");
    files.remove(INDEX);
    accepts(&files);
    // A drafter with several shards.
    let model = Model::good();
    let mut files = model.files();
    files.remove("dflash/dflash_draft_model.safetensors");
    let (first, second) = model.draft.split_at(5);
    let mut index = Map::new();
    for (number, tensors) in [(1, first), (2, second)] {
        let name = format!("dflash_draft_model-0000{number}-of-00002.safetensors");
        index.extend(tensors.iter().map(|tensor| (tensor.name.clone(), name.clone().into())));
        files.insert(format!("dflash/{name}"), safetensors(tensors));
    }
    accepts(&files);
    let index = json!({"weight_map": index}).to_string().into_bytes();
    files.insert("dflash/dflash_draft_model.safetensors.index.json".to_owned(), index);
    accepts(&files);
}

#[test]
fn folders_without_a_model() {
    let empty = tempfile::tempdir().unwrap();
    assert_refused(read_all(empty.path()), &["config.json: cannot be opened: No such file"]);
    assert_refused(read_all(&empty.path().join("nothing")), &["config.json: cannot be opened"]);
    let file = empty.path().join("file");
    fs::write(&file, "").unwrap();
    assert_refused(read_all(&file), &["config.json: cannot be opened: Not a directory"]);
    let mut files = Model::good().files();
    files.remove("model.safetensors");
    refuses(&files, &["*.safetensors: there is no such file"]);
    files.remove("config.json");
    refuses(&files, &["config.json: cannot be opened"]);
    let mut files = Model::good().files();
    files.remove("dflash/dflash_draft_model.safetensors");
    refuses(&files, &["dflash/*.safetensors: there is no such file"]);
    files.remove("dflash/config.json");
    refuses(&files, &["dflash/config.json: cannot be opened"]);
}

#[test]
fn things_that_are_no_files() {
    for name in
        ["config.json", "model.safetensors", "dflash/config.json", "dflash/mask_embedding.pt"]
    {
        let is_folder = folder(|folder| {
            fs::remove_file(folder.join(name)).unwrap();
            fs::create_dir(folder.join(name)).unwrap();
        });
        assert_refused(read_all(is_folder.path()), &[name, "is not a regular file"]);
        let dangling = folder(|folder| {
            fs::remove_file(folder.join(name)).unwrap();
            symlink("nowhere", folder.join(name)).unwrap();
        });
        assert_refused(read_all(dangling.path()), &[name, "cannot be opened: No such file"]);
        let circle = folder(|folder| {
            fs::remove_file(folder.join(name)).unwrap();
            symlink(folder.join(name), folder.join(name)).unwrap();
        });
        assert_refused(read_all(circle.path()), &[name, "cannot be opened"]);
        // Opening a pipe would wait forever for its other end.
        let pipe = folder(|folder| {
            fs::remove_file(folder.join(name)).unwrap();
            let made = std::process::Command::new("mkfifo").arg(folder.join(name)).status();
            assert!(made.unwrap().success());
        });
        assert_refused(read_all(pipe.path()), &[name, "is not a regular file"]);
    }
    let drafter_file = folder(|folder| {
        fs::remove_dir_all(folder.join("dflash")).unwrap();
        fs::write(folder.join("dflash"), "").unwrap();
    });
    assert_refused(read_all(drafter_file.path()), &["dflash/config.json: cannot be opened"]);
    let drafter_gone = folder(|folder| {
        fs::remove_dir_all(folder.join("dflash")).unwrap();
        symlink("nowhere", folder.join("dflash")).unwrap();
    });
    assert_refused(read_all(drafter_gone.path()), &["dflash/config.json: cannot be opened"]);
}

/// As in the hub's cache, where every file is a link.
#[test]
fn links_are_followed() {
    let linked = folder(|folder| {
        fs::create_dir(folder.join("blobs")).unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::rename(folder.join(name), folder.join("blobs").join(name)).unwrap();
            symlink(Path::new("blobs").join(name), folder.join(name)).unwrap();
        }
    });
    read_all(linked.path()).unwrap();
}
