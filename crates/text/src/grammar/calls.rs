//! Tool calls as a grammar, in the model's own format: Lark for the markup, with the tools' JSON
//! schemas embedded in it. [`crate::reply`] parses the calls.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::mem;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::regex_to_lark;
use serde_json::{Value, json};

use super::lark_text::{self, Place};
use super::vocabulary::{Marker, Vocabulary};
use super::{
    GRAMMAR_BYTES_MAX, GrammarError, REGEX_BYTES_MAX, Source, bounded, lark, patterns, schema,
    texts, weight,
};
use crate::conversation::TEXT_ARGUMENT;
use crate::{Format, TextGrammar, Tool, ToolInput};

/// Most tools that one reply may choose from.
const TOOLS_MAX: usize = 512;
/// The tag that ends an XML value, wherever it occurs.
const VALUE_END: &str = "</parameter>";
/// Longest name of a parameter that is not in the schema.
const NAME_CHARS_MAX: usize = 64;

/// The characters that a format puts around an XML value besides the tags.
#[derive(Clone, Copy)]
pub(super) struct Xml {
    padding: &'static str,
}

/// Collects Lark text and the JSON schemas that it refers to.
#[derive(Default)]
pub(super) struct Writer {
    rules: String,
    rule_count: usize,
    /// Names of text terminals, by their definition.
    texts: BTreeMap<String, String>,
    schemas: Vec<GrammarWithLexer>,
    warnings: Vec<String>,
    remainders: u64,
}

/// The grammar of a reply that consists of calls only.
pub(super) fn source(
    tools: &[Tool],
    format: Format,
    parallel: bool,
    vocabulary: &Vocabulary,
) -> Result<Source, GrammarError> {
    if tools.is_empty() {
        return Err(no_tools());
    }
    check(tools)?;
    weight::check(tools.iter().map(|tool| &tool.parameters))?;
    let xml = Xml::of(format)?;
    let mut writer = Writer::default();
    let mut calls = Vec::new();
    for tool in tools {
        let arguments = writer.arguments(tool, xml)?;
        let (before, after) = match xml {
            None => (format!("\n{{\"name\": {}", json_head(tool)), "}\n"),
            Some(_) => (format!("\n<function={}>\n", tool.name), "</function>\n"),
        };
        let call = format!("{} {arguments} {}", lark::literal(&before), lark::literal(after));
        calls.push(writer.rule("call", &call));
    }
    let between = lark::literal(if format == Format::Mimo { "" } else { "\n" });
    let more = if parallel { format!(" ({between} call)*") } else { String::new() };
    let (open, close) = markers(vocabulary);
    let start = format!("start: call{more}\ncall: {open} ({}) {close}\n", calls.join(" | "));
    Ok(writer.finish(&start))
}

/// One call, from its first tag on. Arguments of tools that are not strict are unconstrained, and
/// so is the text after the call.
pub(super) fn one_in_text(
    tools: &[Tool],
    format: Format,
    vocabulary: &Vocabulary,
) -> Result<Source, GrammarError> {
    check(tools)?;
    weight::check(tools.iter().filter(|tool| tool.strict).map(|tool| &tool.parameters))?;
    let xml = Xml::of(format)?;
    let mut writer = Writer::default();
    let (mut wrapped, mut bare, mut names) = (Vec::new(), Vec::new(), Vec::new());
    let (open, close) = markers(vocabulary);
    for tool in first_of_each_name(tools) {
        if !tool.strict {
            let name = Value::from(tool.name.as_str()).to_string();
            names.push(if xml.is_some() { format!("{}>", tool.name) } else { name });
            continue;
        }
        let arguments = writer.arguments(tool, xml)?;
        if xml.is_some() {
            let begun = lark::literal(&format!("{}>\n", tool.name));
            let begun = writer.rule("begun", &format!("{begun} {arguments}"));
            wrapped.push(format!("{begun} \"</function>\\n\" {close}"));
            bare.push(format!("{begun} \"</function>\""));
        } else {
            let head = lark::literal(&json_head(tool));
            wrapped.push(format!("{head} {arguments} \"}}\\n\" {close}"));
        }
    }
    if !names.is_empty() {
        let names: Vec<String> = names.iter().map(|name| lark::literal(name)).collect();
        let _ = writeln!(writer.rules, "NAME: {}", names.join(" | "));
        wrapped.push("NAME".to_owned());
        bare.push("NAME".to_owned());
    }
    let (wrapped, bare) = (wrapped.join(" | "), bare.join(" | "));
    let calls = match xml {
        Some(_) => format!("{open} HEAD ({wrapped}) | \"<function=\" ({bare})"),
        None => format!("{open} HEAD ({wrapped})"),
    };
    let head = if xml.is_some() { "<function=" } else { "\\{[ \\n]{0,8}\"name\" ?: ?" };
    let start =
        format!("start: ({calls}) REST?\nHEAD: /[ \\t\\r\\n]{{0,8}}{head}/\nREST: /(?s:.+)/\n");
    Ok(writer.finish(&start))
}

