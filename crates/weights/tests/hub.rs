//! Pulls from a hub that misbehaves on demand.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

#[path = "hub/fake.rs"]
mod fake;
#[path = "hub/progress.rs"]
mod progress;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use fake::{COMMIT, FakeHub, Model, Reply, hash, part, weights};
use kilotok_weights::hub::{HubConfig, HubError, ModelRef, PARALLEL_MAX, pull};
use progress::{Recorder, Threads};

const LARGE: &str = "model-00001-of-00002.safetensors";
const LATER: &str = "89abcdef0123456789abcdef0123456789abcdef";

fn cache(test: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hub").join(test);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

fn model_ref(text: &str) -> ModelRef {
    text.parse().unwrap()
}

fn pull_plain(config: &HubConfig) -> Result<PathBuf, HubError> {
    pull(&model_ref("org/name"), config, &Recorder::default())
}

fn folder(cache: &Path) -> PathBuf {
    cache.join("models--org--name")
}

fn blob_names(cache: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder(cache).join("blobs")) else {
        return Vec::new();
    };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn assert_holds(snapshot: &Path, model: &Model) {
    for (name, bytes) in model.needed() {
        assert!(fs::read(snapshot.join(name)).unwrap() == *bytes, "{name} differs");
    }
}

// ---- what a pull does ----

#[test]
fn fetches_every_needed_file_and_no_other() {
    let (cache, model) = (cache("full"), Model::small());
    let hub = FakeHub::of(model.clone());
    let progress = Recorder::default();
    let snapshot = pull(&model_ref("org/name"), &hub.config(&cache), &progress).unwrap();

    assert_eq!(snapshot, folder(&cache).join("snapshots").join(COMMIT));
    assert_holds(&snapshot, &model);
    assert!(!snapshot.join("README.md").exists());
    assert!(!snapshot.join("original").exists());
    assert_eq!(progress.counts(), (1, model.needed_bytes(), model.needed_bytes()));
    assert_eq!(fs::read_to_string(folder(&cache).join("refs/main")).unwrap(), COMMIT);
    let mut hashes: Vec<_> = model.needed().map(|(name, bytes)| hash(name, bytes)).collect();
    let mut blobs = blob_names(&cache);
    hashes.sort();
    blobs.sort();
    assert_eq!(blobs, hashes);
}

#[cfg(unix)]
#[test]
fn links_like_python() {
    let (cache, model) = (cache("links"), Model::small());
    let hub = FakeHub::of(model.clone());
    let snapshot = pull_plain(&hub.config(&cache)).unwrap();
    let python = model.lay_out_like_python(&cache.join("python"));
    for (name, _) in model.needed() {
        let target = |folder: &Path| fs::read_link(folder.join(name)).unwrap();
        assert_eq!(target(&snapshot), target(&python), "{name}");
    }
}

#[cfg(unix)]
#[test]
fn finds_what_python_downloaded() {
    let (cache, model) = (cache("python"), Model::small());
    let snapshot = model.lay_out_like_python(&cache);
    let hub = FakeHub::of(model.clone());
    let offline = HubConfig { offline: true, ..hub.config(&cache) };
    assert_eq!(pull_plain(&offline).unwrap(), snapshot);
    assert!(hub.requests().is_empty());
    assert_eq!(pull_plain(&hub.config(&cache)).unwrap(), snapshot);
    assert!(hub.asked_for("").is_empty());
}

#[test]
fn a_second_pull_downloads_nothing() {
    let (cache, model) = (cache("second"), Model::small());
    let hub = FakeHub::of(model);
    let first = pull_plain(&hub.config(&cache)).unwrap();
    let files = hub.asked_for("").len();
    let progress = Recorder::default();
    let second = pull(&model_ref("org/name"), &hub.config(&cache), &progress).unwrap();
    assert_eq!(first, second);
    assert_eq!(hub.asked_for("").len(), files);
    assert_eq!(progress.counts(), (0, 0, 0));
}

#[test]
fn a_later_commit_fetches_what_changed() {
    let (cache, model) = (cache("later"), Model::small());
    pull_plain(&FakeHub::of(model.clone()).config(&cache)).unwrap();
    let mut later = Model { commit: LATER, ..model };
    later.files.insert("config.json".into(), b"{\"model_type\": \"later\"}".to_vec());
    let hub = FakeHub::of(later.clone());
    let snapshot = pull_plain(&hub.config(&cache)).unwrap();
    assert_holds(&snapshot, &later);
    assert_eq!(hub.asked_for("").len(), 1);
    assert_eq!(fs::read_to_string(folder(&cache).join("refs/main")).unwrap(), LATER);
}

#[test]
fn equal_files_are_fetched_once() {
    let (cache, mut model) = (cache("equal"), Model::small());
    let config = model.files["config.json"].clone();
    model.files.insert("dflash/config.json".into(), config);
    let hub = FakeHub::of(model.clone());
    assert_holds(&pull_plain(&hub.config(&cache)).unwrap(), &model);
    assert_eq!(hub.asked_for("/config.json").len(), 1);
}

#[test]
fn blobs_that_are_there_are_only_linked() {
    let (cache, model) = (cache("relink"), Model::small());
    let hub = FakeHub::of(model.clone());
    let snapshot = pull_plain(&hub.config(&cache)).unwrap();
    fs::remove_dir_all(snapshot).unwrap();
    let (files, progress) = (hub.asked_for("").len(), Recorder::default());
    let snapshot = pull(&model_ref("org/name"), &hub.config(&cache), &progress).unwrap();
    assert_holds(&snapshot, &model);
    assert_eq!(hub.asked_for("").len(), files);
    assert_eq!(progress.counts(), (0, 0, 0));
}

#[test]
fn a_cached_file_of_another_size_is_fetched_anew() {
    let (cache, model) = (cache("cut-blob"), Model::small());
    let hub = FakeHub::of(model.clone());
    let snapshot = pull_plain(&hub.config(&cache)).unwrap();
    let file = File::options().write(true).open(snapshot.join(LARGE)).unwrap();
    file.set_len(1000).unwrap();
    assert_holds(&pull_plain(&hub.config(&cache)).unwrap(), &model);
    assert_eq!(hub.asked_for(LARGE).len(), 2);
}

#[test]
fn an_empty_file_is_a_file() {
    let (cache, mut model) = (cache("empty"), Model::small());
    model.files.insert("dflash/__init__.py".into(), Vec::new());
    let hub = FakeHub::of(model.clone());
    assert_holds(&pull_plain(&hub.config(&cache)).unwrap(), &model);
}

#[test]
fn a_revision_is_asked_for_and_remembered() {
    let (cache, model) = (cache("revision"), Model::small());
    let hub = FakeHub::of(model);
    let branch = model_ref("org/name@refs/pr/7");
    let snapshot = pull(&branch, &hub.config(&cache), &Recorder::default()).unwrap();
    assert_eq!(hub.requests()[0].path, "/api/models/org/name/revision/refs%2Fpr%2F7?blobs=true");
    assert_eq!(fs::read_to_string(folder(&cache).join("refs/refs/pr/7")).unwrap(), COMMIT);

    let offline = HubConfig { offline: true, ..hub.config(&cache) };
    let commit = model_ref(&format!("org/name@{COMMIT}"));
    for known in [&branch, &commit] {
        assert_eq!(pull(known, &offline, &Recorder::default()).unwrap(), snapshot);
    }
    assert!(matches!(pull_plain(&offline), Err(HubError::Offline { .. })));
    pull(&commit, &hub.config(&cache), &Recorder::default()).unwrap();
    assert!(!folder(&cache).join("refs").join(COMMIT).exists());
}

// ---- requests ----

#[test]
fn the_endpoint_may_have_a_path() {
    let (cache, model) = (cache("endpoint"), Model::small());
    let hub = FakeHub::of(model);
    let mut config = hub.config(&cache);
    config.endpoint += "/mirror/";
    pull_plain(&config).unwrap();
    assert!(hub.requests().iter().all(|request| {
        request.path.starts_with("/mirror/api/models/org/name/")
            || request.path.starts_with("/mirror/org/name/resolve/")
    }));
}

#[test]
fn the_token_goes_to_the_hub_and_no_further() {
    let (cache, model) = (cache("token"), Model::small());
    let files = model.clone();
    let cdn = FakeHub::start(move |request| files.answer(request));
    let port = cdn.address.port();
    let hub = FakeHub::start(move |request| {
        if !request.is_file() {
            return model.answer(request);
        }
        let location = format!("http://localhost:{port}{}", request.path);
        Reply { headers: vec![("Location", location)], ..Reply::status(302) }
    });
    let config = HubConfig { token: Some("hf_secret\n".into()), ..hub.config(&cache) };
    pull_plain(&config).unwrap();
    let sent = |hub: &FakeHub| -> Vec<Option<String>> {
        let requests = hub.requests().into_iter();
        requests.map(|request| request.header("authorization").map(str::to_owned)).collect()
    };
    assert!(sent(&hub).iter().all(|token| token.as_deref() == Some("Bearer hf_secret")));
    assert!(!sent(&cdn).is_empty());
    assert!(sent(&cdn).iter().all(Option::is_none));
}

#[test]
fn a_token_that_cannot_be_sent_is_named() {
    let cache = cache("bad-token");
    let hub = FakeHub::of(Model::small());
    let config = HubConfig { token: Some("hf_a\nb".into()), ..hub.config(&cache) };
    let error = pull_plain(&config).unwrap_err();
    assert!(error.to_string().contains("HF_TOKEN"), "{error}");
    assert!(!error.to_string().contains("hf_a"), "{error}");
}

#[test]
fn files_come_in_parallel_but_not_without_bound() {
    let (cache, mut model) = (cache("parallel"), Model::small());
    for number in 0..3 * PARALLEL_MAX - model.needed().count() {
        model.files.insert(format!("dflash/{number}.pt"), weights(number as u64 + 9, 100));
    }
    // Requests are answered in groups: none is answered before its group is full.
    let (asked, full) = (Mutex::new(0), Condvar::new());
    let hub = FakeHub::start(move |request| {
        if !request.is_file() {
            return model.answer(request);
        }
        let mut count = asked.lock().unwrap();
        *count += 1;
        full.notify_all();
        let round = usize::div_ceil(*count, PARALLEL_MAX) * PARALLEL_MAX;
        let wait = Duration::from_secs(30);
        let (count, late) = full.wait_timeout_while(count, wait, |count| *count < round).unwrap();
        drop(count);
        assert!(!late.timed_out(), "fewer than {PARALLEL_MAX} requests at once");
        model.answer(request)
    });
    let threads = Threads::default();
    pull(&model_ref("org/name"), &hub.config(&cache), &threads).unwrap();
    assert_eq!(hub.asked_for("").len(), 3 * PARALLEL_MAX);
    assert_eq!(threads.0.lock().unwrap().len(), PARALLEL_MAX);
}

// ---- offline ----

#[test]
fn offline_uses_a_complete_cache() {
    let (cache, model) = (cache("offline"), Model::small());
    let hub = FakeHub::of(model);
    let snapshot = pull_plain(&hub.config(&cache)).unwrap();
    let asked = hub.requests().len();
    let offline = HubConfig { offline: true, ..hub.config(&cache) };
    let progress = Recorder::default();
    assert_eq!(pull(&model_ref("org/name"), &offline, &progress).unwrap(), snapshot);
    assert_eq!(hub.requests().len(), asked);
    assert_eq!(progress.counts(), (0, 0, 0));
}

#[test]
fn offline_names_what_is_missing() {
    let (cache, model) = (cache("offline-missing"), Model::small());
    let hub = FakeHub::of(model.clone());
    let offline = HubConfig { offline: true, ..hub.config(&cache) };
    let complaint = || pull_plain(&offline).unwrap_err().to_string();
    assert!(complaint().contains("lacks refs/main"), "{}", complaint());
    assert!(complaint().contains("HF_HUB_OFFLINE"));

    let snapshot = pull_plain(&hub.config(&cache)).unwrap();
    // A link whose blob is missing, as after a clean-up.
    let shard = "model-00002-of-00002.safetensors";
    let blob = folder(&cache).join("blobs").join(hash(shard, &model.files[shard]));
    fs::remove_file(blob).unwrap();
    assert!(complaint().contains(&format!("lacks {shard};")), "{}", complaint());
    fs::remove_file(snapshot.join(shard)).unwrap();
    fs::remove_file(snapshot.join("dflash/dflash_draft_model.safetensors")).unwrap();
    let both = format!("lacks {shard}, dflash/*.safetensors;");
    assert!(complaint().contains(&both), "{}", complaint());
    // An index whose blob is missing too.
    let index = "model.safetensors.index.json";
    fs::remove_file(folder(&cache).join("blobs").join(hash(index, &model.files[index]))).unwrap();
    assert!(complaint().contains(&format!("lacks {index}, dflash/")), "{}", complaint());
    fs::remove_dir_all(&snapshot).unwrap();
    assert!(complaint().contains("lacks config.json"), "{}", complaint());

    assert_holds(&pull_plain(&hub.config(&cache)).unwrap(), &model);
    pull_plain(&offline).unwrap();
}

// ---- interruptions ----

#[test]
fn a_cancelled_pull_goes_on_where_it_stopped() {
    let (cache, model) = (cache("cancelled"), Model::small());
    let hub = FakeHub::of(model.clone());
    let cancelling = Recorder::cancelling_after(model.needed_bytes() - 2_000_000);
    let ended = pull(&model_ref("org/name"), &hub.config(&cache), &cancelling);
    assert!(matches!(ended, Err(HubError::Cancelled)));
    assert!(!folder(&cache).join("snapshots").exists(), "a half-fetched model is shown");
    assert!(!folder(&cache).join("refs").exists());

    let partial = format!("{}.partial", hash(LARGE, &model.files[LARGE]));
    let kept = fs::metadata(folder(&cache).join("blobs").join(partial)).unwrap().len();
    assert!(0 < kept && kept < model.files[LARGE].len() as u64, "{kept}");
    let complete = blob_names(&cache).into_iter().filter(|name| !name.contains('.'));
    let have: Vec<_> = complete.collect();

    let progress = Recorder::default();
    let snapshot = pull(&model_ref("org/name"), &hub.config(&cache), &progress).unwrap();
    assert_holds(&snapshot, &model);
    let resumed = hub.asked_for(LARGE).pop().unwrap();
    assert_eq!(resumed.header("range"), Some(format!("bytes={kept}-").as_str()));
    let absent = model.needed().filter(|(name, bytes)| !have.contains(&hash(name, bytes)));
    let absent: u64 = absent.map(|(_, bytes)| bytes.len() as u64).sum();
    assert_eq!(progress.counts(), (1, absent, absent));
}

#[test]
fn a_cancel_before_the_first_request_asks_nothing() {
    let cache = cache("cancelled-early");
    let hub = FakeHub::of(Model::small());
    let ended = pull(&model_ref("org/name"), &hub.config(&cache), &Recorder::cancelling_after(0));
    assert!(matches!(ended, Err(HubError::Cancelled)));
    assert!(hub.requests().is_empty());
}

#[test]
fn a_connection_that_breaks_is_taken_up_at_once() {
    let (cache, model) = (cache("broken"), Model::small());
    let source = model.clone();
    let hub = FakeHub::start(move |request| {
        let reply = source.answer(request);
        // Each connection delivers a million bytes.
        let cut = request.path.ends_with(LARGE).then(|| reply.body.len().min(1_000_000));
        Reply { cut, ..reply }
    });
    let progress = Recorder::default();
    let snapshot = pull(&model_ref("org/name"), &hub.config(&cache), &progress).unwrap();
    assert_holds(&snapshot, &model);
    let starts: Vec<_> = hub.asked_for(LARGE).iter().map(|request| request.start()).collect();
    assert_eq!(starts, [0, 1_000_000, 2_000_000]);
    assert_eq!(progress.counts(), (1, model.needed_bytes(), model.needed_bytes()));
}

#[test]
fn a_server_without_ranges_is_read_from_the_start() {
    let (cache, model) = (cache("no-ranges"), Model::small());
    let source = model.clone();
    let hub = FakeHub::start(move |request| {
        let reply = source.answer(request);
        let Some(bytes) = request.path.ends_with(LARGE).then(|| source.files[LARGE].clone()) else {
            return reply;
        };
        let cut = (request.start() == 0).then_some(1_000_000);
        Reply { body: bytes, cut, ..Reply::status(200) }
    });
    let progress = Recorder::default();
    let snapshot = pull(&model_ref("org/name"), &hub.config(&cache), &progress).unwrap();
    assert_holds(&snapshot, &model);
    assert_eq!(hub.asked_for(LARGE).len(), 2);
    assert_eq!(progress.counts(), (1, model.needed_bytes(), model.needed_bytes()));
}

#[test]
fn a_busy_hub_is_asked_again() {
    let (cache, model) = (cache("busy-hub"), Model::small());
    let source = model.clone();
    let (lists, files) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let hub = FakeHub::start(move |request| {
        let (count, status) = if request.is_file() { (&files, 429) } else { (&lists, 503) };
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::status(status),
            _ => source.answer(request),
        }
    });
    assert_holds(&pull_plain(&hub.config(&cache)).unwrap(), &model);
}

