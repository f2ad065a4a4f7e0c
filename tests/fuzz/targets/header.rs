//! Reads any bytes as a safetensors file, and any text as the header of a file that is otherwise
//! valid. Accepted tensors must lie within the file without overlapping, and the format's own
//! library must accept the file too.

#![cfg_attr(fuzzing, no_main)]

use kilotok_weights::parse_header;
use safetensors::SafeTensors;

/// Most bytes of data in a file that is made around a header.
const DATA_MAX: usize = 1024;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

pub(crate) fn run(bytes: &[u8]) {
    check(bytes);
    if let Some((size, text)) = bytes.split_first_chunk() {
        let data = vec![0; usize::from(u16::from_le_bytes(*size)) % DATA_MAX];
        check(&[&(text.len() as u64).to_le_bytes(), text, &data].concat());
    }
}

fn check(file: &[u8]) {
    let Ok(tensors) = parse_header("file", file) else {
        return;
    };
    let total: usize = tensors.values().map(|tensor| tensor.span.len()).sum();
    let start = file.len() - total;
    assert!(tensors.values().all(|tensor| tensor.span.start >= start));
    assert!(tensors.values().all(|tensor| tensor.span.end <= file.len()));
    let theirs = SafeTensors::deserialize(file).expect("what is accepted here is sound");
    assert_eq!(theirs.len(), tensors.len());
    for (name, tensor) in theirs.iter() {
        let ours = &tensors[name];
        assert_eq!(ours.shape, tensor.shape());
        assert_eq!(ours.dtype, tensor.dtype().to_string());
        assert_eq!(&file[ours.span.clone()], tensor.data());
    }
}
