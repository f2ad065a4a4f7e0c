//! Opening the text half of a checkpoint: which files count, their defaults, errors of broken ones,
//! and where the reply to a prompt begins.

use std::fs;
use std::path::Path;

use kilotok_text::{
    Conversation, Defaults, Format, Message, ReasoningStart, Text, TextError, Tool,
};
use serde_json::{Value, json};

use crate::{fixture, message, open, user, with_files};

fn refusal(files: &[(&str, &str)]) -> String {
    with_files(files).err().unwrap().to_string()
}

#[test]
fn every_byte_is_its_own_token_in_the_fixture_that_servers_are_tested_with() {
    let text = open("mimo");
    for byte in 0..=255_u8 {
        assert_eq!(text.token_bytes(byte.into()), Some([byte].as_slice()));
    }
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    let markup = [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<tool_response>",
        "</tool_response>",
    ];
    assert_eq!(text.vocab_count(), 256 + special.len() + markup.len());
    for (id, name) in (256..).zip(special.iter().chain(&markup)) {
        assert_eq!(text.token_id(name), Some(id));
        assert_eq!(text.token_text(id), *name);
        assert_eq!(text.token_bytes(id), Some(name.as_bytes()));
        assert_eq!(text.is_special(id), special.contains(name));
    }
    assert_eq!(text.token_bytes(265), None);
    assert_eq!(text.token_text(999), "");
    assert_eq!(text.token_id("<|no such|>"), None);
}

#[test]
fn special_tokens_in_text_count_only_where_they_may() {
    let text = open("mimo");
    assert_eq!(text.encode("a<|im_end|><think>").unwrap(), [97, 258, 259]);
    let spelled: Vec<u32> = "a<|im_end|><think>".bytes().map(u32::from).collect();
    assert_eq!(text.encode_plain("a<|im_end|><think>").unwrap(), spelled);
    assert_eq!(text.decode(&[97, 258, 259], true), "a<think>");
}

#[test]
fn defaults_are_those_of_the_files() {
    let open = |model: &str| open(model).defaults().clone();
    let mimo = Defaults {
        end_tokens: vec![258],
        temperature: Some(1.0),
        top_p: Some(0.95),
        ..Defaults::default()
    };
    assert_eq!(open("mimo"), mimo);
    let coder = open("qwen3_coder");
    assert_eq!(coder.end_tokens.len(), 2);
    assert_eq!((coder.temperature, coder.top_p, coder.top_k), (Some(0.7), Some(0.8), Some(20)));
    assert_eq!(coder.repetition_penalty, Some(1.05));
    // The tokenizer's own end token counts too, and config.json's if there is no other.
    assert_eq!(open("hermes").end_tokens.len(), 1);
    let config = [
        ("generation_config.json", ""),
        ("tokenizer_config.json", ""),
        ("config.json", "{\"eos_token_id\": [7, 8]}"),
    ];
    assert_eq!(with_files(&config).unwrap().defaults().end_tokens, [7, 8]);
    let off = [("generation_config.json", "{\"top_k\": -1, \"min_p\": null}")];
    let off = with_files(&off).unwrap().defaults().clone();
    assert_eq!((off.top_k, off.min_p, off.temperature), (Some(0), None, None));
}

#[test]
fn the_template_is_found_in_any_of_its_files() {
    let config = |template: Value| json!({ "chat_template": template }).to_string();
    let render = |files: &[(&str, &str)]| {
        let text = with_files(files).unwrap();
        let mut conversation = user("");
        let chat = text.render(&conversation).map(|rendered| rendered.prompt);
        conversation.tools.push(Tool::default());
        let tools = text.render(&conversation).map(|rendered| rendered.prompt);
        (chat.unwrap_or_default(), tools.unwrap_or_default())
    };
    let of = |chat: &str, tools: &str| (chat.to_owned(), tools.to_owned());
    let (jinja, json) = ("chat_template.jinja", "chat_template.json");
    let (alone, object) = (config("b".into()), config("c".into()));
    let named = config(json!([
        { "name": "tool_use", "template": "t" }, { "name": "default", "template": "d" },
    ]));
    let tokenizer = "tokenizer_config.json";
    let all = [(jinja, "a"), (json, alone.as_str()), (tokenizer, object.as_str())];
    assert_eq!(render(&all), of("a", "a"));
    assert_eq!(render(&[(jinja, ""), all[1], all[2]]), of("b", "b"));
    assert_eq!(render(&[(jinja, ""), all[2]]), of("c", "c"));
    assert_eq!(render(&[(jinja, ""), (tokenizer, &named)]), of("d", "t"));
    let none = with_files(&[(jinja, "")]).unwrap();
    assert!(!none.has_template());
    assert!(matches!(none.render(&user("")), Err(TextError::NoTemplate)));
}

