//! Checkpoints of every family in the published layout, checked and served with their weights.

use kilotok_testkit::Toy;

use super::{CHAT, COMPLETIONS, Server, checkpoint, kilotok, run, text};

#[test]
fn every_family_is_checked_and_served() {
    for (toy, family, drafter) in [
        (Toy::qwen3_moe(), "Qwen3-MoE", "drafter   none"),
        (Toy::gpt_oss(), "gpt-oss", "drafter   2 layers"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        checkpoint::write_toy(folder.path(), &toy);
        let folder = folder.path().to_str().unwrap();
        let check = run(&["check", folder, "--values", "--ranks", "2"]);
        let said = text(&check.stdout);
        assert!(check.status.success(), "{family}: {said}{}", text(&check.stderr));
        for wanted in [family, "all finite", drafter] {
            assert!(said.contains(wanted), "{family}: {said}");
        }
        let mut serve = kilotok(&["serve", folder, "--port", "0", "--context-max", "512"]);
        let server = Server::spawn(&mut serve);
        let answer = server.request(COMPLETIONS, r#"{"prompt": "ab", "max_tokens": 4}"#);
        assert!(answer.starts_with("HTTP/1.1 200"), "{family}: {answer}");
        let chat = r#"{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}"#;
        let answer = server.request(CHAT, chat);
        assert!(answer.starts_with("HTTP/1.1 200"), "{family}: {answer}");
    }
}