pub(super) fn no_tools() -> GrammarError {
    GrammarError::Invalid("a call is required, but there are no tools".to_owned())
}

pub(super) fn check(tools: &[Tool]) -> Result<(), GrammarError> {
    if tools.len() > TOOLS_MAX {
        let text = format!("{} tools to choose from: at most {TOOLS_MAX}", tools.len());
        return Err(GrammarError::TooLarge(text));
    }
    Ok(())
}

/// The tools without those whose name an earlier tool has.
pub(super) fn first_of_each_name(tools: &[Tool]) -> impl Iterator<Item = &Tool> {
    let mut known = BTreeSet::new();
    tools.iter().filter(move |tool| known.insert(&tool.name))
}

/// The markers that open and close a call.
fn markers(vocabulary: &Vocabulary) -> (String, String) {
    let of = |text| marker(&vocabulary.marker(text));
    (of("<tool_call>"), of("</tool_call>"))
}

/// The JSON of a call between the key `name` and the arguments.
fn json_head(tool: &Tool) -> String {
    format!("{}, \"arguments\": ", Value::from(tool.name.as_str()))
}

impl Xml {
    /// `None` if calls are JSON.
    fn of(format: Format) -> Result<Option<Self>, GrammarError> {
        match format {
            Format::Mimo => Ok(Some(Self { padding: "" })),
            Format::Qwen3Coder => Ok(Some(Self { padding: "\n" })),
            Format::Hermes | Format::Harmony => Ok(None),
            Format::Plain => {
                let text = "the model has no format for tool calls; start the server with one, \
                            or ask for JSON by response_format";
                Err(GrammarError::Invalid(text.to_owned()))
            }
        }
    }
}

impl Writer {
    pub(super) fn finish(mut self, start: &str) -> Source {
        for (body, name) in mem::take(&mut self.texts) {
            // Writing to a string cannot fail.
            let _ = writeln!(self.rules, "{name}: {body}");
        }
        let mut grammars = vec![GrammarWithLexer::from_lark(format!("{start}{}", self.rules))];
        grammars.extend(self.schemas);
        let grammar = TopLevelGrammar { grammars, max_tokens: None };
        Source { grammar, warnings: self.warnings, remainders: self.remainders }
    }

    /// Adds a rule of this kind; returns its name.
    pub(super) fn rule(&mut self, kind: &str, body: &str) -> String {
        let name = format!("{kind}_{}", self.rule_count);
        self.rule_count += 1;
        let _ = writeln!(self.rules, "{name}: {body}");
        name
    }

    /// The arguments of a call.
    pub(super) fn arguments(
        &mut self,
        tool: &Tool,
        xml: Option<Xml>,
    ) -> Result<String, GrammarError> {
        let written = match (xml, &tool.input) {
            (xml, ToolInput::Text(Some(grammar))) => self.text_input(grammar, xml),
            (Some(xml), _) => self.xml(tool, xml),
            (None, _) => self.json(tool),
        };
        written.map_err(|error| match error {
            GrammarError::Invalid(text) => GrammarError::Invalid(of_tool(&tool.name, &text)),
            GrammarError::TooLarge(text) => GrammarError::TooLarge(of_tool(&tool.name, &text)),
            other => other,
        })
    }

    /// Adds a schema; returns its name in Lark.
    fn schema(&mut self, schema: Value) -> String {
        let name = format!("schema_{}", self.schemas.len());
        let grammar = GrammarWithLexer::from_json_schema(schema);
        self.schemas.push(GrammarWithLexer { name: Some(name.clone()), ..grammar });
        format!("@{name}")
    }

