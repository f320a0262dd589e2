//! Files, order, history and verdicts, by example; and a crash at every instant of every kind of step.

use landfast_migration::{
    Blocked, Contradiction, Engine, Evidence, FileName, History, Known, Migration, MigrationSet,
    Next, Phase, Plan, Record, Script, SetError, SourceFile, StepKind, StepState, next, steps,
    verdict,
};

fn script(text: &str, engine: Engine) -> Script {
    Script::parse(text.as_bytes(), engine).expect("the example is a script")
}

fn texts(text: &str, engine: Engine) -> Vec<String> {
    script(text, engine)
        .statements
        .into_iter()
        .map(|statement| statement.text)
        .collect()
}

fn set(files: &[(&str, &str)], engine: Engine) -> Result<MigrationSet, Vec<SetError>> {
    let files = files
        .iter()
        .map(|(name, text)| SourceFile {
            name: (*name).into(),
            bytes: text.as_bytes().to_vec(),
        })
        .collect::<Vec<_>>();
    MigrationSet::parse(&files, engine)
}

fn record(migration: &Migration, step: u32, state: StepState) -> Record {
    Record {
        number: migration.number,
        step,
        steps: steps(&migration.up, migration.engine).len() as u32,
        name: migration.name.clone(),
        phase: migration.phase(),
        checksum: migration.checksum,
        state,
        breaks_older: false,
        position: None,
        release: None,
    }
}

fn applied(set: &MigrationSet, numbers: &[u32]) -> History {
    numbers
        .iter()
        .flat_map(|number| {
            let migration = set.get(*number).expect("the example has it");
            steps(&migration.up, migration.engine)
                .into_iter()
                .map(|step| record(migration, step.step, StepState::Applied))
        })
        .collect()
}

