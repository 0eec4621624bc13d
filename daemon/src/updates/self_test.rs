//! The self-test of a version before it is activated: alone, next to the version before, and next to what its team
//! signed.

use super::Updates;
use tractd_bundle::Bundle;
use tractd_engine::proof::Refusal;
use tractd_update::{
    Unproven,
    trial::{Fault, slower},
};

/// Memory a version may take beyond the factor, in bytes: what measuring it twice differs by.
const LARGER_BYTES: u64 = 8 << 20;

impl Updates {
    /// Whether the bundle may be activated.
    pub(super) fn prove(&self, bundle: &Bundle) -> Result<(), Unproven> {
        let measured = self.proofs.prove(bundle).map_err(unproven)?;
        let takes = measured.peak_bytes;
        let fits = |most: u64, whose: &str| match larger(takes, most, self.config.larger_max) {
            true => Err(Unproven::Bad(format!("it takes {takes} bytes of memory where {whose} {most}"))),
            false => Ok(()),
        };
        if let Some(signed) = bundle.manifest.as_ref().and_then(|manifest| manifest.peak_ram_bytes) {
            fits(signed, "its team signed")?;
        }
        let served = self.signed.get(bundle.name()).and_then(|model| model.bundle.as_ref().ok());
        let Some((before, served)) = served.and_then(|served| Some((self.proofs.known(served)?, served)))
        else {
            return Ok(());
        };
        fits(before.peak_bytes, "the version before takes")?;
        if !slower(measured.infer_us, before.infer_us, self.config.slower_max) {
            return Ok(());
        }
        let compared = self.compare_latency(bundle, measured.infer_us, served);
        if matches!(compared, Err(Unproven::Later(_))) {
            // What was measured of it now may be wrong.
            self.proofs.forget(bundle);
        }
        compared
    }

    /// The candidate looks slow next to what the version before took when it was proven, which may be long ago on a
    /// device that was idle or cool. Measured in turn, twice each, is it?
    fn compare_latency(&self, bundle: &Bundle, first_us: u64, served: &Bundle) -> Result<(), Unproven> {
        let served_us = || match self.proofs.measure(served) {
            Ok(measured) => Ok(measured.infer_us),
            Err(refusal) => Err(Unproven::Later(format!("the version before cannot be measured: {refusal}"))),
        };
        let factor = self.config.slower_max;
        let incumbent_us = served_us()?;
        if !slower(first_us, incumbent_us, factor) {
            return Ok(());
        }
        let again = self.proofs.measure_again(bundle).map_err(unproven)?;
        judge([first_us, again.infer_us], [incumbent_us, served_us()?], factor)
    }
}

/// What latencies measured in turn say. A refusal is for good, so the candidate's better time has to be slow next to
/// the other's worse; a time of each that is fine next to each other is enough to let it through.
fn judge(candidate_us: [u64; 2], incumbent_us: [u64; 2], factor: f64) -> Result<(), Unproven> {
    let [[fast, slow], [best, worst]] = [candidate_us, incumbent_us].map(|[a, b]| [a.min(b), a.max(b)]);
    if slower(fast, worst, factor) {
        return Err(Unproven::Bad(Fault::Slow { candidate_us: fast, incumbent_us: worst }.to_string()));
    }
    if slower(fast, best, factor) {
        return Err(Unproven::Later(format!(
            "the device is throttled or busy: measured twice, it takes {fast} and {slow} µs and the version before \
             {best} and {worst} µs"
        )));
    }
    Ok(())
}

fn unproven(refusal: Refusal) -> Unproven {
    let unproven = if refusal.is_the_models() { Unproven::Bad } else { Unproven::Later };
    unproven(refusal.to_string())
}

fn larger(candidate_bytes: u64, incumbent_bytes: u64, factor: f64) -> bool {
    candidate_bytes as f64 > incumbent_bytes as f64 * factor + LARGER_BYTES as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Latencies in µs, of the candidate and of the version before, each in the order they were measured.
    fn judged(candidate_us: [u64; 2], incumbent_us: [u64; 2]) -> String {
        match judge(candidate_us, incumbent_us, 3.0) {
            Ok(()) => "good".into(),
            Err(Unproven::Bad(reason) | Unproven::Later(reason)) => reason,
        }
    }

    #[test]
    fn a_slow_version_is_refused_also_on_a_device_that_is_slower_than_it_was() {
        let said = "it takes 4000 µs where the version before takes 1000 µs";
        assert_eq!(judged([4_000, 5_000], [900, 1_000]), said);
        assert_eq!(judged([5_000, 4_000], [1_000, 900]), said);
        assert!(matches!(judge([3_001; 2], [1_000; 2], 3.0), Err(Unproven::Bad(_))));
    }

    #[test]
    fn what_disturbs_one_measurement_refuses_nothing() {
        assert_eq!(judged([90_000, 3_000], [1_000, 1_000]), "good");
        assert_eq!(judged([3_000, 90_000], [1_000, 1_000]), "good");
        let busy = "the device is throttled or busy: measured twice, it takes 4000 and 5000 µs and the version before";
        assert_eq!(judged([5_000, 4_000], [1_000, 9_000]), format!("{busy} 1000 and 9000 µs"));
        assert_eq!(judged([4_000, 5_000], [9_000, 1_000]), format!("{busy} 1000 and 9000 µs"));
        assert!(matches!(judge([4_000; 2], [1_000, 1_334], 3.0), Err(Unproven::Later(_))));
    }

    #[test]
    fn a_timers_grain_refuses_nothing() {
        assert_eq!(judged([120, 110], [10, 10]), "good");
    }
}
