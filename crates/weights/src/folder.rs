//! The safetensors files of one folder as one set of tensors: finds the files, maps them into
//! memory and checks that they and their index agree. This module knows no model.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Component, Path};

use kilotok_model::json::Object;
use memmap2::Mmap;

use crate::files;
use crate::header::{HeaderTensor, JSON_BYTES_MAX, parse_header};
use crate::problem::Problems;

const EXTENSION: &str = ".safetensors";
const INDEX_EXTENSION: &str = ".safetensors.index.json";

/// All tensors of a folder's files.
#[derive(Debug, Default)]
pub(crate) struct Folder {
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, Place>,
    /// The name that messages give to the place of a missing tensor: the index, the only file, or a
    /// pattern.
    pub(crate) searched: String,
    /// Whether every file could be read. If so, a tensor that is not listed is not in the folder.
    pub(crate) complete: bool,
}

#[derive(Debug)]
struct MappedFile {
    /// The file's name in messages.
    name: String,
    map: Mmap,
}

#[derive(Debug)]
struct Place {
    file: usize,
    header: HeaderTensor,
}

/// A tensor of the folder.
#[derive(Clone, Copy)]
pub(crate) struct FolderTensor<'a> {
    /// The file's name in messages.
    pub(crate) file: &'a str,
    pub(crate) header: &'a HeaderTensor,
    pub(crate) bytes: &'a [u8],
}

/// The location of a folder, and how it is read.
pub(crate) struct Plan<'a> {
    pub(crate) path: &'a Path,
    /// Prefix of file names in messages.
    pub(crate) label: &'a str,
    /// Possible stems of the files' names. The first stem with an index is used, else the first
    /// with a single file, else all safetensors files of the folder.
    pub(crate) stems: &'a [&'a str],
    /// A prefix that some exports put before every tensor's name.
    pub(crate) prefix: &'a str,
}

/// The files that make up a folder's tensors.
struct Listing {
    searched: String,
    names: Vec<String>,
    /// The file of each tensor, if there is an index.
    index: Option<BTreeMap<String, String>>,
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: Object<String>,
}

impl Folder {
    pub(crate) fn open(plan: &Plan<'_>, problems: &mut Problems) -> Self {
        let mut folder = Self::default();
        let listing = match plan.list() {
            Ok(listing) => listing,
            Err((file, reason)) => {
                problems.push(&plan.named(&file), "", reason);
                return folder;
            }
        };
        folder.searched = plan.named(&listing.searched);
        folder.complete = true;
        for name in &listing.names {
            folder.add_file(plan, &listing, name, problems);
        }
        let mapped = |name: &str| folder.files.iter().any(|file| file.name == plan.named(name));
        for (tensor, file) in listing.index.iter().flatten() {
            if mapped(file) && !folder.tensors.contains_key(plan.unprefixed(tensor)) {
                let reason = format!("is said to be in {file}, which lacks it");
                problems.push(&folder.searched, tensor, reason);
            }
        }
        folder
    }

    fn add_file(
        &mut self,
        plan: &Plan<'_>,
        listing: &Listing,
        name: &str,
        problems: &mut Problems,
    ) {
        let label = plan.named(name);
        let map = match files::map(&plan.path.join(name)) {
            Ok(map) => map,
            Err(reason) => {
                self.complete = false;
                return problems.push(&label, "", reason);
            }
        };
        let headers = match parse_header(&label, &map) {
            Ok(headers) => headers,
            Err(found) => {
                self.complete = false;
                return problems.append(found);
            }
        };
        let file = self.files.len();
        self.files.push(MappedFile { name: label.clone(), map });
        for (tensor, header) in headers {
            if let Some(index) = &listing.index {
                match index.get(&tensor) {
                    None => problems.push(&label, &tensor, "is not in the index"),
                    Some(other) if other != name => {
                        problems.push(&label, &tensor, format!("is in {other} by the index"));
                    }
                    Some(_) => {}
                }
            }
            match self.tensors.entry(plan.unprefixed(&tensor).to_owned()) {
                Entry::Vacant(place) => {
                    place.insert(Place { file, header });
                }
                Entry::Occupied(place) => {
                    let first = &self.files[place.get().file].name;
                    problems.push(&label, &tensor, format!("is in {first} too"));
                }
            }
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<FolderTensor<'_>> {
        self.tensors.get(name).map(|place| self.tensor(place))
    }

    /// The tensors, sorted by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, FolderTensor<'_>)> {
        self.tensors.iter().map(|(name, place)| (name.as_str(), self.tensor(place)))
    }

    fn tensor<'a>(&'a self, place: &'a Place) -> FolderTensor<'a> {
        let MappedFile { name, map } = &self.files[place.file];
        let Place { header, .. } = place;
        FolderTensor { file: name, header, bytes: &map[header.span.clone()] }
    }
}

impl Plan<'_> {
    fn named(&self, file: &str) -> String {
        format!("{}{file}", self.label)
    }

    fn unprefixed<'a>(&self, tensor: &'a str) -> &'a str {
        tensor.strip_prefix(self.prefix).unwrap_or(tensor)
    }

    /// Lists the files of the folder's tensors. An error names the faulty file.
    fn list(&self) -> Result<Listing, (String, String)> {
        let names = self.file_names().map_err(|reason| (String::new(), reason))?;
        let has = |name: &String| names.contains(name);
        let mut indices = self.stems.iter().map(|stem| format!("{stem}{INDEX_EXTENSION}"));
        if let Some(searched) = indices.find(has) {
            return match self.read_index(&searched) {
                Ok(listing) => Ok(listing),
                Err(reason) => Err((searched, reason)),
            };
        }
        let mut singles = self.stems.iter().map(|stem| format!("{stem}{EXTENSION}"));
        if let Some(searched) = singles.find(has) {
            return Ok(Listing { names: vec![searched.clone()], searched, index: None });
        }
        let searched = format!("*{EXTENSION}");
        let names: Vec<_> = names.into_iter().filter(|name| name.ends_with(EXTENSION)).collect();
        if names.is_empty() {
            return Err((searched, "there is no such file".to_owned()));
        }
        Ok(Listing { searched, names, index: None })
    }

    /// Sorted, so that messages are the same on every machine.
    fn file_names(&self) -> Result<Vec<String>, String> {
        let fail = |error| format!("the folder cannot be read: {error}");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.path).map_err(fail)? {
            // Names that are not UTF-8 cannot be names of weights.
            names.extend(entry.map_err(fail)?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    fn read_index(&self, searched: &str) -> Result<Listing, String> {
        let text = files::read_text(&self.path.join(searched), JSON_BYTES_MAX)?;
        let index: Index =
            serde_json::from_str(&text).map_err(|error| format!("is no index: {error}"))?;
        let index = index.weight_map.0;
        let mut names: Vec<_> = index.values().cloned().collect();
        names.sort();
        names.dedup();
        if names.is_empty() {
            return Err("names no tensor".to_owned());
        }
        if let Some(name) = names.iter().find(|name| !is_plain(name)) {
            return Err(format!("names {name:?}, which is no plain *{EXTENSION} file"));
        }
        Ok(Listing { searched: searched.to_owned(), names, index: Some(index) })
    }
}

/// Whether the name is that of a safetensors file directly in the folder, on every system.
fn is_plain(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let one = matches!(components.next(), Some(Component::Normal(_)));
    let foreign = |char: char| char.is_control() || "/\\:".contains(char);
    one && components.next().is_none() && !name.contains(foreign) && name.ends_with(EXTENSION)
}
