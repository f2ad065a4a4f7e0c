//! Tests of the pack and its script. The machine's programs and tools are scripts that end as the
//! test needs.

use tempfile::TempDir;

use super::*;

const GPU: &str = "echo 'GPU 0: NVIDIA H200 (UUID: GPU-1)'";
const MODEL: &str = "kernels/models/slice/kilotok/model.h";
/// The last line of tests that passed.
const PASSED: &str = "echo 'test result: ok. 7 passed; 0 failed'";
/// Creates a program that does nothing, or fails if the source's name says that it is wrong.
const NVCC: &str = "case \"$*\" in *wrong.cu*) echo 'error: wrong'; exit 2;; esac
while [ \"$1\" != -o ]; do shift; done
echo '#!/bin/sh' >$2
chmod +x $2";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn programs() -> impl Iterator<Item = &'static Program> {
    BUILDS.iter().flat_map(|(_, programs)| *programs)
}

struct Machine(TempDir);

impl Machine {
    /// A machine on which everything passes.
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().expect("a folder"));
        let models = ["kernels/harness/sample_model", "benches/models/slice"];
        let folders = ["bin", "tools", "lib64", "kernels/models/slice/kilotok"];
        for folder in folders.into_iter().chain(models) {
            fs::create_dir_all(machine.0.path().join(folder)).expect("a folder");
        }
        for (from, to) in [(SCRIPT, "run.sh"), (MODEL, MODEL)] {
            fs::copy(root().join(from), machine.0.path().join(to)).expect("a file");
        }
        machine.write("COMMIT", "0123abc-dirty\n");
        machine.write("kernels/harness/sample.cu", "// Nothing.\n");
        machine.write("lib64/libnvrtc.so", "");
        for program in programs() {
            machine.script(&format!("bin/{}", program.name), PASSED);
        }
        for (tool, text) in [("nvidia-smi", GPU), ("nvcc", NVCC), ("compute-sanitizer", "")] {
            machine.script(&format!("tools/{tool}"), text);
        }
        machine
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.0.path().join(path), text).expect("a file");
    }

    /// Another process writes the file. If this process did, a program that another test starts at
    /// the same time would inherit the open file, and the file could not be executed.
    fn script(&self, path: &str, text: &str) {
        let write = "printf '#!/bin/sh\\n%s\\n' \"$2\" >\"$1\"; chmod +x \"$1\"";
        let mut bash = Command::new("bash");
        bash.args(["-euc", write, "-", path, text]).current_dir(self.0.path());
        assert!(bash.status().expect("bash").success());
    }

    /// Runs the script; returns the exit status and all output.
    fn run(&self, words: &str) -> (i32, String) {
        let run = "PATH=$PWD/tools:$PATH exec bash ./run.sh \"$@\"";
        let mut bash = Command::new("bash");
        bash.env_remove("SPLIT_GPUS").env_remove("LD_LIBRARY_PATH");
        bash.args(["-euc", run, "-"]).args(words.split_whitespace()).current_dir(self.0.path());
        let output = bash.output().expect("bash");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().expect("a status"), String::from_utf8(text).expect("text"))
    }

    /// The name and result of each run, from the end of the output.
    fn results(&self, words: &str) -> (i32, Vec<(String, String)>) {
        let (status, text) = self.run(words);
        let (_, lines) = text.split_once("\n== results").unwrap_or_else(|| panic!("{text}"));
        let lines = lines.lines().skip(1);
        let mut results: Vec<_> = lines
            .filter_map(|line| line.split_once(' '))
            .map(|(name, result)| (name.to_owned(), result.trim().to_owned()))
            .collect();
        results.sort();
        (status, results)
    }

    fn result(&self, words: &str, name: &str) -> (i32, String) {
        let (status, results) = self.results(words);
        let found = results.iter().find(|(other, _)| other == name);
        (status, found.unwrap_or_else(|| panic!("no {name}: {results:?}")).1.clone())
    }
}

#[test]
fn the_script_runs_all_that_is_packed_and_nothing_else() {
    let script = fs::read_to_string(root().join(SCRIPT)).expect("the script");
    let mut run: Vec<&str> =
        script.split([' ', '"', '\n']).filter_map(|word| word.strip_prefix("bin/")).collect();
    run.sort_unstable();
    run.dedup();
    let mut packed: Vec<&str> = programs().map(|program| program.name).collect();
    packed.sort_unstable();
    assert_eq!(run, packed);
}