#[test]
fn splits_where_postgres_splits() {
    let cases: &[(&str, &[&str])] = &[
        ("SELECT 1; SELECT 2", &["SELECT 1", "SELECT 2"]),
        (
            "SELECT ';' ; -- a; b\nSELECT 2;",
            &["SELECT ';'", "SELECT 2"],
        ),
        (
            "SELECT 'it''s; \\'; SELECT 2",
            &["SELECT 'it''s; \\'", "SELECT 2"],
        ),
        (
            r"SELECT E'a\';b'; SELECT 2",
            &[r"SELECT E'a\';b'", "SELECT 2"],
        ),
        (
            "DO $$ BEGIN a; END $$; SELECT $1",
            &["DO $$ BEGIN a; END $$", "SELECT $1"],
        ),
        (
            "DO $f$ x; $$ y; $$ $f$; SELECT 2",
            &["DO $f$ x; $$ y; $$ $f$", "SELECT 2"],
        ),
        ("/* a /* ; */ b; */ SELECT 1;;", &["SELECT 1"]),
        ("SELECT \"a;b\"", &["SELECT \"a;b\""]),
        (
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END; SELECT 3",
            &[
                "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END",
                "SELECT 3",
            ],
        ),
        (
            "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2); SELECT 3",
            &[
                "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)",
                "SELECT 3",
            ],
        ),
        (
            "SELECT 5 - -1; SELECT 'ä;ö'",
            &["SELECT 5 - -1", "SELECT 'ä;ö'"],
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(texts(text, Engine::Postgres), *expected, "{text}");
    }
}

#[test]
fn splits_where_the_mariadb_client_splits() {
    let cases: &[(&str, &[&str])] = &[
        (
            "SELECT 'a\\';b'; SELECT \"c;d\"",
            &["SELECT 'a\\';b'", "SELECT \"c;d\""],
        ),
        (
            "SELECT 1 # a; b\n; SELECT 5--1",
            &["SELECT 1", "SELECT 5--1"],
        ),
        (
            "/*!40101 SET NAMES utf8mb4 */; SELECT `a;b`",
            &["SET NAMES utf8mb4", "SELECT `a;b`"],
        ),
        ("/* a; /* b */ SELECT 1", &["SELECT 1"]),
        (
            "DELIMITER //\nCREATE TRIGGER t BEFORE INSERT ON a FOR EACH ROW BEGIN SET @x = 1; SET @y = 2; END//\nDELIMITER ;\nSELECT 1;",
            &[
                "CREATE TRIGGER t BEFORE INSERT ON a FOR EACH ROW BEGIN SET @x = 1; SET @y = 2; END",
                "SELECT 1",
            ],
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(texts(text, Engine::Mariadb), *expected, "{text}");
    }
}

#[test]
fn says_what_is_wrong_with_a_file_and_where() {
    let cases = [
        (
            "SELECT 1;\n\nSELECT 'open",
            "line 3: a string is never closed",
        ),
        (
            "DO $x$ BEGIN",
            "line 1: a dollar-quoted string is never closed",
        ),
        ("/* open", "line 1: a comment is never closed"),
        ("-- nothing", "there is no statement in the file"),
        (
            "-- landfast: phase=later\nSELECT 1",
            "line 1: `phase=later`: it is `expand`, `contract` or `any`",
        ),
        (
            "\n-- landfast: fase=expand\nSELECT 1",
            "line 2: `fase` is not known; known are phase, transaction, lock_timeout, statement_timeout, batch, batch_size, quiet, allow",
        ),
        (
            "-- landfast: allow=PG072\nSELECT 1",
            "line 1: `allow=PG072` needs a reason behind it that a stranger can judge",
        ),
        (
            "-- landfast: batch=items.id\nUPDATE items SET a = 1",
            "line 2: a statement with `batch` bounds its key: `… WHERE id > :from AND id <= :to`",
        ),
        (
            "\\i other.sql",
            "line 1: a backslash command belongs to an interactive client; write plain SQL",
        ),
    ];
    for (text, expected) in cases {
        let error = Script::parse(text.as_bytes(), Engine::Postgres).unwrap_err();
        assert_eq!(error.to_string(), expected, "{text}");
    }
    let error = Script::parse(b"SELECT '\xff'", Engine::Postgres).unwrap_err();
    assert_eq!(
        error.to_string(),
        "byte 8 is not UTF-8; save the file as UTF-8"
    );
}

#[test]
fn reads_the_header_and_nothing_behind_the_first_statement() {
    let script = script(
        "-- landfast: phase=contract transaction=off lock_timeout=500ms statement_timeout=0\n-- why\n\
         -- landfast: allow=PG072 nobody reads it any more\nSELECT 1;\n-- landfast: phase=any\n",
        Engine::Postgres,
    );
    let header = script.header;
    assert_eq!((header.phase, header.transaction), (Phase::Contract, false));
    assert_eq!(header.lock_timeout.unwrap().as_millis(), 500);
    assert_eq!(header.statement_timeout.unwrap().as_millis(), 0);
    assert_eq!(header.allowed[0].reason, "nobody reads it any more");
}

#[test]
fn a_checksum_outlives_editors_and_nothing_else() {
    let name: FileName = "0001_a.sql".parse().unwrap();
    let of = |text: &str| Migration::parse(&name, text.as_bytes(), None, Engine::Postgres).unwrap();
    let first = of("SELECT 1;\nSELECT 2;\n");
    for same in [
        "SELECT 1;\r\nSELECT 2;\r\n",
        "\u{feff}SELECT 1;  \nSELECT 2;\n\n\n",
        "SELECT 1;\t\nSELECT 2;",
    ] {
        assert_eq!(of(same).checksum, first.checksum);
        assert_ne!(of(same).checksum_raw, first.checksum_raw);
    }
    for other in [
        "SELECT 1;\nSELECT 3;\n",
        " SELECT 1;\nSELECT 2;\n",
        "SELECT 1;\n\nSELECT 2;\n",
    ] {
        assert_ne!(of(other).checksum, first.checksum);
    }
}

#[test]
fn a_folder_is_refused_with_every_reason_at_once() {
    let errors = set(
        &[
            ("0001_a.sql", "SELECT 1"),
            ("0001_b.sql", "SELECT 1"),
            ("0003_c.sql", "SELECT '"),
            ("0004_d.down.sql", "SELECT 1"),
            ("Late.sql", ""),
            ("README.md", ""),
        ],
        Engine::Postgres,
    )
    .unwrap_err();
    let errors = errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n");
    for part in [
        "number 0001 is taken twice, by `0001_a.sql` and `0001_b.sql`",
        "number 0002 is missing between `0001_a.sql` and `0003_c.sql`",
        "`0003_c.sql`",
        "`0004_d.down.sql` undoes nothing: there is no `0004_d.sql`",
        "`Late.sql` is not `NNNN_name.sql`",
    ] {
        assert!(errors.contains(part), "{part} in:\n{errors}");
    }
    assert_eq!(errors.lines().count(), 5);
}

const SHOP: &[(&str, &str)] = &[
    (
        "0001_items.sql",
        "CREATE TABLE items (id bigint, mail text)",
    ),
    ("0002_email.sql", "ALTER TABLE items ADD COLUMN email text"),
    (
        "0003_drop_mail.sql",
        "-- landfast: phase=contract\nALTER TABLE items DROP COLUMN mail",
    ),
    ("0004_orders.sql", "CREATE TABLE orders (id bigint)"),
    ("0005_price.sql", "ALTER TABLE items ADD COLUMN price int"),
    ("0006_notes.sql", "CREATE TABLE notes (id bigint)"),
];

#[test]
fn an_expand_file_passes_a_waiting_contract_only_if_they_share_nothing() {
    let set = set(SHOP, Engine::Postgres).unwrap();
    let plan = Plan::new(&set, &applied(&set, &[1, 2]));
    assert_eq!(plan.expand, [4]);
    assert_eq!(plan.contract, [3]);
    assert_eq!(
        plan.blocked,
        [
            Blocked {
                number: 5,
                by: 3,
                shared: vec!["items".into()]
            },
            // What stands behind it in the order waits as well.
            Blocked {
                number: 6,
                by: 3,
                shared: vec!["items".into()]
            },
        ]
    );
    assert!(plan.contradictions.is_empty());
    // Passed once, the contract file that still waits is not out of order.
    let plan = Plan::new(&set, &applied(&set, &[1, 2, 4]));
    assert!(plan.contradictions.is_empty());
    // A contract runs in order, and not past an expand file that is still to run.
    let fresh = Plan::new(&set, &History::default());
    assert_eq!(fresh.numbers(Phase::Contract), [] as [u32; 0]);
    assert_eq!(plan.numbers(Phase::Contract), [3]);
    // A body of text counts as well: a function may touch what it names.
    let with_function = [
        SHOP[0],
        SHOP[1],
        SHOP[2],
        (
            "0004_f.sql",
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$ SELECT count(*) FROM Items $$",
        ),
    ];
    let set = self::set(&with_function, Engine::Postgres).unwrap();
    assert_eq!(Plan::new(&set, &applied(&set, &[1, 2])).blocked.len(), 1);
}

#[test]
fn names_what_was_edited_lost_or_came_late_with_its_checksums() {
    let set = set(SHOP, Engine::Postgres).unwrap();
    let mut history = applied(&set, &[1, 4]);
    let mut edited = record(set.get(1).unwrap(), 1, StepState::Applied);
    edited.checksum = landfast_types::Digest::of(b"before");
    history.insert(edited.clone());
    let mut gone = record(set.get(4).unwrap(), 1, StepState::Applied);
    gone.number = 9;
    gone.name = "gone".into();
    history.insert(gone);
    let found = Plan::new(&set, &history).contradictions;
    let text = found
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n");
    assert!(text.contains(&format!(
        "it ran as sha256:{}, the file is sha256:{}",
        edited.checksum,
        set.get(1).unwrap().checksum
    )));
    assert!(text.contains("0009_gone ran as"));
    assert!(text.contains("0002_email"));
    assert!(found.iter().any(|one| matches!(
        one,
        Contradiction::OutOfOrder {
            number: 2,
            after: 9,
            ..
        }
    )));
}

#[test]
fn a_verdict_names_the_migration_a_release_cannot_live_with() {
    let new = set(SHOP, Engine::Postgres).unwrap();
    let old = Known::from(&set(&SHOP[..1], Engine::Postgres).unwrap());
    let middle = Known::from(&set(&SHOP[..2], Engine::Postgres).unwrap());
    // Expanded: both live; the newest still needs what has not run.
    let history = applied(&new, &[1, 2]);
    assert!(verdict(&old, &history).lives());
    assert!(verdict(&middle, &history).lives());
    assert_eq!(
        verdict(&Known::from(&new), &history).needs,
        ["0004_orders", "0005_price", "0006_notes"]
    );
    // Contracted: whoever does not know the contract is broken, and told by whom.
    let history = applied(&new, &[1, 2, 3, 4, 5, 6]);
    assert_eq!(verdict(&old, &history).broken_by, ["0003_drop_mail"]);
    assert_eq!(
        verdict(&middle, &history).to_string(),
        "cannot live on this schema since 0003_drop_mail"
    );
    assert!(verdict(&Known::from(&new), &history).lives());
    // Half a contract is one.
    let mut history = applied(&new, &[1, 2]);
    history.insert(record(new.get(3).unwrap(), 1, StepState::Started));
    assert!(!verdict(&old, &history).lives());
    // So is what was recorded as breaking in another phase.
    let mut history = applied(&new, &[1, 2]);
    history.insert(Record {
        breaks_older: true,
        ..record(new.get(2).unwrap(), 1, StepState::Applied)
    });
    assert_eq!(verdict(&old, &history).broken_by, ["0002_email"]);
}

/// A world that can be crashed after any number of moves: what is recorded, and how often each step took effect.
struct World {
    migration: Migration,
    history: History,
    effects: Vec<u32>,
    broken: bool,
    moves_left: u32,
}

impl World {
    /// One move, unless the crash comes before it.
    fn allow(&mut self) -> bool {
        let allowed = self.moves_left > 0;
        self.moves_left = self.moves_left.saturating_sub(1);
        allowed
    }

    fn mark(&mut self, step: u32, state: StepState) {
        let record = record(&self.migration, step, state);
        self.history.insert(record);
    }

    fn effect(&mut self, step: u32, kind: &StepKind) -> bool {
        if matches!(kind, StepKind::Transaction | StepKind::Backfill) {
            // Effect and record are one move.
            if !self.allow() {
                return false;
            }
            self.effects[step as usize - 1] += 1;
            self.mark(step, StepState::Applied);
            return true;
        }
        if matches!(kind, StepKind::Bare(_)) {
            // An index is built in several moves; a crash between them leaves it invalid.
            if !self.allow() {
                return false;
            }
            self.broken = true;
        }
        if !self.allow() {
            return false;
        }
        self.broken = false;
        self.effects[step as usize - 1] += 1;
        if !self.allow() {
            return false;
        }
        self.mark(step, StepState::Applied);
        true
    }

    /// Runs until it ends or crashes; whether it ended.
    fn run(&mut self) -> bool {
        let mut evidence = None;
        loop {
            let step = match next(&self.migration, &self.history, evidence.take()) {
                Next::Finished => return true,
                Next::Stop(step) => panic!("stopped at {step:?}"),
                Next::Begin(step) => {
                    if !self.allow() {
                        return false;
                    }
                    self.mark(step.step, StepState::Started);
                    step
                }
                Next::Run(step) => step,
                Next::Ask(step) => {
                    evidence = Some(if self.broken {
                        Evidence::Broken
                    } else if self.effects[step.step as usize - 1] > 0 {
                        Evidence::Done
                    } else {
                        Evidence::NotDone
                    });
                    continue;
                }
                Next::Clean(_) => {
                    if !self.allow() {
                        return false;
                    }
                    self.broken = false;
                    continue;
                }
                Next::Record(step) => {
                    if !self.allow() {
                        return false;
                    }
                    self.mark(step.step, StepState::Applied);
                    continue;
                }
            };
            if !self.effect(step.step, &step.kind) {
                return false;
            }
        }
    }
}

#[test]
fn a_crash_at_any_instant_and_again_ends_with_every_step_done_once() {
    let cases = [
        (
            Engine::Postgres,
            "ALTER TABLE a ADD b int; ALTER TABLE a ADD c int",
            1,
        ),
        (
            Engine::Postgres,
            "-- landfast: transaction=off\nCREATE INDEX CONCURRENTLY i ON a (b); DROP INDEX CONCURRENTLY j; UPDATE a SET b = 1 WHERE c",
            3,
        ),
        (
            Engine::Postgres,
            "-- landfast: batch=a.id\nUPDATE a SET b = 1 WHERE id > :from AND id <= :to",
            1,
        ),
        (
            Engine::Mariadb,
            "ALTER TABLE a ADD b int; INSERT INTO a VALUES (1); UPDATE a SET b = 1 WHERE c; CREATE TABLE d (e int)",
            3,
        ),
    ];
    for (engine, text, count) in cases {
        let name: FileName = "0001_a.sql".parse().unwrap();
        let migration = Migration::parse(&name, text.as_bytes(), None, engine).unwrap();
        assert_eq!(steps(&migration.up, engine).len(), count, "{text}");
        for first in 0..16 {
            for second in 0..16 {
                let mut world = World {
                    migration: migration.clone(),
                    history: History::default(),
                    effects: vec![0; count],
                    broken: false,
                    moves_left: first,
                };
                if !world.run() {
                    world.moves_left = second;
                    if !world.run() {
                        world.moves_left = u32::MAX;
                        assert!(world.run());
                    }
                }
                assert_eq!(
                    world.effects,
                    vec![1; count],
                    "{text}: crashed after {first} and {second} moves"
                );
                assert!(world.history.is_applied(1) && !world.broken);
            }
        }
    }
}

#[test]
fn what_nobody_can_probe_stops_for_a_person() {
    let name: FileName = "0001_a.sql".parse().unwrap();
    let text = "-- landfast: transaction=off\nCREATE INDEX CONCURRENTLY ON a (b)";
    let migration = Migration::parse(&name, text.as_bytes(), None, Engine::Postgres).unwrap();
    let mut history = History::default();
    history.insert(record(&migration, 1, StepState::Started));
    assert!(matches!(next(&migration, &history, None), Next::Stop(_)));
}

#[test]
fn an_old_history_still_reads() {
    let text = r#"{"records":{"1":{"1":{"number":1,"step":1,"steps":1,"name":"a","phase":"expand",
        "checksum":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad","state":"applied"}}}}"#;
    let history: History = serde_json::from_str(text).unwrap();
    assert!(history.is_applied(1));
}
