//! Resources of kernels, from the compiler's output and from the committed table.

use std::fmt::Write;

pub(super) const PATH: &str = "kernels/resources.md";
const HEAD: &str = "\
# What the kernels take

By kernel and model, for sm_90a, as nvcc ";
const REST: &str = " compiles them. Made by `cargo xtask kernels --update`;
`cargo xtask kernels` fails where spills are more than here. Registers are what a launch reserves
for each thread; of them producer and epilogue hand some to the consumers, whose code is compiled
for as many. Stack, spills and shared memory are in bytes.

| model | kernel | registers | stack | spill stores | spill loads | shared |
|---|---|---|---|---|---|---|
";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    pub(super) model: String,
    pub(super) name: String,
    registers: u32,
    stack: u32,
    spill_stores: u32,
    spill_loads: u32,
    shared: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// The version of nvcc.
    pub(super) version: String,
    pub(super) kernels: Vec<Kernel>,
}

impl Table {
    pub(super) fn text(&self) -> String {
        let mut text = format!("{HEAD}{}{REST}", self.version);
        for kernel in &self.kernels {
            let Kernel { model, name, registers, stack, spill_stores, spill_loads, shared } =
                kernel;
            writeln!(
                text,
                "| {model} | {name} | {registers} | {stack} | {spill_stores} | {spill_loads} | \
                 {shared} |"
            )
            .expect("a string takes everything");
        }
        text
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix(HEAD).ok_or_else(|| format!("{PATH} begins otherwise"))?;
        let version = rest.split_whitespace().next().unwrap_or_default().to_owned();
        let rows = text.lines().filter(|line| line.starts_with("| ")).skip(1);
        let kernels = rows.map(row).collect::<Option<_>>();
        let kernels = kernels.ok_or_else(|| format!("{PATH} has a row that is none"))?;
        Ok(Self { version, kernels })
    }
}

fn row(line: &str) -> Option<Kernel> {
    let mut cells = line.trim_matches('|').split('|').map(str::trim);
    let (model, name) = (cells.next()?.to_owned(), cells.next()?.to_owned());
    let mut number = || cells.next()?.parse().ok();
    Some(Kernel {
        model,
        name,
        registers: number()?,
        stack: number()?,
        spill_stores: number()?,
        spill_loads: number()?,
        shared: number()?,
    })
}

/// The kernels of a source: `ptx` is its PTX, `said` the messages of `ptxas -v` about it. Functions
/// that are called and not inlined are listed after their kernel and count as part of it.
pub(super) fn kernels(model: &str, ptx: &str, said: &str) -> Vec<Kernel> {
    let shared = ptx.split("SHARED_BYTES = ").nth(1).and_then(first_number).unwrap_or_default();
    let mut kernels: Vec<Kernel> = Vec::new();
    for line in said.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let name = rest.split('\'').next().unwrap_or_default().to_owned();
            let model = model.to_owned();
            let (registers, stack, spill_stores, spill_loads) = (0, 0, 0, 0);
            let kernel =
                Kernel { model, name, registers, stack, spill_stores, spill_loads, shared };
            kernels.push(kernel);
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        let number = |before: &str| line.split(before).nth(1).and_then(first_number);
        if let Some((stack, rest)) = line.split_once(" bytes stack frame, ") {
            let mut parts = rest.split(',').map(|part| first_number(part).unwrap_or_default());
            kernel.stack += first_number(stack).unwrap_or_default();
            kernel.spill_stores += parts.next().unwrap_or_default();
            kernel.spill_loads += parts.next().unwrap_or_default();
        } else if let Some(registers) = number("Used ") {
            kernel.registers = kernel.registers.max(registers);
            // A kernel without variables in shared memory has no such entry.
            if !line.contains(" bytes smem") {
                kernel.shared = 0;
            }
        }
    }
    kernels.sort_by(|a, b| a.name.cmp(&b.name));
    kernels
}