#[test]
fn programs_lie_where_cargo_says() {
    let program = Program { name: "cuda", kind: "lib", target: "kilotok_cuda" };
    let library = r#"{"target": {"kind": ["lib"], "name": "kilotok_cuda"}, "executable": null}"#;
    let other = r#"{"target": {"kind": ["test"], "name": "kilotok_cuda"}, "executable": "/b"}"#;
    let test = r#"{"target": {"kind": ["lib"], "name": "kilotok_cuda"}, "executable": "/a"}"#;
    let messages = ["no JSON", library, other, test].join("\n");
    assert_eq!(executable(&messages, &program), Some("/a".into()));
    assert_eq!(executable(&[library, other].join("\n"), &program), None);
}

#[test]
fn an_archive_that_is_too_large_says_of_what_it_consists() {
    let parts = [("bin/gpu".to_owned(), 80 << 20), ("kernels/".to_owned(), 1 << 19)];
    assert_eq!(check_size(BYTES_MAX, &parts), Ok(()));
    let error = check_size(BYTES_MAX + (1 << 20), &parts).expect_err("too large");
    assert_eq!(
        error,
        "the archive has 65.0 MiB, at most 64.0 MiB; before it was compressed:\n  \
         bin/gpu: 80.0 MiB\n  kernels/: 0.5 MiB"
    );
}

