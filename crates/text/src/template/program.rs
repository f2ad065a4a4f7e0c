//! Compiles a template and inserts the meter's calls into minijinja's instructions. minijinja
//! itself only counts instructions, and a single instruction can double a text.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use minijinja::machinery::{
    CompiledTemplate, Instruction, Instructions, TemplateConfig, Token, eval, make_string_output,
    tokenize,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};

use super::meter;

/// The longest known template has 30 KB.
const SOURCE_BYTES_MAX: usize = 1 << 20;
/// Most tokens within one tag, and below, most `elif` in a template: each can add a level to the
/// recursion of parser and compiler, for which [`super::STACK_BYTES`] suffices.
const TAG_TOKENS_MAX: usize = 4096;
const ELIF_MAX: usize = 1024;

const INHERITANCE: &str = "inheritance between templates";

/// A template, ready to run.
pub(super) struct Program {
    instructions: Instructions<'static>,
    /// Parts that an inheriting template could replace; there are none.
    replaceable: BTreeMap<&'static str, Instructions<'static>>,
}

impl Program {
    /// # Errors
    /// The source is not a template, or uses a feature whose cost cannot be bounded.
    pub(super) fn compile(source: String) -> Result<Self, Error> {
        if source.len() > SOURCE_BYTES_MAX {
            let reason = format!("it has more than {SOURCE_BYTES_MAX} bytes");
            return Err(Error::new(ErrorKind::SyntaxError, reason));
        }
        let syntax_config =
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
        check_nesting(&source, &syntax_config)?;
        // A compiled template borrows its source. A model has one or two templates, which are used
        // for as long as the program runs.
        let source: &'static str = Box::leak(source.into_boxed_str());
        let config = TemplateConfig {
            syntax_config,
            default_auto_escape: Arc::new(|_: &str| AutoEscape::None),
        };
        let compiled = CompiledTemplate::new("chat", source, &config)?;
        if !compiled.blocks.is_empty() {
            return Err(impossible(INHERITANCE, 0));
        }
        let instructions = metered(&compiled.instructions)?;
        Ok(Self { instructions, replaceable: BTreeMap::new() })
    }

    pub(super) fn run(
        &self,
        environment: &Environment<'static>,
        variables: Value,
    ) -> Result<String, Error> {
        let mut text = String::new();
        let out = &mut make_string_output(&mut text);
        let (instructions, replaceable) = (&self.instructions, &self.replaceable);
        eval(environment, instructions, variables, replaceable, out, AutoEscape::None)?;
        Ok(text)
    }
}

fn check_nesting(source: &str, syntax: &SyntaxConfig) -> Result<(), Error> {
    let (mut in_tag, mut elifs) = (0, 0);
    for token in tokenize(source, false, syntax.clone()) {
        let (token, span) = token?;
        match token {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => in_tag = 0,
            Token::Ident("elif") => elifs += 1,
            _ => in_tag += 1,
        }
        if in_tag > TAG_TOKENS_MAX || elifs > ELIF_MAX {
            let reason = format!(
                "line {}: a tag has at most {TAG_TOKENS_MAX} words and signs, and a template at \
                 most {ELIF_MAX} elif",
                span.start_line
            );
            return Err(Error::new(ErrorKind::SyntaxError, reason));
        }
    }
    Ok(())
}