// ---- bad transfers ----

/// Pulls from a hub that spoils one file, and then from one that does not.
fn pull_spoilt(
    test: &str,
    spoil: impl Fn(&[u8], Reply) -> Reply + Send + Sync + 'static,
) -> HubError {
    let (cache, model) = (cache(test), Model::small());
    let source = model.clone();
    let hub = FakeHub::start(move |request| match source.answer(request) {
        reply if request.path.ends_with(LARGE) => spoil(&source.files[LARGE], reply),
        reply => reply,
    });
    let error = pull_plain(&hub.config(&cache)).unwrap_err();
    assert!(error.to_string().contains(LARGE), "{error}");
    assert!(!folder(&cache).join("snapshots").exists());
    let bad = hash(LARGE, &model.files[LARGE]);
    assert!(blob_names(&cache).iter().all(|name| !name.starts_with(&bad)), "a bad file is kept");

    let hub = FakeHub::of(model.clone());
    assert_holds(&pull_plain(&hub.config(&cache)).unwrap(), &model);
    error
}

#[test]
fn a_shortened_file_is_noticed() {
    let error = pull_spoilt("short-part", |bytes, _| part(&bytes[..1000], 0));
    assert!(matches!(error, HubError::Size { size: 3_000_000, got: 1000, .. }), "{error}");
    let error = pull_spoilt("short", |bytes, _| Reply {
        body: bytes[..1000].to_vec(),
        ..Reply::status(200)
    });
    assert!(matches!(error, HubError::Size { size: 3_000_000, got: 1000, .. }), "{error}");
}

