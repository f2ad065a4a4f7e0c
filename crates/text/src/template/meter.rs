//! Limits one rendering in more than its number of instructions: in the bytes that are copied or
//! searched, and in the depth of values. [`super::program`] inserts calls of these filters into
//! templates. Their names contain a colon, so a template's own filters cannot have these names.

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};

pub(super) const CONCAT: &str = "meter:concat";
pub(super) const SLICE: &str = "meter:slice";
pub(super) const ITEM: &str = "meter:item";
pub(super) const MADE: &str = "meter:made";
pub(super) const BUILT: &str = "meter:built";
pub(super) const SEEN: &str = "meter:seen";
pub(super) const KEPT: &str = "meter:kept";
pub(super) const FILTER: &str = "meter:filter";
pub(super) const TEST: &str = "meter:test";

/// A variable under a name that no template can write: the bytes of the template's input.
pub(super) const GIVEN: &str = " given";

/// The bytes that a rendering may spend in any case, and below, for each byte of its input.
/// Templates copy a text some ten times.
const BASE_BYTES: u64 = 64 << 20;
const TIMES_GIVEN: u64 = 32;
/// The bytes that are charged for a value in a list.
pub(super) const VALUE_BYTES: u64 = 32;
/// How much faster a text is searched than copied.
const SCAN_SPEED: u64 = 16;
/// Deepest nesting of lists. Printing, comparing and dropping values is recursive.
const DEPTH_MAX: usize = 200;
/// Largest width of `indent`, `batch` and `slice`, and of fields of a format.
const WIDTH_MAX: i64 = 10_000;

/// The bytes that are left.
struct Meter(u64);

pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_filter(CONCAT, concat);
    environment.add_filter(SLICE, slice);
    environment.add_filter(ITEM, item);
    environment.add_filter(MADE, made);
    environment.add_filter(BUILT, built);
    environment.add_filter(SEEN, seen);
    environment.add_filter(KEPT, kept);
    environment.add_filter(FILTER, filter);
    environment.add_filter(TEST, test);
    environment.add_filter("map", map);
    // They hide the depth of a value, or print everything in it; Python's Jinja has neither.
    environment.remove_filter("chain");
    environment.remove_filter("zip");
    environment.remove_global("debug");
    environment.add_function("dict", dict);
    environment.add_function("namespace", namespace);
}

fn seen(state: &mut State, value: Value) -> Result<Value, Error> {
    see(state, &value)?;
    Ok(value)
}

fn kept(value: Value) -> Result<Value, Error> {
    refuse_namespace(&value)?;
    Ok(value)
}

fn dict(state: &mut State, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let arguments = arguments.into_values();
    let (value, named): (Option<Value>, Kwargs) = from_args(&arguments)?;
    built(state, minijinja::functions::dict(value, named)?)
}

fn namespace(defaults: Option<ValueOrKwargs>) -> Result<Value, Error> {
    let made = minijinja::functions::namespace(defaults)?;
    for key in made.try_iter()?.checked() {
        refuse_namespace(&made.get_item(&key?)?)?;
    }
    Ok(made)
}

/// # Errors
/// Fewer bytes than these are left.
pub(super) fn charge(state: &mut State, bytes: u64) -> Result<(), Error> {
    let rest = left(state).checked_sub(bytes).ok_or_else(exhausted)?;
    state.get_or_insert_extension(Meter(0)).0 = rest;
    Ok(())
}

fn left(state: &mut State) -> u64 {
    if state.get_extension::<Meter>().is_none() {
        let given = state.lookup(GIVEN).and_then(|given| u64::try_from(given).ok());
        let all = BASE_BYTES.saturating_add(given.unwrap_or(0).saturating_mul(TIMES_GIVEN));
        state.get_or_insert_extension(Meter(all));
    }
    state.get_or_insert_extension(Meter(0)).0
}

fn exhausted() -> Error {
    Error::from(ErrorKind::OutOfFuel)
}

/// Charges for a value that will be iterated and copied, with everything in it.
pub(super) fn weigh(state: &mut State, value: &Value) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        return charge(state, text.len() as u64);
    }
    walk_all(state, value, true)
}

/// Charges for a value without its text, and checks its depth.
fn weigh_values(state: &mut State, value: &Value) -> Result<(), Error> {
    walk_all(state, value, false)
}

fn walk_all(state: &mut State, value: &Value, texts: bool) -> Result<(), Error> {
    let all = left(state);
    let mut left = all;
    walk(value, 0, texts, &mut left)?;
    charge(state, all - left)
}

