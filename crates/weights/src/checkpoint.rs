//! A model's folder, opened and checked: the config, the tensors and, if the model has one, the
//! drafter. A weight is read only on request.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kilotok_model::{
    ConfigError, Dtype, Knobs, ModelSpec, Part, Slice, StoredTensor, WeightDecl, WeightId, declare,
    read_config, read_drafter,
};

use crate::files;
use crate::folder::{Folder, FolderTensor, Plan};
use crate::gather::{Bytes, Rows, check_slice, gather};
use crate::header::HeaderTensor;
use crate::load::WeightSource;
use crate::mask::{Mask, parse_mask};
use crate::problem::{CheckpointError, Problem, Problems, WeightError};
use crate::tensor::Tensor;

const CONFIG: &str = "config.json";
const CONFIG_BYTES_MAX: u64 = 1 << 20;
const DRAFTER: &str = "dflash";
const MASK_NAME: &str = "mask_embedding.pt";
/// A hundred times the size of the embedding.
const MASK_BYTES_MAX: u64 = 1 << 22;

/// A checkpoint in which every declared tensor exists with the right type and shape.
#[derive(Debug)]
pub struct Checkpoint {
    spec: ModelSpec,
    target: Folder,
    drafter: Option<Drafter>,
    skipped: Vec<Skipped>,
}

#[derive(Debug)]
struct Drafter {
    folder: Folder,
    /// The path of the file with the mask's embedding, as messages name it.
    mask_file: String,
    /// `None` if the drafter has no such file, and while problems are still being collected.
    mask: Option<Mask>,
}

/// Tensors that stay unread, all for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    pub reason: &'static str,
    pub tensor_count: usize,
    pub bytes: u64,
}

/// The drafter's folder, and its name in messages. `None` if the model has no drafter.
fn drafter_folder(folder: &Path, knobs: &Knobs) -> Option<(PathBuf, String)> {
    if let Some(path) = &knobs.drafter {
        return Some((path.clone(), format!("{}/", path.display())));
    }
    let path = folder.join(DRAFTER);
    path.symlink_metadata().is_ok().then(|| (path, format!("{DRAFTER}/")))
}

/// Reads only the configs of a model's folder and of its drafter's, which is all that dummy weights
/// need.
///
/// # Errors
/// A config cannot be read or used; the error has every reason.
pub fn read_spec(folder: &Path, knobs: &Knobs) -> Result<ModelSpec, CheckpointError> {
    let mut spec = read_config(CONFIG, &config_text(folder, CONFIG, CONFIG)?, knobs)?;
    if let Some((path, label)) = drafter_folder(folder, knobs) {
        let file = format!("{label}{CONFIG}");
        let text = config_text(&path, CONFIG, &file)?;
        spec.drafter = Some(read_drafter(&file, &text, &spec, knobs)?);
    }
    Ok(spec)
}

impl Checkpoint {
    /// Opens a model's folder: `config.json`, its safetensors files and, if it has one, the drafter
    /// in its `dflash` folder or where `knobs` name it. Files that an index does not name are
    /// ignored.
    ///
    /// # Errors
    /// A config cannot be used; the error has every reason. Or files are damaged, missing, or not
    /// what the config needs; the error has all problems.
    pub fn open(folder: &Path, knobs: &Knobs) -> Result<Self, CheckpointError> {
        let spec = read_spec(folder, knobs)?;
        let mut problems = Problems::default();
        let plan = Plan { path: folder, label: "", stems: &["model"], prefix: "" };
        let target = Folder::open(&plan, &mut problems);
        let drafter = spec.drafter.as_ref().zip(drafter_folder(folder, knobs));
        let drafter = drafter.map(|(drafter, (path, label))| {
            let stems = &["dflash_draft_model", "model"];
            let plan = Plan { path: &path, label: &label, stems, prefix: "model." };
            let folder = Folder::open(&plan, &mut problems);
            let mask_file = format!("{label}{MASK_NAME}");
            let mask = drafter.own_mask.then(|| {
                let mask = read_mask(&path, drafter.mask_token, spec.hidden_size);
                mask.map_err(|reason| problems.push(&mask_file, "", reason)).ok()
            });
            let mask = mask.flatten();
            Drafter { folder, mask_file, mask }
        });
        let stacked = spec.stacked_experts_name().is_some_and(|name| target.get(&name).is_some());
        let spec = if stacked { spec.with_stacked_experts() } else { spec };
        let mut checkpoint = Self { spec, target, drafter, skipped: Vec::new() };
        checkpoint.skipped = checkpoint.check(&mut problems);
        if problems.is_empty() { Ok(checkpoint) } else { Err(CheckpointError::Files(problems)) }
    }

    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Tensors in the files that are deliberately not read.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    fn folder(&self, part: Part) -> Option<&Folder> {
        match part {
            Part::Target => Some(&self.target),
            Part::Drafter => self.drafter.as_ref().map(|drafter| &drafter.folder),
        }
    }

    fn folder_of(&self, decl: &WeightDecl) -> Result<&Folder, WeightError> {
        self.folder(decl.part).ok_or_else(|| no_drafter(decl))
    }

    /// The mask's embedding and its file.
    fn mask(&self, decl: &WeightDecl) -> Result<(&Mask, &str), WeightError> {
        let drafter = self.drafter.as_ref();
        let mask = drafter.and_then(|drafter| Some((drafter.mask.as_ref()?, &*drafter.mask_file)));
        mask.ok_or_else(|| no_drafter(decl))
    }

