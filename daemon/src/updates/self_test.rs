//! The self-test of a version before it is activated: alone, next to the version before, and next to what its team
//! signed.

use super::Updates;
use crate::proofs::Measured;
use tractd_bundle::Bundle;
use tractd_engine::proof::Refusal;
use tractd_update::{
    Unproven,
    trial::{Fault, slower},
};

/// Once the version before takes this many times what it took when it was proven, the device is throttled or busy,
/// and a latency measured now says nothing.
const THROTTLED: f64 = 2.0;
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
        if slower(measured.infer_us, before.infer_us, self.config.slower_max) {
            return self.compare_latency(bundle, measured, served, before);
        }
        Ok(())
    }

    /// The candidate looks slow next to what the version before took when it was proven. Measured in the same
    /// minute, before it and after it, is it?
    fn compare_latency(
        &self,
        bundle: &Bundle,
        measured: Measured,
        served: &Bundle,
        before: Measured,
    ) -> Result<(), Unproven> {
        let later = |reason: String| {
            self.proofs.forget(bundle);
            Err(Unproven::Later(reason))
        };
        let now = match self.proofs.measure(served) {
            Ok(now) => now,
            Err(refusal) => return later(format!("the version before cannot be measured: {refusal}")),
        };
        let (now_us, before_us) = (now.infer_us, before.infer_us);
        if slower(now_us, before_us, THROTTLED) {
            return later(format!(
                "the device is throttled or busy: the version before takes {now_us} µs where it took {before_us} µs"
            ));
        }
        if !slower(measured.infer_us, now_us, self.config.slower_max) {
            return Ok(());
        }
        // What disturbed the candidate alone is over by now: it would be refused for good.
        let again = self.proofs.measure_again(bundle).map_err(unproven)?;
        let (candidate_us, incumbent_us) = (measured.infer_us.min(again.infer_us), now_us);
        if slower(candidate_us, incumbent_us, self.config.slower_max) {
            return Err(Unproven::Bad(Fault::Slow { candidate_us, incumbent_us }.to_string()));
        }
        Ok(())
    }
}

fn unproven(refusal: Refusal) -> Unproven {
    match refusal {
        Refusal::NotStarted(_) => Unproven::Later(refusal.to_string()),
        refusal => Unproven::Bad(refusal.to_string()),
    }
}

fn larger(candidate_bytes: u64, incumbent_bytes: u64, factor: f64) -> bool {
    candidate_bytes as f64 > incumbent_bytes as f64 * factor + LARGER_BYTES as f64
}
