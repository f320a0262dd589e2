//! Renaming a column without breaking either release: three migrations instead of one.
//!
//! *Expand* adds the new column and triggers that copy whichever side was written. *Fill* copies the old rows in ranges.
//! *Contract* drops the triggers and the old column, after the seal.
//!
//! What the triggers decide: on INSERT the side that was given wins, the new one if both were; on UPDATE the side that
//! changed wins. A NULL cannot be told from "not given" on INSERT. If one UPDATE gives both sides different new values,
//! neither is copied: such a row is the application's own contradiction, and the check in the fill's comment finds it.
//!
//! A sequence counts what is written through the old column. The contract runs only where it stands still: a program that no
//! release knows of may write there too.

use crate::Engine;

/// What to rename.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rename {
    /// The table, with its schema if it needs one.
    pub table: String,
    /// The column's name now.
    pub from: String,
    /// Its name to be.
    pub to: String,
    /// Its type as it is declared, without NOT NULL: `varchar(50)`.
    pub data_type: String,
    /// A unique, indexed column for the ranges of the fill.
    pub key: String,
}

/// One file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFile {
    /// Its name.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Why a name cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a plain name: lower-case letters, digits and `_`, up to 40 of them")]
pub struct NameRefused(pub String);

impl Rename {
    /// The files, numbered from `number` on.
    pub fn files(&self, engine: Engine, number: u32) -> Result<Vec<NewFile>, NameRefused> {
        let plain = |name: &str| {
            let first = name
                .chars()
                .next()
                .is_some_and(|c| c.is_ascii_lowercase() || c == '_');
            first
                && name.len() <= 40
                && name
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        for name in self
            .table
            .split('.')
            .chain([self.from.as_str(), &self.to, &self.key])
        {
            if !plain(name) {
                return Err(NameRefused(name.to_owned()));
            }
        }
        let bare = self.table.rsplit('.').next().unwrap_or(&self.table);
        let stem = format!("rename_{bare}_{}", self.from);
        let (expand, undo, contract) = match engine {
            Engine::Postgres => self.postgres(bare),
            Engine::Mariadb => self.mariadb(bare),
        };
        let file = |offset: u32, name: String, text: String| NewFile {
            name: format!("{:04}_{name}.sql", number + offset),
            text,
        };
        let down = NewFile {
            name: format!("{number:04}_{stem}.down.sql"),
            text: undo,
        };
        Ok(vec![
            file(0, stem.clone(), expand),
            down,
            file(1, format!("{stem}_fill"), self.fill(engine)),
            file(2, format!("{stem}_contract"), contract),
        ])
    }

    fn fill(&self, engine: Engine) -> String {
        let Self {
            table,
            from,
            to,
            key,
            ..
        } = self;
        let differs = match engine {
            Engine::Postgres => format!("{to} IS DISTINCT FROM {from}"),
            Engine::Mariadb => format!("NOT ({to} <=> {from})"),
        };
        format!(
            "-- landfast: phase=expand batch={table}.{key}\n\
             -- Copies the old rows; new ones are kept in step by the trigger. Afterwards this finds nothing:\n\
             --   SELECT count(*) FROM {table} WHERE {differs}\n\
             UPDATE {table} SET {to} = {from} WHERE {key} > :from AND {key} <= :to AND {to} IS NULL AND {from} IS NOT NULL;\n"
        )
    }

    fn postgres(&self, bare: &str) -> (String, String, String) {
        let Self {
            table,
            from,
            to,
            data_type,
            ..
        } = self;
        let sync = format!("{bare}_{from}_sync");
        let schema = table
            .rsplit_once('.')
            .map(|(schema, _)| format!("{schema}."))
            .unwrap_or_default();
        let writes = format!("{bare}_{from}_writes");
        let expand = format!(
            "-- landfast: phase=expand\n\
             -- {table}.{from} becomes {to}: both are there, and whichever is written is copied to the other.\n\
             ALTER TABLE {table} ADD COLUMN {to} {data_type};\n\
             -- Counts what is written through the old column, and goes with it.\n\
             CREATE SEQUENCE {schema}{writes} OWNED BY {table}.{from};\n\
             GRANT USAGE ON SEQUENCE {schema}{writes} TO PUBLIC;\n\
             CREATE FUNCTION {schema}{sync}() RETURNS trigger LANGUAGE plpgsql AS $sync$\n\
             DECLARE\n\
             \x20 by_old boolean := false;\n\
             BEGIN\n\
             \x20 IF TG_OP = 'INSERT' THEN\n\
             \x20   IF NEW.{to} IS NULL THEN\n\
             \x20     by_old := NEW.{from} IS NOT NULL;\n\
             \x20     NEW.{to} := NEW.{from};\n\
             \x20   ELSE\n\
             \x20     NEW.{from} := NEW.{to};\n\
             \x20   END IF;\n\
             \x20 ELSIF NEW.{from} IS DISTINCT FROM OLD.{from} AND NEW.{to} IS NOT DISTINCT FROM OLD.{to} THEN\n\
             \x20   by_old := true;\n\
             \x20   NEW.{to} := NEW.{from};\n\
             \x20 ELSIF NEW.{to} IS DISTINCT FROM OLD.{to} AND NEW.{from} IS NOT DISTINCT FROM OLD.{from} THEN\n\
             \x20   NEW.{from} := NEW.{to};\n\
             \x20 END IF;\n\
             \x20 IF by_old THEN\n\
             \x20   PERFORM nextval(format('%I.{writes}', TG_TABLE_SCHEMA)::regclass);\n\
             \x20 END IF;\n\
             \x20 RETURN NEW;\n\
             END\n\
             $sync$;\n\
             CREATE TRIGGER {sync} BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {schema}{sync}();\n"
        );
        let end = format!("DROP TRIGGER {sync} ON {table};\nDROP FUNCTION {schema}{sync}();\n");
        let undo = format!(
            "{end}DROP SEQUENCE {schema}{writes};\nALTER TABLE {table} DROP COLUMN {to};\n"
        );
        let contract = format!(
            "-- landfast: phase=contract quiet={schema}{writes}\n{end}ALTER TABLE {table} DROP COLUMN {from};\n"
        );
        (expand, undo, contract)
    }

    fn mariadb(&self, bare: &str) -> (String, String, String) {
        let Self {
            table,
            from,
            to,
            data_type,
            ..
        } = self;
        let (insert, update) = (
            format!("{bare}_{from}_insert"),
            format!("{bare}_{from}_update"),
        );
        let writes = format!("{bare}_{from}_writes");
        let expand = format!(
            "-- landfast: phase=expand\n\
             -- {table}.{from} becomes {to}: both are there, and whichever is written is copied to the other.\n\
             ALTER TABLE {table} ADD COLUMN {to} {data_type};\n\
             -- Counts what is written through the old column.\n\
             CREATE SEQUENCE {writes};\n\
             DELIMITER //\n\
             CREATE TRIGGER {insert} BEFORE INSERT ON {table} FOR EACH ROW BEGIN\n\
             \x20 IF NEW.{to} IS NULL THEN\n\
             \x20   IF NEW.{from} IS NOT NULL THEN DO NEXTVAL({writes}); END IF;\n\
             \x20   SET NEW.{to} = NEW.{from};\n\
             \x20 ELSE SET NEW.{from} = NEW.{to}; END IF;\n\
             END//\n\
             CREATE TRIGGER {update} BEFORE UPDATE ON {table} FOR EACH ROW BEGIN\n\
             \x20 IF NOT (NEW.{from} <=> OLD.{from}) AND NEW.{to} <=> OLD.{to} THEN\n\
             \x20   DO NEXTVAL({writes});\n\
             \x20   SET NEW.{to} = NEW.{from};\n\
             \x20 ELSEIF NOT (NEW.{to} <=> OLD.{to}) AND NEW.{from} <=> OLD.{from} THEN SET NEW.{from} = NEW.{to}; END IF;\n\
             END//\n\
             DELIMITER ;\n"
        );
        let end =
            format!("DROP TRIGGER {insert};\nDROP TRIGGER {update};\nDROP SEQUENCE {writes};\n");
        let undo = format!("{end}ALTER TABLE {table} DROP COLUMN {to};\n");
        let contract = format!(
            "-- landfast: phase=contract quiet={writes}\n{end}ALTER TABLE {table} DROP COLUMN {from};\n"
        );
        (expand, undo, contract)
    }
}
