//! `mask_embedding.pt`: a dict as written by `torch.save`: an uncompressed zip archive of a pickle
//! and the raw bytes of one tensor.

use half::bf16;

/// `{"mask_token_id": token, "embedding": tensor}`, the tensor BF16.
pub(super) fn mask_embedding(token: u32, embedding: &[bf16]) -> Vec<u8> {
    let bytes: Vec<u8> = embedding.iter().flat_map(|value| value.to_le_bytes()).collect();
    let pickle = pickle(token, embedding.len() as u32);
    zip(
        "mask_embedding",
        &[
            ("data.pkl", &pickle),
            (".format_version", b"1"),
            (".storage_alignment", b"64"),
            ("byteorder", b"little"),
            ("data/0", &bytes),
            ("version", b"3\n"),
        ],
    )
}

fn pickle(token: u32, length: u32) -> Vec<u8> {
    let mut out = vec![0x80, 2]; // PROTO
    out.extend(b"}("); // EMPTY_DICT MARK
    text(&mut out, "mask_token_id");
    int(&mut out, token);
    text(&mut out, "embedding");
    out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n(("); // GLOBAL MARK MARK
    text(&mut out, "storage");
    out.extend(b"ctorch\nBFloat16Storage\n");
    text(&mut out, "0");
    text(&mut out, "cpu");
    int(&mut out, length);
    out.extend(b"tQ"); // TUPLE BINPERSID
    int(&mut out, 0); // offset
    int(&mut out, length); // shape
    out.push(0x85); // TUPLE1
    int(&mut out, 1); // strides
    out.extend([0x85, 0x89]); // TUPLE1 NEWFALSE
    // EMPTY_TUPLE REDUCE TUPLE REDUCE SETITEMS STOP
    out.extend(b"ccollections\nOrderedDict\n)RtRu.");
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X'); // BINUNICODE
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.bytes());
}

fn int(out: &mut Vec<u8>, value: u32) {
    out.push(b'J'); // BININT
    out.extend(value.to_le_bytes());
}

/// An archive of uncompressed entries in one folder. The bytes of each entry start at a multiple of
/// 64.
fn zip(folder: &str, entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let name = format!("{folder}/{name}");
        let offset = out.len() as u32;
        // An extra field "FB", filled with Z, as torch writes it.
        let header = 30 + name.len() + 4;
        let padding = (64 - (out.len() + header) % 64) % 64;
        let common = common(&name, bytes);
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend((padding as u16 + 4).to_le_bytes());
        out.extend(name.bytes().chain(*b"FB"));
        out.extend((padding as u16).to_le_bytes());
        out.resize(out.len() + padding, b'Z');
        out.extend(*bytes);
        directory.extend(b"PK\x01\x02\x00\x00");
        directory.extend(&common);
        directory.extend([0; 12]); // extra, comment, disk, attributes
        directory.extend(offset.to_le_bytes());
        directory.extend(name.bytes());
    }
    let start = out.len() as u32;
    let count = (entries.len() as u16).to_le_bytes();
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([count, count].concat());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0; 2]);
    out
}

/// The fields that an entry's own header and the directory share, from the version on.
fn common(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 10]; // version, flags, method "stored", time, date
    let size = (bytes.len() as u32).to_le_bytes();
    out.extend(crc32(bytes).to_le_bytes());
    out.extend([size, size].concat());
    out.extend((name.len() as u16).to_le_bytes());
    out
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn crc32_is_the_usual_one() {
        assert_eq!(super::crc32(b"123456789"), 0xcbf4_3926);
    }
}