    fn prepare(&mut self, tool: &Tool, besides: Option<&str>) -> Result<Value, GrammarError> {
        let schema = schema::prepare_home(&tool.parameters, tool.strict, besides)?;
        self.remainders = self.remainders.max(schema.remainders);
        let warnings = schema.warnings.into_iter();
        self.warnings.extend(warnings.map(|warning| of_tool(&tool.name, &warning)));
        Ok(schema.schema)
    }

    /// The single argument of a tool that takes text matching a grammar.
    fn text_input(
        &mut self,
        grammar: &TextGrammar,
        xml: Option<Xml>,
    ) -> Result<String, GrammarError> {
        let lark = match grammar {
            TextGrammar::Regex(regex) => return self.text_of_regex(regex, xml),
            TextGrammar::Lark(lark) => lark,
        };
        if let Some(regex) = lark_text::only_regex(lark) {
            return self.text_of_regex(&regex, xml);
        }
        bounded(lark, GRAMMAR_BYTES_MAX, "the grammar of its text")?;
        let place = match xml {
            None => Place::InJson,
            Some(xml) => Place::Before { tag: VALUE_END, padded: !xml.padding.is_empty() },
        };
        let lark = lark_text::rewrite(lark, place)?;
        let mut source = lark::prepare(&lark)?;
        let name = format!("text_{}", self.schemas.len());
        source.grammar.grammars[0].name = Some(name.clone());
        self.schemas.append(&mut source.grammar.grammars);
        let padding = xml.map_or("", |xml| xml.padding);
        let (before, after) = match xml {
            Some(_) => {
                (format!("<parameter={TEXT_ARGUMENT}>{padding}"), format!("{padding}{VALUE_END}\n"))
            }
            None => (format!("{{\"{TEXT_ARGUMENT}\": \""), "\"}".to_owned()),
        };
        Ok(format!("{} @{name} {}", lark::literal(&before), lark::literal(&after)))
    }

    /// The argument of a tool that takes text matching a regular expression. The expression may
    /// match everything after it, so it and the closing tag must be one terminal.
    fn text_of_regex(&mut self, regex: &str, xml: Option<Xml>) -> Result<String, GrammarError> {
        bounded(regex, REGEX_BYTES_MAX, "the regular expression of its text")?;
        let wrong = |reason| GrammarError::Invalid(format!("the grammar of its text: {reason}"));
        patterns::check(regex).map_err(wrong)?;
        let Some(xml) = xml else {
            let pattern = format!("^(?:{regex})$");
            let schema = json!({
                "type": "object",
                "properties": { TEXT_ARGUMENT: { "type": "string", "pattern": pattern } },
                "required": [TEXT_ARGUMENT],
                "additionalProperties": false,
            });
            let schema = schema::prepare_home(&schema, true, None)?;
            return Ok(self.schema(schema::at_home(&schema.schema, "", true)));
        };
        let open = lark::literal(&format!("<parameter={TEXT_ARGUMENT}>{}", xml.padding));
        let asked = format!("/{}/", regex_to_lark(regex, ""));
        Ok(format!("{open} {}", self.text(&asked, xml)))
    }

    /// The arguments as a JSON object.
    fn json(&mut self, tool: &Tool) -> Result<String, GrammarError> {
        let mut whole = self.prepare(tool, None)?;
        if let Value::Object(keywords) = &mut whole
            && !["type", "$ref", "allOf", "anyOf"].iter().any(|key| keywords.contains_key(*key))
        {
            keywords.insert("type".to_owned(), "object".into());
        }
        Ok(self.schema(schema::at_home(&whole, "", tool.strict)))
    }

    /// The arguments as `<parameter=..>` elements, in the schema's order.
    fn xml(&mut self, tool: &Tool, xml: Xml) -> Result<String, GrammarError> {
        tag_name(&tool.name)?;
        // The reader ends a value at the first closing tag, even within a JSON string.
        let whole = self.prepare(tool, Some(&patterns::without(VALUE_END)))?;
        let parameters = parameters(&whole);
        let mut body = String::new();
        for parameter in &parameters.declared {
            tag_name(&parameter.name)?;
            let value = self.value(&whole, parameter, xml, tool)?;
            let open = format!("<parameter={}>{}", parameter.name, xml.padding);
            let rule = self.rule("argument", &format!("{} {value}", lark::literal(&open)));
            let maybe = if parameter.required { "" } else { "?" };
            let _ = write!(body, " {rule}{maybe}");
        }
        if parameters.open {
            let name = format!("/[^<>\\n]{{1,{NAME_CHARS_MAX}}}>{}/", regex(xml.padding));
            let _ = write!(body, " (\"<parameter=\" {name} {})*", self.any_text(xml));
        }
        Ok(body)
    }

