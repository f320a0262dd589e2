//! Whether a host can carry what it is to carry: asked of its server, or looked at here where none runs yet.

use std::path::Path;

use landfast_api::{Diagnosis, DoctorRequest, FindingLevel, Manifest};
use landfast_client::Client;
use landfast_doctor::{Needs, Places};

use crate::{
    args::{self, Global},
    context::{blocking, environment, state_folder},
    exit::{Exit, Failure},
    manifest,
    out::{Paint, Printer},
    roles::default_listeners,
    table::table,
};

/// The manifest nobody named: without it only the host is looked at.
const MANIFEST_DEFAULT: &str = "landfast.toml";

pub(super) async fn doctor(
    printer: &Printer,
    global: &Global,
    client: &Client,
    arguments: &args::Doctor,
) -> Result<Exit, Failure> {
    let text = match global.file.exists() || global.file != Path::new(MANIFEST_DEFAULT) {
        true => Some(manifest::read(&global.file)?),
        false => None,
    };
    let request = DoctorRequest {
        manifest: text.map(|text| Manifest {
            file_name: manifest::name(&global.file),
            text,
        }),
        environment: Some(environment(global).to_string()),
        users: arguments.users,
    };
    let diagnosis = match client.doctor(&request).await {
        Ok(diagnosis) => diagnosis,
        Err(error) => {
            let failure = Failure::from(error);
            let is_here = global.host.is_none() && global.socket.is_none();
            if failure.exit != Exit::Unreachable || !is_here {
                return Err(failure);
            }
            printer.say("no server answers here: this is what the machine itself says");
            look_here(printer, global, &request).await?
        }
    };
    if printer.json {
        printer.json(&diagnosis)?;
    } else {
        printer.data(&lines(&diagnosis, printer.paint).join("\n"))?;
    }
    Ok(match diagnosis.level {
        FindingLevel::Fail => Exit::GateRefused,
        FindingLevel::Ok | FindingLevel::Warn | FindingLevel::Unknown => Exit::Done,
    })
}

async fn look_here(
    printer: &Printer,
    global: &Global,
    request: &DoctorRequest,
) -> Result<Diagnosis, Failure> {
    let mut needs = match request.manifest {
        Some(_) => Needs::of(&manifest::load(printer, &global.file, &environment(global))?.1),
        None => Needs::default(),
    };
    needs.users = request.users;
    needs.ports = Some(landfast_server::instance_ports());
    let places = Places {
        state: state_folder()?,
        ports: default_listeners(),
    };
    let findings = blocking(move || {
        let facts = landfast_doctor::measure(&places, landfast_proxy::port_owner);
        landfast_doctor::judge(&facts, &needs)
    });
    Ok(landfast_server::diagnosis(findings.await?))
}

fn lines(diagnosis: &Diagnosis, paint: Paint) -> Vec<String> {
    let rows = diagnosis.findings.iter().map(|one| {
        let word = match one.level {
            FindingLevel::Ok => paint.good("ok"),
            FindingLevel::Warn => paint.warn("warn"),
            FindingLevel::Fail => paint.bad("fail"),
            FindingLevel::Unknown => "unknown".to_owned(),
        };
        vec![word, one.check.clone(), one.measured.clone()]
    });
    let mut lines = vec![table(&["", "check", "what was found"], &[], rows.collect())];
    let advised = diagnosis.findings.iter();
    let advised = advised.filter_map(|one| Some((one, one.advice.as_ref()?)));
    let hints: Vec<_> = advised
        .map(|(one, advice)| format!("{} {}: {advice}", paint.good("hint:"), one.check))
        .collect();
    if !hints.is_empty() {
        lines.push(String::new());
        lines.extend(hints);
    }
    lines
}
