//! The random choices of a run: the same ones again for the same fault and seed, whatever versions it was built with.

use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood: *Fast splittable pseudorandom number generators*).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(fault: &str, seed: u64) -> Self {
        let name = fault.bytes().fold(seed, |state, byte| {
            state.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte)
        });
        let mut this = Self(name);
        this.next();
        this
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From zero; `end` is never given.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    pub(crate) fn between(&mut self, from: Duration, to: Duration) -> Duration {
        let span = to.saturating_sub(from).as_micros();
        let span = u64::try_from(span).unwrap_or(u64::MAX);
        from + Duration::from_micros(self.below(span + 1))
    }

    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        self.between(Duration::from_millis(from), Duration::from_millis(to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_its_choices_again() {
        let choices = |fault, seed| {
            let mut random = Random::new(fault, seed);
            [random.next(), random.below(10), random.below(1 << 40)]
        };
        assert_eq!(choices("F1", 3), choices("F1", 3));
        assert_ne!(choices("F1", 3), choices("F1", 4));
        assert_ne!(choices("F1", 3), choices("F2", 3));
    }
}
