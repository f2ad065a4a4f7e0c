//! Prepares JSON schemas for llguidance: checks sizes, refuses keywords that it cannot enforce or
//! leaves them out with a warning, and rewrites those that it enforces too loosely. Works on the
//! schema's JSON only and knows no vocabulary.

use serde_json::{Map, Value, json};

use super::GrammarError;
use super::disjoint::Disjoint;
use super::multiples::{
    DIGITS_MAX, PLACES_MAX, go_together, has_joins, is_countable, remainder_count,
};
use super::patterns::{self, FormatPattern};
use super::reword::{
    add_pattern, append, bound_multiples, invalid, is_exact, is_idle, is_string, length, literal,
    names_itself, narrow_multiples, reworded,
};
use super::weight::{self, HOPS_MAX};

/// Larger bounds have no digits that llguidance could compare.
const BOUND_MAX: f64 = 9.2e18;
/// Where the whole schema is put when its parts become roots of their own.
const HOME: &str = "#/$defs/whole";
/// White space between two tokens of JSON: one space, or a line end and the indentation of a few
/// levels, as in llama.cpp. Some models would fill their replies with white space.
const SPACE: &str = r" |\n( {0,16}|\t{0,8})";
/// All short escapes. `\u` is not among them: a name could then be written in two ways, and so a
/// declared name could pass for an undeclared one.
const ESCAPES: &str = "nrbtf\\\"";

/// Keywords whose value is a map of schemas; below, a list of schemas, and one schema.
const MAPS: &[&str] = &["properties", "$defs", "definitions"];
const LISTS: &[&str] = &["prefixItems", "allOf", "anyOf", "oneOf"];
const SINGLES: &[&str] = &["items", "additionalItems", "additionalProperties"];
const BOUNDS: &[&str] = &["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];
const LENGTHS: &[&str] =
    &["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"];
/// Keywords whose demands no grammar can enforce.
const UNSUPPORTED: &[&str] = &[
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
];
/// Keywords that demand nothing of documents.
const NOTES: &[&str] = &[
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$comment",
    "$dynamicAnchor",
    "$recursiveAnchor",
    "$vocabulary",
    "contentMediaType",
    "contentEncoding",
    "contentSchema",
    "x-guidance",
];

/// Keywords that concern the location of schemas.
const PLACES: &[&str] = &["$defs", "definitions", "$schema", "$id", "id", "$anchor"];

/// The dialects that `$schema` may name; llguidance refuses schemas with any other.
const DIALECTS: &[&str] = &[
    "http://json-schema.org/draft-04/schema#",
    "http://json-schema.org/draft-06/schema#",
    "http://json-schema.org/draft-07/schema#",
    "https://json-schema.org/draft/2019-09/schema",
    "https://json-schema.org/draft/2020-12/schema",
];

const TYPES: &[&str] = &["null", "boolean", "integer", "number", "string", "array", "object"];
/// Beginnings of non-standard type names, and the types that they mean.
const ALIASES: &[(&str, &str)] = &[
    ("str", "string"),
    ("text", "string"),
    ("int", "integer"),
    ("long", "integer"),
    ("num", "number"),
    ("float", "number"),
    ("double", "number"),
    ("bool", "boolean"),
    ("dict", "object"),
    ("obj", "object"),
    ("list", "array"),
    ("arr", "array"),
    ("none", "null"),
];

/// A schema in the form for llguidance, and warnings about what was left out.
pub(super) struct Prepared {
    pub(super) schema: Value,
    pub(super) warnings: Vec<String>,
    /// Number of remainders of the largest `multipleOf`.
    pub(super) remainders: u64,
}

/// `space` is a pattern for white space between tokens, if not the usual one.
pub(super) fn prepare(
    schema: &Value,
    strict: bool,
    space: Option<&str>,
) -> Result<Prepared, GrammarError> {
    weight::check([schema])?;
    let prepared = Preparer::new(schema, strict, "", None).whole()?;
    let space = space.map(patterns::white_space).transpose()?;
    let mut schema = with_options(prepared.schema, strict);
    match (schema.get_mut("x-guidance"), space) {
        (Some(Value::Object(options)), Some(Some(space))) => {
            options.insert("whitespace_pattern".to_owned(), space.into());
        }
        (Some(Value::Object(options)), Some(None)) => {
            options.remove("whitespace_pattern");
            options.insert("whitespace_flexible".to_owned(), false.into());
        }
        _ => {}
    }
    Ok(Prepared { schema, ..prepared })
}

/// Prepares a schema whose parts become roots of their own, see [`at_home`]. The caller has checked
/// its size; null stands for any object. `besides` is a further pattern that all strings must
/// match.
pub(super) fn prepare_home(
    schema: &Value,
    strict: bool,
    besides: Option<&str>,
) -> Result<Prepared, GrammarError> {
    let any = json!({ "type": "object" });
    let schema = if schema.is_null() || *schema == true { &any } else { schema };
    Preparer::new(schema, strict, HOME, besides).whole()
}

/// The part of a prepared schema at `pointer`, together with the whole schema if the part has
/// references.
pub(super) fn at_home(whole: &Value, pointer: &str, strict: bool) -> Value {
    let part = whole.pointer(pointer).unwrap_or(whole);
    if !refers(part) {
        return with_options(part.clone(), strict);
    }
    let defs = json!({ "whole": whole });
    with_options(json!({ "$ref": format!("{HOME}{pointer}"), "$defs": defs }), strict)
}

/// The schema at the end of the references, and its JSON pointer within `whole`.
pub(super) fn resolve<'a>(
    whole: &'a Value,
    mut schema: &'a Value,
    pointer: &str,
) -> (&'a Value, String) {
    let mut pointer = pointer.to_owned();
    for _ in 0..HOPS_MAX {
        let reference = schema.get("$ref").and_then(Value::as_str);
        let rest = reference.and_then(|text| text.strip_prefix(HOME).or(text.strip_prefix('#')));
        let Some((rest, target)) = rest.and_then(|rest| Some((rest, whole.pointer(rest)?))) else {
            break;
        };
        rest.clone_into(&mut pointer);
        schema = target;
    }
    (schema, pointer)
}

