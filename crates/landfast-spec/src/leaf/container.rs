//! Values of containers.

use landfast_types::ImageReference;

use super::{Leaf, Reader};
use crate::{catalogue::closest, code::Code, container::CAPABILITIES, diagnostic::Problem};

impl Reader<'_> {
    pub(super) fn image_name(&self) -> Option<Leaf> {
        let text = self.text()?;
        match text.parse::<ImageReference>() {
            Ok(name) => Some(Leaf::Text(name.to_string())),
            Err(error) => {
                if let Some((_, bare)) = text.split_once("://") {
                    let message = format!("`{text}` is an address, not the name of an image");
                    let problem = self.problem(Code::BadImage, message);
                    return self.refuse(problem.help(format!("write \"{bare}\"")));
                }
                let problem = self.problem(Code::BadImage, error.to_string());
                self.refuse(problem.help("for example \"nginx:1.27\" or \"ghcr.io/acme/web:1.4\""))
            }
        }
    }

    /// `managed`, or a path on the host.
    pub(super) fn volume_place(&self) -> Option<Leaf> {
        match self.text()? {
            "managed" => Some(Leaf::Text("managed".to_owned())),
            _ => self.host_path(),
        }
    }

    pub(super) fn container_path(&self) -> Option<Leaf> {
        let text = self.text()?;
        match self.container_path_problem(text) {
            Some(problem) => self.refuse(problem),
            None => Some(Leaf::Text(text.to_owned())),
        }
    }

    pub(super) fn container_paths(&self) -> Option<Leaf> {
        let texts = self.texts("a list of absolute paths in the container")?;
        let texts: Vec<_> = texts.into_iter().map(|(text, _)| text).collect();
        let problems = texts
            .iter()
            .filter_map(|text| self.container_path_problem(text));
        let problems: Vec<_> = problems.collect();
        let fine = problems.is_empty();
        problems
            .into_iter()
            .for_each(|problem| self.sink.report(problem));
        fine.then_some(Leaf::Texts(texts))
    }

    fn container_path_problem(&self, text: &str) -> Option<Problem> {
        // Docker reads a colon and a comma in a path as its own.
        let message = match self.path_problem(text) {
            Some(problem) => return Some(problem),
            None if !text.starts_with('/') || text == "/" => {
                format!("`{}` must be an absolute path in the container", self.name)
            }
            None if text.contains([':', ',']) => {
                format!("`{}` must not hold `:` or `,`", self.name)
            }
            None => return None,
        };
        let problem = self.problem(Code::BadPath, message);
        Some(problem.help("it starts with `/`, and is not `/` itself"))
    }

    pub(super) fn secret_names(&self) -> Option<Leaf> {
        let texts = self.texts("a list of names of secrets")?;
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let is_name = |text: &str| {
            !text.is_empty()
                && !text.starts_with(|c: char| c.is_ascii_digit())
                && text.chars().all(is_word)
        };
        if let Some((_, span)) = texts.iter().find(|(text, _)| !is_name(text)) {
            // What stands there may be a value by mistake: it is not repeated.
            let message = format!("`{}` holds what cannot name a secret", self.name);
            let problem = Problem::new(Code::BadName, span.clone(), message);
            let help = "use A to Z, 0 to 9 and `_`, not starting with a digit";
            return self.refuse(problem.help(help));
        }
        Some(Leaf::Texts(
            texts.into_iter().map(|(text, _)| text).collect(),
        ))
    }

    /// In capitals, without `CAP_`.
    pub(super) fn capabilities(&self) -> Option<Leaf> {
        let texts = self.texts("a list of capabilities")?;
        let mut names = Vec::new();
        for (text, span) in texts {
            let upper = text.to_uppercase();
            let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if !CAPABILITIES.contains(&name) {
                let message = format!("there is no capability `{text}`");
                let problem = Problem::new(Code::UnknownWord, span, message);
                let begins = |one: &&&str| one.starts_with(name);
                let best = CAPABILITIES.iter().find(begins).copied();
                let best = best.or_else(|| closest(name, CAPABILITIES.iter().copied()));
                return self.refuse(match best {
                    Some(best) => problem.help(format!("did you mean \"{best}\"?")),
                    None => {
                        problem.help("for example \"NET_BIND_SERVICE\"; capabilities(7) lists them")
                    }
                });
            }
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        Some(Leaf::Texts(names))
    }
}
