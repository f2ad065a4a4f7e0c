//! Chat templates: renders the checkpoint's own Jinja as transformers does. This module knows how
//! Python's Jinja differs from minijinja, but no model's markup.

mod calendar;
mod json;
mod meter;
mod methods;
mod program;
mod python;

use std::thread;

use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior};
use serde_json::{Map, Value, json};

use crate::controls::{Controls, Marks};
use crate::{Conversation, Message, TextError, Tool};
pub(crate) use calendar::format as date;
use program::Program;

/// Most instructions of one rendering, about a second. A message takes some hundreds.
const FUEL_MAX: u64 = 20_000_000;
/// Most bytes of one prompt; a million tokens are about five million bytes.
pub(crate) const PROMPT_BYTES_MAX: usize = 64 << 20;

/// Templates are compiled and run on threads with this stack, because both are recursive: some
/// thousand levels of expressions, or a hundred macros that call one another.
const STACK_BYTES: usize = 64 << 20;

/// Marks the end of the message to be continued. Its final space shows whether the template trims.
const CONTINUE_MARK: &str = "\u{e000}continue here\u{e000} ";

/// Variables under names that no template can write: the time in seconds since 1970, and below, the
/// stand-ins of [`Controls`].
const NOW: &str = " now";
const STAND_INS: &str = " stand-ins";

pub(crate) struct Template {
    environment: Environment<'static>,
    chat: Program,
    /// Used instead of `chat` if there are tools.
    tool_use: Option<Program>,
    /// Variables of every rendering, such as `bos_token`.
    variables: Map<String, Value>,
}

/// Sources of a checkpoint's templates.
pub(crate) struct Sources {
    pub(crate) chat: String,
    /// Used instead of `chat` if there are tools.
    pub(crate) tool_use: Option<String>,
}

impl Template {
    /// # Errors
    /// Says what is no Jinja, and in which line.
    pub(crate) fn compile(sources: Sources, variables: Map<String, Value>) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(FUEL_MAX));
        // Otherwise errors would quote all variables.
        environment.set_debug(false);
        python::adapt(&mut environment);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        meter::install(&mut environment);
        let compile = |source: String| {
            let compiled = Program::compile(without_generation_tags(&source));
            compiled.map_err(|error| failure(&error).to_string())
        };
        let compiled = on_own_stack(STACK_BYTES, move || {
            let chat = compile(sources.chat)?;
            let tool_use = sources.tool_use.map(compile).transpose()?;
            Ok(Self { environment, chat, tool_use, variables })
        });
        compiled.map_err(|error| error.to_string())?
    }

    /// Renders the prompt, with stand-ins in the text that comes from the conversation.
    pub(crate) fn render(
        &self,
        conversation: &Conversation,
        controls: &Controls,
    ) -> Result<(String, Marks), TextError> {
        let mut given = Given::new(conversation);
        let marks = given.mark(controls).map_err(TextError::Template)?;
        let rendered = self.render_given(conversation, given, &marks);
        // The template's own message may quote marked text.
        let rendered = rendered.map_err(|error| match error {
            TextError::Template(reason) => TextError::Template(marks.undo(&reason)),
            TextError::Fault(reason) => TextError::Fault(marks.undo(&reason)),
            other => other,
        });
        rendered.map(|prompt| (prompt, marks))
    }

    fn render_given(
        &self,
        conversation: &Conversation,
        mut given: Given,
        marks: &Marks,
    ) -> Result<String, TextError> {
        let refuse = |reason: &str| Err(TextError::Template(reason.to_owned()));
        if !conversation.continue_final_message {
            return self.render_messages(conversation, given, marks);
        }
        if conversation.add_generation_prompt {
            return refuse(
                "continue_final_message and add_generation_prompt exclude each other: set one",
            );
        }
        let Some(last) = given.messages.last_mut() else {
            return refuse("continue_final_message needs a message to go on with");
        };
        let unfinished = mark(last);
        let prompt = self.render_messages(conversation, given, marks)?;
        match cut_at_mark(&prompt) {
            Some(prompt) if prompt.contains(unfinished.trim()) => Ok(prompt.to_owned()),
            _ => refuse(
                "continue_final_message: the chat template does not write the last message as it \
                 is, so it cannot be gone on with",
            ),
        }
    }

    fn render_messages(
        &self,
        conversation: &Conversation,
        given: Given,
        marks: &Marks,
    ) -> Result<String, TextError> {
        let bytes = given.bytes();
        let has_tools = !given.tools.is_empty();
        let program = self.tool_use.as_ref().filter(|_| has_tools).unwrap_or(&self.chat);
        let mut variables = self.variables.clone();
        variables.insert("documents".to_owned(), Value::Null);
        variables.extend(given.variables);
        variables.insert(NOW.to_owned(), seconds(conversation).into());
        let stand_ins: String = marks.iter().map(|(mark, _)| mark).collect();
        variables.insert(STAND_INS.to_owned(), stand_ins.into());
        variables.insert(meter::GIVEN.to_owned(), bytes.into());
        variables.insert("messages".to_owned(), given.messages.into());
        let tools = if has_tools { given.tools.into() } else { Value::Null };
        variables.insert("tools".to_owned(), tools);
        variables
            .insert("add_generation_prompt".to_owned(), conversation.add_generation_prompt.into());

        let run = || {
            let variables = minijinja::Value::from(Serde(&variables));
            program.run(&self.environment, variables).map_err(|error| failure(&error))
        };
        let prompt = on_own_stack(STACK_BYTES, run)??;
        if prompt.len() > PROMPT_BYTES_MAX {
            let reason = format!("the prompt is larger than {PROMPT_BYTES_MAX} bytes");
            return Err(TextError::Fault(reason));
        }
        Ok(prompt)
    }
}