fn walk(value: &Value, depth: usize, texts: bool, left: &mut u64) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        let reason = format!("lists and dicts are nested more than {DEPTH_MAX} deep");
        return Err(Error::new(ErrorKind::InvalidOperation, reason));
    }
    let text = if texts { value.as_str().map_or(0, str::len) } else { 0 };
    *left = left.checked_sub(VALUE_BYTES + text as u64).ok_or_else(exhausted)?;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()?.checked() {
                walk(&item?, depth + 1, texts, left)?;
            }
        }
        ValueKind::Map => {
            for key in value.try_iter()?.checked() {
                let key = key?;
                walk(&key, depth + 1, texts, left)?;
                walk(&value.get_item(&key)?, depth + 1, texts, left)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Charges for a value that will be compared or searched.
fn see(state: &mut State, value: &Value) -> Result<(), Error> {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => charge(state, text.len() as u64 / SCAN_SPEED),
        (None, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) => weigh(state, value),
        _ => Ok(()),
    }
}

/// Charges for the result of an operator. Its text was copied; a list is usually shared, but may be
/// copied now and then.
fn made(state: &mut State, value: Value) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        charge(state, text.len() as u64)?;
    } else if let Some(count) = value.len() {
        charge(state, count as u64 / 4 + VALUE_BYTES)?;
    }
    Ok(value)
}

/// Charges for a new list, tuple or dict.
fn built(state: &mut State, value: Value) -> Result<Value, Error> {
    if value.kind() == ValueKind::Map {
        for key in value.try_iter()?.checked() {
            refuse_namespace(&value.get_item(&key?)?)?;
        }
    } else {
        for item in value.try_iter()?.checked() {
            refuse_namespace(&item?)?;
        }
    }
    weigh_values(state, &value)?;
    Ok(value)
}

/// Refuses a namespace, since one that contains itself would never be dropped.
fn refuse_namespace(value: &Value) -> Result<(), Error> {
    match value.as_object() {
        Some(object) if object.type_name().ends_with("Namespace") => Err(Error::new(
            ErrorKind::InvalidOperation,
            "a namespace cannot be part of another value",
        )),
        _ => Ok(()),
    }
}

fn concat(state: &mut State, left: &Value, right: &Value) -> Result<String, Error> {
    weigh(state, left)?;
    weigh(state, right)?;
    Ok(format!("{left}{right}"))
}

fn item(state: &mut State, value: &Value, key: &Value) -> Result<Value, Error> {
    see_text(state, value)?;
    value.get_item(key)
}

fn see_text(state: &mut State, value: &Value) -> Result<(), Error> {
    charge(state, value.as_str().map_or(0, str::len) as u64 / SCAN_SPEED)
}

/// Turns a lazy value, which recomputes its items each time, into a list. Lazy values could
/// be wrapped around one another without end.
fn own(state: &mut State, value: Value) -> Result<Value, Error> {
    if value.kind() != ValueKind::Iterable {
        return Ok(value);
    }
    let mut items = Vec::new();
    for item in value.try_iter()?.checked() {
        charge(state, VALUE_BYTES)?;
        items.push(item?);
    }
    Ok(items.into())
}

/// Slices text, lists and tuples as Python does.
fn slice(
    state: &mut State,
    value: &Value,
    start: &Value,
    stop: &Value,
    step: &Value,
) -> Result<Value, Error> {
    let bound = |bound: &Value| {
        if bound.is_none() { Ok(None) } else { i64::try_from(bound.clone()).map(Some) }
    };
    let (start, stop, step) = (bound(start)?, bound(stop)?, bound(step)?.unwrap_or(1));
    if step == 0 {
        return Err(Error::new(ErrorKind::InvalidOperation, "cannot slice by step size of 0"));
    }
    if let Some(text) = value.as_str() {
        charge(state, text.len() as u64)?;
        if step == 1 {
            let places = places(start, stop, 1, text.chars().count());
            let part = text.chars().skip(places.first).take(places.count);
            return Ok(part.collect::<String>().into());
        }
        let characters: Vec<char> = text.chars().collect();
        charge(state, characters.len() as u64 * size_of::<char>() as u64)?;
        let places = places(start, stop, step, characters.len());
        return Ok(places.map(|at| characters[at]).collect::<String>().into());
    }
    if value.is_undefined() || value.is_none() {
        return Ok(Vec::<Value>::new().into());
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        let reason = format!("value of type {} cannot be sliced", value.kind());
        return Err(Error::new(ErrorKind::InvalidOperation, reason));
    }
    charge(state, value.len().unwrap_or(0) as u64 * VALUE_BYTES)?;
    let items = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
    let places = places(start, stop, step, items.len());
    let part: Vec<Value> = places.map(|at| items[at].clone()).collect();
    Ok(if value.is_tuple() { Tuple::from(part).into() } else { part.into() })
}