fn impossible(what: &str, line: u16) -> Error {
    let reason = format!("line {line}: {what} is not possible in a chat template");
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// The same instructions, with the meter's calls around those that may consume or produce much.
fn metered(from: &Instructions<'static>) -> Result<Instructions<'static>, Error> {
    let old: Vec<_> = (0..).map_while(|at| from.get(at)).collect();
    let targets: BTreeSet<u32> = old.iter().filter_map(|instruction| target(instruction)).collect();
    let (mut starts, mut new) = (Vec::with_capacity(old.len() + 1), Vec::new());
    for (at, instruction) in (0..).zip(&old) {
        starts.push(new.len() as u32);
        let line = from.get_line(at).and_then(|line| u16::try_from(line).ok()).unwrap_or(0);
        let constant = match at.checked_sub(1).and_then(|before| from.get(before)) {
            Some(Instruction::LoadConst(value)) if !targets.contains(&at) => Some(value),
            _ => None,
        };
        let sequence = with_meter(instruction, constant, line)?;
        new.extend(sequence.into_iter().map(|instruction| (instruction, line)));
    }
    starts.push(new.len() as u32);
    let mut to = Instructions::new(from.name(), from.source());
    for (mut instruction, line) in new {
        if let Instruction::Iterate(target)
        | Instruction::Jump(target)
        | Instruction::JumpIfFalse(target)
        | Instruction::JumpIfFalseOrPop(target)
        | Instruction::JumpIfTrueOrPop(target)
        | Instruction::BuildMacro(_, target, _) = &mut instruction
        {
            *target = starts[*target as usize];
        }
        to.add_with_line(instruction, line);
    }
    Ok(to)
}

/// The target of a jump, if the instruction can jump.
fn target(instruction: &Instruction<'_>) -> Option<u32> {
    match instruction {
        Instruction::Iterate(target)
        | Instruction::Jump(target)
        | Instruction::JumpIfFalse(target)
        | Instruction::JumpIfFalseOrPop(target)
        | Instruction::JumpIfTrueOrPop(target)
        | Instruction::BuildMacro(_, target, _) => Some(*target),
        _ => None,
    }
}

fn with_meter(
    instruction: &Instruction<'static>,
    constant: Option<&Value>,
    line: u16,
) -> Result<Vec<Instruction<'static>>, Error> {
    use Instruction as I;

    let call = |name: &'static str, arguments| I::ApplyFilter(name, Some(arguments), u8::MAX);
    // Calls the meter's filter with the name of the template's filter or test as its last argument.
    let named = |name: &str, through: &'static str, arguments: &Option<u16>| match arguments {
        Some(count) => Ok(vec![I::LoadConst(name.into()), call(through, count + 1)]),
        None => Err(impossible("unpacking arguments with *", line)),
    };
    let same = || instruction.clone();
    Ok(match instruction {
        // Emitted through the formatter, which charges for it.
        I::EmitRaw(text) => {
            vec![I::LoadConst(Value::from_safe_string((*text).to_owned())), I::Emit]
        }
        I::StringConcat => vec![call(meter::CONCAT, 2)],
        I::Slice => vec![call(meter::SLICE, 4)],
        I::GetItem if constant.is_some_and(|key| key.as_str().is_some()) => vec![same()],
        I::GetItem => vec![call(meter::ITEM, 2)],
        I::Add | I::Mul => vec![same(), call(meter::MADE, 1)],
        I::BuildList(Some(0)) | I::BuildTuple(Some(0)) | I::BuildMap(0) => vec![same()],
        I::BuildList(_) | I::BuildTuple(_) | I::BuildMap(_) => {
            vec![same(), call(meter::BUILT, 1)]
        }
        // A comparison with a constant costs no more than the constant's length.
        I::Eq | I::Ne | I::Lt | I::Lte | I::Gt | I::Gte if constant.is_some() => vec![same()],
        I::Eq | I::Ne | I::Lt | I::Lte | I::Gt | I::Gte | I::In | I::CompareAndPreserve(_) => {
            vec![I::Swap, call(meter::SEEN, 1), I::Swap, call(meter::SEEN, 1), same()]
        }
        I::SetAttr(_) => vec![I::Swap, call(meter::KEPT, 1), I::Swap, same()],
        I::ApplyFilter(name, arguments, _) => named(name, meter::FILTER, arguments)?,
        I::PerformTest(name, _, _) if meter::is_cheap_test(name) => vec![same()],
        I::PerformTest(name, arguments, _) => named(name, meter::TEST, arguments)?,
        I::UnpackLists(_) => return Err(impossible("unpacking arguments with *", line)),
        I::MergeKwargs(_) => return Err(impossible("unpacking arguments with **", line)),
        I::Include(_) => return Err(impossible("include or import", line)),
        I::LoadBlocks | I::CallBlock(_) | I::FastSuper => {
            return Err(impossible(INHERITANCE, line));
        }
        _ => vec![same()],
    })
}