/// Runs recursive work on a separate thread.
///
/// # Errors
/// [`TextError::NoThread`], or [`TextError::Fault`] if the work panicked.
fn on_own_stack<T: Send>(
    stack_bytes: usize,
    work: impl FnOnce() -> T + Send,
) -> Result<T, TextError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("template".to_owned()).stack_size(stack_bytes);
        let thread = thread.spawn_scoped(scope, work).map_err(TextError::NoThread)?;
        let panicked = |_| TextError::Fault("the chat template ends in a panic".to_owned());
        thread.join().map_err(panicked)
    })
}

/// The values that a conversation passes to a template.
struct Given {
    messages: Vec<Value>,
    tools: Vec<Value>,
    variables: Map<String, Value>,
}

impl Given {
    fn new(conversation: &Conversation) -> Self {
        Self {
            messages: conversation.messages.iter().map(message).collect(),
            tools: conversation.tools.iter().map(tool).collect(),
            variables: conversation.variables.clone(),
        }
    }

    /// The approximate size of all values.
    fn bytes(&self) -> u64 {
        let lists = self.messages.iter().chain(&self.tools);
        lists.chain(self.variables.values()).map(value_bytes).sum()
    }

    fn mark(&mut self, controls: &Controls) -> Result<Marks, String> {
        let lists = self.messages.iter().chain(&self.tools);
        let marks = controls.marks(lists.chain(self.variables.values()))?;
        if marks.iter().next().is_some() {
            let lists = self.messages.iter_mut().chain(&mut self.tools);
            for value in lists.chain(self.variables.values_mut()) {
                controls.mark(value, &marks);
            }
        }
        Ok(marks)
    }
}