#[test]
fn a_longer_file_is_noticed() {
    let error = pull_spoilt("long", |_, reply| {
        let headers = vec![("Content-Range", "bytes 0-3000000/*".to_owned())];
        Reply { headers, body: [reply.body, vec![0; 400_000]].concat(), ..Reply::status(206) }
    });
    assert!(matches!(error, HubError::Size { size: 3_000_000, .. }), "{error}");
}

#[test]
fn other_bytes_of_the_same_size_are_noticed() {
    let error = pull_spoilt("corrupt", |_, mut reply| {
        reply.body[1_234_567] ^= 1;
        reply
    });
    assert!(matches!(error, HubError::Corrupt { .. }), "{error}");
}

#[test]
fn another_range_than_the_asked_one_is_refused() {
    let (cache, model) = (cache("range"), Model::small());
    let hub = FakeHub::start(move |request| match model.answer(request) {
        reply if request.path.ends_with(LARGE) => {
            part(&model.files[LARGE], 7.min(reply.body.len()))
        }
        reply => reply,
    });
    let error = pull_plain(&hub.config(&cache)).unwrap_err();
    assert!(matches!(error, HubError::Range { .. }), "{error}");
    assert!(error.to_string().contains("bytes 7-"), "{error}");
}

#[test]
fn a_spoilt_partial_is_noticed() {
    let (cache, model) = (cache("spoilt-partial"), Model::small());
    let hub = FakeHub::of(model.clone());
    let partial = format!("{}.partial", hash(LARGE, &model.files[LARGE]));
    let partial = folder(&cache).join("blobs").join(partial);
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, vec![0; 500_000]).unwrap();
    let error = pull_plain(&hub.config(&cache)).unwrap_err();
    assert!(matches!(error, HubError::Corrupt { .. }), "{error}");
    assert_holds(&pull_plain(&hub.config(&cache)).unwrap(), &model);
}