#[test]
fn named_tokens_reach_the_template() {
    let config = json!({ "eos_token": { "content": "<|im_end|>" }, "bos_token": "<s>" });
    let files = [
        ("tokenizer_config.json", config.to_string()),
        ("chat_template.jinja", "{{ bos_token }}{{ eos_token }}{{ pad_token }}".to_owned()),
    ];
    let text = with_files(&files.each_ref().map(|(name, text)| (*name, text.as_str()))).unwrap();
    assert_eq!(text.render(&user("")).unwrap().prompt, "<s><|im_end|>");
}

#[test]
fn formats_are_told_by_the_model_and_its_template() {
    let open = |model_type: &str, template: &str| {
        let config = json!({ "model_type": model_type }).to_string();
        let files = [("config.json", config.as_str()), ("chat_template.jinja", template)];
        with_files(&files).unwrap().format()
    };
    let xml = "<tool_call>\n<function=";
    assert_eq!(open("mimo_v2", xml), Format::Mimo);
    assert_eq!(open("qwen3_moe", xml), Format::Qwen3Coder);
    assert_eq!(open("qwen3_moe", "<tool_call>{\"name\""), Format::Hermes);
    assert_eq!(open("qwen3", "<think>"), Format::Hermes);
    assert_eq!(open("llama", "hello"), Format::Plain);
    for format in Format::ALL {
        assert_eq!(format.to_string().parse(), Ok(format));
    }
    let unknown = "latin".parse::<Format>().unwrap_err().to_string();
    assert!(unknown.contains("\"latin\"") && unknown.contains("qwen3_coder"), "{unknown}");
}

#[test]
fn what_is_wrong_is_said_with_its_file() {
    let tokenizer = fs::read_to_string(fixture("mimo").join("tokenizer.json")).unwrap();
    let other =
        tokenizer.replace("\"decoder\":{\"type\":\"ByteLevel\"", "\"decoder\":{\"type\":\"Fuse\"");
    let bomb = |count: usize| {
        let double = "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"aa\"}";
        let stages = vec![double; count].join(",");
        let normalizer = format!("{{\"type\":\"Sequence\",\"normalizers\":[{stages}]}}");
        tokenizer.replace("{\"type\":\"NFC\"}", &normalizer)
    };
    assert_ne!(bomb(3), tokenizer);
    with_files(&[("tokenizer.json", &bomb(3))]).unwrap();
    let bomb = bomb(40);
    let huge = tokenizer.replace("\"A\":65,", "\"A\":4000000000,");
    for (file, content, expected) in [
        ("tokenizer.json", "", "the checkpoint has no tokenizer.json"),
        ("tokenizer.json", "{}", "tokenizer.json: "),
        ("tokenizer.json", &other, "its decoder is not ByteLevel"),
        ("tokenizer.json", &bomb, "its normalizer can make a text 1099511627776 times as long"),
        ("tokenizer.json", &huge, "token 4000000000 is above the limit"),
        ("config.json", "[1]", "config.json: "),
        ("generation_config.json", "{\"top_p\": \"high\"}", "top_p is \"high\", not a number"),
        ("generation_config.json", "{", "generation_config.json: "),
        ("generation_config.json", "{\"temperature\": NaN}", "generation_config.json: "),
        (
            "generation_config.json",
            "{\"temperature\": -1}",
            "temperature is -1, it must be between",
        ),
        ("generation_config.json", "{\"temperature\": 1e400}", "generation_config.json: "),
        ("generation_config.json", "{\"top_p\": 2}", "top_p is 2, it must be above 0"),
        ("generation_config.json", "{\"top_p\": 0}", "top_p is 0, it must be above 0"),
        ("generation_config.json", "{\"top_k\": -2}", "top_k is -2, it must be -1, 0 or"),
        ("generation_config.json", "{\"min_p\": 1.5}", "min_p is 1.5, it must be between"),
        ("generation_config.json", "{\"repetition_penalty\": 0}", "repetition_penalty is 0"),
        ("generation_config.json", "{\"eos_token_id\": 265}", "eos_token_id has 265, a token is"),
        ("generation_config.json", "{\"eos_token_id\": [1, -1]}", "eos_token_id has -1"),
        ("generation_config.json", "{\"eos_token_id\": \"x\"}", "eos_token_id has \"x\""),
        ("chat_template.jinja", "{% if %}", "chat_template.jinja: chat template, line 1: "),
        ("chat_template.json", "{\"chat_template\": \"{{\"}", "chat_template.json: "),
    ] {
        let template = if file == "chat_template.json" { "" } else { "x" };
        let files = [(file, content), ("chat_template.jinja", template)];
        let reason = refusal(&files);
        assert!(reason.contains(expected), "{file}: {reason:?} does not say {expected:?}");
    }
    let missing = Text::open(Path::new("no such folder")).err().unwrap();
    assert!(matches!(missing, TextError::Missing { file: "tokenizer.json", .. }), "{missing}");
}

