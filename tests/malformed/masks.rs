//! Files of mask embeddings that `torch.save` would not write.

use half::bf16;

use crate::good::{Files, Model};
use crate::torch::{
    End, Entry, HIDDEN, Pickle, archive, crc32, embedding, entries, good, text, zip,
};
use crate::{accepts, refuses};

const FILE: &str = "dflash/mask_embedding.pt";

fn with_mask(mask: Vec<u8>) -> Files {
    Model { mask, ..Model::good() }.files()
}

#[track_caller]
fn refuses_mask(mask: Vec<u8>, reason: &str) {
    refuses(&with_mask(mask), &[&format!("{FILE}: "), reason]);
}

#[track_caller]
fn refuses_pickle(edit: impl FnOnce(&mut Pickle), reason: &str) {
    let mut pickle = Pickle::good();
    edit(&mut pickle);
    refuses_mask(archive(&pickle, &embedding()), reason);
}

/// A pickle with other instructions must be refused.
#[track_caller]
fn refuses_program(program: &[u8], reason: &str) {
    refuses_mask(zip(&entries(program, &embedding())), reason);
}

#[track_caller]
fn refuses_entries(edit: impl FnOnce(&mut Vec<Entry>), reason: &str) {
    let mut entries = entries(&Pickle::good().bytes(), &embedding());
    edit(&mut entries);
    refuses_mask(zip(&entries), reason);
}

#[test]
fn good_masks_are_accepted() {
    accepts(&with_mask(good()));
    let f32_data: Vec<_> = (0..HIDDEN).flat_map(|n| f32::from(n).to_le_bytes()).collect();
    let f32_pickle = Pickle { storage: "torch\nFloatStorage\n", ..Pickle::good() };
    accepts(&with_mask(archive(&f32_pickle, &f32_data)));
    for flag in [b"\x89", b"N"] {
        let more = [&text("per_position")[..], flag].concat();
        accepts(&with_mask(archive(&Pickle { more, ..Pickle::good() }, &embedding())));
    }
    // The embedding is a row of a table, so its storage is larger than the tensor.
    let table = [embedding(), embedding()].concat();
    let (storage_len, offset) = (vec![b'K', 2 * HIDDEN], vec![b'K', HIDDEN]);
    let row = Pickle { storage_len, offset, ..Pickle::good() };
    accepts(&with_mask(archive(&row, &table)));
}