fn value_bytes(value: &Value) -> u64 {
    let inner = match value {
        Value::String(text) => text.len() as u64,
        Value::Array(values) => values.iter().map(value_bytes).sum(),
        Value::Object(fields) => {
            let field = |(name, value): (&String, _)| {
                meter::VALUE_BYTES + name.len() as u64 + value_bytes(value)
            };
            fields.iter().map(field).sum()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    };
    meter::VALUE_BYTES + inner
}

/// A message with its fields under all names that templates use.
fn message(message: &Message) -> Value {
    let mut fields = Map::new();
    fields.insert("role".to_owned(), message.role.clone().into());
    fields.insert("content".to_owned(), message.content.clone().into());
    if let Some(reasoning) = &message.reasoning {
        for name in ["reasoning_content", "reasoning", "thinking"] {
            fields.insert(name.to_owned(), reasoning.clone().into());
        }
    }
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| {
            let function = json!({ "name": call.name, "arguments": call.arguments });
            json!({ "id": call.id, "type": "function", "function": function })
        });
        fields.insert("tool_calls".to_owned(), calls.collect());
    }
    let named = [("tool_call_id", &message.tool_call_id), ("name", &message.name)];
    for (name, value) in named {
        if let Some(value) = value {
            fields.insert(name.to_owned(), value.clone().into());
        }
    }
    fields.into()
}

fn tool(tool: &Tool) -> Value {
    let mut function = Map::new();
    function.insert("name".to_owned(), tool.name.clone().into());
    if let Some(description) = &tool.description {
        function.insert("description".to_owned(), description.clone().into());
    }
    if !tool.parameters.is_null() {
        function.insert("parameters".to_owned(), tool.parameters.clone());
    }
    json!({ "type": "function", "function": function })
}

/// Puts the mark after the text to be continued, and returns that text. If the message has
/// reasoning but no content, the reasoning is continued.
fn mark(message: &mut Value) -> String {
    let reasons = message["content"] == "" && message.get("reasoning").is_some();
    let fields: &[&str] =
        if reasons { &["reasoning_content", "reasoning", "thinking"] } else { &["content"] };
    let text = message[fields[0]].as_str().unwrap_or_default().to_owned();
    for &field in fields {
        message[field] = format!("{text}{CONTINUE_MARK}").into();
    }
    text
}

/// The prompt before the mark. If the template trimmed the mark's space, trailing spaces are
/// trimmed here too.
fn cut_at_mark(prompt: &str) -> Option<&str> {
    let (before, after) = prompt.rsplit_once(CONTINUE_MARK.trim_end())?;
    Some(if after.starts_with(' ') { before } else { before.trim_end() })
}

/// The time of a conversation, in seconds since 1970.
pub(crate) fn seconds(conversation: &Conversation) -> i64 {
    #[expect(clippy::disallowed_methods, reason = "prompts that tell the date mean the wall clock")]
    let now = conversation.now.unwrap_or_else(std::time::SystemTime::now);
    let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// A refusal by the template itself. The user gets its message verbatim.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: &str) -> Result<String, Error> {
    let raised = Raised(message.to_owned());
    Err(Error::new(ErrorKind::InvalidOperation, "raised").with_source(raised))
}

/// Longest format of a date: a directive of five bytes can ask for 255.
const DATE_FORMAT_BYTES_MAX: usize = 1024;

fn strftime_now(state: &State, format: &str) -> Result<String, Error> {
    if format.len() > DATE_FORMAT_BYTES_MAX {
        let reason = format!("a date's format of more than {DATE_FORMAT_BYTES_MAX} bytes");
        return Err(Error::new(ErrorKind::InvalidOperation, reason));
    }
    let now = state.lookup(NOW).and_then(|now| i64::try_from(now).ok());
    Ok(calendar::format(format, now.unwrap_or_default()))
}

/// An error, described by its cause.
fn failure(error: &Error) -> TextError {
    let mut cause: &dyn std::error::Error = error;
    let mut innermost = error;
    loop {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return TextError::Template(message.clone());
        }
        innermost = cause.downcast_ref().unwrap_or(innermost);
        let Some(next) = cause.source() else { break };
        cause = next;
    }
    let line = innermost.line().map_or(String::new(), |line| format!(", line {line}"));
    TextError::Fault(match (innermost.kind(), innermost.detail()) {
        (ErrorKind::OutOfFuel, _) => {
            "the chat template runs for too long or makes too much text".to_owned()
        }
        (kind, None) => format!("chat template{line}: {kind}"),
        (kind, Some(detail)) => format!("chat template{line}: {kind}: {detail}"),
    })
}

