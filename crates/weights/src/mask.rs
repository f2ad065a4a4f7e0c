//! `mask_embedding.pt`: the drafter's embedding of the mask token, as written by `torch.save`: a
//! zip archive of a pickle, which describes a dict, and the raw bytes of a tensor. Only this kind
//! of dict is read; a pickle is never executed.

mod pickle;
mod zip;

use kilotok_model::Dtype;

use pickle::{Described, View};

/// What the file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// The token to which the embedding belongs.
    pub token: u32,
    /// BF16 or F32.
    pub dtype: Dtype,
    /// Its values, little-endian.
    pub bytes: Vec<u8>,
}

/// Reads the file, given whole: `{"mask_token_id": int, "embedding": vector}`, BF16 or F32, and
/// perhaps `"per_position": False`.
///
/// # Errors
/// Says what the file has instead.
pub fn parse_mask(bytes: &[u8]) -> Result<Mask, String> {
    // This file is a pickle without an archive around it.
    if bytes.first() == Some(&pickle::PROTOCOL) {
        return Err("has torch's old format; save it again with torch 1.6 or later".to_owned());
    }
    let archive = zip::read(bytes)?;
    if let Some(order) = archive.get("byteorder").filter(|order| **order != b"little") {
        let order = String::from_utf8_lossy(order);
        return Err(format!("has the byte order {order:?}, not little"));
    }
    let pickle = archive.get("data.pkl").ok_or("has no data.pkl")?;
    let Described { token, embedding: tensor } = pickle::read(pickle)?;
    let entry = format!("data/{}", tensor.storage);
    let data = archive.get(entry.as_str()).ok_or_else(|| format!("has no {entry}"))?;
    let width = tensor.dtype.bytes();
    if Some(data.len()) != tensor.storage_len.checked_mul(width) {
        let (has, says) = (data.len(), tensor.storage_len);
        return Err(format!("has {has} bytes in {entry}, but says {says} values of {width}"));
    }
    let ([length], [1]) = (&tensor.shape[..], &tensor.strides[..]) else {
        let View { shape, strides, .. } = tensor;
        return Err(format!("embedding is no vector: shape {shape:?}, strides {strides:?}"));
    };
    let end = tensor.offset.checked_add(*length).filter(|end| *end <= tensor.storage_len);
    let Some(end) = end else {
        return Err("embedding reaches beyond its storage".to_owned());
    };
    let bytes = data[tensor.offset * width..end * width].to_vec();
    Ok(Mask { token, dtype: tensor.dtype, bytes })
}
