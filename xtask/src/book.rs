//! Holds the hand-written pages against what exists: a link leads somewhere, a heading it names is there, and a
//! command or option that a page shows is one that the command line has.
//!
//! What the command line has is read from `docs/reference/cli.md`, which a test keeps as the binary prints it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};

const COMMAND_LINE: &str = "docs/reference/cli.md";
/// Folders that hold pages; the root is looked at without its folders.
const FOLDERS: [&str; 4] = ["docs", "examples", "changelog.d", ".github"];

/// What the command line knows: the options of each command, by its words (`secret set`).
type Commands = BTreeMap<String, BTreeSet<String>>;

/// Checks every page; answers how many there are.
pub(crate) fn check(root: &Path) -> anyhow::Result<usize> {
    let mut pages = Vec::new();
    collect(root, false, &mut pages)?;
    for folder in FOLDERS {
        collect(&root.join(folder), true, &mut pages)?;
    }
    ensure!(pages.len() > 10, "the pages were not found");
    let (commands, global) = commands(&fs::read_to_string(root.join(COMMAND_LINE))?);
    ensure!(commands.len() > 20, "{COMMAND_LINE} was not understood");
    let mut problems = Vec::new();
    for page in &pages {
        let text = fs::read_to_string(page)?;
        let name = page
            .strip_prefix(root)
            .unwrap_or(page)
            .display()
            .to_string();
        for problem in dead_links(page, &text)? {
            problems.push(format!("{name}: {problem}"));
        }
        for problem in unknown_commands(&text, &commands, &global) {
            problems.push(format!("{name}: {problem}"));
        }
    }
    if !problems.is_empty() {
        bail!("{}", problems.join("\n"));
    }
    Ok(pages.len())
}

fn collect(folder: &Path, deep: bool, pages: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() && deep {
            collect(&path, deep, pages)?;
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    pages.sort();
    Ok(())
}

/// Links that lead nowhere: `[text](target)`, outside code.
fn dead_links(page: &Path, text: &str) -> anyhow::Result<Vec<String>> {
    let folder = page.parent().context("a page is in a folder")?;
    let mut dead = Vec::new();
    for (number, line) in prose(text) {
        let line = without_code(line);
        for rest in line.split("](").skip(1) {
            let Some((target, _)) = rest.split_once(')') else {
                continue;
            };
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() {
                page.to_owned()
            } else {
                folder.join(file)
            };
            if !file.exists() {
                dead.push(format!("line {number}: the link `{target}` leads nowhere"));
            } else if !heading.is_empty() && !has_heading(&fs::read_to_string(&file)?, heading) {
                dead.push(format!("line {number}: `{target}` names no heading"));
            }
        }
    }
    Ok(dead)
}

fn has_heading(text: &str, wanted: &str) -> bool {
    let slug = |heading: &str| {
        let kept = heading.chars().filter_map(|letter| match letter {
            ' ' => Some('-'),
            letter if letter.is_alphanumeric() || letter == '-' || letter == '_' => {
                Some(letter.to_ascii_lowercase())
            }
            _ => None,
        });
        kept.collect::<String>()
    };
    prose(text)
        .filter(|(_, line)| line.starts_with('#'))
        .any(|(_, line)| slug(line.trim_start_matches('#').trim()) == wanted)
}

/// Lines outside fenced blocks, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut inside = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        if line.trim_start().starts_with("```") {
            inside = !inside;
            return None;
        }
        (!inside).then_some((index + 1, line))
    })
}

fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("`")
}

