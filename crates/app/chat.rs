//! `kilotok chat`: a conversation in the terminal with any server of OpenAI's API. While a reply
//! runs, its speed and acceptance are shown. If the input is a pipe, it answers once and exits.

mod line;
mod screen;
mod speed;

use std::io::{IsTerminal, Read};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use crate::client::{Client, Server};
use crate::environment;
use line::{Command, Editor, Input};
use screen::Screen;
use speed::Speed;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    server: Server,
    /// The model's name at the server [default: the first that it serves].
    #[arg(long)]
    model: Option<String>,
    /// System message, put before the conversation.
    #[arg(long)]
    system: Option<String>,
    /// Sampling temperature; 0 always takes the likeliest token [default: the model's own].
    #[arg(long, value_parser = temperature)]
    temperature: Option<f64>,
    /// Most tokens of a reply [default: the server's limit].
    #[arg(long)]
    max_tokens: Option<u32>,
    /// Seed of sampling: the same seed and the same messages give the same reply [default: random].
    #[arg(long)]
    seed: Option<u64>,
    /// Do not show the model's reasoning.
    #[arg(long)]
    hide_thoughts: bool,
}

/// JSON cannot express infinity and NaN: the field would be missing.
pub(crate) fn temperature(text: &str) -> Result<f64, &'static str> {
    let number = text.parse().ok().filter(|number| (0.0..=f64::from(f32::MAX)).contains(number));
    number.ok_or("give a number from 0 on")
}

/// A conversation.
struct Chat {
    client: Client,
    model: String,
    system: Option<String>,
    /// Fields of the request besides the messages.
    fields: Map<String, Value>,
    messages: Vec<Value>,
    screen: Screen,
}

/// How a reply ended.
#[derive(PartialEq)]
enum End {
    Complete,
    /// By the user, with Ctrl-C.
    Stopped,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let runtime = crate::runtime()?;
    let client = Client::new(&args.server, environment::api_key())?;
    let model = runtime.block_on(client.model(args.model.as_deref()))?;
    let mut fields = Map::new();
    let given = [
        ("temperature", args.temperature.map(Value::from)),
        ("max_tokens", args.max_tokens.map(Value::from)),
        ("seed", args.seed.map(Value::from)),
    ];
    for (name, value) in given {
        if let Some(value) = value {
            fields.insert(name.to_owned(), value);
        }
    }
    let terminal = std::io::stdout().is_terminal();
    let screen = Screen::new(terminal, !environment::no_color(), !args.hide_thoughts);
    let (system, messages) = (args.system.clone(), Vec::new());
    let mut chat = Chat { client, model, system, fields, messages, screen };
    if !std::io::stdin().is_terminal() {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("reading the message")?;
        chat.say(text.trim_end());
        return match runtime.block_on(chat.reply())? {
            End::Complete => Ok(()),
            End::Stopped => bail!("stopped"),
        };
    }
    chat.greet();
    let mut editor = Editor::new(environment::chat_history())?;
    loop {
        match editor.read()? {
            Input::End => return Ok(()),
            Input::Message(text) => {
                chat.say(&text);
                chat.answer(&runtime);
            }
            Input::Command(command) => match chat.obey(command) {
                Next::Ask => chat.answer(&runtime),
                Next::Read => {}
                Next::End => return Ok(()),
            },
        }
    }
}

/// What to do after a command.
enum Next {
    Ask,
    Read,
    End,
}

impl Chat {
    fn greet(&mut self) {
        let (model, base) = (&self.model, &self.client.base);
        self.screen.note(&format!("{model} at {base}. /help shows what else can be typed."));
    }

    fn say(&mut self, text: &str) {
        self.messages.push(json!({ "role": "user", "content": text }));
    }

    /// Asks for a reply, and shows an error.
    fn answer(&mut self, runtime: &tokio::runtime::Runtime) {
        match runtime.block_on(self.reply()) {
            Ok(_) => {}
            Err(error) => {
                self.screen.note(&format!("error: {error:#}"));
                self.screen.note("/retry asks again");
            }
        }
    }

    fn body(&self) -> Value {
        let system = self.system.iter().map(|text| json!({ "role": "system", "content": text }));
        let messages: Vec<_> = system.chain(self.messages.iter().cloned()).collect();
        let mut body = json!({
            "model": self.model,
            "messages": messages,
            "stream": true,
            "stream_options": { "include_usage": true, "continuous_usage_stats": true },
        });
        for (name, value) in &self.fields {
            body[name] = value.clone();
        }
        body
    }

    /// Requests one reply. If an error or Ctrl-C ends it, its text so far stays in the
    /// conversation.
    async fn reply(&mut self) -> Result<End> {
        let mut text = String::new();
        let mut speed = Speed::start();
        let body = self.body();
        let outcome = tokio::select! {
            outcome = receive(&self.client, &body, &mut self.screen, &mut text, &mut speed) => {
                outcome.map(|()| End::Complete)
            }
            _ = tokio::signal::ctrl_c() => Ok(End::Stopped),
        };
        self.screen.end(&speed);
        if !text.is_empty() {
            self.messages.push(json!({ "role": "assistant", "content": text }));
        }
        outcome
    }

    fn obey(&mut self, command: Command) -> Next {
        match command {
            Command::Exit => return Next::End,
            Command::Retry => return self.retry(),
            Command::Help => self.screen.note(line::HELP),
            Command::Clear => {
                self.messages.clear();
                self.screen.note("a new conversation");
            }
            Command::System(text) => {
                self.system = (!text.is_empty()).then_some(text);
                let told = self.system.as_deref().unwrap_or("none");
                self.screen.note(&format!("system prompt: {told}"));
            }
            Command::Show => {
                let fields = Value::Object(self.fields.clone());
                self.screen.note(&format!("{} {fields}", self.model));
            }
            Command::Set(name, Some(value)) => {
                self.screen.note(&format!("{name} = {value}"));
                self.fields.insert(name, value);
            }
            Command::Set(name, None) => {
                self.fields.remove(&name);
                self.screen.note(&format!("{name} is the server's again"));
            }
            Command::Unknown(what) => {
                self.screen.note(&format!("{what}: there is no such command, see /help"));
            }
        }
        Next::Read
    }

    /// Removes the last reply and asks again.
    fn retry(&mut self) -> Next {
        while self.messages.last().is_some_and(|message| message["role"] == "assistant") {
            self.messages.pop();
        }
        if self.messages.is_empty() {
            self.screen.note("nothing was asked yet");
            return Next::Read;
        }
        Next::Ask
    }
}

async fn receive(
    client: &Client,
    body: &Value,
    screen: &mut Screen,
    text: &mut String,
    speed: &mut Speed,
) -> Result<()> {
    let mut events = client.stream("/v1/chat/completions", body).await?;
    while let Some(event) = events.next().await? {
        let delta = &event["choices"][0]["delta"];
        let thought = delta["reasoning"].as_str().or_else(|| delta["reasoning_content"].as_str());
        let content = delta["content"].as_str();
        speed.take(&event, thought.or(content).is_some_and(|text| !text.is_empty()));
        if let Some(thought) = thought {
            screen.thought(thought);
        }
        if let Some(content) = content {
            screen.text(content);
            text.push_str(content);
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let part = |name: &str| call["function"][name].as_str().unwrap_or_default();
            let name = part("name");
            if !name.is_empty() {
                screen.thought(&format!("\ncalls {name} "));
            }
            screen.thought(part("arguments"));
        }
        screen.status(speed);
    }
    Ok(())
}
