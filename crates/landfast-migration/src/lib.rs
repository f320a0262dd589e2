//! Migrations, decided: what a file holds, what is pending, what a statement locks or breaks, which release can live on
//! which schema, and what a runner does next.
//!
//! It never opens a file or a connection, and knows neither clock nor randomness: texts, recorded history and answers of
//! probes come in as values, plans, findings and steps go out. `landfast-migrator` acts on them.
//!
//! The words: a *migration* is one numbered file, in one *phase*; its *script* is split into *statements*, which are
//! grouped into *steps*, the units that are recorded. A *set* is all migrations of a release; the *history* is what a
//! database says was done to it. From both follow the *plan* and, for each release, the *verdict*.

mod beyond;
mod ddl;
mod engine;
mod history;
mod lexer;
pub mod lint;
mod migration;
mod plan;
mod rename;
mod script;
mod set;
mod step;
mod verdict;

pub use crate::{
    beyond::beyond_its_database,
    ddl::ObjectName,
    engine::Engine,
    history::{History, Record, StepState},
    migration::{FileName, FileNameError, Migration, Phase},
    plan::{Blocked, Contradiction, Plan},
    rename::{NameRefused, NewFile, Rename},
    script::{Batch, Header, Script, ScriptError, Statement, Suppression},
    set::{MigrationSet, SetError, SourceFile},
    step::{Evidence, Next, Probe, Step, StepKind, down_position, next, steps},
    verdict::{Known, KnownMigration, Verdict, verdict},
};
