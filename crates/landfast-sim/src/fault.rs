//! What can go wrong in a simulated world, and how often it did.

use std::collections::BTreeMap;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    CrashAtStart,
    CrashLater,
    StartLate,
    StartRefused,
    ReadinessFlaps,
    LiesAboutHealth,
    Hangs,
    HangsAtStop,
    OrderLost,
    OrderRepeated,
    OrderDelayed,
    ReportLost,
    ReportRepeated,
    ReportDelayed,
    ProxyRestarted,
    ServerDied,
    ServerDiedAtRecord,
    StaleOrderArrived,
    ClockSetForward,
    ClockSetBack,
    HostLost,
    GateRefused,
    MigrationFailed,
    MigrationCut,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 24] = [
        Self::CrashAtStart,
        Self::CrashLater,
        Self::StartLate,
        Self::StartRefused,
        Self::ReadinessFlaps,
        Self::LiesAboutHealth,
        Self::Hangs,
        Self::HangsAtStop,
        Self::OrderLost,
        Self::OrderRepeated,
        Self::OrderDelayed,
        Self::ReportLost,
        Self::ReportRepeated,
        Self::ReportDelayed,
        Self::ProxyRestarted,
        Self::ServerDied,
        Self::ServerDiedAtRecord,
        Self::StaleOrderArrived,
        Self::ClockSetForward,
        Self::ClockSetBack,
        Self::HostLost,
        Self::GateRefused,
        Self::MigrationFailed,
        Self::MigrationCut,
    ];
}

/// How often each kind fired.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fired(BTreeMap<Fault, u64>);

impl Fired {
    pub fn note(&mut self, fault: Fault) {
        *self.0.entry(fault).or_default() += 1;
    }

    pub fn add(&mut self, other: &Self) {
        for (fault, times) in &other.0 {
            *self.0.entry(*fault).or_default() += times;
        }
    }

    pub fn times(&self, fault: Fault) -> u64 {
        self.0.get(&fault).copied().unwrap_or(0)
    }
}
