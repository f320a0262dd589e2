//! `certificates`: what each host presents and until when, and renewing one by hand.

use landfast_api::{Certificate, CertificateList, CertificateSource, CertificateState, Level};
use landfast_client::Client;

use crate::{
    args::CertificatesCommand,
    exit::{Exit, Failure},
    out::{Paint, Printer},
    table::{instant, table},
};

use super::show::print;

pub(super) async fn certificates(
    printer: &Printer,
    client: &Client,
    command: Option<CertificatesCommand>,
) -> Result<Exit, Failure> {
    match command {
        None | Some(CertificatesCommand::List) => {
            let list = client.certificates().await?;
            print(printer, &list, || list_lines(&list, printer.paint))
        }
        Some(CertificatesCommand::Renew { name }) => {
            let ordered = client.renew_certificate(&name).await?;
            print(printer, &ordered, || {
                vec![format!(
                    "a certificate for {} is ordered; `landfast certificates` shows what comes of it",
                    ordered.host
                )]
            })
        }
    }
}

fn list_lines(list: &CertificateList, paint: Paint) -> Vec<String> {
    let mut lines = Vec::new();
    if list.certificates.is_empty() {
        lines.push("no route of this host has or gets a certificate".to_owned());
    } else {
        let head = [
            "HOST",
            "STATE",
            "SOURCE",
            "ISSUER",
            "EXPIRES (UTC)",
            "NEXT ORDER (UTC)",
        ];
        let rows = list
            .certificates
            .iter()
            .map(|one| row(one, paint))
            .collect();
        lines.push(table(&head, &[], rows));
    }
    for one in &list.certificates {
        match (&one.alert, &one.last_error) {
            (Some(alert), _) => {
                let word = match alert.level {
                    Level::Error => paint.bad("problem:"),
                    Level::Warning | Level::Info | Level::Unknown => paint.warn("warning:"),
                };
                lines.push(format!("{word} {}: {}", one.host, alert.text));
            }
            (None, Some(error)) => {
                lines.push(format!("{}: the newest order failed: {error}", one.host))
            }
            (None, None) => {}
        }
    }
    if list.directory.is_none() {
        lines.push(paint.dim("ACME is off: no certificate is ordered or renewed"));
    }
    lines
}

fn row(one: &Certificate, paint: Paint) -> Vec<String> {
    let word = one.state.as_str();
    let state = match one.state {
        CertificateState::Valid | CertificateState::Renewing => paint.good(word),
        CertificateState::Ordering | CertificateState::Missing => paint.warn(word),
        CertificateState::Expired => paint.bad(word),
        CertificateState::Unknown => word.to_owned(),
    };
    let source = match one.source {
        CertificateSource::Acme => "acme",
        CertificateSource::Files => "files",
        CertificateSource::Unknown => "unknown",
    };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    vec![
        one.host.clone(),
        state,
        source.to_owned(),
        or_dash(one.issuer.clone()),
        or_dash(one.not_after.map(instant)),
        or_dash(one.next_order_at.map(instant)),
    ]
}