// ---- refusals ----

#[test]
fn a_refusal_says_what_to_do() {
    let cache = cache("refused");
    for (status, token, advice) in [
        (401, None, "set HF_TOKEN"),
        (401, Some("hf_old"), "HF_TOKEN is not valid"),
        (403, Some("hf_mine"), "accept the licence at http://127.0.0.1"),
        (404, Some("hf_mine"), "check the name and the revision `main`"),
        (410, None, "is http://127.0.0.1"),
    ] {
        let hub = FakeHub::start(move |_| Reply::status(status));
        let config = HubConfig { token: token.map(str::to_owned), ..hub.config(&cache) };
        let error = pull_plain(&config).unwrap_err().to_string();
        assert!(error.contains(advice) && error.contains("org/name"), "{error}");
        assert!(error.contains(&status.to_string()), "{error}");
        assert_eq!(hub.requests().len(), 1, "a refusal is final");
    }
}

/// The hub lists the files of a gated model to everyone.
#[test]
fn a_refusal_of_a_file_names_it() {
    let (cache, model) = (cache("gated"), Model::small());
    let hub =
        FakeHub::start(
            move |request| {
                if request.is_file() { Reply::status(403) } else { model.answer(request) }
            },
        );
    let error = pull_plain(&hub.config(&cache)).unwrap_err().to_string();
    assert!(error.contains("of org/name") && error.contains("accept the licence"), "{error}");
}

