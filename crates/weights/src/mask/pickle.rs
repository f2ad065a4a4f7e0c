//! The pickle of a mask embedding, as written by `torch.save` (protocol 2): a dict of an int, a
//! tensor, and perhaps a flag. It is matched instruction by instruction against this form. Nothing
//! is executed, and no name is looked up.

use std::collections::BTreeMap;

use kilotok_model::Dtype;

/// First byte of every pickle since protocol 2.
pub(super) const PROTOCOL: u8 = 0x80;
const VERSION: u8 = 2;
/// Largest pickle; those of masks have 300 bytes.
const PICKLE_BYTES_MAX: usize = 1 << 14;

/// The contents of the dict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) token: u32,
    pub(super) embedding: View,
}

/// A view into a storage; sizes in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) dtype: Dtype,
    /// The archive's entry with the values.
    pub(super) storage: String,
    pub(super) storage_len: usize,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// Reads a whole pickle.
pub(super) fn read(bytes: &[u8]) -> Result<Described, String> {
    if bytes.len() > PICKLE_BYTES_MAX {
        return Err(format!("has a pickle of {} bytes, too much for a mask", bytes.len()));
    }
    let rest = bytes
        .strip_prefix(&[PROTOCOL, VERSION])
        .ok_or("has a pickle of another protocol than 2, torch's default")?;
    let mut pickle = Pickle { rest, last: None, memo: BTreeMap::new() };
    let described = pickle.dict()?;
    pickle.expect(Code::Stop)?;
    if !pickle.rest.is_empty() {
        return Err("has a pickle that goes on behind its end".to_owned());
    }
    Ok(described)
}

/// An instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code<'a> {
    None,
    Bool(bool),
    Int(i64),
    Text(&'a str),
    /// A module and a name in it.
    Name(&'a str, &'a str),
    /// Marks where the items of a tuple or a dict begin.
    Mark,
    /// A tuple of all items since the mark.
    Tuple,
    /// A tuple of this many last values.
    TupleOf(u8),
    EmptyDict,
    /// Puts the last key and value into a dict.
    SetItem,
    /// Puts all items since the mark into a dict.
    SetItems,
    /// The storage with the last tuple as its id.
    Storage,
    /// Calls a name with a tuple of arguments.
    Call,
    Stop,
}

const REBUILD_TENSOR: Code<'_> = Code::Name("torch._utils", "_rebuild_tensor_v2");
const BF16_STORAGE: Code<'_> = Code::Name("torch", "BFloat16Storage");
const F32_STORAGE: Code<'_> = Code::Name("torch", "FloatStorage");
const ORDERED_DICT: Code<'_> = Code::Name("collections", "OrderedDict");
const CUT: &str = "has a pickle that is cut short";

struct Pickle<'a> {
    rest: &'a [u8],
    /// The last instruction. The next one may store its value in the memo.
    last: Option<Code<'a>>,
    memo: BTreeMap<u32, Option<Code<'a>>>,
}

impl<'a> Pickle<'a> {
    /// `{"mask_token_id": .., "embedding": ..}`, in any order.
    fn dict(&mut self) -> Result<Described, String> {
        if self.next()? != Code::EmptyDict {
            return Err("holds no dict".to_owned());
        }
        let (mut token, mut embedding, mut per_position) = (None, None, None);
        let set = |is_twice: bool, key: &str| {
            if is_twice { Err(format!("has {key} twice")) } else { Ok(()) }
        };
        if self.is_next(Code::Mark)? {
            while !self.is_next(Code::SetItems)? {
                match self.next()? {
                    Code::Text(key @ "mask_token_id") => {
                        let Code::Int(id) = self.next()? else {
                            return Err(format!("{key} has the wrong type"));
                        };
                        let id = u32::try_from(id);
                        let id =
                            id.map_err(|_| format!("has no {key}, or none that is a token"))?;
                        set(token.replace(id).is_some(), key)?;
                    }
                    Code::Text(key @ "embedding") => {
                        set(embedding.replace(self.tensor()?).is_some(), key)?;
                    }
                    Code::Text(key @ "per_position") => {
                        if !matches!(self.next()?, Code::None | Code::Bool(false)) {
                            let what = "an embedding per row, which no engine runs";
                            return Err(format!("has {key}, {what}"));
                        }
                        set(per_position.replace(()).is_some(), key)?;
                    }
                    Code::Text(key) => return Err(format!("has the unknown entry {key:?}")),
                    _ => return Err("has a dict whose keys are not texts".to_owned()),
                }
            }
        }
        let token = token.ok_or("has no mask_token_id, or none that is a token")?;
        let embedding = embedding.ok_or("has no embedding")?;
        Ok(Described { token, embedding })
    }

    /// A call of [`REBUILD_TENSOR`]: storage, offset, shape, strides, whether it requires a
    /// gradient, and hooks, which must be empty.
    fn tensor(&mut self) -> Result<View, String> {
        self.expect(REBUILD_TENSOR)?;
        self.expect(Code::Mark)?;
        let (dtype, storage, storage_len) = self.storage()?;
        let (offset, shape, strides) = (self.size()?, self.sizes()?, self.sizes()?);
        let Code::Bool(_) = self.next()? else {
            return Err(self.unlike_a_mask());
        };
        for code in [ORDERED_DICT, Code::TupleOf(0), Code::Call, Code::Tuple, Code::Call] {
            self.expect(code)?;
        }
        Ok(View { dtype, storage, storage_len, offset, shape, strides })
    }