#[test]
fn the_script_says_what_it_can_do() {
    let machine = Machine::new();
    let (status, text) = machine.run("--help");
    assert_eq!(status, 0);
    assert!(
        text.starts_with(
            "usage: run.sh [suite | split | harness | sanitize | rounds [RANKS] | soak]"
        )
    );
    for (words, said) in [
        ("everything", "everything is no task"),
        ("suite harness", "suite takes no more words"),
        ("rounds 3", "there is no benches/models/slice_3, a model for 3 ranks"),
    ] {
        let (status, text) = machine.run(words);
        assert_eq!(status, 2, "{text}");
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn without_a_gpu_nothing_passes_for_tested() {
    let machine = Machine::new();
    machine.script("tools/nvidia-smi", "echo 'No devices were found'; exit 6");
    machine.script("bin/gpu", "echo 'test a ... skipped: no driver'; echo 'test b ... ok'");
    let (status, text) = machine.run("");
    assert_eq!(status, 1);
    assert!(text.contains("no GPU: nvidia-smi lists none"), "{text}");
    let (_, results) = machine.results("");
    let results: Vec<_> = results.iter().map(|(name, result)| (&**name, &**result)).collect();
    let skipped = "FAILED: tests were skipped: no driver";
    assert_eq!(
        results,
        [
            ("GPU", "FAILED: nvidia-smi lists none"),
            ("broken", "passed"),
            ("cuda", "passed"),
            ("demo", "passed"),
            ("gpu", skipped),
            ("gpu_ignored", skipped),
            ("harness", "FAILED: no GPU"),
            ("split", "FAILED: no GPU"),
        ]
    );
    assert_eq!(machine.result("rounds", "rounds"), (1, "FAILED: no GPU".to_owned()));
}

/// In the form that the engine's tests print.
#[test]
fn tests_are_skipped_for_want_of_more_gpus_alone() {
    let machine = Machine::new();
    let few = "2 ranks need as many GPUs, and there are 1 (--ranks)";
    let lines = format!(
        "[ $SPLIT_GPUS ] || echo 'a ... skipped: {few}'
         [ $SPLIT_GPUS ] || echo 'skipped from 2 ranks on: {few}'
         {PASSED}"
    );
    machine.script("bin/gpu", &lines);
    let result = "passed, but for 2 that need more GPUs";
    assert_eq!(machine.result("suite", "gpu"), (0, result.to_owned()));

    machine.script("bin/gpu", &format!("{lines}; echo 'skipped from 2 ranks on: no peers: no'"));
    let result = "FAILED: tests were skipped: no peers: no";
    assert_eq!(machine.result("suite", "gpu"), (1, result.to_owned()));
}

#[test]
fn one_gpu_is_split_where_there_are_too_few() {
    let machine = Machine::new();
    let said = "echo \"said: $*; ${SPLIT_GPUS-whole} $TMPDIR\"; ls ${LD_LIBRARY_PATH%%:*}";
    machine.script("bin/cuda", &format!("{said}\n{PASSED}"));
    machine.script("tools/nvidia-smi", &[GPU; 7].join("\n"));
    let (status, text) = machine.run("suite");
    assert_eq!(status, 0, "{text}");
    let said: Vec<_> = text.split("said: ").skip(1).collect();
    let [whole, split] = said[..] else { panic!("{text}") };
    assert!(whole.contains("; whole "), "{whole}");
    assert!(
        split.contains("rank:: --test-threads=1 --nocapture --skip dies --skip stalls; 8 "),
        "{split}"
    );
    assert!(split.contains("/out/split/tmp\nlibcuda.so\nlibnvrtc.so.13\ntmp\n"), "{split}");

    machine.script("tools/nvidia-smi", &[GPU; 8].join("\n"));
    let (status, results) = machine.results("suite");
    assert_eq!(status, 0, "{results:?}");
    assert!(!results.iter().any(|(name, _)| name.starts_with("split")), "{results:?}");
}

#[test]
fn a_split_without_effect_does_not_pass() {
    let machine = Machine::new();
    let few = "skipped: 2 ranks need as many GPUs, and there are 1 (--ranks)";
    machine.script("bin/gpu", &format!("echo '{few}'; {PASSED}"));
    machine.script("bin/cuda", "echo 'test result: ok. 0 passed; 0 failed'");
    let failed = |what: &str| (1, format!("FAILED: {what}"));
    assert_eq!(machine.result("split", "split_gpu.parts"), failed("the GPU was not split"));
    assert_eq!(machine.result("split", "split_cuda.tests"), failed("there were none"));
    fs::remove_file(machine.0.path().join("lib64/libnvrtc.so")).expect("it was there");
    assert!(machine.result("split", "split").1.contains("lib64/libnvrtc.so: put the nvcc"));
}

#[test]
fn whatever_fails_all_else_runs() {
    let machine = Machine::new();
    let (status, text) = machine.run("");
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("kilotok at 0123abc-dirty"), "{text}");
    assert!(text.contains("GPU 0: NVIDIA H200"), "{text}");

    machine.script("bin/gpu", "echo 'test a ... FAILED'; exit 101");
    machine.write("kernels/harness/wrong.cu", "");
    let (status, results) = machine.results("");
    assert_eq!(status, 1);
    let results: Vec<_> = results.iter().map(|(name, result)| (&**name, &**result)).collect();
    assert_eq!(
        results,
        [
            ("broken", "passed"),
            ("cases", "passed"),
            ("compile_sample", "passed"),
            ("compile_split_driver", "passed"),
            ("compile_split_nvrtc", "passed"),
            ("compile_wrong", "FAILED: status 2"),
            ("cuda", "passed"),
            ("demo", "passed"),
            ("gpu", "FAILED: status 101"),
            ("gpu_ignored", "FAILED: status 101"),
            ("sample", "passed"),
            ("sample.time", "passed"),
            ("split_broken", "passed"),
            ("split_cuda", "passed"),
            ("split_gpu", "FAILED: status 101"),
        ]
    );
    let log = fs::read_to_string(machine.0.path().join("out/compile_wrong.log"));
    assert_eq!(log.expect("a log"), "error: wrong\n");
}

/// Summaries in the form that the tools print.
#[test]
fn tools_that_find_nothing_must_say_so() {
    const CLEAN: &str = "echo '========= ERROR SUMMARY: 0 errors'";
    const NO_SUMMARY: &str = "FAILED: no summary without findings";
    let machine = Machine::new();
    let races = |count: u32| {
        format!("echo '========= RACECHECK SUMMARY: {count} hazards displayed ({count} errors)'")
    };
    for (said, status, name, result) in [
        (races(0), 0, "sample.racecheck", "passed"),
        (races(2) + "; exit 1", 1, "sample.racecheck", "FAILED: status 1"),
        (races(2), 1, "sample.racecheck.summary", NO_SUMMARY),
        ("echo nothing".to_owned(), 1, "sample.racecheck.summary", NO_SUMMARY),
    ] {
        let tool = format!("[ $2 = racecheck ] || {{ {CLEAN}; exit; }}\n{said}");
        machine.script("tools/compute-sanitizer", &tool);
        assert_eq!(machine.result("sanitize", name), (status, result.to_owned()));
    }
}

#[test]
fn tools_look_at_a_step_of_few_layers_with_one_tile_of_tokens_and_with_several() {
    let machine = Machine::new();
    machine.write("kernels/harness/step.cu", "// Nothing.\n");
    machine.script("tools/nvcc", &format!("echo \"$*\"\n{NVCC}"));
    machine.script("tools/compute-sanitizer", "echo 'SUMMARY: 0 errors'");
    let (status, results) = machine.results("sanitize");
    assert_eq!(status, 0, "{results:?}");
    let steps = results.iter().map(|(name, _)| &**name).filter(|name| name.starts_with("step"));
    let steps: Vec<_> = steps.collect();
    assert_eq!(
        steps,
        [
            "step16.memcheck",
            "step16.racecheck",
            "step16.synccheck",
            "step8.memcheck",
            "step8.racecheck",
            "step8.synccheck",
        ]
    );
    let file = |path| fs::read_to_string(machine.0.path().join(path)).expect("a file");
    let few = file(MODEL).replace("\nconstexpr int LAYERS = 70;", "\nconstexpr int LAYERS = 8;");
    assert_eq!(file("out/few/kilotok/model.h"), few);
    let compiled = file("out/compile_step.racecheck.log");
    assert!(compiled.contains(" -I out/few kernels/harness/step.cu "), "{compiled}");
}

#[test]
fn rounds_name_their_model_and_commit() {
    let machine = Machine::new();
    fs::create_dir(machine.0.path().join("benches/models/slice_2")).expect("a folder");
    machine.script("bin/kilotok", "echo \"said: $*\"");
    let (status, text) = machine.run("rounds 2");
    assert_eq!(status, 0, "{text}");
    let said: Vec<_> = text.lines().filter(|line| line.starts_with("said: ")).collect();
    assert_eq!(said.len(), 2, "{text}");
    for (line, out) in said.iter().zip(["rounds_2.json", "rounds_2.phases.json"]) {
        assert!(line.contains("--engine benches/models/slice_2 "), "{line}");
        assert!(line.contains("--ranks 2 "), "{line}");
        assert!(line.contains("--commit 0123abc-dirty "), "{line}");
        assert!(line.ends_with(&format!("--out out/{out}")), "{line}");
    }
}

/// Prints its address like the server, and ends when told to.
#[test]
fn servers_are_asked_where_they_are_and_then_told_to_end() {
    const READY: &str = "echo \"  chat page   http://127.0.0.1:7/\"";
    const SERVES: &str = "trap \"exit 0\" TERM; while :; do sleep 0.01; done";
    let machine = Machine::new();
    machine.script("bin/kilotok", &format!("echo \"said: $*\"\n{READY}\n{SERVES}"));
    machine.script("tools/python3", "echo \"asked: $*\"");
    let (status, text) = machine.run("soak");
    assert_eq!(status, 0, "{text}");
    let asked: Vec<_> = text.lines().filter(|line| line.starts_with("asked: ")).collect();
    let words = |count| format!("asked: benches/soak.py http://127.0.0.1:7 --longest {count}");
    assert_eq!(asked, [words(200), words(800)], "{text}");
    let said = fs::read_to_string(machine.0.path().join("out/serve_slice.log")).expect("a log");
    assert!(said.contains("--engine cuda --port 0 benches/models/slice --load-format dummy"));

    machine.script("tools/python3", "echo WRONG; exit 1");
    assert_eq!(machine.result("soak", "soak_demo"), (1, "FAILED: status 1".to_owned()));
    machine.script("bin/kilotok", &format!("{READY}\nexit 3"));
    assert_eq!(machine.result("soak", "serve_slice"), (1, "FAILED: status 3".to_owned()));
    machine.script("bin/kilotok", "echo no GPU; exit 1");
    let result = "FAILED: no server that could be asked";
    assert_eq!(machine.result("soak", "soak_demo"), (1, result.to_owned()));
}