/// A key, escaped for a JSON pointer.
pub(super) fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// The dialect that is named. `https` may stand for `http`, and a final `#` is optional.
fn dialect(value: &Value) -> Option<&'static str> {
    let place = |uri: &str| Some(uri.split_once("://")?.1.trim_end_matches('#').to_owned());
    let meant = place(value.as_str()?)?;
    DIALECTS.iter().copied().find(|known| place(known).as_ref() == Some(&meant))
}

fn refers(schema: &Value) -> bool {
    match schema {
        Value::Object(entries) => entries.contains_key("$ref") || entries.values().any(refers),
        Value::Array(items) => items.iter().any(refers),
        _ => false,
    }
}

fn with_options(schema: Value, strict: bool) -> Value {
    let mut keywords = match schema {
        Value::Object(keywords) => keywords,
        Value::Bool(true) => Map::new(),
        other => return other,
    };
    keywords.insert("x-guidance".to_owned(), options(strict));
    Value::Object(keywords)
}

fn options(strict: bool) -> Value {
    json!({
        "whitespace_pattern": SPACE,
        "json_allowed_escapes": ESCAPES,
        "coerce_one_of": !strict,
        "lenient": !strict,
    })
}

struct Preparer<'a> {
    whole: &'a Value,
    strict: bool,
    /// The path at which references find the whole schema; empty if it stays the root.
    home: &'static str,
    /// A pattern that every string must match, besides its own.
    besides: Option<&'a str>,
    multiples: Vec<f64>,
    skips_multiples: bool,
    warnings: Vec<String>,
}

