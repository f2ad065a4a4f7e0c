//! Checkpoints of every family in the published layout are checked, and served with their weights.

use std::fs;
use std::path::Path;

use kilotok_testkit::Toy;
use serde_json::{Value, json};

use super::{CHAT, COMPLETIONS, Server, checkpoint, kilotok, refused, run, text};

#[test]
fn every_family_is_checked_and_served() {
    for (toy, family, drafter, format) in [
        (Toy::qwen3_moe(), "Qwen3-MoE", "drafter   none", "replies as plain"),
        (Toy::qwen3_moe_bf16(), "Qwen3-MoE", "drafter   none", "replies as plain"),
        (Toy::gpt_oss(), "gpt-oss", "drafter   2 layers", "replies as harmony"),
        (Toy::v2_6_flash(), "MiMo-V2.5", "drafter   2 layers", "replies as plain"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        checkpoint::write_toy(folder.path(), &toy);
        let folder = folder.path().to_str().unwrap();
        let check = run(&["check", folder, "--values", "--ranks", "2"]);
        let said = text(&check.stdout);
        assert!(check.status.success(), "{family}: {said}{}", text(&check.stderr));
        for wanted in [family, "all finite", drafter, format] {
            assert!(said.contains(wanted), "{family}: {said}");
        }
        let mut serve = kilotok(&["serve", folder, "--port", "0", "--context-max", "512"]);
        let server = Server::spawn(&mut serve);
        assert!(server.said.contains(format), "{family}: {}", server.said);
        let answer = server.request(COMPLETIONS, r#"{"prompt": "ab", "max_tokens": 4}"#);
        assert!(answer.starts_with("HTTP/1.1 200"), "{family}: {answer}");
        let chat = r#"{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}"#;
        let answer = server.request(CHAT, chat);
        assert!(answer.starts_with("HTTP/1.1 200"), "{family}: {answer}");
    }
}

/// The command names the file and what is wrong with it; tests/malformed has many more faults.
#[test]
fn malformed_checkpoints_of_families_are_refused() {
    const SHARD: &str = "model_pp0_ep1_shard0.safetensors";
    type Spoil = fn(&Path);
    let cases: [(Toy, Spoil, [&str; 2]); 5] = [
        (Toy::gpt_oss(), |folder| set(folder, "num_local_experts", json!(4)), [SHARD, "not [4, "]),
        (
            Toy::gpt_oss(),
            |folder| set(folder, "num_hidden_layers", json!(5)),
            ["config.json", "layer_types has 4 entries for 5 layers"],
        ),
        (
            Toy::qwen3_moe(),
            |folder| set(folder, "attention_bias", json!(true)),
            ["config.json", "attention_bias is true"],
        ),
        (
            Toy::qwen3_moe(),
            |folder| fs::remove_file(folder.join(SHARD)).unwrap(),
            [SHARD, "cannot be opened"],
        ),
        (
            Toy::v2_6_flash(),
            |folder| fs::write(folder.join(SHARD), [0; 100]).unwrap(),
            [SHARD, "header"],
        ),
    ];
    for (toy, spoil, wanted) in cases {
        let folder = tempfile::tempdir().unwrap();
        checkpoint::write_toy(folder.path(), &toy);
        spoil(folder.path());
        let said = refused(&["check", folder.path().to_str().unwrap()]);
        for part in wanted {
            assert!(said.contains(part), "{}, {part}: {said}", toy.name);
        }
    }
}

/// Changes a field of a folder's config.
fn set(folder: &Path, name: &str, value: Value) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config[name] = value;
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn a_drafter_can_be_in_another_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (model, drafter) = (folder.path().join("model"), folder.path().join("drafter"));
    fs::create_dir(&model).unwrap();
    checkpoint::write_toy(&model, &Toy::gpt_oss());
    fs::rename(model.join("dflash"), &drafter).unwrap();
    let [model, drafter] = [&model, &drafter].map(|path| path.to_str().unwrap());
    let without = run(&["check", model]);
    assert!(text(&without.stdout).contains("drafter   none"), "{}", text(&without.stdout));
    let check = run(&["check", model, "--drafter", drafter, "--values"]);
    let said = text(&check.stdout);
    assert!(check.status.success(), "{said}{}", text(&check.stderr));
    assert!(said.contains("drafter   2 layers"), "{said}");
    let flags = ["serve", model, "--drafter", drafter, "--port", "0", "--context-max", "512"];
    let server = Server::spawn(&mut kilotok(&flags));
    assert!(server.said.contains("verified by"), "{}", server.said);
    let answer = server.request(COMPLETIONS, r#"{"prompt": "ab", "max_tokens": 4}"#);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    // Errors name the drafter's files, and a missing drafter.
    fs::remove_file(format!("{drafter}/config.json")).unwrap();
    for (named, wanted) in [(drafter, "drafter/config.json"), ("/none", "no folder /none")] {
        let refused = run(&["check", model, "--drafter", named]);
        let said = text(&refused.stderr);
        assert!(!refused.status.success() && said.contains(wanted), "{said}");
    }
}

#[test]
fn parts_for_pictures_and_sound_are_said_to_be_left_out() {
    let folder = tempfile::tempdir().unwrap();
    checkpoint::write(folder.path());
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["vision_config"] = json!({});
    fs::write(&path, config.to_string()).unwrap();
    let folder = folder.path().to_str().unwrap();
    let flags = ["serve", folder, "--load-format", "dummy", "--port", "0", "--context-max", "512"];
    let server = Server::spawn(&mut kilotok(&flags));
    assert!(server.said.contains("vision and audio are left out"), "{}", server.said);
}

#[test]
fn acceptance_is_assumed_for_dummy_weights_alone() {
    let folder = tempfile::tempdir().unwrap();
    checkpoint::write_toy(folder.path(), &Toy::gpt_oss());
    let refused =
        run(&["serve", folder.path().to_str().unwrap(), "--port", "0", "--assume-acceptance", "4"]);
    let said = text(&refused.stderr);
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("--assume-acceptance") && said.contains("dummy"), "{said}");
}