/// The positions that a slice takes.
struct Places {
    first: usize,
    count: usize,
    step: i64,
}

fn places(start: Option<i64>, stop: Option<i64>, step: i64, length: usize) -> Places {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let place = |bound: i64| {
        let from_start = if bound < 0 { bound.saturating_add(length) } else { bound };
        from_start.clamp(low, high)
    };
    let (default_start, default_stop) = if step > 0 { (low, high) } else { (high, low) };
    let first = start.map_or(default_start, place);
    let distance = stop.map_or(default_stop, place) - first;
    let distance = if step > 0 { distance } else { -distance };
    let count = if distance > 0 { (distance - 1) as u64 / step.unsigned_abs() + 1 } else { 0 };
    Places { first: first.max(0) as usize, count: count as usize, step }
}

impl Iterator for Places {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.count = self.count.checked_sub(1)?;
        let place = self.first;
        self.first = (place as i64).saturating_add(self.step).max(0) as usize;
        Some(place)
    }
}

/// Filters that look at a value without iterating it.
const LOOKING: [&str; 13] = [
    "abs", "attr", "bool", "count", "d", "default", "first", "float", "int", "last", "length",
    "round", "safe",
];

fn filter(state: &mut State, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let arguments = arguments.into_values();
    let Some((name, arguments)) = arguments.split_last() else {
        return Err(Error::from(ErrorKind::MissingArgument));
    };
    let name = name.as_str().unwrap_or_default();
    apply(state, name, arguments)
}

/// Applies a filter by its name.
fn apply(state: &mut State, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    if LOOKING.contains(&name) {
        see_text(state, &arguments[0])?;
        return call(state, name, arguments);
    }
    let before = left(state);
    for argument in arguments {
        weigh(state, argument)?;
    }
    let weight = before - left(state);
    let text = arguments[0].as_str();
    match name {
        // Each item may be compared with all arguments of the test.
        "select" | "reject" | "selectattr" | "rejectattr" if arguments.len() > 1 => {
            let mut each = 0;
            for argument in &arguments[1..] {
                each += argument.as_str().map_or(weight, |text| text.len() as u64);
            }
            let count = arguments[0].len().unwrap_or(0) as u64;
            charge(state, count.saturating_mul(each / SCAN_SPEED))?;
        }
        "indent" => {
            let lines = text.map_or(0, |text| text.matches('\n').count() as u64 + 1);
            let width = width(name, &arguments[1..])?;
            charge(state, lines * width)?;
        }
        "batch" | "slice" => {
            let width = width(name, &arguments[1..])?;
            charge(state, width * VALUE_BYTES)?;
        }
        "format" => charge_format(state, &arguments[0])?,
        // For a text, the resulting values are its characters.
        "list" | "split" | "lines" | "sort" | "unique" | "min" | "max" | "reverse" | "groupby"
        | "map" | "select" | "reject" => {
            charge(state, text.map_or(0, str::len) as u64 * VALUE_BYTES)?;
        }
        "join" => charge_join(state, &arguments[0], arguments.get(1))?,
        "pprint" => {
            // Each value may be on its own line, indented by four spaces per level.
            let count = arguments[0].len().unwrap_or(0) as u64;
            charge(state, count * DEPTH_MAX as u64 * 4)?;
        }
        _ => {}
    }
    let value = call(state, name, arguments)?;
    let value = own(state, value)?;
    if value.as_str().is_some() || value.kind() == ValueKind::Seq {
        // The result of these filters can be nested again.
        let nests = ["batch", "slice", "groupby", "items", "dictsort", "map"].contains(&name);
        if nests { weigh_values(state, &value)? } else { return made(state, value) }
    }
    Ok(value)
}

fn call(state: &mut State, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let result = state.apply_filter(name, arguments);
    result.map_err(|error| match error.kind() {
        ErrorKind::UnknownFilter if error.detail().is_none() => {
            Error::new(ErrorKind::UnknownFilter, format!("filter {name} is unknown"))
        }
        _ => error,
    })
}

