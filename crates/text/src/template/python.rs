//! Filters, tests and globals that differ between Jinja in Python and minijinja, in Python's
//! version. Methods of strings and dicts are in [`super::methods`].

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, State, Value};

use super::{json, meter, methods};

pub(super) fn adapt(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(methods::call);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("items", items);
    environment.add_filter("trim", trim);
    environment.add_filter("replace", replace);
    environment.add_filter("string", string);
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", is_iterable);
    environment.add_test("callable", is_callable);
    environment.set_formatter(|out, state, value| {
        meter::weigh(state, value)?;
        match float(value) {
            Some(text) => out.write_str(&text).map_err(Error::from),
            None => minijinja::escape_formatter(out, state, value),
        }
    });
}

/// A float as Python prints it. Floats within lists are printed by minijinja, which differs only in
/// exponents.
fn float(value: &Value) -> Option<String> {
    let is_float = value.is_number() && !value.is_integer() && value.kind() == ValueKind::Number;
    is_float.then(|| f64::try_from(value.clone()).ok().map(json::python_float)).flatten()
}

fn string(value: &Value) -> String {
    float(value).unwrap_or_else(|| value.to_string())
}

fn replace(
    state: &mut State,
    text: &Value,
    from: &Value,
    to: &Value,
    count: Option<usize>,
) -> Result<String, Error> {
    let (text, from, to) = (text.to_string(), from.to_string(), to.to_string());
    meter::charge_replace(state, &text, &from, &to)?;
    Ok(text.replacen(&from, &to, count.unwrap_or(usize::MAX)))
}

/// Undefined has no items; minijinja refuses it.
fn items(value: &Value) -> Result<Value, Error> {
    if value.is_undefined() {
        return Ok(Value::from(Vec::<Value>::new()));
    }
    minijinja::filters::items(value)
}

/// Like `str.strip`, whose white space includes a little more than Unicode's.
fn trim(value: &Value, characters: Option<&str>) -> String {
    let text = value.to_string();
    methods::strip(&text, characters, true, true).to_owned()
}

/// Everything that has a length and can be indexed, including strings and mappings.
fn is_sequence(value: &Value) -> bool {
    let kinds = [ValueKind::Seq, ValueKind::Map, ValueKind::String, ValueKind::Undefined];
    kinds.contains(&value.kind())
}

/// Undefined is an empty sequence; none is not iterable.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

fn is_callable(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Plain | ValueKind::Undefined)
}