    /// `("storage", type, entry, device, length)`: returns the type of the values, the entry and
    /// the length.
    fn storage(&mut self) -> Result<(Dtype, String, usize), String> {
        self.expect(Code::Mark)?;
        self.expect(Code::Text("storage"))?;
        let dtype = match self.next()? {
            BF16_STORAGE => Dtype::Bf16,
            F32_STORAGE => Dtype::F32,
            _ => return Err(self.unlike_a_mask()),
        };
        let (Code::Text(entry), Code::Text(_)) = (self.next()?, self.next()?) else {
            return Err(self.unlike_a_mask());
        };
        let length = self.size()?;
        self.expect(Code::Tuple)?;
        self.expect(Code::Storage)?;
        Ok((dtype, entry.to_owned(), length))
    }

    /// A tuple of sizes.
    fn sizes(&mut self) -> Result<Vec<usize>, String> {
        let marked = self.is_next(Code::Mark)?;
        let mut sizes = Vec::new();
        loop {
            match self.next()? {
                Code::Int(size) => sizes.push(size_of(size)?),
                Code::Tuple if marked => return Ok(sizes),
                Code::TupleOf(count) if !marked && sizes.len() == usize::from(count) => {
                    return Ok(sizes);
                }
                _ => return Err(self.unlike_a_mask()),
            }
        }
    }

    fn size(&mut self) -> Result<usize, String> {
        match self.next()? {
            Code::Int(size) => size_of(size),
            _ => Err(self.unlike_a_mask()),
        }
    }

    fn expect(&mut self, code: Code<'_>) -> Result<(), String> {
        if self.next()? == code { Ok(()) } else { Err(self.unlike_a_mask()) }
    }

    /// Takes the next instruction if it is this one.
    fn is_next(&mut self, code: Code<'_>) -> Result<bool, String> {
        let (rest, last) = (self.rest, self.last);
        if self.next()? == code {
            return Ok(true);
        }
        (self.rest, self.last) = (rest, last);
        Ok(false)
    }

    fn unlike_a_mask(&self) -> String {
        let last = self.last.map(|code| format!("{code:?}")).unwrap_or_default();
        format!("has a pickle that builds something other than a mask: {last} is unexpected")
    }

    /// The next instruction, skipping those that store the last value in the memo.
    fn next(&mut self) -> Result<Code<'a>, String> {
        let code = loop {
            let [code] = self.take()?;
            match code {
                b'q' | b'r' => {
                    let slot = self.slot(code == b'r')?;
                    self.memo.insert(slot, self.last);
                }
                _ => break self.decode(code)?,
            }
        };
        self.last = Some(code);
        Ok(code)
    }

    fn decode(&mut self, code: u8) -> Result<Code<'a>, String> {
        Ok(match code {
            b'.' => Code::Stop,
            b'(' => Code::Mark,
            b'N' => Code::None,
            0x88 | 0x89 => Code::Bool(code == 0x88),
            b'K' => {
                let [n] = self.take()?;
                Code::Int(n.into())
            }
            b'M' => Code::Int(u16::from_le_bytes(self.take()?).into()),
            b'J' => Code::Int(i32::from_le_bytes(self.take()?).into()),
            b'X' => {
                let length = u32::from_le_bytes(self.take()?) as usize;
                Code::Text(self.text(length)?)
            }
            b'c' => self.name()?,
            b'}' => Code::EmptyDict,
            b's' => Code::SetItem,
            b'u' => Code::SetItems,
            b')' => Code::TupleOf(0),
            b't' => Code::Tuple,
            0x85..=0x87 => Code::TupleOf(code - 0x84),
            b'h' | b'j' => {
                let slot = self.slot(code == b'j')?;
                let remembered = self.memo.get(&slot).copied().flatten();
                let simple = |code: &Code<'_>| matches!(code, Code::Text(_) | Code::Name(..));
                let remembered = remembered.filter(simple);
                remembered.ok_or("has a pickle that repeats more than texts and names")?
            }
            b'Q' => Code::Storage,
            b'R' => Code::Call,
            _ => {
                return Err(format!("has a pickle with the instruction {code:#04x}, not a mask's"));
            }
        })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(CUT)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn slot(&mut self, wide: bool) -> Result<u32, String> {
        if wide {
            return Ok(u32::from_le_bytes(self.take()?));
        }
        let [slot] = self.take()?;
        Ok(slot.into())
    }

    fn text(&mut self, length: usize) -> Result<&'a str, String> {
        let (text, rest) = self.rest.split_at_checked(length).ok_or(CUT)?;
        self.rest = rest;
        str::from_utf8(text).map_err(|_| "has a pickle with a text that is not UTF-8".to_owned())
    }

    /// A module and a name, each ended by a newline.
    fn name(&mut self) -> Result<Code<'a>, String> {
        let mut line = || {
            let length = self.rest.iter().position(|byte| *byte == b'\n').ok_or(CUT)?;
            let line = self.text(length)?;
            self.rest = &self.rest[1..];
            Ok::<_, String>(line)
        };
        let (module, name) = (line()?, line()?);
        let code = Code::Name(module, name);
        if [REBUILD_TENSOR, BF16_STORAGE, F32_STORAGE, ORDERED_DICT].contains(&code) {
            return Ok(code);
        }
        Err(format!("has a pickle that names {module:?} {name:?}, which no mask needs"))
    }
}

fn size_of(size: i64) -> Result<usize, String> {
    usize::try_from(size).map_err(|_| "has a pickle with a size that is none".to_owned())
}
