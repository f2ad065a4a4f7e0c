//! From the stamps of a step's launches to the time of each of their phases.

use std::time::Duration;

use kilotok_abi::{STAMPS_MAX, Stamp, Stamped};
use kilotok_engine::{PhaseTime, StepPart};

/// Why stamps cannot be evaluated.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StampsError {
    #[error("a launch made more stamps than the {STAMPS_MAX} that there is room for")]
    Full,
    #[error("a launch made a stamp of number {0}, which nothing has")]
    Unknown(u32),
    #[error("stamps begin and end at the same time by the device's clock")]
    NoTime,
}

/// Cycles of a phase.
struct PhaseCycles {
    part: StepPart,
    phase: Stamp,
    own: u64,
    wait: u64,
    experts: u64,
}

/// The phases of all launches together, in order. A launch that did not run has no stamps. Cycles
/// are converted to time by the device's clock over all launches, because the SMs' clock varies.
pub(crate) fn phase_times<'a>(
    launches: impl Iterator<Item = (StepPart, &'a [Stamped])>,
) -> Result<Vec<PhaseTime>, StampsError> {
    let (mut phases, mut cycles, mut nanoseconds) = (Vec::new(), 0, 0);
    for (part, stamps) in launches.filter(|(_, stamps)| stamps[0].what != 0) {
        let end = stamps.iter().position(|stamp| stamp.what == Stamp::Ended as u32);
        let end = end.ok_or(StampsError::Full)?;
        add_launch(&mut phases, part, &stamps[..=end])?;
        cycles += stamps[end].cycles.wrapping_sub(stamps[0].cycles);
        nanoseconds += u64::from(stamps[end].number.wrapping_sub(stamps[0].number));
    }
    if !phases.is_empty() && (cycles == 0 || nanoseconds == 0) {
        return Err(StampsError::NoTime);
    }
    let time =
        |of: u64| Duration::from_secs_f64(of as f64 * 1e-9 * nanoseconds as f64 / cycles as f64);
    let times = phases.into_iter().map(|phase| {
        let PhaseCycles { part, phase, own, wait, experts } = phase;
        PhaseTime { part, phase, own: time(own), wait: time(wait), experts }
    });
    Ok(times.collect())
}

/// The time between two stamps belongs to the second one; a barrier's wait belongs to the phase
/// before it.
fn add_launch(
    phases: &mut Vec<PhaseCycles>,
    part: StepPart,
    stamps: &[Stamped],
) -> Result<(), StampsError> {
    let mut phase = Stamp::Begun;
    for pair in stamps.windows(2) {
        let number = pair[1].what;
        let what = Stamp::of(number).ok_or(StampsError::Unknown(number))?;
        let cycles = pair[1].cycles.wrapping_sub(pair[0].cycles);
        match what {
            // The time after the last phase is negligible.
            Stamp::Ended => {}
            Stamp::Barrier => of(phases, part, phase).wait += cycles,
            _ => {
                phase = what;
                let entry = of(phases, part, phase);
                entry.own += cycles;
                entry.experts += u64::from(pair[1].number);
            }
        }
    }
    Ok(())
}

/// The entry of a phase. If it is the first of its kind, it is added.
fn of(phases: &mut Vec<PhaseCycles>, part: StepPart, phase: Stamp) -> &mut PhaseCycles {
    let known = phases.iter().position(|known| (known.part, known.phase) == (part, phase));
    let index = known.unwrap_or_else(|| {
        phases.push(PhaseCycles { part, phase, own: 0, wait: 0, experts: 0 });
        phases.len() - 1
    });
    &mut phases[index]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stamps of a launch that begins at this cycle: the stamp, and the cycles since the one
    /// before. The device's clock counts two cycles as one nanosecond, and is about to wrap.
    fn launch(begin: u64, made: &[(Stamp, u64)]) -> Vec<Stamped> {
        let clock = |cycles: u64| (u32::MAX - 10).wrapping_add((cycles / 2) as u32);
        let stamp = |what, cycles| Stamped { what, number: clock(cycles), cycles };
        let mut stamps = vec![stamp(Stamp::Begun as u32, begin)];
        let mut cycles = begin;
        for (what, more) in made {
            cycles += more;
            stamps.push(stamp(*what as u32, cycles));
        }
        stamps.push(stamp(0, 0));
        stamps
    }

    /// Part, phase, own nanoseconds, and those of waiting.
    fn times(launches: &[(StepPart, Vec<Stamped>)]) -> Vec<(StepPart, Stamp, u128, u128)> {
        let launches = launches.iter().map(|(part, stamps)| (*part, &stamps[..]));
        let times = phase_times(launches).unwrap();
        let numbers =
            |time: PhaseTime| (time.part, time.phase, time.own.as_nanos(), time.wait.as_nanos());
        times.into_iter().map(numbers).collect()
    }

    #[test]
    fn barriers_are_waits_of_the_phase_before() {
        let made = [
            (Stamp::Embed, 200),
            (Stamp::Barrier, 40),
            (Stamp::Project, 100),
            // Two barriers with nothing between them.
            (Stamp::Barrier, 10),
            (Stamp::Barrier, 6),
            (Stamp::Attention, 60),
            (Stamp::Project, 80),
            (Stamp::Barrier, 2),
            (Stamp::Ended, 2),
        ];
        let verify = StepPart::Verify;
        let expected = [
            (verify, Stamp::Embed, 100, 20),
            (verify, Stamp::Project, 90, 9),
            (verify, Stamp::Attention, 30, 0),
        ];
        assert_eq!(times(&[(verify, launch(1 << 40, &made))]), expected);
    }

    #[test]
    fn launches_of_a_part_are_one_and_those_that_were_not_are_none() {
        let made = [(Stamp::Project, 100), (Stamp::Barrier, 20), (Stamp::Ended, 0)];
        let none = vec![Stamped { what: 0, number: 0, cycles: 0 }; 4];
        let (verify, draft) = (StepPart::Verify, StepPart::Draft);
        let launches = [
            (verify, launch(1000, &made)),
            (draft, launch(50, &made)),
            (draft, none.clone()),
            // On another SM, whose cycles begin elsewhere.
            (draft, launch(7, &made)),
        ];
        let expected = [(verify, Stamp::Project, 50, 10), (draft, Stamp::Project, 100, 20)];
        assert_eq!(times(&launches), expected);
        assert_eq!(times(&[(verify, none)]), []);
    }

    #[test]
    fn stamps_that_say_nothing_are_refused() {
        let of = |stamps: &[Stamped]| phase_times([(StepPart::Verify, stamps)].into_iter());
        let made = [(Stamp::Embed, 200), (Stamp::Ended, 2)];
        let whole = launch(0, &made);
        assert!(of(&whole).is_ok());
        let full = &whole[..2];
        assert_eq!(of(full), Err(StampsError::Full));
        assert!(StampsError::Full.to_string().contains("more stamps than the 8192"));
        let mut foreign = whole.clone();
        foreign[1].what = 99;
        assert_eq!(of(&foreign), Err(StampsError::Unknown(99)));
        let mut still = whole;
        still[2].number = still[0].number;
        assert_eq!(of(&still), Err(StampsError::NoTime));
    }
}