impl<'a> Preparer<'a> {
    fn new(whole: &'a Value, strict: bool, home: &'static str, besides: Option<&'a str>) -> Self {
        Self {
            whole,
            strict,
            home,
            besides,
            multiples: Vec::new(),
            skips_multiples: false,
            warnings: Vec::new(),
        }
    }

    fn whole(mut self) -> Result<Prepared, GrammarError> {
        let schema = self.schema(self.whole, "#")?;
        let is_note = |key: &str| NOTES.contains(&key) || PLACES.contains(&key);
        if has_joins(self.whole, is_note) && !go_together(&self.multiples) {
            let what = "`multipleOf` in parts that hold at once, with too many digits together,";
            self.unsupported("#", what)?;
            self.multiples = Vec::new();
            self.skips_multiples = true;
            return self.whole();
        }
        let counts = self.multiples.into_iter().map(remainder_count);
        let remainders = counts.max().unwrap_or_default();
        Ok(Prepared { schema, warnings: self.warnings, remainders })
    }

    fn schema(&mut self, schema: &Value, path: &str) -> Result<Value, GrammarError> {
        let keywords = match schema {
            Value::Bool(_) => return Ok(schema.clone()),
            Value::Object(keywords) => reworded(keywords),
            _ => return Err(invalid(path, "a schema is an object or a boolean")),
        };
        let mut out = Map::new();
        for (key, value) in &*keywords {
            let path = format!("{path}/{key}");
            let name = key.as_str();
            match name {
                _ if NOTES.contains(&name) => {}
                _ if UNSUPPORTED.contains(&name) => {
                    if !is_idle(name, &keywords) {
                        self.unsupported(&path, &format!("`{name}`"))?;
                    }
                }
                "patternProperties" => self.pattern_properties(value, &mut out, &path)?,
                _ if MAPS.contains(&name) => {
                    out.insert(key.clone(), self.map(value, &path)?);
                }
                "items" if value.is_array() => {
                    out.insert(key.clone(), self.list(value, &path)?);
                }
                _ if SINGLES.contains(&name) => {
                    out.insert(key.clone(), self.schema(value, &path)?);
                }
                _ if LISTS.contains(&name) => {
                    let list = self.list(value, &path)?;
                    self.insert_list(name, value, list, &keywords, &mut out);
                }
                _ if BOUNDS.contains(&name) => self.bound(name, value, &mut out, &path)?,
                _ if LENGTHS.contains(&name) => {
                    if let Some(length) = length(name, value, &path)? {
                        out.insert(key.clone(), length.into());
                    }
                }
                "multipleOf" => self.multiple(value, &mut out, &path)?,
                "type" => self.kind(value, &mut out, &path)?,
                "pattern" => self.pattern(value, &mut out, &path)?,
                "format" => self.format(value, &mut out, &path)?,
                "enum" | "const" => {
                    literal(value, &path)?;
                    out.insert(key.clone(), value.clone());
                }
                "$schema" => {
                    if let Some(dialect) = dialect(value) {
                        out.insert(key.clone(), dialect.into());
                    }
                }
                "$ref" => {
                    out.insert(key.clone(), self.reference(value, &path)?);
                }
                _ => {
                    out.insert(key.clone(), value.clone());
                }
            }
        }
        if let Some(pattern) = self.besides.filter(|_| is_string(&out)) {
            add_pattern(&mut out, pattern);
        }
        self.count_of_properties(&mut out, path)?;
        narrow_multiples(&mut out);
        bound_multiples(&mut out);
        Ok(Value::Object(out))
    }

    fn map(&mut self, value: &Value, path: &str) -> Result<Value, GrammarError> {
        let Value::Object(entries) = value else {
            return Err(invalid(path, "it must be an object of schemas"));
        };
        let entries = entries.iter().map(|(key, schema)| {
            let path = format!("{path}/{}", escape(key));
            Ok((key.clone(), self.schema(schema, &path)?))
        });
        entries.collect::<Result<Map<_, _>, _>>().map(Value::Object)
    }

