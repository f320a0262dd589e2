//! Named pieces of work: what Criterion times (`cargo bench -p landfast-cases`) and what the regression guard counts
//! instructions of (`cargo xtask instructions`). Both run the same cases, so that a figure of one explains the other.
//!
//! A case prepares all it needs and gives a closure that does the work once. Work is the same each time: no clock, no
//! randomness, nothing that grows. It never judges: bounds are kept where the counting is.

mod engine;
mod journal;
mod manifest;
mod routing;

/// Does a piece of work once.
pub type Work = Box<dyn FnMut()>;

/// A piece of work by name.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    /// How often the work is done for one count of instructions: enough to drown what happens by chance.
    pub repeats: u32,
    /// Prepares the work.
    pub prepare: fn() -> Work,
}

/// All cases, in order of name.
pub const CASES: [Case; 11] = [
    Case {
        name: "engine/decide-tick",
        repeats: 20,
        prepare: engine::decide_tick,
    },
    Case {
        name: "engine/pending",
        repeats: 20,
        prepare: engine::pending,
    },
    Case {
        name: "engine/replay-history",
        repeats: 1,
        prepare: engine::replay,
    },
    Case {
        name: "journal/append-one",
        repeats: 20,
        prepare: journal::append_one,
    },
    Case {
        name: "journal/replay-1000",
        repeats: 1,
        prepare: journal::replay,
    },
    Case {
        name: "manifest/parse-contract",
        repeats: 5,
        prepare: manifest::contract,
    },
    Case {
        name: "manifest/parse-50-services",
        repeats: 1,
        prepare: manifest::large,
    },
    Case {
        name: "routing/balance-3",
        repeats: 1_000,
        prepare: routing::balance,
    },
    Case {
        name: "routing/compile-500-hosts",
        repeats: 1,
        prepare: routing::compile,
    },
    Case {
        name: "routing/find-500-hosts",
        repeats: 1_000,
        prepare: routing::find,
    },
    Case {
        name: "routing/forwarded-fields",
        repeats: 200,
        prepare: routing::forwarded,
    },
];