/// Commands that are shown, in code or in a block, and that the command line does not have.
fn unknown_commands(text: &str, commands: &Commands, global: &BTreeSet<String>) -> Vec<String> {
    let mut problems = Vec::new();
    for (number, shown) in shown_commands(text) {
        let words = shown.split_whitespace().collect::<Vec<_>>();
        let is_drawing = |word: &&str| {
            !word.starts_with(|letter: char| letter.is_ascii_lowercase() || letter == '-')
        };
        if words.first().is_none_or(is_drawing) {
            continue;
        }
        let plain = words
            .iter()
            .copied()
            .skip_while(|word| word.starts_with('-'));
        let plain = plain.collect::<Vec<_>>();
        let Some(first) = plain.first() else { continue };
        let front = |count| {
            plain
                .iter()
                .take(count)
                .copied()
                .collect::<Vec<_>>()
                .join(" ")
        };
        let (two, three) = (front(2), front(3));
        // Options that take a value may stand before the command.
        let is_group = |words: &str| {
            let front = format!("{words} ");
            commands.keys().any(|name| name.starts_with(&front))
        };
        let group = (plain.len() == 1 && is_group(first)) || (plain.len() == 2 && is_group(&two));
        let known = [three.as_str(), two.as_str()];
        let known = known.into_iter().find(|name| commands.contains_key(*name));
        let name = known.unwrap_or(*first);
        let options = commands.get(name);
        if options.is_none() && !group {
            if words.len() == plain.len() {
                problems.push(format!(
                    "line {number}: there is no command `landfast {two}`"
                ));
            }
            continue;
        }
        // What follows `--` belongs to another program.
        for option in plain.iter().take_while(|word| **word != "--") {
            let option = option.trim_end_matches([',', '.', ')']);
            let option = option.split('=').next().unwrap_or(option);
            let known = |set: &BTreeSet<String>| set.contains(option);
            if option.starts_with("--") && !known(global) && !options.is_some_and(known) {
                problems.push(format!(
                    "line {number}: `landfast {name}` has no option `{option}`"
                ));
            }
        }
    }
    problems
}

/// Everything that stands behind `landfast ` at the start of a code span or of a line of a block.
fn shown_commands(text: &str) -> Vec<(usize, String)> {
    let mut shown = Vec::new();
    let mut inside = false;
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        if trimmed.starts_with("```") {
            inside = !inside;
            continue;
        }
        let mut add = |code: &str| {
            let code = code.trim().trim_start_matches("$ ");
            if let Some(rest) = code.strip_prefix("landfast ") {
                let rest = rest.split(" #").next().unwrap_or(rest);
                let rest = rest.split(['|', '>', '<', '&', ';']).next().unwrap_or(rest);
                shown.push((index + 1, rest.to_owned()));
            }
        };
        if inside {
            add(trimmed);
        } else {
            line.split('`').skip(1).step_by(2).for_each(add);
        }
    }
    shown
}

/// Reads the reference of the command line.
fn commands(reference: &str) -> (Commands, BTreeSet<String>) {
    let mut commands = Commands::new();
    let mut global = ["--help", "--version"].map(str::to_owned).into();
    let mut current: Option<String> = None;
    for line in reference.lines() {
        if let Some(name) = line.strip_prefix("## `landfast ") {
            let name = name.trim_end_matches('`').to_owned();
            commands.entry(name.clone()).or_default();
            current = Some(name);
            continue;
        }
        let options: &mut BTreeSet<String> = match &current {
            Some(name) => commands.entry(name.clone()).or_default(),
            None => &mut global,
        };
        let is_option = line.trim_start().starts_with('-') || line.starts_with("| `-");
        if is_option {
            let words = line.split(|letter: char| !(letter.is_alphanumeric() || letter == '-'));
            options.extend(
                words
                    .filter(|word| word.starts_with("--"))
                    .map(str::to_owned),
            );
        }
    }
    (commands, global)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFERENCE: &str = "| `-e, --environment` | x |\n## `landfast deploy`\n      --note <NOTE>\n## `landfast secret set`\n";

    fn problems(text: &str) -> Vec<String> {
        let (commands, global) = commands(REFERENCE);
        unknown_commands(text, &commands, &global)
    }

    #[test]
    fn a_command_or_option_that_is_gone_is_found_in_text_and_in_blocks() {
        assert_eq!(
            problems("`landfast deploy --note x -e a --environment b`"),
            [""; 0]
        );
        assert_eq!(
            problems("```\nlandfast secret set KEY < file\n```"),
            [""; 0]
        );
        assert_eq!(problems("`landfast fly`").len(), 1);
        assert_eq!(problems("```\n$ landfast deploy --later\n```").len(), 1);
        assert_eq!(problems("`landfast secret steal`").len(), 1);
    }

    #[test]
    fn a_link_to_a_missing_file_or_heading_is_dead() {
        let folder = std::env::temp_dir().join(format!("landfast-book-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let page = folder.join("a.md");
        let text = "# One, two\n[x](a.md#one-two) [y](#one-two) `[no](code.md)`\n[z](b.md) [w](a.md#three)\n";
        fs::write(&page, text).expect("a page");
        let dead = dead_links(&page, text).expect("it is readable");
        fs::remove_dir_all(&folder).expect("it is ours");
        assert_eq!(dead.len(), 2, "{dead:?}");
    }
}