    fn pattern_properties(
        &mut self,
        value: &Value,
        out: &mut Map<String, Value>,
        path: &str,
    ) -> Result<(), GrammarError> {
        let mut entries = Map::new();
        if let Value::Object(schemas) = self.map(value, path)? {
            for (pattern, schema) in schemas {
                match patterns::readable(&pattern) {
                    Ok(pattern) => drop(entries.insert(pattern, schema)),
                    Err(reason) => {
                        self.unsupported(path, &format!("the pattern {pattern:?} ({reason})"))?;
                    }
                }
            }
        }
        out.insert("patternProperties".to_owned(), entries.into());
        Ok(())
    }

    fn list(&mut self, value: &Value, path: &str) -> Result<Value, GrammarError> {
        let Value::Array(items) = value else {
            return Err(invalid(path, "it must be an array of schemas"));
        };
        let items = items.iter().enumerate();
        let items = items.map(|(index, item)| self.schema(item, &format!("{path}/{index}")));
        items.collect::<Result<Vec<_>, _>>().map(Value::Array)
    }

    /// If the schemas exclude each other, exactly one of them is the same as any of them.
    fn insert_list(
        &self,
        name: &str,
        raw: &Value,
        list: Value,
        keywords: &Map<String, Value>,
        out: &mut Map<String, Value>,
    ) {
        let options = raw.as_array().map_or(&[][..], Vec::as_slice);
        if name != "oneOf" || !Disjoint::new(self.whole).all(options) {
            append(out, name, list);
        } else if keywords.contains_key("anyOf") {
            append(out, "allOf", json!([{ "anyOf": list }]));
        } else {
            append(out, "anyOf", list);
        }
    }

    /// Translates the type. Tools are often described by people who do not know JSON Schema's names
    /// of types. A name without any meaning is an error.
    fn kind(
        &mut self,
        value: &Value,
        out: &mut Map<String, Value>,
        path: &str,
    ) -> Result<(), GrammarError> {
        let meant = match value {
            Value::Array(names) => {
                let names = names.iter().map(|name| self.type_named(name, path));
                let names = names.collect::<Result<Option<Vec<_>>, _>>()?;
                names.map(Value::from)
            }
            name => self.type_named(name, path)?.map(Value::from),
        };
        if let Some(meant) = meant {
            out.insert("type".to_owned(), meant);
        }
        Ok(())
    }