#[test]
fn where_a_reply_begins_is_told_by_the_prompt() {
    let start = |model: &str, conversation: &Conversation| {
        open(model).render(conversation).unwrap().reasoning
    };
    let with = |name: &str, value: bool| {
        let mut conversation = user("a <think> b");
        conversation.variables.insert(name.to_owned(), value.into());
        conversation
    };
    assert_eq!(start("mimo", &user("</think>")), ReasoningStart::Maybe);
    assert_eq!(start("mimo", &with("enable_thinking", true)), ReasoningStart::Maybe);
    assert_eq!(start("mimo", &with("enable_thinking", false)), ReasoningStart::Never);
    assert_eq!(start("hermes", &with("enable_thinking", false)), ReasoningStart::Never);
    assert_eq!(start("hermes", &with("opened", true)), ReasoningStart::Begun);
    assert_eq!(start("qwen3_coder", &user("<think>")), ReasoningStart::Never);

    let mut unfinished = user("a");
    unfinished.add_generation_prompt = false;
    unfinished.continue_final_message = true;
    let thought = Some("thought".to_owned());
    unfinished.messages.push(Message { reasoning: thought, ..message("assistant", "") });
    assert_eq!(start("mimo", &unfinished), ReasoningStart::Begun);
    unfinished.messages[1].content = "so".to_owned();
    assert_eq!(start("mimo", &unfinished), ReasoningStart::Never);
}

/// A folder with the fixture's files, one of them replaced.
fn folder(name: &str, put: impl FnOnce(&Path)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir(fixture("mimo")).unwrap() {
        let file = file.unwrap();
        if file.file_name() != name {
            fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }
    }
    put(&folder.path().join(name));
    folder
}

#[test]
fn only_regular_files_of_bounded_size_are_read() {
    use std::os::unix::fs::symlink;

    let files = [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    ];
    for name in files {
        let pipe = |path: &Path| {
            assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
        };
        let zeros = |path: &Path| symlink("/dev/zero", path).unwrap();
        let directory = |path: &Path| fs::create_dir(path).unwrap();
        // The file is sparse and takes no space on the disk.
        let giant = |path: &Path| fs::File::create(path).unwrap().set_len(1 << 40).unwrap();
        for (folder, expected) in [
            (folder(name, pipe), "not a regular file"),
            (folder(name, zeros), "not a regular file"),
            (folder(name, directory), "not a regular file"),
            (folder(name, giant), "has more than"),
        ] {
            let reason = Text::open(folder.path()).err().unwrap().to_string();
            assert!(reason.contains(name) && reason.contains(expected), "{reason}");
        }
        let linked = folder(name, |path| symlink(fixture("mimo").join(name), path).unwrap());
        Text::open(linked.path()).unwrap();
    }
}
