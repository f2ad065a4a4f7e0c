//! Chat templates: the checkpoint's own Jinja, rendered as transformers renders it. Knows Jinja
//! and how far Python's differs from minijinja's; does not know any model's markup.

mod calendar;
mod json;
mod methods;
mod python;

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior};
use serde_json::{Map, Value, json};

use crate::controls::{Controls, Marks};
use crate::{Conversation, Message, TextError, Tool};

/// Instructions that one rendering may take, about a second. A message takes some hundreds.
const FUEL_MAX: u64 = 20_000_000;
/// Bytes of one prompt; a million tokens are about five.
const PROMPT_BYTES_MAX: usize = 64 << 20;

const CHAT: &str = "chat";
const TOOL_USE: &str = "tool_use";

/// Marks the end of the message to go on with. The space tells whether the template trims.
const CONTINUE_MARK: &str = "\u{e000}continue here\u{e000} ";

/// Variables that no template can name: seconds since 1970, and the stand-ins of [`Controls`].
const NOW: &str = " now";
const STAND_INS: &str = " stand-ins";

pub(crate) struct Template {
    environment: Environment<'static>,
    /// Variables of every rendering, such as `bos_token`.
    variables: Map<String, Value>,
}

/// Sources of a checkpoint's templates.
pub(crate) struct Sources {
    pub(crate) chat: String,
    /// Takes the place of `chat` where there are tools.
    pub(crate) tool_use: Option<String>,
}

impl Template {
    /// # Errors
    /// Says what is no Jinja, and in which line.
    pub(crate) fn compile(sources: Sources, variables: Map<String, Value>) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| error.to_string())?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(FUEL_MAX));
        python::adapt(&mut environment);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        let named = [(CHAT, Some(sources.chat)), (TOOL_USE, sources.tool_use)];
        for (name, source) in named {
            let Some(source) = source else { continue };
            let source = without_generation_tags(&source);
            let added = environment.add_template_owned(name, source);
            added.map_err(|error| failure(&error).to_string())?;
        }
        Ok(Self { environment, variables })
    }

    /// The prompt, with marks in what comes from the conversation.
    pub(crate) fn render(
        &self,
        conversation: &Conversation,
        controls: &Controls,
    ) -> Result<(String, Marks), TextError> {
        let mut given = Given::new(conversation);
        let marks = given.mark(controls).map_err(TextError::Template)?;
        let rendered = self.render_given(conversation, given, &marks);
        // What the template raised may quote what it was given.
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
        let name = if given.tools.is_empty() { CHAT } else { TOOL_USE };
        let mut variables = self.variables.clone();
        variables.insert("documents".to_owned(), Value::Null);
        variables.extend(given.variables);
        variables.insert(NOW.to_owned(), seconds(conversation).into());
        let stand_ins: String = marks.iter().map(|(mark, _)| mark).collect();
        variables.insert(STAND_INS.to_owned(), stand_ins.into());
        variables.insert("messages".to_owned(), given.messages.into());
        let tools = if given.tools.is_empty() { Value::Null } else { given.tools.into() };
        variables.insert("tools".to_owned(), tools);
        variables
            .insert("add_generation_prompt".to_owned(), conversation.add_generation_prompt.into());

        let template = self.environment.get_template(name);
        let template = template.or_else(|_| self.environment.get_template(CHAT));
        let template = template.map_err(|error| failure(&error))?;
        let mut prompt = Prompt(Vec::new());
        let variables = minijinja::Value::from(Serde(&variables));
        template.render_captured_to(variables, &mut prompt).map_err(|error| failure(&error))?;
        String::from_utf8(prompt.0).map_err(|error| TextError::Fault(error.to_string()))
    }
}

/// What a conversation gives to a template.
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

/// A message under all names that templates read.
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

/// Puts the mark after what the model shall go on with, and returns that. A message without
/// content but with reasoning is one whose reasoning goes on.
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

/// What is before the mark; spaces at the end go where the template took the mark's.
fn cut_at_mark(prompt: &str) -> Option<&str> {
    let (before, after) = prompt.rsplit_once(CONTINUE_MARK.trim_end())?;
    Some(if after.starts_with(' ') { before } else { before.trim_end() })
}

fn seconds(conversation: &Conversation) -> i64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "`strftime_now` means the wall clock, and only templates that ask for it see it"
    )]
    let now = conversation.now.unwrap_or_else(std::time::SystemTime::now);
    let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// A template's own refusal, for the user word by word.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: &str) -> Result<String, Error> {
    let raised = Raised(message.to_owned());
    Err(Error::new(ErrorKind::InvalidOperation, "raised").with_source(raised))
}

fn strftime_now(state: &State, format: &str) -> String {
    let now = state.lookup(NOW).and_then(|now| i64::try_from(now).ok());
    calendar::format(format, now.unwrap_or_default())
}

/// An error in the words of its cause.
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
        (ErrorKind::OutOfFuel, _) => "the chat template runs for too long".to_owned(),
        (ErrorKind::WriteFailure, _) => {
            format!("the prompt is larger than {PROMPT_BYTES_MAX} bytes")
        }
        (kind, None) => format!("chat template{line}: {kind}"),
        (kind, Some(detail)) => format!("chat template{line}: {kind}: {detail}"),
    })
}

/// `{% generation %}` marks for training what the assistant said. Here it is but a scope.
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
                // Not the whole tag: it may be text with a tag inside.
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

/// A prompt as it is written, up to its limit.
struct Prompt(Vec<u8>);

impl io::Write for Prompt {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > PROMPT_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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

    #[test]
    fn templates_cannot_run_or_write_without_end() {
        let endless =
            "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}";
        assert_eq!(refusal(endless, &said("")), "the chat template runs for too long");
        let recursive = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
        assert!(refusal(recursive, &said("")).starts_with("chat template"));
        let large = "{% for a in range(100) %}{{ messages[0].content }}{% endfor %}";
        let reason = refusal(large, &said(&"x".repeat(1 << 20)));
        assert_eq!(reason, format!("the prompt is larger than {PROMPT_BYTES_MAX} bytes"));
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