#[test]
fn a_hub_that_is_not_there_is_named() {
    let cache = cache("unreachable");
    let config = FakeHub::of(Model::small()).config(&cache);
    let error = pull_plain(&config).unwrap_err().to_string();
    assert!(error.contains(&config.endpoint) && error.contains("HF_HUB_OFFLINE"), "{error}");
}

#[test]
fn a_hostile_listing_writes_nothing() {
    let cache = cache("hostile");
    for name in ["dflash/../../../../etc/x", "dflash//etc/x", "dflash/a\\..\\b", "dflash/"] {
        let mut model = Model::small();
        model.files.insert(name.into(), b"x".to_vec());
        let error = pull_plain(&FakeHub::of(model).config(&cache)).unwrap_err();
        assert!(matches!(error, HubError::Listing { .. }), "{name}: {error}");
    }
    let text = |text: &'static str| {
        FakeHub::start(move |_| Reply { body: text.as_bytes().to_vec(), ..Reply::status(200) })
    };
    let entry = r#"{"rfilename": "model.safetensors", "size": 3, "blobId": "../../x"}"#;
    for body in [
        "<html>",
        r#"{"sha": "../..", "siblings": []}"#,
        &*format!(r#"{{"sha": "{COMMIT}", "siblings": []}}"#).leak(),
        &*format!(r#"{{"sha": "{COMMIT}", "siblings": [{entry}]}}"#).leak(),
    ] {
        let error = pull_plain(&text(body).config(&cache)).unwrap_err();
        assert!(matches!(error, HubError::Listing { .. }), "{body}: {error}");
    }
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 0);
}

#[test]
fn two_pulls_do_not_write_at_once() {
    let cache = cache("busy");
    let hub = FakeHub::of(Model::small());
    let locks = cache.join(".locks/models--org--name");
    fs::create_dir_all(&locks).unwrap();
    let other = File::create(locks.join("kilotok.lock")).unwrap();
    other.lock().unwrap();
    let error = pull_plain(&hub.config(&cache)).unwrap_err();
    assert!(matches!(error, HubError::Busy { .. }), "{error}");
    drop(other);
    pull_plain(&hub.config(&cache)).unwrap();
}

#[test]
fn an_error_of_the_disk_names_the_path() {
    let cache = cache("disk");
    let hub = FakeHub::of(Model::small());
    fs::write(cache.join("models--org--name"), "a file where the folder should be").unwrap();
    let error = pull_plain(&hub.config(&cache)).unwrap_err();
    assert!(matches!(error, HubError::Io { .. }), "{error}");
    assert!(error.to_string().contains("models--org--name"), "{error}");
}
