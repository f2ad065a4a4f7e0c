//! The part of pickle protocol 2 that a dict of an int and a tensor needs. Of the four names that
//! a pickle may mention none is looked up: they are words of this little language.

use std::collections::BTreeMap;

use kilotok_model::Dtype;

/// First byte of every pickle since protocol 2.
pub(super) const PROTOCOL: u8 = 0x80;
const VERSION: u8 = 2;
const PICKLE_BYTES_MAX: usize = 1 << 14;
const TEXT_BYTES_MAX: usize = 256;
const STACK_MAX: usize = 256;
const MEMO_MAX: usize = 256;
const STEPS_MAX: usize = 1024;

/// What a pickle may describe.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Text(String),
    Name(Name),
    Tuple(Vec<Value>),
    Dict(Vec<(String, Value)>),
    Storage(Storage),
    Tensor(View),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    RebuildTensor,
    Storage(Dtype),
    OrderedDict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Storage {
    dtype: Dtype,
    /// Of the archive's entry.
    name: String,
    len: usize,
}

/// A view into a storage; sizes in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) dtype: Dtype,
    pub(super) storage: String,
    pub(super) storage_len: usize,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// Reads a whole pickle.
pub(super) fn read(bytes: &[u8]) -> Result<Value, String> {
    if bytes.len() > PICKLE_BYTES_MAX {
        return Err(format!("has a pickle of {} bytes, too much for a mask", bytes.len()));
    }
    let rest = bytes
        .strip_prefix(&[PROTOCOL, VERSION])
        .ok_or("has a pickle of another protocol than 2, torch's default")?;
    let mut machine = Machine { rest, stack: Vec::new(), marks: Vec::new(), memo: BTreeMap::new() };
    for _ in 0..STEPS_MAX {
        if let Some(value) = machine.step()? {
            return Ok(value);
        }
    }
    Err("has a pickle that goes on and on".to_owned())
}

/// A pickle is a program for this stack machine.
struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Value>,
    /// Stack heights at which tuples and dict entries begin.
    marks: Vec<usize>,
    /// `None` for what was put aside and is never asked for again.
    memo: BTreeMap<u32, Option<Value>>,
}