    /// Compares the declared tensors with the files. Returns the tensors that will stay unread.
    fn check(&self, problems: &mut Problems) -> Vec<Skipped> {
        let mut declared = BTreeSet::new();
        for decl in declare(&self.spec) {
            let Some(folder) = self.folder(decl.part).filter(|_| decl.id != WeightId::DraftMask)
            else {
                continue;
            };
            for stored in decl.stored() {
                if !declared.insert((decl.part, stored.name.clone())) {
                    continue;
                }
                // A file that could not be read is one problem, not one for each of its tensors.
                if (folder.complete || folder.get(&stored.name).is_some())
                    && let Err(Problem { file, tensor, reason }) = find(folder, &stored)
                {
                    problems.push(&file, &tensor, reason);
                }
            }
        }
        let mut skipped = BTreeMap::new();
        for part in [Part::Target, Part::Drafter] {
            for (name, tensor) in self.folder(part).into_iter().flat_map(Folder::iter) {
                if declared.contains(&(part, name.to_owned())) {
                    continue;
                }
                match self.spec.skip_reason(name).filter(|_| part == Part::Target) {
                    Some(reason) => {
                        let (count, bytes) = skipped.entry(reason).or_insert((0, 0));
                        *count += 1;
                        *bytes += tensor.bytes.len() as u64;
                    }
                    None => problems.push(tensor.file, name, "is not part of the model"),
                }
            }
        }
        let skipped = skipped.into_iter();
        skipped
            .map(|(reason, (tensor_count, bytes))| Skipped { reason, tensor_count, bytes })
            .collect()
    }
}

impl WeightSource for Checkpoint {
    fn read(&self, decl: &WeightDecl, slice: &Slice) -> Result<Tensor, WeightError> {
        check_slice(decl, slice).map_err(|reason| fail(CONFIG, &decl.name, reason))?;
        if decl.id == WeightId::DraftMask {
            let (mask, file) = self.mask(decl)?;
            let rows = Bytes { bytes: &mask.bytes, row_bytes: mask.bytes.len() };
            return gather(decl, slice, mask.dtype, &[&rows])
                .map_err(|flaw| fail(file, "embedding", flaw.to_string()));
        }
        let folder = self.folder_of(decl)?;
        let mut found = Vec::new();
        for stored in decl.stored() {
            found.push((find(folder, &stored).map_err(WeightError)?, stored));
        }
        let rows = found.iter().map(|((tensor, _), stored)| Bytes {
            bytes: tensor.bytes,
            row_bytes: tensor.bytes.len() / stored.rows,
        });
        let rows: Vec<_> = rows.collect();
        let rows: Vec<_> = rows.iter().map(|rows| rows as &dyn Rows).collect();
        let ((_, dtype), _) = found[0];
        gather(decl, slice, dtype, &rows).map_err(|flaw| {
            let ((tensor, _), stored) = &found[usize::from(flaw.in_scales)];
            fail(tensor.file, &stored.name, flaw.to_string())
        })
    }

    fn dtype(&self, decl: &WeightDecl) -> Result<Dtype, WeightError> {
        if decl.id == WeightId::DraftMask {
            return Ok(self.mask(decl)?.0.dtype);
        }
        let (_, dtype) = find(self.folder_of(decl)?, &decl.stored()[0]).map_err(WeightError)?;
        Ok(dtype)
    }
}

fn fail(file: &str, tensor: &str, reason: String) -> WeightError {
    let (file, tensor) = (file.to_owned(), tensor.to_owned());
    WeightError(Problem { file, tensor, reason })
}

fn no_drafter(decl: &WeightDecl) -> WeightError {
    fail(CONFIG, &decl.name, "there is no drafter".to_owned())
}

/// The tensor, if it has the declared type and shape.
fn find<'a>(
    folder: &'a Folder,
    stored: &StoredTensor,
) -> Result<(FolderTensor<'a>, Dtype), Problem> {
    let fail = |file: &str, reason| {
        let (file, tensor) = (file.to_owned(), stored.name.clone());
        Err(Problem { file, tensor, reason })
    };
    let Some(tensor) = folder.get(&stored.name) else {
        return fail(&folder.searched, "is missing".to_owned());
    };
    let HeaderTensor { dtype, shape, .. } = tensor.header;
    let Some(known) = stored.dtypes.iter().find(|known| known.name() == *dtype) else {
        let names: Vec<_> = stored.dtypes.iter().map(|dtype| dtype.name()).collect();
        return fail(tensor.file, format!("has the type {dtype}, not {}", names.join(" or ")));
    };
    if *shape != stored.shape {
        return fail(tensor.file, format!("has the shape {shape:?}, not {:?}", stored.shape));
    }
    Ok((tensor, *known))
}

/// The text of a file, which messages name by its label.
fn config_text(folder: &Path, file: &str, label: &str) -> Result<String, ConfigError> {
    let text = files::read_text(&folder.join(file), CONFIG_BYTES_MAX);
    text.map_err(|problem| ConfigError { file: label.to_owned(), problems: vec![problem] })
}

/// The mask's embedding, if it fits this drafter.
fn read_mask(drafter: &Path, token: u32, hidden_size: usize) -> Result<Mask, String> {
    let mask = parse_mask(&files::read(&drafter.join(MASK_NAME), MASK_BYTES_MAX)?)?;
    if mask.token != token {
        let (has, wants) = (mask.token, token);
        return Err(format!("mask_token_id is {has}, but dflash_config says {wants}"));
    }
    if mask.bytes.len() != hidden_size * mask.dtype.bytes() {
        let length = mask.bytes.len() / mask.dtype.bytes();
        return Err(format!("embedding has {length} values, not hidden_size {hidden_size}"));
    }
    Ok(mask)
}
