//! A hub on this machine that speaks the part of the protocol that a pull needs. A test may answer
//! requests instead.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use kilotok_weights::hub::HubConfig;
use ring::digest::{Algorithm, SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use serde_json::json;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

pub(crate) struct Request {
    pub(crate) path: String,
    headers: BTreeMap<String, String>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Where the requested range starts.
    pub(crate) fn start(&self) -> usize {
        let range = self.header("range").and_then(|range| range.strip_prefix("bytes="));
        range.map_or(0, |range| range.trim_end_matches('-').parse().unwrap())
    }

    pub(crate) fn is_file(&self) -> bool {
        self.path.contains("/resolve/")
    }
}

#[derive(Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// Closes the connection after this many bytes of the body.
    pub(crate) cut: Option<usize>,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    fn write(&self, stream: &mut TcpStream) {
        let length = self.body.len();
        let mut head = format!("HTTP/1.1 {} x\r\nContent-Length: {length}\r\n", self.status);
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        let end = self.cut.unwrap_or(self.body.len());
        // The client may have hung up, as some tests intend.
        let _ = write!(stream, "{head}Connection: close\r\n\r\n");
        let _ = stream.write_all(&self.body[..end]);
    }
}

pub(crate) struct FakeHub {
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<Vec<Arc<Request>>>>,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl FakeHub {
    pub(crate) fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, stopped) = (log.clone(), stop.clone());
        let accepting = thread::spawn(move || {
            thread::scope(|scope| {
                for stream in listener.incoming() {
                    if stopped.load(Ordering::SeqCst) {
                        return;
                    }
                    scope.spawn(|| serve(stream.unwrap(), &seen, &answer));
                }
            });
        });
        Self { address, log, stop, accepting: Some(accepting) }
    }

    pub(crate) fn of(model: Model) -> Self {
        Self::start(move |request| model.answer(request))
    }

    pub(crate) fn config(&self, cache: &Path) -> HubConfig {
        HubConfig {
            cache: cache.to_owned(),
            token: None,
            endpoint: format!("http://{}", self.address),
            offline: false,
        }
    }

    pub(crate) fn requests(&self) -> Vec<Arc<Request>> {
        self.log.lock().unwrap().clone()
    }

    /// The requests for files whose path ends like this.
    pub(crate) fn asked_for(&self, name: &str) -> Vec<Arc<Request>> {
        let requests = self.requests().into_iter();
        requests.filter(|request| request.is_file() && request.path.ends_with(name)).collect()
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Arc<Request>>>,
    answer: &impl Fn(&Request) -> Reply,
) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap().to_owned();
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_ascii_lowercase(), value.to_owned()))
        })
        .collect();
    let request = Arc::new(Request { path, headers });
    log.lock().unwrap().push(request.clone());
    answer(&request).write(&mut stream);
}

fn hex(algorithm: &'static Algorithm, bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in digest(algorithm, bytes).as_ref() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The hash that the hub would list: SHA-256 for weights, git's hash for texts.
pub(crate) fn hash(name: &str, bytes: &[u8]) -> String {
    let is_text = ["json", "jinja", "md", "py"].contains(&name.rsplit('.').next().unwrap());
    if !is_text {
        return hex(&SHA256, bytes);
    }
    let git = [format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat();
    hex(&SHA1_FOR_LEGACY_USE_ONLY, &git)
}

/// Bytes without repetitions, so that a gap or a duplicate shows.
pub(crate) fn weights(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..count).map(next).collect()
}

#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) commit: &'static str,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Model {
    pub(crate) fn small() -> Self {
        let index = json!({ "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        }});
        let text = |text: &str| text.as_bytes().to_vec();
        let files = [
            ("README.md", text("# read me")),
            ("chat_template.jinja", text("{{ messages }}")),
            ("config.json", text("{\"model_type\": \"mimo_v2\"}")),
            ("dflash/config.json", text("{\"block_size\": 8}")),
            ("dflash/dflash_draft_model.safetensors", weights(3, 5_000)),
            ("dflash/mask_embedding.pt", weights(4, 100)),
            ("generation_config.json", text("{}")),
            ("model-00001-of-00002.safetensors", weights(1, 3_000_000)),
            ("model-00002-of-00002.safetensors", weights(2, 10_000)),
            ("model.safetensors.index.json", text(&index.to_string())),
            ("original/model.safetensors", weights(5, 10)),
            ("tokenizer.json", text("{\"version\": \"1.0\"}")),
            ("tokenizer_config.json", text("{\"a\": 1}")),
        ];
        let files = files.map(|(name, bytes)| (name.to_owned(), bytes)).into();
        Self { commit: COMMIT, files }
    }

    pub(crate) fn needed(&self) -> impl Iterator<Item = (&String, &Vec<u8>)> {
        let unwanted = |name: &str| name == "README.md" || name.starts_with("original/");
        self.files.iter().filter(move |(name, _)| !unwanted(name))
    }

    pub(crate) fn needed_bytes(&self) -> u64 {
        self.needed().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Writes the snapshot as Python's `huggingface_hub` does.
    #[cfg(unix)]
    pub(crate) fn lay_out_like_python(&self, cache: &Path) -> PathBuf {
        let root = cache.join("models--org--name");
        let snapshot = root.join("snapshots").join(self.commit);
        for part in ["blobs", "refs"] {
            fs::create_dir_all(root.join(part)).unwrap();
        }
        fs::write(root.join("refs/main"), self.commit).unwrap();
        for (name, bytes) in self.needed() {
            let hash = hash(name, bytes);
            fs::write(root.join("blobs").join(&hash), bytes).unwrap();
            let pointer = snapshot.join(name);
            fs::create_dir_all(pointer.parent().unwrap()).unwrap();
            let up = "../".repeat(name.split('/').count() + 1);
            std::os::unix::fs::symlink(format!("{up}blobs/{hash}"), pointer).unwrap();
        }
        snapshot
    }

    pub(crate) fn answer(&self, request: &Request) -> Reply {
        if request.path.contains("/api/models/") {
            return self.listing();
        }
        let (_, name) = request.path.split_once(&format!("/resolve/{}/", self.commit)).unwrap();
        match self.files.get(name) {
            Some(bytes) => part(bytes, request.start()),
            None => Reply::status(404),
        }
    }

    fn listing(&self) -> Reply {
        let sibling = |(name, bytes): (&String, &Vec<u8>)| {
            let (hash, size) = (hash(name, bytes), bytes.len());
            if hash.len() == 64 {
                let lfs = json!({ "sha256": hash, "size": size, "pointerSize": 134 });
                json!({ "rfilename": name, "size": size, "blobId": "0".repeat(40), "lfs": lfs })
            } else {
                json!({ "rfilename": name, "size": size, "blobId": hash })
            }
        };
        let siblings: Vec<_> = self.files.iter().map(sibling).collect();
        let body = json!({ "sha": self.commit, "siblings": siblings }).to_string().into_bytes();
        Reply { status: 200, body, ..Reply::default() }
    }
}

pub(crate) fn part(bytes: &[u8], start: usize) -> Reply {
    let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
    let headers = vec![("Content-Range", range), ("X-Repo-Commit", COMMIT.to_owned())];
    Reply { status: 206, headers, body: bytes[start..].to_vec(), cut: None }
}
