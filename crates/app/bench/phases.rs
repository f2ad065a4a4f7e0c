//! The time of rounds by phase, from the stamps of many rounds.

use std::fmt::Write;
use std::time::Duration;

use kilotok_abi::Stamp;
use kilotok_engine::{PhaseTime, StepPart, StepTimes};
use serde_json::{Map, Value, json};

use super::bytes::RoundBytes;
use super::figures::Figures;

/// The times of one round, as measured by the devices.
pub(super) struct DeviceRound {
    pub(super) times: StepTimes,
    /// Empty unless the engine was started with stamps.
    pub(super) phases: Vec<PhaseTime>,
}

/// A phase, summed over all layers; times are medians over rounds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Phase {
    /// Preceded by the part of the round.
    pub(super) name: String,
    pub(super) own_us: f64,
    pub(super) wait_us: f64,
    pub(super) bytes: f64,
}

/// All phases in order. After the phases of a part comes the rest of the part's time, in which no
/// phase ran.
pub(super) fn phases(rounds: &[DeviceRound], bytes: &RoundBytes) -> Vec<Phase> {
    let mut all = Vec::new();
    for part in [StepPart::Verify, StepPart::Draft] {
        let mut stamps: Vec<Stamp> = Vec::new();
        for time in rounds.iter().flat_map(|round| &round.phases) {
            if time.part == part && !stamps.contains(&time.phase) {
                stamps.push(time.phase);
            }
        }
        let median = |of: &dyn Fn(&DeviceRound) -> f64| Figures::of(rounds.iter().map(of)).median();
        for stamp in &stamps {
            let of = |round: &DeviceRound, time: fn(&PhaseTime) -> Duration| {
                let mut times = round.phases.iter();
                let found = times.find(|time| (time.part, time.phase) == (part, *stamp));
                found.map_or(0.0, |found| microseconds(time(found)))
            };
            all.push(Phase {
                name: name(part, &snake_case(stamp.name())),
                own_us: median(&|round| of(round, |time| time.own)),
                wait_us: median(&|round| of(round, |time| time.wait)),
                bytes: bytes.of(part, *stamp),
            });
        }
        if !stamps.is_empty() {
            let (name, own_us) = (name(part, "rest"), median(&|round| rest_us(round, part)));
            all.push(Phase { name, own_us, wait_us: 0.0, bytes: 0.0 });
        }
    }
    all
}

/// The time before kernels, between them, and until their last CTA ends.
fn rest_us(round: &DeviceRound, part: StepPart) -> f64 {
    let whole = match part {
        StepPart::Verify => round.times.verify,
        StepPart::Draft => round.times.draft,
    };
    let phases = round.phases.iter().filter(|time| time.part == part);
    microseconds(whole) - phases.map(|time| microseconds(time.own + time.wait)).sum::<f64>()
}

fn microseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

pub(super) fn part_name(part: StepPart) -> &'static str {
    match part {
        StepPart::Verify => "verify",
        StepPart::Draft => "draft",
    }
}

fn name(part: StepPart, phase: &str) -> String {
    format!("{}.{phase}", part_name(part))
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

/// Adds an entry for each phase.
pub(super) fn add_json(phases: &[Phase], to: &mut Map<String, Value>) {
    for Phase { name, own_us, wait_us, bytes } in phases {
        let mut entry = json!({ "us": own_us, "bytes": bytes.round() as u64 });
        if *wait_us > 0.0 {
            entry["wait_us"] = json!(wait_us);
        }
        to.insert(name.clone(), entry);
    }
}

/// A line for each phase, with its share of the read rate; empty if there are no phases.
pub(super) fn table(phases: &[Phase], read_rate: f64) -> String {
    let mut text = String::new();
    if phases.is_empty() {
        return text;
    }
    let _ = writeln!(
        text,
        "    {:<22}{:>10}{:>10}{:>10}  of {:.2} TB/s",
        "phase",
        "own us",
        "waits us",
        "MB",
        read_rate / 1e12
    );
    for Phase { name, own_us, wait_us, bytes } in phases {
        let share = bytes / read_rate * 1e6 / (own_us + wait_us);
        let share = if *bytes > 0.0 { format!("{:.0} %", share * 100.0) } else { String::new() };
        let _ = writeln!(
            text,
            "    {name:<22}{own_us:>10.1}{wait_us:>10.1}{:>10.1}{share:>13}",
            bytes / 1e6
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use kilotok_testkit::Toy;

    use super::super::rounds::Shape;
    use super::*;

    fn bytes() -> RoundBytes {
        RoundBytes::new(
            &Toy::pro_fp4().spec(),
            1,
            Shape { batch: 1, draft: 3, chunk: None, context: 20 },
            3.0,
        )
    }

    /// A round in which the target takes `verify` microseconds, 10 of them in gate and up.
    fn round(verify: u64, wait: u64) -> DeviceRound {
        let us = Duration::from_micros;
        let time = |part, phase, own, wait| PhaseTime {
            part,
            phase,
            own: us(own),
            wait: us(wait),
            experts: 0,
        };
        DeviceRound {
            times: StepTimes { verify: us(verify), draft: us(50) },
            phases: vec![
                time(StepPart::Verify, Stamp::Embed, 4, 0),
                time(StepPart::Verify, Stamp::GateUp, 10, wait),
                time(StepPart::Draft, Stamp::GateUp, 30, 5),
            ],
        }
    }

    #[test]
    fn phases_and_the_rest_are_the_whole() {
        let bytes = bytes();
        let phases = phases(&[round(100, 1), round(200, 3), round(120, 2)], &bytes);
        let found = phases.iter().map(|phase| (&*phase.name, phase.own_us, phase.wait_us));
        let expected = [
            ("verify.embed", 4.0, 0.0),
            ("verify.gate_up", 10.0, 2.0),
            ("verify.rest", 104.0, 0.0),
            ("draft.gate_up", 30.0, 5.0),
            ("draft.rest", 15.0, 0.0),
        ];
        for (found, expected) in found.zip(expected) {
            assert_eq!(found.0, expected.0);
            // Durations are whole nanoseconds.
            assert!((found.1 - expected.1).abs() < 1e-3, "{found:?}");
            assert!((found.2 - expected.2).abs() < 1e-3, "{found:?}");
        }
        assert_eq!(phases.len(), expected.len());
    }

    #[test]
    fn the_result_has_an_entry_for_each_phase() {
        let bytes = bytes();
        let phases = phases(&[round(100, 1)], &bytes);
        let mut map = Map::new();
        add_json(&phases, &mut map);
        assert_eq!(map["verify.embed"].as_object().unwrap().len(), 2, "no wait follows it");
        let gate_up = &map["verify.gate_up"];
        assert_eq!((&gate_up["us"], &gate_up["wait_us"]), (&json!(10.0), &json!(1.0)));
        let read = bytes.of(StepPart::Verify, Stamp::GateUp).round() as u64;
        assert!(read > 0 && gate_up["bytes"] == read);
        assert!(map["draft.gate_up"]["bytes"].as_u64() < Some(read), "no experts: {map:?}");
        let table = table(&phases, 4e12);
        assert_eq!(table.lines().count(), 1 + phases.len());
        assert!(table.contains("own us") && table.contains("draft.gate_up"), "{table}");
    }

    #[test]
    fn an_engine_that_tells_no_phases_has_none() {
        let silent = DeviceRound { phases: Vec::new(), ..round(100, 1) };
        assert_eq!(phases(&[silent], &bytes()), []);
        assert_eq!(table(&[], 4e12), "");
    }
}