impl Machine<'_> {
    /// One instruction. The value, once the pickle stops.
    fn step(&mut self) -> Result<Option<Value>, String> {
        let [code] = self.take()?;
        match code {
            b'.' => return self.stop().map(Some),
            b'(' => self.mark()?,
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' => {
                let [n] = self.take()?;
                self.push(Value::Int(n.into()))?;
            }
            b'M' => {
                let n = u16::from_le_bytes(self.take()?);
                self.push(Value::Int(n.into()))?;
            }
            b'J' => {
                let n = i32::from_le_bytes(self.take()?);
                self.push(Value::Int(n.into()))?;
            }
            b'X' => {
                let length = u32::from_le_bytes(self.take()?) as usize;
                let text = self.text(length)?;
                self.push(Value::Text(text))?;
            }
            b'c' => {
                let name = self.name()?;
                self.push(Value::Name(name))?;
            }
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b's' => {
                let height = self.below(2)?;
                self.set_items(height)?;
            }
            b'u' => {
                let mark = self.unmark()?;
                self.set_items(mark)?;
            }
            b')' => self.push(Value::Tuple(Vec::new()))?,
            b't' => {
                let mark = self.unmark()?;
                self.tuple(mark)?;
            }
            0x85..=0x87 => {
                let height = self.below(usize::from(code - 0x84))?;
                self.tuple(height)?;
            }
            b'q' | b'r' => {
                let slot = self.slot(code == b'r')?;
                self.put(slot)?;
            }
            b'h' | b'j' => {
                let slot = self.slot(code == b'j')?;
                self.get(slot)?;
            }
            b'Q' => {
                let storage = storage(self.pop()?)?;
                self.push(Value::Storage(storage))?;
            }
            b'R' => {
                let arguments = self.pop()?;
                let value = call(&self.pop()?, arguments)?;
                self.push(value)?;
            }
            _ => {
                return Err(format!("has a pickle with the instruction {code:#04x}, not a mask's"));
            }
        }
        Ok(None)
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

    fn text(&mut self, length: usize) -> Result<String, String> {
        if length > TEXT_BYTES_MAX {
            return Err(format!("has a pickle with a text of {length} bytes"));
        }
        let (text, rest) = self.rest.split_at_checked(length).ok_or(CUT)?;
        self.rest = rest;
        let text =
            str::from_utf8(text).map_err(|_| "has a pickle with a text that is not UTF-8")?;
        Ok(text.to_owned())
    }

    /// A module and a name, each ended by a newline.
    fn name(&mut self) -> Result<Name, String> {
        let mut line = || {
            let length = self.rest.iter().position(|byte| *byte == b'\n').ok_or(CUT)?;
            let line = self.text(length)?;
            self.rest = &self.rest[1..];
            Ok::<_, String>(line)
        };
        let (module, name) = (line()?, line()?);
        match (module.as_str(), name.as_str()) {
            ("torch._utils", "_rebuild_tensor_v2") => Ok(Name::RebuildTensor),
            ("torch", "BFloat16Storage") => Ok(Name::Storage(Dtype::Bf16)),
            ("torch", "FloatStorage") => Ok(Name::Storage(Dtype::F32)),
            ("collections", "OrderedDict") => Ok(Name::OrderedDict),
            _ => Err(format!("has a pickle that names {module:?} {name:?}, which no mask needs")),
        }
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        if self.stack.len() == STACK_MAX {
            return Err("has a pickle that piles up too much".to_owned());
        }
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, String> {
        // An operation above a mark cannot reach what lies below it.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(CONFUSED.to_owned());
        }
        self.stack.pop().ok_or_else(|| CONFUSED.to_owned())
    }

    fn mark(&mut self) -> Result<(), String> {
        if self.marks.len() == STACK_MAX {
            return Err("has a pickle that piles up too much".to_owned());
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    fn unmark(&mut self) -> Result<usize, String> {
        self.marks.pop().ok_or_else(|| CONFUSED.to_owned())
    }

    /// The height below the last so many values.
    fn below(&self, count: usize) -> Result<usize, String> {
        self.stack.len().checked_sub(count).ok_or_else(|| CONFUSED.to_owned())
    }

    /// Takes the values from this height up.
    fn lift(&mut self, height: usize) -> Result<Vec<Value>, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if height < floor || height > self.stack.len() {
            return Err(CONFUSED.to_owned());
        }
        Ok(self.stack.split_off(height))
    }

    fn tuple(&mut self, height: usize) -> Result<(), String> {
        let values = self.lift(height)?;
        self.push(Value::Tuple(values))
    }

    /// Keys and values from this height up enter the dict below them.
    fn set_items(&mut self, height: usize) -> Result<(), String> {
        let mut values = self.lift(height)?.into_iter();
        let Some(Value::Dict(entries)) = self.stack.last_mut() else {
            return Err(CONFUSED.to_owned());
        };
        while let Some(key) = values.next() {
            let (Value::Text(key), Some(value)) = (key, values.next()) else {
                return Err("has a dict whose keys are not texts".to_owned());
            };
            if entries.iter().any(|(other, _)| *other == key) {
                return Err(format!("has {key:?} twice"));
            }
            entries.push((key, value));
        }
        Ok(())
    }

    fn put(&mut self, slot: u32) -> Result<(), String> {
        let value = match self.stack.last() {
            None => return Err(CONFUSED.to_owned()),
            Some(value @ (Value::Text(_) | Value::Name(_))) => Some(value.clone()),
            Some(_) => None,
        };
        if self.memo.len() == MEMO_MAX {
            return Err("has a pickle that remembers too much".to_owned());
        }
        self.memo.insert(slot, value);
        Ok(())
    }

    fn get(&mut self, slot: u32) -> Result<(), String> {
        let value = self.memo.get(&slot).cloned().flatten();
        self.push(value.ok_or("has a pickle that repeats more than texts and names")?)
    }

    fn stop(&mut self) -> Result<Value, String> {
        let value = self.pop()?;
        if !self.stack.is_empty() || !self.marks.is_empty() || !self.rest.is_empty() {
            return Err(CONFUSED.to_owned());
        }
        Ok(value)
    }
}

const CUT: &str = "has a pickle that is cut short";
const CONFUSED: &str = "has a pickle that makes no sense";

/// `("storage", type, entry, device, length)`
fn storage(id: Value) -> Result<Storage, String> {
    let Value::Tuple(parts) = id else {
        return Err(CONFUSED.to_owned());
    };
    match &parts[..] {
        [
            Value::Text(kind),
            Value::Name(Name::Storage(dtype)),
            Value::Text(name),
            Value::Text(_),
            len,
        ] if kind == "storage" => {
            Ok(Storage { dtype: *dtype, name: name.clone(), len: size(len)? })
        }
        _ => Err("has a pickle with an unknown storage".to_owned()),
    }
}

/// What a name makes of its arguments.
fn call(name: &Value, arguments: Value) -> Result<Value, String> {
    let (Value::Name(name), Value::Tuple(arguments)) = (name, arguments) else {
        return Err(CONFUSED.to_owned());
    };
    match (name, &arguments[..]) {
        // A tensor's hooks: none.
        (Name::OrderedDict, []) => Ok(Value::Dict(Vec::new())),
        // The bool says whether it requires a gradient.
        (
            Name::RebuildTensor,
            [Value::Storage(storage), offset, shape, strides, Value::Bool(_), Value::Dict(hooks)],
        ) if hooks.is_empty() => Ok(Value::Tensor(View {
            dtype: storage.dtype,
            storage: storage.name.clone(),
            storage_len: storage.len,
            offset: size(offset)?,
            shape: sizes(shape)?,
            strides: sizes(strides)?,
        })),
        _ => Err("has a pickle that builds something other than a tensor".to_owned()),
    }
}

fn sizes(value: &Value) -> Result<Vec<usize>, String> {
    let Value::Tuple(values) = value else {
        return Err(CONFUSED.to_owned());
    };
    values.iter().map(size).collect()
}

fn size(value: &Value) -> Result<usize, String> {
    let size = if let Value::Int(n) = value { usize::try_from(*n).ok() } else { None };
    size.ok_or_else(|| "has a pickle with a size that is none".to_owned())
}