fn first_number(text: &str) -> Option<u32> {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

/// Lists the kernels that are worse than in the table, or missing there. Numbers from different
/// compilers cannot be compared.
pub(super) fn compare(committed: &Table, found: &Table) -> Vec<String> {
    if committed.version != found.version {
        return Vec::new();
    }
    let mut problems = Vec::new();
    for kernel in &found.kernels {
        let Kernel { model, name, spill_stores, spill_loads, .. } = kernel;
        let same = |other: &&Kernel| other.model == *model && other.name == *name;
        match committed.kernels.iter().find(same) {
            None => problems.push(format!("lacks {name} for {model}: run with --update")),
            Some(was) if (*spill_stores, *spill_loads) > (was.spill_stores, was.spill_loads) => {
                problems.push(format!(
                    "{name} for {model} spills {spill_stores} and {spill_loads} bytes, not {} and \
                     {}: use fewer registers at a time",
                    was.spill_stores, was.spill_loads
                ));
            }
            Some(was) if was != kernel => {
                problems.push(format!("{name} for {model} changed: run with --update"));
            }
            Some(_) => {}
        }
    }
    let gone = |was: &&Kernel| {
        !found.kernels.iter().any(|kernel| kernel.model == was.model && kernel.name == was.name)
    };
    for was in committed.kernels.iter().filter(gone) {
        problems.push(format!("{} for {} is gone: run with --update", was.name, was.model));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTX: &str = ".global .align 4 .u32 SHARED_BYTES = 219776;\n";
    const SAID: &str = "\
ptxas info    : 152 bytes gmem
ptxas info    : Compiling entry function 'target' for 'sm_90a'
ptxas info    : Function properties for target
    1320 bytes stack frame, 92 bytes spill stores, 264 bytes spill loads
ptxas info    : Used 128 registers, used 2 barriers, 1320 bytes cumulative stack size, 40 bytes smem
ptxas info    : Compile time = 21270.326 ms
ptxas info    : Function properties for consume
    0 bytes stack frame, 2984 bytes spill stores, 2016 bytes spill loads
ptxas info    : Compiling entry function 'draft' for 'sm_90a'
ptxas info    : Function properties for draft
    40 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 96 registers, used 2 barriers, 40 bytes cumulative stack size
";

    fn found() -> Table {
        Table { version: "13.5".to_owned(), kernels: kernels("slice", PTX, SAID) }
    }

    #[test]
    fn what_ptxas_says_of_a_kernel_and_its_functions_is_added() {
        let [draft, target] = &found().kernels[..] else { panic!("two kernels") };
        assert_eq!((draft.name.as_str(), draft.registers, draft.stack), ("draft", 96, 40));
        assert_eq!(draft.shared, 0, "it has nothing there");
        assert_eq!((target.spill_stores, target.spill_loads), (92 + 2984, 264 + 2016));
        assert_eq!((target.registers, target.shared), (128, 219_776));
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        assert_eq!(Table::parse(&found().text()), Ok(found()));
        assert!(Table::parse("# Another\n").is_err());
        assert!(Table::parse(&found().text().replace("| 96 |", "| many |")).is_err());
    }

    #[test]
    fn more_spills_new_kernels_and_stale_rows_are_problems() {
        let committed = found();
        assert!(compare(&committed, &found()).is_empty());
        let mut worse = found();
        worse.kernels[0].spill_loads = 4;
        assert!(compare(&committed, &worse)[0].contains("spills 0 and 4 bytes, not 0 and 0"));
        let mut fewer = found();
        fewer.kernels[1].spill_stores -= 8;
        assert!(compare(&committed, &fewer)[0].contains("--update"));
        fewer.kernels.remove(0);
        assert_eq!(compare(&committed, &fewer).len(), 2);
        assert!(compare(&fewer, &found()).iter().any(|problem| problem.contains("lacks draft")));
        worse.version = "12.9".to_owned();
        assert!(compare(&committed, &worse).is_empty());
    }
}