/// Replaces `{% generation %}`, which marks the assistant's text for training, by a scope without
/// effect.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let inner = tag[2..end].trim_end_matches("%}").trim_matches(['-', '+']).trim();
        let replaced = match inner {
            "generation" => tag[..end].replacen("generation", "with", 1),
            "endgeneration" => tag[..end].replacen("endgeneration", "endwith", 1),
            _ => {
                // Only the beginning of the tag: the tag may be text that contains another tag.
                out.push_str("{%");
                rest = &tag[2..];
                continue;
            }
        };
        out.push_str(&replaced);
        rest = &tag[end..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> Template {
        let sources = Sources { chat: source.to_owned(), tool_use: None };
        Template::compile(sources, Map::new()).unwrap()
    }

    fn render(source: &str, conversation: &Conversation) -> Result<String, TextError> {
        let controls = Controls::new(vec!["<|end|>".to_owned()]).unwrap();
        template(source).render(conversation, &controls).map(|(prompt, _)| prompt)
    }

    fn refusal(source: &str, conversation: &Conversation) -> String {
        render(source, conversation).unwrap_err().to_string()
    }

    fn said(content: &str) -> Conversation {
        let message =
            Message { role: "user".into(), content: content.into(), ..Message::default() };
        Conversation { messages: vec![message], ..Conversation::default() }
    }

    /// A stack of 2^60 bytes is refused by any system, as any thread is where there are too many.
    #[test]
    fn a_rendering_without_a_thread_is_told_apart() {
        let outcome = on_own_stack(1 << 60, || ());
        assert!(matches!(outcome, Err(TextError::NoThread(_))), "{outcome:?}");
    }

    /// Templates that consume, produce or nest without bound, with few instructions.
    #[test]
    fn templates_cannot_run_write_or_nest_without_end() {
        let times = "{% set ns = namespace(x='abcdefgh' * 4, l=[1, 2]) %}{% for i in range(90) %}";
        let too_much = "runs for too long or makes too much text";
        for (body, expected) in [
            ("{% set ns.x = ns.x ~ ns.x %}", too_much),
            ("{% set ns.x = ns.x + ns.x %}", too_much),
            ("{% set ns.x = ns.x * 1000 %}", ""),
            ("{% set ns.x = [ns.x, ns.x] | join('-') %}", too_much),
            ("{% set ns.x = ns.x.join([ns.x, ns.x]) %}", too_much),
            ("{% set ns.x = ns.x | replace('a', ns.x) %}", too_much),
            ("{% set ns.x = ns.x.replace('a', ns.x) %}", too_much),
            ("{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}", too_much),
            ("{% set ns.x = '%s%s' | format(ns.x, ns.x) %}", too_much),
            ("{% set ns.x = '{}{}'.format(ns.x, ns.x) %}", too_much),
            ("{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns.x = m(ns.x) %}", too_much),
            ("{% set ns.x = ns.x | tojson(indent=1000) | tojson ~ ns.x %}", "indent"),
            ("{% set ns.x = ns.x | indent(10000000000) %}", "indent: at most"),
            ("{% set ns.x = ns.x | indent(width=10000000000) %}", "indent: at most"),
            ("{% set ns.x = ns.x | batch(10000000000, 'x') | list %}", "batch: at most"),
            ("{% set ns.x = ns.x | slice(10000000000) | list %}", "slice: at most"),
            ("{{ '%10000000000d' | format(1) }}", "width is at most"),
            ("{{ '%*d' | format(1000000000, 1) }}", "width must be a number"),
            ("{{ '{:>1000000000}'.format(1) }}", "width is at most"),
            ("{{ '{:{}}'.format(1, 1000000000) }}", "width must be a number"),
            ("{{ range(10000000000) | list | length }}", "range"),
            ("{% set ns.l = ns.l + ns.l %}{{ ns.l | length }}", ""),
            ("{% set ns.l = ns.l * 1000 %}", ""),
            ("{% set ns.l = [ns.l, ns.l] %}", too_much),
            ("{% set ns.l = [ns.l] %}{% set ns.l = [ns.l] %}{% set ns.l = [ns.l] %}", "nested"),
            ("{% set ns.l = {'a': ns.l, 'b': ns.l} %}", too_much),
            ("{% set ns.l = dict(a=ns.l, b=ns.l) %}", too_much),
            ("{% set ns.x = ns.x * 10 %}{% if ns.x in ns.x ~ 'b' %}{% endif %}", ""),
            ("{% set ns.me = ns %}", "a namespace cannot be part"),
            ("{% set ns.me = [ns] %}", "a namespace cannot be part"),
            ("{% set n = namespace(me=ns) %}", "a namespace cannot be part"),
            ("{% for j in range(90000) %}{% for k in range(90000) %}{% endfor %}{% endfor %}", ""),
            ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
            ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "recursion"),
        ] {
            let source = format!("{times}{body}{{% endfor %}}");
            let reason = refusal(&source, &said(""));
            assert!(reason.contains(expected), "{body}: {reason:?}");
        }
    }

    #[test]
    fn what_cannot_be_bounded_is_no_part_of_a_template() {
        let compile = |source: String| {
            let sources = Sources { chat: source, tool_use: None };
            Template::compile(sources, Map::new()).err().unwrap_or_default()
        };
        let chain = |word: &str| format!("{{{{ {} x }}}}", word.repeat(100_000));
        let elif = "{% elif x %}".repeat(10_000);
        for (source, expected) in [
            (chain("not "), "at most"),
            (chain("-"), "at most"),
            (chain("x ~ "), "at most"),
            (chain("x and "), "at most"),
            (format!("{{{{ x{} }}}}", ".x".repeat(100_000)), "at most"),
            (format!("{{{{ x{} }}}}", "|trim".repeat(100_000)), "at most"),
            (format!("{{{{ {}x }}}}", "[".repeat(1000)), "recursion"),
            (format!("{{% if x %}}{elif}{{% endif %}}"), "at most"),
            ("x".repeat(2 << 20), "more than"),
            ("{{ f(*x) }}".to_owned(), "unpacking"),
            ("{{ f(**x) }}".to_owned(), "unpacking"),
            ("{% include 'x' %}".to_owned(), "include"),
            ("{% extends 'x' %}".to_owned(), "inheritance"),
            ("{% block x %}{% endblock %}".to_owned(), "inheritance"),
        ] {
            let reason = compile(source);
            assert!(reason.contains(expected), "{expected}: {reason:?}");
        }
        // As many as the parser allows fit on the stack.
        let not = format!("{{{{ {} x }}}}", "not ".repeat(4000));
        assert_eq!(render(&not, &said("")).unwrap(), "False");
        let elif = "{% elif x %}".repeat(1000);
        let many = format!("{{% if x %}}{elif}{{% else %}}a{{% endif %}}");
        assert_eq!(render(&many, &said("")).unwrap(), "a");
        let macros = "{% macro m(n) %}{{ m(n - 1) if n else 'end' }}{% endmacro %}{{ m(50) }}";
        assert_eq!(render(macros, &said("")).unwrap(), "end");
    }

    #[test]
    fn long_conversations_have_what_they_need() {
        let mut conversation = said(&"word ".repeat(4_000_000));
        let source = "{% set ns = namespace(all=[]) %}{% for m in messages %}\
            {% set ns.all = ns.all + [m] %}\
            {% if loop.index0 == (messages | length - 1) and '</x>' in m.content %}{% endif %}\
            {% set content = m.content | trim | replace('a', 'b') %}\
            {{ '<' + m.role + '>' + content.strip().split('</x>')[-1] + '\n' }}{% endfor %}\
            {{ ns.all | length }}";
        assert!(render(source, &conversation).unwrap().ends_with("word\n1"));
        conversation.messages = vec![said("a").messages[0].clone(); 16_384];
        assert!(render(source, &conversation).unwrap().ends_with("b\n16384"));
    }

    #[test]
    fn a_refusal_is_in_the_templates_words_and_a_fault_says_where() {
        let own = "{% macro m(x) %}{{ raise_exception('not ' ~ x) }}{% endmacro %}\
                   {{ m(messages[0].content) }}";
        assert_eq!(refusal(own, &said("you")), "not you");
        let fault = refusal("a\n{{ messages[0].content.x.y }}", &said(""));
        assert!(fault.starts_with("chat template, line 2: "), "{fault}");
        let sources = Sources { chat: "a\nb {% if %}".to_owned(), tool_use: None };
        let fault = Template::compile(sources, Map::new()).err().unwrap();
        assert!(fault.starts_with("chat template, line 2: "), "{fault}");
    }

    #[test]
    fn tools_may_have_a_template_of_their_own() {
        let sources = Sources { chat: "chat".to_owned(), tool_use: Some("tools".to_owned()) };
        let template = Template::compile(sources, Map::new()).unwrap();
        let render = |conversation: &Conversation| {
            template.render(conversation, &Controls::new(Vec::new()).unwrap()).unwrap().0
        };
        let mut conversation = said("");
        assert_eq!(render(&conversation), "chat");
        conversation.tools.push(Tool::default());
        assert_eq!(render(&conversation), "tools");
    }

    #[test]
    fn variables_reach_the_template_but_replace_nothing_of_the_conversation() {
        let mut conversation = said("hello");
        for name in ["messages", "tools", "add_generation_prompt", "own"] {
            conversation.variables.insert(name.to_owned(), "given".into());
        }
        let source = "{{ messages[0].content }} {{ tools }} {{ add_generation_prompt }} {{ own }}";
        assert_eq!(render(source, &conversation).unwrap(), "hello None False given");
    }

    #[test]
    fn a_message_is_gone_on_with_only_where_it_shows_as_it_is() {
        let unfinished =
            |content: &str| Conversation { continue_final_message: true, ..said(content) };
        let of = |source: &str, content: &str| render(source, &unfinished(content));
        let verbatim = "<{{ messages[0].content }}>";
        assert_eq!(of(verbatim, "a \n").unwrap(), "<a \n");
        assert_eq!(of("<{{ messages[0].content | trim }}>", " a \n").unwrap(), "<a");
        for source in ["<>", "<{{ messages[0].content | upper }}>", "{{ messages[0].content[:3] }}"]
        {
            assert!(of(source, "abcd").is_err(), "{source}");
        }
        let none = Conversation { continue_final_message: true, ..Conversation::default() };
        assert!(render(verbatim, &none).is_err());
        let both = Conversation { add_generation_prompt: true, ..unfinished("a") };
        assert!(render(verbatim, &both).is_err());
    }

    #[test]
    fn reasoning_can_be_gone_on_with() {
        let mut conversation = Conversation { continue_final_message: true, ..said("") };
        conversation.messages[0].reasoning = Some("so far".to_owned());
        let source = "<think>{{ messages[0].reasoning_content }}</think>{{ messages[0].content }}";
        assert_eq!(render(source, &conversation).unwrap(), "<think>so far");
    }

    #[test]
    fn generation_tags_are_scopes() {
        for (source, expected) in [
            ("{% generation %}a{% endgeneration %}", "{% with %}a{% endwith %}"),
            ("{%- generation -%} {%+ endgeneration %}", "{%- with -%} {%+ endwith %}"),
            (
                "{% set generation = 1 %}{{ generation }}",
                "{% set generation = 1 %}{{ generation }}",
            ),
            ("{{ '{% generation' }} {%", "{{ '{% generation' }} {%"),
        ] {
            assert_eq!(without_generation_tags(source), expected);
        }
    }
}
