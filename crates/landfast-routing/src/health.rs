//! Active health: counts passes and failures in a row. A backend starts healthy, because the engine lists only
//! what passed its readiness; a proxy that was just started must not wait for a check before it serves.

use crate::snapshot::HealthCheck;

/// What the active checks of one backend have shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActiveHealth {
    healthy: bool,
    /// Results in a row that speak against the present state.
    contrary: u32,
}

impl Default for ActiveHealth {
    fn default() -> Self {
        Self {
            healthy: true,
            contrary: 0,
        }
    }
}

impl ActiveHealth {
    /// Whether the backend is in rotation.
    pub fn is_healthy(self) -> bool {
        self.healthy
    }

    /// Takes one result in. Answers true when the state changed.
    pub fn observe(&mut self, passed: bool, check: &HealthCheck) -> bool {
        if passed == self.healthy {
            self.contrary = 0;
            return false;
        }
        self.contrary += 1;
        let needed = if self.healthy {
            check.unhealthy_after
        } else {
            check.healthy_after
        };
        if self.contrary < needed.max(1) {
            return false;
        }
        *self = Self {
            healthy: passed,
            contrary: 0,
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_after_failures_in_a_row_and_comes_back_after_passes_in_a_row() {
        let check = HealthCheck {
            path: None,
            interval_ms: 1_000,
            timeout_ms: 500,
            unhealthy_after: 3,
            healthy_after: 2,
        };
        let mut health = ActiveHealth::default();
        let results = [
            (false, true),
            (false, true),
            (true, true),
            (false, true),
            (false, true),
            (false, false),
            (true, false),
            (false, false),
            (true, false),
            (true, true),
        ];
        for (step, (passed, healthy)) in results.into_iter().enumerate() {
            let before = health.is_healthy();
            let changed = health.observe(passed, &check);
            assert_eq!(health.is_healthy(), healthy, "step {step}");
            assert_eq!(changed, before != healthy, "step {step}");
        }
    }
}