    /// A value and its closing tag. The value is verbatim text or JSON.
    fn value(
        &mut self,
        whole: &Value,
        parameter: &Parameter,
        xml: Xml,
        tool: &Tool,
    ) -> Result<String, GrammarError> {
        if !texts::may_be_text(whole, parameter.schema, 0) {
            let schema = self.schema(schema::at_home(whole, &parameter.pointer, tool.strict));
            let end = lark::literal(&format!("{}{VALUE_END}\n", xml.padding));
            return Ok(format!("{schema} {end}"));
        }
        match texts::asked(whole, parameter.schema, VALUE_END) {
            Ok(Some(asked)) => Ok(self.text(&asked, xml)),
            Ok(None) => Ok(self.any_text(xml)),
            Err(what) => {
                let place = format!("#{}", parameter.pointer);
                let warning = schema::unsupported(tool.strict, &place, &what)?;
                self.warnings.push(of_tool(&tool.name, &warning));
                Ok(self.any_text(xml))
            }
        }
    }

    fn any_text(&mut self, xml: Xml) -> String {
        self.text("/(?s:.*)/", xml)
    }

    /// Text of a terminal, which must not contain the closing tag, and then the tag.
    fn text(&mut self, asked: &str, xml: Xml) -> String {
        let (end, padding) = (regex(VALUE_END), regex(xml.padding));
        let body = format!("({asked} & ~/(?s:.*){end}(?s:.*)/) /{padding}{end}/");
        let texts = self.texts.len();
        let name = self.texts.entry(body).or_insert_with(|| format!("TEXT_{texts}"));
        format!("{name} \"\\n\"")
    }
}

struct Parameters<'a> {
    declared: Vec<Parameter<'a>>,
    /// Whether there may be undeclared arguments.
    open: bool,
}

struct Parameter<'a> {
    name: String,
    schema: &'a Value,
    /// The schema's place in the whole schema, as a JSON pointer.
    pointer: String,
    required: bool,
}

/// The arguments that an object schema declares, directly or through its parts.
fn parameters(whole: &Value) -> Parameters<'_> {
    let (root, pointer) = schema::resolve(whole, whole, "");
    let mut places = vec![(root, pointer.clone())];
    for list in ["allOf", "anyOf", "oneOf"] {
        let members = root.get(list).and_then(Value::as_array).into_iter().flatten().enumerate();
        places.extend(members.map(|(index, member)| {
            schema::resolve(whole, member, &format!("{pointer}/{list}/{index}"))
        }));
    }
    let required = root.get("required").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut declared: Vec<Parameter> = Vec::new();
    for (place, pointer) in places {
        let properties = place.get("properties").and_then(Value::as_object);
        for (name, schema) in properties.into_iter().flatten() {
            let known = declared.iter().any(|parameter| parameter.name == *name);
            if known || *schema == Value::Bool(false) {
                continue;
            }
            let pointer = format!("{pointer}/properties/{}", schema::escape(name));
            let required = required.iter().any(|other| other == name);
            declared.push(Parameter { name: name.clone(), schema, pointer, required });
        }
    }
    let open = declared.is_empty()
        && root.get("additionalProperties").is_some_and(|rest| *rest != Value::Bool(false));
    Parameters { declared, open }
}

fn marker(marker: &Marker) -> String {
    match marker {
        Marker::Token(token) => format!("<[{token}]>"),
        Marker::Text(text) => lark::literal(text),
    }
}

/// Text, escaped for a regular expression of Lark.
fn regex(text: &str) -> String {
    text.replace('/', "\\/").replace('\n', "\\n")
}

fn tag_name(name: &str) -> Result<(), GrammarError> {
    if name.is_empty() || name.contains(|c: char| matches!(c, '<' | '>') || c.is_control()) {
        return Err(GrammarError::Invalid(format!("the name {name:?} cannot be written in a tag")));
    }
    Ok(())
}

fn of_tool(name: &str, text: &str) -> String {
    format!("tool {name:?}: {text}")
}