/// Checks that no number among the arguments, positional or named, exceeds the largest width.
fn width(name: &str, arguments: &[Value]) -> Result<u64, Error> {
    let mut widest = 4;
    for argument in arguments {
        let named = if argument.is_kwargs() { Some(argument.try_iter()?) } else { None };
        let named = named.into_iter().flatten().filter_map(|key| argument.get_item(&key).ok());
        for value in named.chain([argument.clone()]) {
            if value.kind() != ValueKind::Number {
                continue;
            }
            match i64::try_from(value) {
                Ok(width) if width <= WIDTH_MAX => widest = widest.max(width.max(0) as u64),
                _ => {
                    let reason = format!("{name}: at most {WIDTH_MAX} are possible");
                    return Err(Error::new(ErrorKind::InvalidOperation, reason));
                }
            }
        }
    }
    Ok(widest)
}

/// Charges for a format, each of whose fields may be as wide as the widest.
pub(super) fn charge_format(state: &mut State, format: &Value) -> Result<(), Error> {
    let format = format.as_str().unwrap_or_default();
    let refuse = |reason: &str| Err(Error::new(ErrorKind::InvalidOperation, reason.to_owned()));
    let printf = format.split('%').skip(1).map(|field| field.split(char::is_alphabetic).next());
    let braces = format.split('{').skip(1).map(|field| field.split('}').next());
    // The value of a width that is itself an argument is unknown here.
    let nested = format.split('{').skip(1).any(|field| field.ends_with(':'));
    if nested || printf.clone().flatten().any(|flags| flags.contains('*')) {
        return refuse("format: a width must be a number");
    }
    let (mut fields, mut widest) = (0, 1);
    for field in printf.chain(braces).flatten() {
        fields += 1;
        let digits = field.split(|character: char| !character.is_ascii_digit());
        for digits in digits.filter(|digits| !digits.is_empty()) {
            match digits.parse::<i64>() {
                Ok(width) if width <= WIDTH_MAX => widest = widest.max(width as u64),
                _ => return refuse(&format!("format: a width is at most {WIDTH_MAX}")),
            }
        }
    }
    charge(state, widest.saturating_mul(fields))
}

/// Charges for the separator between all items. The caller has charged for the items.
pub(super) fn charge_join(
    state: &mut State,
    items: &Value,
    separator: Option<&Value>,
) -> Result<(), Error> {
    let separator = match separator {
        Some(named) if named.is_kwargs() => named.get_item(&Value::from("d")).ok(),
        other => other.cloned(),
    };
    let bytes = separator.and_then(|text| text.as_str().map(str::len)).unwrap_or(0) as u64;
    let count = items.as_str().map_or_else(|| items.len().unwrap_or(0), str::len) as u64;
    charge(state, count.saturating_mul(bytes + 1))
}

/// Charges for the result of replacing, before it is made.
pub(super) fn charge_replace(
    state: &mut State,
    text: &str,
    from: &str,
    to: &str,
) -> Result<(), Error> {
    charge(state, text.len() as u64)?;
    if to.len() > from.len() {
        let count = text.matches(from).count() as u64;
        charge(state, count.saturating_mul((to.len() - from.len()) as u64))?;
    }
    Ok(())
}

/// Tests that look only at the kind of a value.
pub(super) fn is_cheap_test(name: &str) -> bool {
    [
        "boolean",
        "callable",
        "defined",
        "even",
        "false",
        "float",
        "integer",
        "iterable",
        "mapping",
        "none",
        "number",
        "odd",
        "sequence",
        "string",
        "true",
        "undefined",
    ]
    .contains(&name)
}

fn test(state: &mut State, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let arguments = arguments.into_values();
    let Some((name, arguments)) = arguments.split_last() else {
        return Err(Error::from(ErrorKind::MissingArgument));
    };
    let name = name.as_str().unwrap_or_default();
    for argument in arguments {
        see(state, argument)?;
    }
    let result = state.perform_test(name, arguments);
    let result = result.map_err(|error| match error.kind() {
        ErrorKind::UnknownTest if error.detail().is_none() => {
            Error::new(ErrorKind::UnknownTest, format!("test {name} is unknown"))
        }
        _ => error,
    });
    result.map(Value::from)
}

/// Applies a filter to every item, or takes an attribute of it.
fn map(state: &mut State, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let arguments = arguments.into_values();
    let named = arguments.get(1).and_then(|name| name.as_str());
    let Some(name) = named else {
        let (value, others): (Value, Rest<ValueOrKwargs>) = from_args(&arguments)?;
        return Ok(minijinja::filters::map(state, value, others)?.into());
    };
    let mut items = Vec::new();
    for item in arguments[0].try_iter()?.checked() {
        charge(state, VALUE_BYTES)?;
        let mut given = vec![item?];
        given.extend_from_slice(&arguments[2..]);
        items.push(apply(state, name, &given)?);
    }
    Ok(items.into())
}