    /// `None` for any type.
    fn type_named<'v>(&self, name: &'v Value, path: &str) -> Result<Option<&'v str>, GrammarError> {
        let Value::String(name) = name else {
            return Err(invalid(path, "it must be the name of a type, or an array of names"));
        };
        let lower = name.to_ascii_lowercase();
        let alias = ALIASES.iter().find(|(start, _)| lower.starts_with(start));
        match alias {
            _ if TYPES.contains(&name.as_str()) => Ok(Some(name)),
            Some((_, meant)) if !self.strict => Ok(Some(meant)),
            _ if lower == "any" && !self.strict => Ok(None),
            _ => Err(invalid(
                path,
                &format!("there is no type {name:?}, it must be one of {}", TYPES.join(", ")),
            )),
        }
    }

    fn bound(
        &mut self,
        name: &str,
        value: &Value,
        out: &mut Map<String, Value>,
        path: &str,
    ) -> Result<(), GrammarError> {
        let Value::Number(number) = value else {
            // Booleans are from draft 4; llguidance refuses everything else by name.
            out.insert(name.to_owned(), value.clone());
            return Ok(());
        };
        let far = number.as_f64().is_none_or(|number| number.abs() > BOUND_MAX);
        // For the limits of i64, llguidance itself gets it right.
        let extreme = [i64::MIN, i64::MAX].into_iter().any(|end| number.as_i64() == Some(end));
        if extreme || (!far && is_exact(number)) {
            out.insert(name.to_owned(), value.clone());
            return Ok(());
        }
        self.unsupported(path, &format!("`{name}` of {number}, which is too large to be exact,"))
    }

    fn multiple(
        &mut self,
        value: &Value,
        out: &mut Map<String, Value>,
        path: &str,
    ) -> Result<(), GrammarError> {
        match value.as_f64() {
            Some(number) if number > 0.0 && self.skips_multiples => Ok(()),
            Some(number) if number > 0.0 && is_countable(number) => {
                self.multiples.push(number);
                out.insert("multipleOf".to_owned(), value.clone());
                Ok(())
            }
            Some(number) if number > 0.0 => {
                let what = format!(
                    "`multipleOf` of {value}, which has too many digits (at most {DIGITS_MAX} \
                     without the point, and {PLACES_MAX} after it),"
                );
                self.unsupported(path, &what)
            }
            _ => Err(invalid(path, "it must be a number greater than 0")),
        }
    }

    fn pattern(
        &mut self,
        value: &Value,
        out: &mut Map<String, Value>,
        path: &str,
    ) -> Result<(), GrammarError> {
        let Value::String(pattern) = value else {
            return Err(invalid(path, "it must be a string"));
        };
        match patterns::readable(pattern) {
            Ok(pattern) => add_pattern(out, &pattern),
            Err(reason) => {
                self.unsupported(path, &format!("the pattern {pattern:?} ({reason})"))?;
            }
        }
        Ok(())
    }

    fn format(
        &mut self,
        value: &Value,
        out: &mut Map<String, Value>,
        path: &str,
    ) -> Result<(), GrammarError> {
        let Value::String(format) = value else {
            return Err(invalid(path, "it must be a string"));
        };
        match patterns::of_format(format) {
            FormatPattern::Pattern(pattern) => add_pattern(out, &pattern),
            FormatPattern::Unsupported => {
                self.unsupported(path, &format!("the format {format:?}"))?;
            }
            // JSON Schema treats an unknown format as an annotation.
            FormatPattern::No => {}
        }
        Ok(())
    }

    fn reference(&self, value: &Value, path: &str) -> Result<Value, GrammarError> {
        let Value::String(reference) = value else {
            return Err(invalid(path, "it must be a string"));
        };
        if !reference.starts_with('#') && !names_itself(self.whole) {
            return Err(invalid(
                path,
                &format!("{reference:?} is not in the schema, and nothing is fetched"),
            ));
        }
        let local =
            reference.strip_prefix('#').filter(|rest| rest.is_empty() || rest.starts_with('/'));
        Ok(match local {
            Some(rest) if !self.home.is_empty() => Value::String(format!("{}{rest}", self.home)),
            _ => value.clone(),
        })
    }

    /// Checks `minProperties`: generated names beyond the declared ones may repeat, and then count
    /// once.
    fn count_of_properties(
        &mut self,
        out: &mut Map<String, Value>,
        path: &str,
    ) -> Result<(), GrammarError> {
        let required = out.get("required").and_then(Value::as_array).map_or(0, Vec::len);
        let least = out.get("minProperties").and_then(Value::as_u64).unwrap_or(0);
        let open = out.get("additionalProperties") != Some(&Value::Bool(false))
            || out.contains_key("patternProperties");
        if open && least > required as u64 + 1 {
            out.remove("minProperties");
            let what = format!("`minProperties` of {least} with names that are not declared");
            self.unsupported(path, &what)?;
        }
        Ok(())
    }

    fn unsupported(&mut self, path: &str, what: &str) -> Result<(), GrammarError> {
        self.warnings.push(unsupported(self.strict, path, what)?);
        Ok(())
    }
}

/// A demand that a grammar cannot follow: an error if the schema is `strict`, otherwise a warning.
pub(super) fn unsupported(strict: bool, path: &str, what: &str) -> Result<String, GrammarError> {
    if strict {
        return Err(GrammarError::Invalid(format!(
            "the JSON schema cannot be enforced in full: {what} at {path} is not supported; \
             remove it, or do without `strict`"
        )));
    }
    Ok(format!("{what} at {path} is not enforced"))
}
