//! Files in the form that `torch.save` writes, correct and faulty.

use half::bf16;

pub(crate) const HIDDEN: u8 = 64;
pub(crate) const MASK_TOKEN: u8 = 90;

/// The pickle of a mask, piece by piece, so that a piece can be replaced.
#[derive(Clone)]
pub(crate) struct Pickle {
    pub(crate) token: Vec<u8>,
    pub(crate) storage: &'static str,
    pub(crate) storage_len: Vec<u8>,
    pub(crate) offset: Vec<u8>,
    pub(crate) shape: Vec<u8>,
    pub(crate) strides: Vec<u8>,
    /// Further entries of the dict.
    pub(crate) more: Vec<u8>,
}

impl Pickle {
    pub(crate) fn good() -> Self {
        Self {
            token: vec![b'K', MASK_TOKEN],
            storage: "torch\nBFloat16Storage\n",
            storage_len: vec![b'K', HIDDEN],
            offset: vec![b'K', 0],
            shape: vec![b'K', HIDDEN, 0x85],
            strides: vec![b'K', 1, 0x85],
            more: Vec::new(),
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        [
            b"\x80\x02}q\x00(",
            &text("mask_token_id")[..],
            b"q\x01",
            &self.token,
            &text("embedding"),
            b"q\x02ctorch._utils\n_rebuild_tensor_v2\nq\x03((",
            &text("storage"),
            b"q\x04c",
            self.storage.as_bytes(),
            b"q\x05",
            &text("0"),
            b"q\x06",
            &text("cpu"),
            b"q\x07",
            &self.storage_len,
            b"tq\x08Q",
            &self.offset,
            &self.shape,
            b"q\x09",
            &self.strides,
            b"q\x0a\x89ccollections\nOrderedDict\nq\x0b)Rq\x0ctq\x0dRq\x0e",
            &self.more,
            b"u.",
        ]
        .concat()
    }
}

/// A text in the form that pickles have.
pub(crate) fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

pub(crate) fn good() -> Vec<u8> {
    archive(&Pickle::good(), &embedding())
}

/// [`HIDDEN`] values of BF16.
pub(crate) fn embedding() -> Vec<u8> {
    (0..HIDDEN).flat_map(|n| bf16::from_f32(f32::from(n) / 8.0).to_le_bytes()).collect()
}

pub(crate) fn archive(pickle: &Pickle, data: &[u8]) -> Vec<u8> {
    zip(&entries(&pickle.bytes(), data))
}

/// The entries that torch writes.
pub(crate) fn entries(pickle: &[u8], data: &[u8]) -> Vec<Entry> {
    let entry = |name: &str, bytes: &[u8]| Entry::new(&format!("mask_embedding/{name}"), bytes);
    vec![
        entry("data.pkl", pickle),
        entry(".format_version", b"1"),
        entry("byteorder", b"little"),
        entry("data/0", data),
        entry("version", b"3\n"),
    ]
}

/// An entry of an archive, and the contents of its headers.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) method: u16,
    pub(crate) flags: u16,
    pub(crate) packed: u32,
    pub(crate) size: u32,
    pub(crate) crc: u32,
    /// The offset that the directory claims, if it is not the real one.
    pub(crate) at: Option<u32>,
}

impl Entry {
    pub(crate) fn new(name: &str, bytes: &[u8]) -> Self {
        let (name, size) = (name.to_owned(), bytes.len() as u32);
        let (bytes, crc) = (bytes.to_vec(), crc32(bytes));
        Self { name, bytes, method: 0, flags: 0x0808, packed: size, size, crc, at: None }
    }
}

/// As written by torch: sizes and checksums are only in the directory.
pub(crate) fn zip(entries: &[Entry]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let at = entry.at.unwrap_or(file.len() as u32);
        let name_bytes = entry.name.len() as u16;
        let fixed = [0_u16, entry.flags, entry.method, 0, 0].map(u16::to_le_bytes).concat();
        file.extend([b"PK\x03\x04", &fixed[..], &[0; 12]].concat());
        file.extend([name_bytes, 4].map(u16::to_le_bytes).concat());
        file.extend([entry.name.as_bytes(), b"FB\0\0", &entry.bytes].concat());
        directory.extend([b"PK\x01\x02\0\0", &fixed[..]].concat());
        directory.extend([entry.crc, entry.packed, entry.size].map(u32::to_le_bytes).concat());
        directory.extend([name_bytes, 0, 0, 0, 0, 0, 0].map(u16::to_le_bytes).concat());
        directory.extend(at.to_le_bytes());
        directory.extend(entry.name.as_bytes());
    }
    let end = End {
        count: entries.len() as u16,
        directory_bytes: directory.len() as u32,
        at: file.len() as u32,
    };
    [file, directory, end.bytes()].concat()
}

/// The record that ends an archive.
pub(crate) struct End {
    pub(crate) count: u16,
    pub(crate) directory_bytes: u32,
    pub(crate) at: u32,
}

impl End {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let counts = [0, 0, self.count, self.count].map(u16::to_le_bytes).concat();
        let places = [self.directory_bytes, self.at].map(u32::to_le_bytes).concat();
        [b"PK\x05\x06", &counts[..], &places, &[0, 0]].concat()
    }
}

/// The checksum of zip, bit by bit.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}