#[test]
fn no_archive() {
    let mut files = Model::good().files();
    files.remove(FILE);
    refuses(&files, &[&format!("{FILE}: cannot be opened: No such file")]);
    refuses_mask(Vec::new(), "is no zip archive");
    refuses_mask(b"not a zip".to_vec(), "is no zip archive");
    // The format that torch wrote until version 1.5, and still writes on request.
    refuses_mask(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.".to_vec(), "has torch's old format");
    refuses_mask(vec![b'P'; (4 << 20) + 1], "has more than 4194304 bytes");
    let whole = good();
    for length in [4, 30, 100, whole.len() / 2, whole.len() - 1] {
        refuses_mask(whole[..length].to_vec(), "cut short");
    }
    refuses_mask([&whole[..], b"x"].concat(), "does not end as an archive");
}

#[test]
fn archives_of_another_kind() {
    // A zip bomb: it claims to unpack to 4 GiB.
    let bomb = |entries: &mut Vec<Entry>| (entries[3].method, entries[3].size) = (8, u32::MAX);
    refuses_entries(bomb, "compressed or encrypted");
    refuses_entries(|entries| entries[3].method = 8, "compressed or encrypted");
    refuses_entries(|entries| entries[3].size += 1, "compressed or encrypted");
    refuses_entries(|entries| entries[3].flags |= 1, "compressed or encrypted");
    // Sizes that need a 64-bit archive.
    let zip64 =
        |entries: &mut Vec<Entry>| (entries[3].packed, entries[3].size) = (u32::MAX, u32::MAX);
    refuses_entries(zip64, "has a broken data/0");
    refuses_entries(|entries| entries[3].at = Some(u32::MAX), "has a broken data/0");
    refuses_entries(|entries| entries[3].at = Some(0), "has a broken data/0");
    refuses_entries(|entries| entries[3].crc ^= 1, "has a damaged data/0");
    refuses_entries(|entries| entries[3].bytes[0] ^= 1, "has a damaged data/0");
    let many = |entries: &mut Vec<Entry>| {
        entries.extend((0..100).map(|n| Entry::new(&format!("mask_embedding/{n}"), b"")));
    };
    refuses_entries(many, "has 105 entries, more than 64");
    let long =
        |entries: &mut Vec<Entry>| entries[4].name = format!("mask_embedding/{}", "a".repeat(1000));
    refuses_entries(long, "with a name of 1015 bytes");
    for name in [
        "../../etc/passwd",
        "/etc/passwd",
        "mask_embedding",
        "mask_embedding/",
        "mask_embedding/../x",
        "mask_embedding//x",
        "mask_embedding\\x/y",
    ] {
        refuses_entries(
            |entries| name.clone_into(&mut entries[4].name),
            "has an entry with the name",
        );
    }
    refuses_entries(
        |entries| "other/version".clone_into(&mut entries[4].name),
        "and in another folder",
    );
    refuses_entries(|entries| entries.push(entries[0].clone()), "has data.pkl twice");
    let big =
        |entries: &mut Vec<Entry>| entries[2] = Entry::new("mask_embedding/byteorder", b"big");
    refuses_entries(big, "has the byte order \"big\", not little");
}

#[test]
fn archives_whose_end_lies() {
    let whole = good();
    let (body, end) = whole.split_at(whole.len() - 22);
    let directory_bytes = u32::from_le_bytes(end[12..16].try_into().unwrap());
    let at = u32::from_le_bytes(end[16..20].try_into().unwrap());
    let with_end = |end: End| [body, &end.bytes()].concat();
    refuses_mask(with_end(End { count: 6, directory_bytes, at }), "has fewer entries than it says");
    refuses_mask(with_end(End { count: 4, directory_bytes, at }), "has more entries than it says");
    refuses_mask(with_end(End { count: 0, directory_bytes: 0, at }), "has no data.pkl");
    refuses_mask(with_end(End { count: u16::MAX, directory_bytes, at }), "has 65535 entries");
    for (directory_bytes, at) in [(u32::MAX, at), (directory_bytes, u32::MAX), (u32::MAX, u32::MAX)]
    {
        refuses_mask(with_end(End { count: 5, directory_bytes, at }), "has a broken end record");
    }
    refuses_mask(with_end(End { count: 5, directory_bytes, at: at - 1 }), "has fewer entries");
}

#[test]
fn missing_entries() {
    refuses_entries(|entries| _ = entries.remove(0), "has no data.pkl");
    refuses_entries(|entries| _ = entries.remove(3), "has no data/0");
}

#[test]
fn pickles_that_would_run_something() {
    let names = "which no mask needs";
    refuses_program(b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.", names);
    refuses_program(b"\x80\x02cposix\nsystem\n.", names);
    refuses_program(b"\x80\x02cbuiltins\neval\n.", names);
    refuses_program(b"\x80\x02ctorch._utils\n_rebuild_parameter\n.", names);
    refuses_program(b"\x80\x02ctorch\nHalfStorage\n.", names);
    refuses_pickle(|pickle| pickle.storage = "torch\nHalfStorage\n", names);
    let code = "not a mask's";
    // The instructions INST, OBJ, NEWOBJ, BUILD, and those of extensions and out-of-band data.
    for instruction in [b'i', b'o', 0x81, b'b', 0x82, 0x97, b'\\', 0, 0xff] {
        refuses_program(&[0x80, 2, instruction, b'.'], code);
    }
    // Allowed calls, but in other places or with other arguments.
    for program in [
        &b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R."[..],
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02K\x01)R.",
    ] {
        refuses_program(program, "holds no dict");
    }
    let other = "builds something other than a mask";
    let calls: [&[u8]; 4] = [
        b"ctorch._utils\n_rebuild_tensor_v2\n)R",
        b"ccollections\nOrderedDict\n)R",
        b"ctorch\nFloatStorage\n)R",
        b"K\x01)R",
    ];
    for call in calls {
        refuses_program(&[b"\x80\x02}(", &text("embedding")[..], call, b"u."].concat(), other);
        refuses_pickle(|pickle| pickle.offset = call.to_vec(), other);
    }
}

#[test]
fn pickles_that_are_broken() {
    refuses_program(b"", "another protocol than 2");
    refuses_program(b"\x80\x04}.", "another protocol than 2");
    refuses_program(b"\x80\x02", "is cut short");
    refuses_program(b"\x80\x02X\xff\0\0\0abc.", "is cut short");
    refuses_program(b"\x80\x02ctorch", "is cut short");
    let good = Pickle::good().bytes();
    refuses_program(&good[..good.len() - 1], "is cut short");
    refuses_program(&[&good[..], b"."].concat(), "goes on behind its end");
    for program in [
        &b"\x80\x02."[..],
        b"\x80\x02u.",
        b"\x80\x02t.",
        b"\x80\x02\x87.",
        b"\x80\x02s.",
        b"\x80\x02R.",
        b"\x80\x02Q.",
        b"\x80\x02q\0.",
        b"\x80\x02(.",
    ] {
        refuses_program(program, "holds no dict");
    }
    for program in [&b"\x80\x02}(K\x01u."[..], b"\x80\x02}(}t."] {
        refuses_program(program, "whose keys are not texts");
    }
    refuses_program(b"\x80\x02}}.", "has no mask_token_id");
    refuses_program(b"\x80\x02h\0.", "repeats more than texts and names");
    refuses_program(b"\x80\x02}q\0h\0.", "repeats more than texts and names");
    refuses_program(b"\x80\x02X\xff\xff\xff\xff.", "is cut short");
    refuses_program(b"\x80\x02X\x01\0\0\0\xff.", "not UTF-8");
    let twice = |more: Vec<u8>| Pickle { more, ..Pickle::good() };
    let token = [&text("mask_token_id")[..], b"K\x5a"].concat();
    refuses_mask(archive(&twice(token), &embedding()), "has mask_token_id twice");
    let flag = [&text("per_position")[..], b"N"].concat().repeat(2);
    refuses_mask(archive(&twice(flag), &embedding()), "has per_position twice");
}

#[test]
fn long_pickles() {
    let long = [&b"\x80\x02"[..], &"N".repeat(20_000).into_bytes()].concat();
    refuses_program(&long, "has a pickle of 20002 bytes");
    refuses_pickle(|pickle| pickle.shape = [&b"("[..], &b"K\x01".repeat(2000)].concat(), "mask");
    let memo: Vec<_> =
        (0..400_u32).flat_map(|slot| [&b"r"[..], &slot.to_le_bytes()].concat()).collect();
    refuses_program(&[&b"\x80\x02}"[..], &memo].concat(), "is cut short");
}

#[test]
fn other_values_than_a_mask() {
    refuses_program(b"\x80\x02K\x01.", "holds no dict");
    refuses_program(b"\x80\x02}.", "has no mask_token_id");
    refuses_pickle(
        |pickle| pickle.more = [&text("per_position")[..], b"\x88"].concat(),
        "has per_position",
    );
    refuses_pickle(
        |pickle| pickle.more = [&text("scale")[..], b"K\x01"].concat(),
        "the unknown entry \"scale\"",
    );
    refuses_pickle(|pickle| pickle.token = text("90"), "mask_token_id has the wrong type");
    refuses_pickle(|pickle| pickle.token = b"J\xff\xff\xff\xff".to_vec(), "none that is a token");
    refuses_pickle(
        |pickle| pickle.token = vec![b'K', 91],
        "mask_token_id is 91, but dflash_config says 90",
    );
    refuses_pickle(
        |pickle| pickle.shape = vec![b'K', 32, 0x85],
        "embedding has 32 values, not hidden_size 64",
    );
    refuses_pickle(
        |pickle| pickle.shape = vec![b'K', 65, 0x85],
        "embedding reaches beyond its storage",
    );
    refuses_pickle(|pickle| pickle.offset = vec![b'K', 1], "embedding reaches beyond its storage");
    refuses_pickle(
        |pickle| pickle.shape = b"J\xff\xff\xff\xff\x85".to_vec(),
        "a size that is none",
    );
    refuses_pickle(|pickle| pickle.shape = b"J\xff\xff\xff\x7f\x85".to_vec(), "reaches beyond");
    refuses_pickle(|pickle| pickle.shape = b"K\x08K\x08\x86".to_vec(), "embedding is no vector");
    refuses_pickle(|pickle| pickle.strides = vec![b'K', 2, 0x85], "embedding is no vector");
    refuses_pickle(
        |pickle| pickle.storage_len = vec![b'K', 63],
        "has 128 bytes in data/0, but says 63 values",
    );
    refuses_pickle(|pickle| pickle.storage = "torch\nFloatStorage\n", "has 128 bytes in data/0");
}

#[test]
fn embeddings_that_are_not_numbers() {
    for bad in [bf16::NAN, bf16::INFINITY] {
        let mut data = embedding();
        data[20..22].copy_from_slice(&bad.to_le_bytes());
        let mask = archive(&Pickle::good(), &data);
        refuses_mask(mask, "embedding: element [0, 10] is NaN or infinite");
    }
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
}
