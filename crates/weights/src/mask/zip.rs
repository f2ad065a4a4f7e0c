//! Archives as written by `torch.save`: few, small, uncompressed entries in one folder. An
//! uncompressed archive cannot expand to a large size; all other archives are refused.

use std::collections::BTreeMap;

const ENTRIES_MAX: usize = 64;
const NAME_BYTES_MAX: usize = 256;
const END_BYTES: usize = 22;
const CENTRAL_BYTES: usize = 46;
const LOCAL_BYTES: usize = 30;
const ENCRYPTED: u16 = 1;

/// The central directory's description of an entry.
struct Entry<'a> {
    name: &'a [u8],
    size: usize,
    crc: u32,
    local_at: usize,
}

/// The entries' bytes, by their names within the archive's only folder.
pub(super) fn read(file: &[u8]) -> Result<BTreeMap<&str, &[u8]>, String> {
    if !file.starts_with(b"PK\x03\x04") {
        return Err("is no zip archive, which torch.save writes".to_owned());
    }
    // Only a comment could follow the end record, and torch writes none.
    let end_at = file.len().checked_sub(END_BYTES).ok_or("is cut short")?;
    let end = &file[end_at..];
    if !end.starts_with(b"PK\x05\x06") || u16_at(end, 20) != 0 {
        return Err("does not end as an archive of torch.save does; is it cut short?".to_owned());
    }
    let count = usize::from(u16_at(end, 10));
    let (directory_bytes, directory_at) = (usize_at(end, 12), usize_at(end, 16));
    if count > ENTRIES_MAX {
        return Err(format!("has {count} entries, more than {ENTRIES_MAX}"));
    }
    let one_disk =
        u16_at(end, 4) == 0 && u16_at(end, 6) == 0 && usize::from(u16_at(end, 8)) == count;
    let in_file = directory_at.checked_add(directory_bytes).is_some_and(|end| end <= end_at);
    if !one_disk || !in_file {
        return Err("has a broken end record".to_owned());
    }
    let mut directory = &file[directory_at..directory_at + directory_bytes];
    let mut entries = BTreeMap::new();
    let mut folder = None;
    for _ in 0..count {
        let entry = central(&mut directory)?;
        let (top, name) = split_name(entry.name)?;
        if *folder.get_or_insert(top) != top {
            return Err(format!("has entries in {top:?} and in another folder"));
        }
        let data = local(&file[..directory_at], &entry).ok_or(format!("has a broken {name}"))?;
        if crc32(data) != entry.crc {
            return Err(format!("has a damaged {name}: its checksum is wrong"));
        }
        if entries.insert(name, data).is_some() {
            return Err(format!("has {name} twice"));
        }
    }
    if !directory.is_empty() {
        return Err("has more entries than it says".to_owned());
    }
    Ok(entries)
}

/// Takes the next entry from the central directory.
fn central<'a>(directory: &mut &'a [u8]) -> Result<Entry<'a>, String> {
    let fixed = directory.get(..CENTRAL_BYTES).filter(|fixed| fixed.starts_with(b"PK\x01\x02"));
    let fixed = fixed.ok_or("has fewer entries than it says")?;
    let lengths = [28, 30, 32].map(|at| usize::from(u16_at(fixed, at)));
    let bytes = CENTRAL_BYTES + lengths.iter().sum::<usize>();
    let whole = directory.get(..bytes).ok_or("has a broken directory")?;
    *directory = &directory[bytes..];
    let name = &whole[CENTRAL_BYTES..CENTRAL_BYTES + lengths[0]];
    let shown = String::from_utf8_lossy(name);
    if name.len() > NAME_BYTES_MAX {
        return Err(format!("has an entry with a name of {} bytes", name.len()));
    }
    let (flags, method) = (u16_at(fixed, 8), u16_at(fixed, 10));
    let (packed, size) = (usize_at(fixed, 20), usize_at(fixed, 24));
    if method != 0 || packed != size || flags & ENCRYPTED != 0 {
        return Err(format!("has {shown:?} compressed or encrypted, as torch.save never does"));
    }
    Ok(Entry { name, size, crc: u32_at(fixed, 16), local_at: usize_at(fixed, 42) })
}

/// The bytes of an entry. `None` if the entry's own header is elsewhere or differs from the
/// directory.
fn local<'a>(file: &'a [u8], entry: &Entry<'_>) -> Option<&'a [u8]> {
    let whole = file.get(entry.local_at..)?;
    let fixed = whole.get(..LOCAL_BYTES)?;
    let (name_bytes, extra_bytes) =
        (usize::from(u16_at(fixed, 26)), usize::from(u16_at(fixed, 28)));
    let (name, rest) = whole[LOCAL_BYTES..].split_at_checked(name_bytes)?;
    let is_it = fixed.starts_with(b"PK\x03\x04") && u16_at(fixed, 8) == 0 && name == entry.name;
    rest.get(extra_bytes..)?.get(..entry.size).filter(|_| is_it)
}

/// The folder that all entries share, and the name below it.
fn split_name(name: &[u8]) -> Result<(&str, &str), String> {
    let fail = || format!("has an entry with the name {:?}", String::from_utf8_lossy(name));
    let text = str::from_utf8(name).map_err(|_| fail())?;
    let (folder, name) = text.split_once('/').ok_or_else(fail)?;
    let odd = |part: &str| matches!(part, "" | "." | "..");
    if odd(folder) || name.split('/').any(odd) || text.contains(['\\', '\0']) {
        return Err(fail());
    }
    Ok((folder, name))
}

/// The checksum of zip: polynomial 0xedb88320, bits reversed.
fn crc32(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    });
    !crc
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn usize_at(bytes: &[u8], at: usize) -> usize {
    u32_at(bytes, at) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_zip() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
