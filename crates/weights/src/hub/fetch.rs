//! Talks to the hub: requests the list of a model's files, and their bytes. `hf-hub` builds every
//! request, because it knows the address and the token. An interrupted transfer continues where it
//! stopped, in this pull or in the next. A file counts as complete only if it has the listed hash.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use hf_hub::Cache;
use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use serde::Deserialize;
use ureq::http::Response;
use ureq::typestate::WithoutBody;
use ureq::{Body, RequestBuilder};

use super::flow::{Failure, Flow, PAUSES, persist};
use super::partial::Partial;
use super::store::Store;
use super::{
    HubConfig, HubError, ModelRef, PARALLEL_MAX, RemoteFile, is_commit, is_hex, is_needed,
};

/// The longest silence on a connection, and so the longest delay until a cancel is noticed.
const SILENCE_MAX: Duration = Duration::from_secs(20);
pub(super) const BUFFER_BYTES: usize = 256 << 10;

/// The files of a model at one commit.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<RemoteFile>,
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    /// Set for a large file, which git stores as a pointer.
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

pub(super) struct Client<'a> {
    model: &'a ModelRef,
    config: &'a HubConfig,
    api: Api,
}

impl<'a> Client<'a> {
    pub(super) fn new(model: &'a ModelRef, config: &'a HubConfig) -> Result<Self, HubError> {
        let token = config.token.as_deref().map(str::trim).filter(|token| !token.is_empty());
        if token.is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(HubError::Token);
        }
        let api = ApiBuilder::from_cache(Cache::new(config.cache.clone()))
            .with_endpoint(config.endpoint.trim_end_matches('/').to_owned())
            .with_token(token.map(str::to_owned))
            .with_user_agent("kilotok", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| HubError::Client(error.to_string()))?;
        Ok(Self { model, config, api })
    }

    fn repo(&self, revision: &str) -> ApiRepo {
        self.api.repo(self.model.repo_at(revision))
    }

    /// Requests the commit of the revision, and the name, size and hash of each file.
    pub(super) fn list(&self, flow: &Flow) -> Result<Listing, HubError> {
        let repo = self.repo(self.model.revision());
        // Only two tries: a wrong address or a missing network shows here first, and should show
        // quickly.
        let answered: Answer = persist(&PAUSES[..1], flow, || {
            let request = repo.info_request().query("blobs", "true");
            let response = self.send(request, &self.model.to_string())?;
            response.into_body().read_json().map_err(|error| match error {
                ureq::Error::Json(error) => self.odd(error.to_string()).into(),
                other => self.unreachable(&self.model.to_string(), other),
            })
        })?;
        if !is_commit(&answered.sha) {
            return Err(self.odd(format!("`{}` is not a commit", answered.sha)));
        }
        let files = answered.siblings.into_iter().filter(|file| is_needed(&file.rfilename));
        let files = files.map(|file| self.checked(file)).collect::<Result<Vec<_>, _>>()?;
        if !files.iter().any(|file| file.name.ends_with(".safetensors")) {
            return Err(self.odd("it lists no .safetensors files to load".to_owned()));
        }
        Ok(Listing { commit: answered.sha, files })
    }

    /// Checks a file of the listing. The listing comes from outside, and its names become paths.
    fn checked(&self, file: Sibling) -> Result<RemoteFile, HubError> {
        let (hash, size) = match file.lfs {
            Some(lfs) => (Some(lfs.sha256), Some(lfs.size)),
            None => (file.blob_id, file.size),
        };
        let name = file.rfilename;
        let (Some(hash), Some(size)) = (hash, size) else {
            return Err(self.odd(format!("it lists `{name}` without size or hash")));
        };
        let inside = name.split('/').all(|part| !matches!(part, "" | "." | ".."));
        let plain = !name.contains(['\\', ':']) && !name.contains(char::is_control);
        if !inside || !plain || !(is_hex(&hash, 40) || is_hex(&hash, 64)) {
            return Err(self.odd(format!("it lists {name:?} with hash {hash:?}")));
        }
        Ok(RemoteFile { name, hash, size })
    }

    /// Fetches the blobs of `files`, which must be different, [`PARALLEL_MAX`] at a time.
    pub(super) fn download(
        &self,
        commit: &str,
        files: &[&RemoteFile],
        store: &Store,
        flow: &mut Flow,
    ) -> Result<(), HubError> {
        if files.is_empty() {
            return Ok(());
        }
        flow.begin(files.iter().map(|file| file.size).sum());
        let repo = self.repo(commit);
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.fetch(&repo, file, store, flow) {
                    return flow.fail(error);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..PARALLEL_MAX.min(files.len()) {
                scope.spawn(work);
            }
        });
        flow.end()
    }

    /// Fetches one blob, except for the bytes that an earlier pull has left.
    fn fetch(
        &self,
        repo: &ApiRepo,
        file: &RemoteFile,
        store: &Store,
        flow: &Flow,
    ) -> Result<(), HubError> {
        let path = store.partial(file);
        path.parent().map_or(Ok(()), fs::create_dir_all).map_err(HubError::io(&path))?;
        let mut partial = Partial::open(file, &path, flow)?;
        let url = repo.url(&percent_encoded(&file.name));
        let done = persist(&PAUSES, flow, || self.transfer(repo, &url, &mut partial, flow))
            .and_then(|()| partial.finish());
        match done {
            Ok(()) => fs::rename(&path, store.blob(file)).map_err(HubError::io(&path)),
            Err(error) => {
                if matches!(error, HubError::Size { .. } | HubError::Corrupt { .. }) {
                    fs::remove_file(&path).map_err(HubError::io(&path))?;
                }
                Err(error)
            }
        }
    }

    /// Sends one request for the bytes that are still missing.
    fn transfer(
        &self,
        repo: &ApiRepo,
        url: &str,
        partial: &mut Partial,
        flow: &Flow,
    ) -> Result<(), Failure> {
        let (file, start) = (partial.file(), partial.len());
        if start == file.size {
            return Ok(());
        }
        let request = repo
            .info_request()
            .uri(url)
            .header("Range", format!("bytes={start}-"))
            // Offsets in compressed bytes would differ.
            .header("Accept-Encoding", "identity");
        let response = self.send(request, &format!("{} of {}", file.name, self.model))?;
        let mut known = partial.known_bytes(&response)?;
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            flow.check()?;
            let count = match body.read(&mut buffer) {
                Ok(count) if count > 0 => count,
                _ if partial.len() == file.size => return Ok(()),
                _ => {
                    let (file, got, size) = (file.name.clone(), partial.len(), file.size);
                    let error = HubError::Interrupted { file, got, size };
                    return Err(Failure::Passing { error, gained: got > start });
                }
            };
            let skipped = known.min(count as u64);
            known -= skipped;
            partial.append(&buffer[skipped as usize..count], flow)?;
        }
    }

    /// Sends a request. Every answer but success becomes an error that says what to do.
    fn send(
        &self,
        request: RequestBuilder<WithoutBody>,
        what: &str,
    ) -> Result<Response<Body>, Failure> {
        let response = request
            .config()
            .http_status_as_error(false)
            .timeout_connect(Some(SILENCE_MAX))
            .timeout_recv_response(Some(SILENCE_MAX))
            .timeout_per_read(Some(SILENCE_MAX))
            .build()
            .call()
            .map_err(|source| self.unreachable(what, source))?;
        let status = response.status().as_u16();
        if matches!(status, 200 | 206) {
            return Ok(response);
        }
        let advice = self.advice(status);
        let error = HubError::Refused { what: what.to_owned(), status, advice };
        Err(match status {
            408 | 429 | 500.. => Failure::Passing { error, gained: false },
            _ => Failure::Final(error),
        })
    }

    /// Tells failures that another try may overcome from those that will stay, such as a bad
    /// certificate or address.
    fn unreachable(&self, what: &str, source: ureq::Error) -> Failure {
        use ureq::Error::{ConnectionFailed, HostNotFound, Io, Protocol, Timeout};
        let passing =
            matches!(source, ConnectionFailed | HostNotFound | Io(_) | Protocol(_) | Timeout(_));
        let error = HubError::Unreachable {
            what: what.to_owned(),
            endpoint: self.config.endpoint.clone(),
            source: Box::new(source),
        };
        if passing { Failure::Passing { error, gained: false } } else { Failure::Final(error) }
    }

    fn odd(&self, why: String) -> HubError {
        HubError::Listing { model: self.model.clone(), why }
    }

    fn advice(&self, status: u16) -> String {
        let endpoint = self.config.endpoint.trim_end_matches('/');
        let id = self.model.id();
        match status {
            401 if self.config.token.is_none() => format!(
                "set HF_TOKEN to a token from {endpoint}/settings/tokens, and check the name: \
                 private, gated and unknown models all answer so"
            ),
            401 => "the token in HF_TOKEN is not valid here".to_owned(),
            403 => format!(
                "accept the licence at {endpoint}/{id} with the account of HF_TOKEN, and let the \
                 token read gated models"
            ),
            404 => format!(
                "check the name and the revision `{}`; a private model also needs HF_TOKEN",
                self.model.revision()
            ),
            408 | 429 | 500.. => "it is busy or failing; pull again later".to_owned(),
            _ => format!("is {endpoint} a hub?"),
        }
    }
}

/// Encodes a name for a URL, because `hf-hub` does not.
fn percent_encoded(name: &str) -> String {
    name.bytes().fold(String::new(), |mut url, byte| {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            url.push(byte.into());
        } else {
            let _ = write!(url, "%{byte:02X}");
        }
        url
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_in_urls() {
        assert_eq!(percent_encoded("dflash/a b#?%.json"), "dflash/a%20b%23%3F%25.json");
    }
}
