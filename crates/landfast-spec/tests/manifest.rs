//! Tables of manifests and what is said about them.

use std::{collections::BTreeSet, fmt::Write as _};

use insta::assert_snapshot;
use landfast_spec::{
    AppSpec, Code, Gate, MissingFile, Probe, Protocol, SecretDelivery, Severity, Share, Strategy,
    Style, Volume, When, check_all, environments, parse, parse_with_secrets, render, render_json,
};
use landfast_types::EnvironmentName;

const CONTRACT: &str = include_str!("fixtures/contract.toml");

fn production() -> EnvironmentName {
    EnvironmentName::new("production").expect("a name")
}

/// All diagnostics, one per line: place, code, message, help.
fn said(text: &str) -> String {
    let parsed = parse("landfast.toml", text, &production());
    assert_eq!(
        parsed.spec.is_none(),
        parsed.has_errors(),
        "a spec exactly when nothing is wrong"
    );
    lines(&parsed.diagnostics)
}

fn lines(diagnostics: &[landfast_spec::Diagnostic]) -> String {
    let mut output = String::new();
    for one in diagnostics {
        write!(
            output,
            "{}:{} {} {}",
            one.line, one.column, one.code, one.message
        )
        .expect("writes");
        one.help
            .iter()
            .for_each(|help| write!(output, " | {help}").expect("writes"));
        output.push('\n');
    }
    output
}

/// A manifest with one healthy service, and lines that are added to it.
fn with(service: &str, rest: &str) -> String {
    format!(
        "app = \"shop\"\n[services.api]\nartifact = \"api\"\ncommand = [\"./api\"]\nport = 3000\n\
         health = {{ ready = \"http:/ready\" }}\n{service}\n{rest}"
    )
}

fn spec(text: &str) -> AppSpec {
    let parsed = parse("landfast.toml", text, &production());
    parsed
        .spec
        .unwrap_or_else(|| panic!("{}", lines(&parsed.diagnostics)))
}

/// The first table of the seam: input, and everything that is said about it.
macro_rules! check {
    ($input:expr, @$expect:literal) => {
        assert_snapshot!(said(&$input), @$expect)
    };
}

#[test]
fn the_contracts_example_is_refused_only_for_a_store_it_leaves_out() {
    check!(CONTRACT, @r"
    8:21 LF012 there is no store `cache` | stores of this file: main
    ");
}

#[test]
fn ten_errors_are_ten() {
    let text = include_str!("fixtures/ten-errors.toml");
    let parsed = parse("landfast.toml", text, &production());
    let errors = parsed
        .diagnostics
        .iter()
        .filter(|one| one.severity == Severity::Error);
    assert_eq!(errors.count(), 10);
    check!(text, @r#"
    2:7 LF009 this cannot name an app: `Flex Time` holds 'F'; a name is made of a to z, 0 to 9 and `-` | write `flex-time`
    7:8 LF010 `port` is 0; ports go from 1 to 65535 | any port will do: the target chooses the real one and passes it as `PORT`
    8:1 LF003 unknown key `replcas` in `[services.api]` | did you mean `replicas`?
    9:9 LF007 `drain` has no unit | write "30s"
    11:9 LF012 there is no store `main` | add [stores.main] with an `engine`
    16:10 LF012 there is no service `apu` | did you mean "api"?
    17:13 LF001 this is not TOML: string values must be quoted, expected literal string | text and values with units are in quotes: "yes"
    20:8 LF022 `https://api.flextime.example` is not a host | write the host alone: "api.flextime.example"
    25:14 LF015 steps must ascend, 5 comes after 25 | for example [5, 25, 100]
    26:23 LF011 there is no gate `smok` | did you mean "smoke"?
    "#);
}

#[test]
fn a_healthy_manifest_says_nothing() {
    check!(with("", ""), @"");
}

#[test]
fn an_empty_file_says_what_is_missing() {
    check!("", @r#"
    1:1 LF006 `app` is missing at the top of the file | for example app = "flextime"
    1:1 LF029 there is no service and no job | add [services.NAME] with `artifact` and `command`
    "#);
}

#[test]
fn unknown_keys_are_refused_with_the_likely_one() {
    check!(with("replcas = 2\ncmd = 1\nquux = 1\nhold = \"1m\"", "[service.web]\n[deploy]\ndrain = \"3s\""), @r"
    7:1 LF003 unknown key `replcas` in `[services.api]` | did you mean `replicas`?
    8:1 LF003 unknown key `cmd` in `[services.api]` | did you mean `command`?
    9:1 LF003 unknown key `quux` in `[services.api]`
    10:1 LF003 unknown key `hold` in `[services.api]` | `hold` is a key of `[deploy]`
    11:2 LF003 unknown key `service` at the top of the file | did you mean `services`?
    13:1 LF003 unknown key `drain` in `[deploy]` | `drain` is a key of `[services.NAME]`
    ");
}

#[test]
fn keys_and_gates_of_later_parts_are_not_yet() {
    check!(with("", "[stores.main]\nengine = \"redis\"\nbackup = {}\n[backup]\n[deploy.window]\n[routes.r]\nhost = \"a.example\"\nservice = \"api\"\nlimits = { rate = \"1/s\" }"), @r"
    10:1 LF004 not yet: `main` is Redis; PostgreSQL and volumes are backed up | until then run your backup as a job with a cron line in `when`
    11:2 LF003 unknown key `backup` at the top of the file | `backup` is a key of `[stores.NAME]`
    12:9 LF004 not yet: `window` comes with a later version | until then use the gate `approval`
    ");
    check!(with("", "[deploy]\ngates = [\"backup\", \"window\", \"lint\", \"smok\", \"approval-by:ops\", \"preflight\", \"preflight\"]"), @r#"
    9:20 LF004 not yet: the gate `window` comes with a later version | gates of this version: "preflight", "backup", "smoke", "hold", "approval" or "analysis"
    9:30 LF004 not yet: the gate `lint` comes with a later version | gates of this version: "preflight", "backup", "smoke", "hold", "approval" or "analysis"
    9:38 LF011 there is no gate `smok` | did you mean "smoke"?
    9:46 LF004 not yet: the gate `approval-by:ops` comes with a later version | gates of this version: "preflight", "backup", "smoke", "hold", "approval" or "analysis"
    9:78 LF008 the gate `preflight` is there twice | name each gate once
    "#);
}

#[test]
fn values_of_the_wrong_type_say_what_is_wanted() {
    check!(with("drain = 30\ngrace = \"10\"\nreplicas = \"3\"\nexclusive = \"true\"\nafter = \"x\"\nresources = { cpu = 2, memory = 512 }\nvolumes = [\"/x\"]\nenv = { A = [1], B = 1979-05-27 }", "[deploy]\nstrategy = 3\nprobe = { path = \"/\", rate = 5 }"), @r#"
    7:9 LF007 `drain` has no unit | write "30s"
    8:9 LF007 `grace` has no unit | write "10s"
    9:12 LF005 `replicas` must be a whole number | write it without quotes: replicas = 3
    10:13 LF005 `exclusive` must be true or false | write it without quotes: exclusive = true
    11:9 LF005 `after` must be a list of names of services | write after = ["x"]
    12:21 LF005 `cpu` must be a share of CPU, text in quotes | write "2"
    12:33 LF007 `memory` has no unit | write "512MiB"
    13:11 LF005 `volumes` must be a table | for example volumes = { uploads = "/data/uploads" }
    14:13 LF005 `A` must be text, a number, true or false
    14:22 LF005 `B` must be text, a number, true or false
    16:12 LF005 `strategy` must be text in quotes | for example strategy = "canary"
    17:30 LF007 `rate` has no unit | write "5/s"
    "#);
    check!("app = \"x\"\nservices = []\n[jobs]\na = 1\n[[routes]]\nhost = \"x\"", @r"
    2:1 LF029 there is no service and no job | add [services.NAME] with `artifact` and `command`
    2:12 LF005 `services` must be a table | each has a name of its own: write [services.NAME] instead of [[services]]
    4:5 LF005 `jobs.a` must be a table | write [jobs.NAME] on a line of its own, and its keys below
    5:1 LF005 `routes` must be a table | each has a name of its own: write [routes.NAME] instead of [[routes]]
    ");
    check!("app = \"x\"\n[services.a]\nartifact = \"a\"\ncommand = \"./a --port 3\"\nhealth = \"http:/x\"", @r#"
    4:11 LF005 `command` must be a list of words, never a line for a shell | write command = ["./a", "--port", "3"]
    5:10 LF005 `health` must be a table | write health = { ready = "http:/x" }
    "#);
}

#[test]
fn values_out_of_range_name_both_bounds() {
    check!(with("replicas = 0\nstream_drain = \"9d\"\ngrace = \"soon\"\nresources = { cpu = \"lots\", memory = \"1KiB\" }", "[deploy]\nmax_surge = \"101%\"\nmax_unavailable = -1\nwebhook = \"chat\"\nprobe = { path = \"x\", rate = \"9999/s\" }"), @r#"
    7:12 LF010 `replicas` is 0; it goes from 1 to 500
    8:16 LF010 `stream_drain` is 9d; it goes from 0s to 1d
    9:9 LF008 `soon` is not a duration | write a number and a unit, such as `500ms`, `30s`, `5m` or `1h 30m`
    10:21 LF008 `lots` is not a share of CPU | write cores such as `2` or `0.5`, or thousandths such as `500m`
    10:38 LF010 `memory` is 1KiB; it is at least 1MiB
    12:13 LF008 `101%` is not a percentage | write a count such as 1, or a percentage from "0%" to "100%"
    13:19 LF010 `max_unavailable` is -1; it goes from 0 to 500
    14:11 LF008 `webhook` must be an address that starts with `https://` or `http://`
    15:1 LF032 `probe` has no effect with the strategy `rolling` | it is for strategy = "canary"
    15:18 LF021 `path` must be a path that starts with `/` | for example "/ready"
    15:30 LF010 `rate` is 9999/s; it goes from 1/s to 1000/s
    "#);
    check!(with("", "[services.b]\nartifact = \"../b\"\ncommand = []\nport = 0\n[services.c]\nartifact = \"\"\ncommand = [\"\"]\nport = 70000"), @r#"
    8:11 LF031 `b` names no `health.ready`: ready means TCP connect only | health = { ready = "http:/ready" }
    9:12 LF021 `artifact` must not hold `..` | name a file or folder, from the folder of this file
    10:11 LF008 `command` is empty | for example command = ["./flextime", "serve"]
    11:8 LF010 `port` is 0; ports go from 1 to 65535 | any port will do: the target chooses the real one and passes it as `PORT`
    12:11 LF031 `c` names no `health.ready`: ready means TCP connect only | health = { ready = "http:/ready" }
    13:12 LF021 `artifact` is empty | name a file or folder, from the folder of this file
    14:11 LF008 `command` names no program | for example command = ["./flextime", "serve"]
    15:8 LF010 `port` is 70000; ports go from 1 to 65535 | any port will do: the target chooses the real one and passes it as `PORT`
    "#);
    check!(with("replicas = 99999999999999999999", ""), @r"7:12 LF010 `replicas` is too large");
}

#[test]
fn names_are_checked_everywhere() {
    check!("app = \"My App\"\n[services.API_1]\nartifact = \"a\"\ncommand = [\"a\"]\nvolumes = { \"a b\" = \"/x\", c = \"rel\", d = \"/a/../b\" }\nenv = { \"A-B\" = \"1\", PORT = \"1\", VOLUME_X = \"2\" }\n[environments.Prod]\n[jobs.9]\nartifact = \"a\"\ncommand = [\"a\"]", @r"
    1:7 LF009 this cannot name an app: `My App` holds 'M'; a name is made of a to z, 0 to 9 and `-` | write `my-app`
    2:11 LF009 this cannot name a service: `API_1` holds 'A'; a name is made of a to z, 0 to 9 and `-` | write `api-1`
    5:13 LF009 this cannot name a volume: `a b` holds ' '; a name is made of a to z, 0 to 9 and `-` | write `a-b`
    5:31 LF021 `c` must be an absolute path on the server's host | it starts with `/`, and is not `/` itself
    5:42 LF021 `d` must not hold `..`
    6:9 LF009 `A-B` cannot name a variable | write `A_B`
    6:22 LF026 `PORT` is set by Landfast for each instance | remove it, or choose another name
    6:34 LF026 `VOLUME_X` is set by Landfast for each instance | remove it, or choose another name
    7:2 LF020 the file has no environment `production` | it has Prod; add [environments.production], which may be empty
    7:15 LF009 this cannot name an environment: `Prod` holds 'P'; a name is made of a to z, 0 to 9 and `-` | write `prod`
    8:7 LF009 this cannot name a job: `9` must start with a letter from a to z | use `a` to `z`, `0` to `9` and `-`, starting with a letter
    ");
}

#[test]
fn references_that_lead_nowhere_are_found() {
    check!(with("after = [\"wrker\", \"x y\"]", "[services.worker]\nartifact = \"a\"\ncommand = [\"a\"]\n[routes.r]\nhost = \"a.example\"\nservice = \"apy\"\n[routes.s]\nhost = \"b.example\"\nservice = \"worker\"\n[deploy]\ngates = [\"smoke\"]"), @r#"
    7:10 LF012 there is no service `wrker` | did you mean "worker"?
    7:19 LF009 this cannot name a service: `x y` holds ' '; a name is made of a to z, 0 to 9 and `-` | write `x-y`
    13:11 LF012 there is no service `apy` | did you mean "api"?
    16:11 LF027 the service `worker` does not listen | add `port` to [services.worker]
    18:10 LF012 the gate `smoke` has no job | give a job when = "gate:smoke"
    "#);
}

#[test]
fn circles_in_after_are_found_once_each() {
    let service = |name: &str, after: &str| {
        format!("[services.{name}]\nartifact = \"a\"\ncommand = [\"a\"]\nafter = {after}\n")
    };
    let text = [
        "app = \"x\"\n".to_owned(),
        service("a", "[\"b\"]"),
        service("b", "[\"c\"]"),
        service("c", "[\"a\"]"),
        service("d", "[\"d\"]"),
        service("e", "[\"a\"]"),
        service("f", "[]"),
    ]
    .concat();
    check!(text, @r"
    5:10 LF013 services wait for each other: `a` after `b` after `c` after `a` | remove one of these from its `after`
    17:10 LF013 `d` waits for itself | remove one of these from its `after`
    ");
}

#[test]
fn a_second_claim_of_a_host_and_path_is_refused() {
    check!(with("", "[routes.z]\nhost = \"A.example\"\nservice = \"api\"\n[routes.b]\nhost = \"a.example\"\npath = \"/\"\nservice = \"api\"\n[routes.c]\nhost = \"a.example\"\npath = \"/x/\"\nservice = \"api\"\n[routes.d]\nhost = \"a.example\"\npath = \"/x\"\nservice = \"api\""), @r"
    13:8 LF014 `a.example/` belongs to the route `z` already | give one of them another `path`
    21:8 LF014 `a.example/x` belongs to the route `c` already | give one of them another `path`
    ");
}

#[test]
fn public_hosts_get_certificates_by_acme_and_each_host_says_one_thing() {
    let route = |name: &str, host: &str, rest: &str| {
        format!(
            "[routes.{name}]\nhost = \"{host}\"\npath = \"/{name}\"\nservice = \"api\"\n{rest}\n"
        )
    };
    let files = "tls = { certificate = \"/c\", key = \"/k\" }";
    let text = [
        route("public", "api.flextime.com", ""),
        route("private", "api.flextime.test", ""),
        route("wished", "api.flextime.internal", "acme = true"),
        route("off", "old.flextime.com", "acme = false"),
        route("beside-off", "old.flextime.com", ""),
        route("files", "own.flextime.com", files),
        route("beside-files", "own.flextime.com", ""),
        route("plain", "slow.flextime.com", "https_only = false"),
        route("wild", "*.flextime.com", ""),
    ];
    let spec = spec(&with("", &text.concat()));
    let found: Vec<_> = spec
        .routes
        .iter()
        .map(|(name, route)| {
            format!(
                "{name}: acme {}, https only {}",
                route.acme, route.https_only
            )
        })
        .collect();
    assert_snapshot!(found.join("\n"), @r"
    beside-files: acme false, https only false
    beside-off: acme false, https only false
    files: acme false, https only true
    off: acme false, https only false
    plain: acme true, https only false
    private: acme false, https only false
    public: acme true, https only true
    wild: acme false, https only false
    wished: acme true, https only true
    ");
    let both = format!("{files}\nacme = true");
    let wrong = [
        route("a", "*.flextime.com", "acme = true"),
        route("b", "own.flextime.com", files),
        route("c", "own.flextime.com", "acme = true"),
        route("d", "e.flextime.com", &both),
    ];
    check!(with("", &wrong.concat()), @r"
    12:8 LF035 ACME cannot prove `*.flextime.com` over HTTP or TLS | name an exact host, or give `tls` a certificate from files
    22:8 LF035 another route of `own.flextime.com` says otherwise | a host has one certificate: say the same in all of its routes
    28:8 LF035 `acme = true` and certificate files in `tls` contradict each other | remove one of them
    ");
}

#[test]
fn hosts_paths_and_certificates_are_checked() {
    check!(with("", "[routes.a]\nhost = \"https://a.example:8080/x\"\nservice = \"api\"\n[routes.b]\nhost = \"b..example\"\npath = \"x\"\nservice = \"api\"\n[routes.c]\nhost = \"c.example\"\npath = \"/x/*\"\nservice = \"api\"\ntls = { certificate = \"c.pem\" }\n[routes.d]\nhost = \"d.example\"\nservice = \"api\"\nhttps_only = true\nmaintenance = \"page.html\""), @r#"
    9:8 LF022 `https://a.example:8080/x` is not a host | write the host alone: "a.example"
    12:8 LF022 `b..example` is not a host | "api.example.com", "*.example.com" or "*"
    13:8 LF021 `path` must start with `/` | write "/x"
    17:8 LF021 `path` is a prefix already | write "/x"
    19:1 LF006 `key` is missing in `[routes.c.tls]` | for example key = "/etc/tls/api.key"
    19:23 LF021 `certificate` must be an absolute path on the server's host | it starts with `/`, and is not `/` itself
    23:14 LF028 no route of `d.example` has a certificate to redirect to | add tls = { certificate = "…", key = "…" }, or acme = true
    24:15 LF008 `maintenance` is the page itself, not a path | put the HTML between """ and """
    "#);
}

#[test]
fn canary_steps_must_ascend_to_a_hundred() {
    for (steps, said_about) in [
        ("[5, 25, 100]", ""),
        ("[100]", ""),
        ("[]", "LF015 there are no steps"),
        ("[5, 50]", "LF015 the last step must be 100, this is 50"),
        ("[25, 5, 100]", "LF015 steps must ascend, 5 comes after 25"),
        ("[0, 100]", "LF015 a step goes from 1 to 100, this is 0"),
        ("[5, 101]", "LF015 a step goes from 1 to 100, this is 101"),
        (
            "[\"5%\", 100]",
            "LF005 `steps` must be a list of whole percentages, without quotes",
        ),
    ] {
        let text = with(
            "",
            &format!("[deploy]\nstrategy = \"canary\"\nsteps = {steps}"),
        );
        let said = said(&text);
        assert!(
            said.contains(said_about) && said.is_empty() == said_about.is_empty(),
            "{steps}: {said}"
        );
    }
}

#[test]
fn deadlines_and_room_must_let_a_rollout_move() {
    check!(with("", "[deploy]\nhealthy_deadline = \"10m\"\nmin_ready = \"20m\""), @r"
    9:20 LF016 `healthy_deadline` (10m) must be shorter than `progress_deadline` (10m) | one instance gets less time than the whole rollout without progress
    10:13 LF016 `min_ready` (20m) must be shorter than `healthy_deadline` (10m) | otherwise no instance could become ready in time
    ");
    check!(with("", "[deploy]\nmax_surge = 0"), @r"9:13 LF017 `max_surge` and `max_unavailable` are both 0, so nothing could move | write max_surge = 1");
    check!(with("", "[deploy]\nmax_surge = \"0%\"\nmax_unavailable = \"50%\""), @r"10:19 LF017 `api` could not move: of 1 replicas, `max_unavailable` is rounded down to 0 | write max_surge = 1, or max_unavailable = 1");
}

#[test]
fn an_exclusive_service_has_one_replica_and_says_how_it_moves() {
    check!(with("exclusive = true\nreplicas = 2", ""), @r"
    7:1 LF034 `api` moves by `recreate`, because it is exclusive
    8:12 LF018 `api` is exclusive but has 2 replicas | write replicas = 1, or remove `exclusive`
    ");
}

#[test]
fn keys_without_effect_are_warned_about() {
    check!(with("", "[jobs.s]\nartifact = \"a\"\ncommand = [\"a\"]\nwhen = \"gate:smoke\"\n[deploy]\nstrategy = \"blue-green\"\nsteps = [100]\nmax_surge = 2\ngates = [\"analysis\"]"), @r#"
    11:8 LF032 the job `s` never runs: `smoke` is not in `deploy.gates` | add "smoke" to gates in [deploy]
    14:1 LF032 `steps` has no effect with the strategy `blue-green` | it is for strategy = "canary"
    15:1 LF032 `max_surge` has no effect with the strategy `blue-green` | it is for strategy = "rolling"
    16:10 LF032 the gate `analysis` has no effect with the strategy `blue-green` | it judges the steps of strategy = "canary"
    "#);
}

#[test]
fn health_is_wanted_where_a_service_listens_and_refused_where_it_does_not() {
    check!("app = \"x\"\n[services.a]\nartifact = \"a\"\ncommand = [\"a\"]\nport = 1\n[services.b]\nartifact = \"a\"\ncommand = [\"a\"]\nhealth = { ready = \"tcp\" }\n[services.c]\nartifact = \"a\"\ncommand = [\"a\"]\nport = 1\nhealth = { ready = \"https://localhost/x\", live = \"nope\" }", @r#"
    2:11 LF031 `a` names no `health.ready`: ready means TCP connect only | health = { ready = "http:/ready" }
    9:20 LF027 `b` has no port to probe | add `port`, or write "none"
    14:20 LF008 `https://localhost/x` is not a probe | write "http:/x"
    14:50 LF008 `nope` is not a probe | "http:/path", "tcp", "image" or "none"
    "#);
}

#[test]
fn when_of_a_job_is_a_gate_a_cron_line_or_a_hand() {
    let job = |name: &str, when: &str| {
        format!("[jobs.{name}]\nartifact = \"a\"\ncommand = [\"a\"]\nwhen = {when}\n")
    };
    check!(with("", &[job("a", "\"0 3 * * *\""), job("b", "\"61 3 * * * UTC\""), job("c", "\"gate:preflight\""), job("d", "\"gate:backup\""), job("e", "\"0 0 31 2 * UTC\""), job("f", "\"daily\"")].concat()), @r#"
    11:8 LF023 the cron line has no time zone | add one: "0 3 * * * UTC" or "0 3 * * * Europe/Berlin"
    15:8 LF023 `when` cannot be `61 3 * * * UTC` | "gate:smoke", "hand", or five fields and a time zone such as "0 3 * * * UTC"
    19:8 LF011 the gate `preflight` runs no job | write "gate:smoke"
    23:8 LF011 the gate `backup` runs no job | write "gate:smoke"
    27:8 LF023 `when` cannot be `0 0 31 2 * UTC` | no day has this date
    31:8 LF023 `when` cannot be `daily` | "gate:smoke", "hand", or five fields and a time zone such as "0 3 * * * UTC"
    "#);
    let spec = spec(&with(
        "",
        &[
            job("a", "\"0  3 * * * Europe/Berlin\""),
            job("b", "\"hand\""),
        ]
        .concat(),
    ));
    let whens = spec
        .jobs
        .values()
        .map(|job| serde_json::to_string(&job.when).expect("json"))
        .collect::<Vec<_>>();
    assert_eq!(
        whens,
        [
            r#"{"kind":"cron","line":"0 3 * * * Europe/Berlin"}"#,
            r#"{"kind":"hand"}"#
        ]
    );
}

#[test]
fn broken_lines_are_reported_and_the_rest_is_still_checked() {
    check!("app = shop\n[services.api]\nartifact = \"api\ncommand = [\"./api\"]\nport 3000\ndrain = 30\n[routes.x\nhost = \"a\"\n[deploy]\nstrategy = \"rollin\"\nhold = 5m", @r#"
    1:7 LF001 this is not TOML: string values must be quoted, expected literal string | text and values with units are in quotes: "shop"
    3:12 LF001 this is not TOML: invalid basic string, expected `"`
    5:6 LF001 this is not TOML: key with no value, expected `=`
    6:9 LF007 `drain` has no unit | write "30s"
    7:1 LF001 this is not TOML: unclosed table, expected `]`
    10:12 LF011 `strategy` cannot be `rollin` | did you mean "rolling"?
    11:8 LF001 this is not TOML: string values must be quoted, expected literal string | text and values with units are in quotes: "5m"
    "#);
    check!("app = \"x\"\n[services.a]\nartifact = \"a\"\ncommand = [\"a\", \n", @r"4:16 LF001 this is not TOML: unclosed array, expected `]`");
    check!("app = \"x\"\napp = \"y\"\n[services.a]\nartifact = \"a\"\ncommand = [\"a\"]\n[services.a]\nreplicas = 2", @r"
    2:1 LF002 `app` is there twice | put what both say into one, and remove the other
    6:11 LF002 `a` is there twice | put what both say into one, and remove the other
    ");
}

#[test]
fn overlays_replace_values_and_errors_point_at_their_own_lines() {
    let text = with(
        "replicas = 3\nenv = { TTL = { default = \"1h\", type = \"duration\" }, BASE = { required = true }, L = \"info\" }",
        "[environments.production]\nservices.api.replicas = 6\nservices.api.env.TTL = \"2h\"\nservices.api.env.BASE = \"x\"\nservices.api.env.L = { type = \"string\" }\n[environments.staging]\n",
    );
    let api = &spec(&text).services.into_values().next().expect("api");
    assert_eq!(api.replicas, 6);
    assert_eq!(api.env["TTL"].value.as_deref(), Some("2h"));
    assert_eq!(api.env["TTL"].kind, landfast_spec::EnvType::Duration);
    assert_eq!(api.env["BASE"].value.as_deref(), Some("x"));
    assert_eq!(api.env["L"].value.as_deref(), Some("info"));
    let wrong = with(
        "env = { TTL = { default = \"1h\", type = \"duration\" } }",
        "[environments.production]\napp = \"y\"\nservices.api.replicas = 0\nservices.api.env.TTL = 3\nservices.api = 3\nroutes.r.service = \"api\"\ndeploy.healthy_deadline = \"1h\"\n[environments.staging]\nservices.api.replcas = 3\ndeploy.steps = [5]",
    );
    check!(wrong, @r#"
    9:1 LF003 unknown key `app` in an environment | `app` is the same for all environments
    10:25 LF010 `replicas` is 0; it goes from 1 to 500
    11:24 LF024 `TTL` is not of its type, duration | for example "30s"
    12:10 LF002 `api` is there twice | put what both say into one, and remove the other
    13:8 LF006 `host` is missing in `[routes.r]` | for example host = "api.flextime.example"
    14:27 LF016 `healthy_deadline` (1h) must be shorter than `progress_deadline` (10m) | one instance gets less time than the whole rollout without progress
    16:14 LF003 unknown key `replcas` in `[services.api]` | did you mean `replicas`?
    17:17 LF015 the last step must be 100, this is 5 | for example [5, 25, 100]
    "#);
}

#[test]
fn environments_are_those_of_the_file() {
    let text = with("", "[environments.staging]\n[environments.dr]");
    let names = environments(&text)
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>();
    assert_eq!(names, ["dr", "staging"]);
    assert_eq!(environments("app = 1"), [production()]);
    check!(text, @r"8:2 LF020 the file has no environment `production` | it has dr, staging; add [environments.production], which may be empty");
    let stagin = EnvironmentName::new("stagin").expect("a name");
    assert_snapshot!(lines(&parse("landfast.toml", &text, &stagin).diagnostics), @r"8:2 LF020 the file has no environment `stagin` | did you mean `staging`? Or add [environments.stagin]");
    assert_snapshot!(lines(&parse("landfast.toml", &with("", ""), &stagin).diagnostics), @r"1:1 LF020 the file has no environment `stagin` | it has only `production`; add [environments.stagin], which may be empty");
}

#[test]
fn every_environment_is_checked_once() {
    let text = with(
        "after = [\"x\"]",
        "[environments.production]\n[environments.staging]\nservices.api.exclusive = true\nservices.api.replicas = 2\n[deploy]\nstrategy = \"recreate\"",
    );
    assert_snapshot!(lines(&check_all("landfast.toml", &text)), @r"
    7:10 LF012 there is no service `x` | services of this file: api
    11:25 LF018 `api` is exclusive but has 2 replicas | write replicas = 1, or remove `exclusive`
    ");
}

#[test]
fn a_name_is_a_variable_or_a_secret_and_a_required_one_has_a_value() {
    let text = with(
        "env = { A = \"1\", B = { required = true }, C = { required = true }, D = { default = 1, type = \"duration\" }, DB_PASSWORD = \"hunter22\", E = { type = \"duraton\" } }",
        "",
    );
    let secrets = ["A", "B"]
        .map(str::to_owned)
        .into_iter()
        .collect::<BTreeSet<_>>();
    let parsed = parse_with_secrets("landfast.toml", &text, &production(), &secrets);
    let said = lines(&parsed.diagnostics);
    assert!(
        !said.contains("hunter22"),
        "a likely secret is not repeated"
    );
    assert_snapshot!(said, @r#"
    7:9 LF019 `A` has a value here and is a secret too | remove the value, or `landfast secret rm A`
    7:43 LF025 `C` is required and has no value | give it a value here, or `landfast secret set C`
    7:84 LF024 `D` is not of its type, duration | for example "30s"
    7:108 LF033 `DB_PASSWORD` looks like a secret, and its value is in the file | `landfast secret set DB_PASSWORD` and remove it here
    7:147 LF011 `type` cannot be `duraton` | did you mean "duration"?
    "#);
}

#[test]
fn everything_is_resolved_with_its_default() {
    let spec = spec(&with(
        "volumes = { uploads = \"/data/uploads\", cache = \"managed\" }\nenv = { N = 3, F = 0.5, B = true }",
        "[routes.r]\nhost = \"A.Example\"\nservice = \"api\"\ntls = { certificate = \"/c\", key = \"/k\" }\n[deploy]\nstrategy = \"canary\"\nmax_surge = \"25%\"",
    ));
    insta::assert_json_snapshot!(spec);
    let api = &spec.services.values().next().expect("api");
    assert_eq!(
        api.health.ready,
        Probe::Http {
            path: "/ready".into()
        }
    );
    assert_eq!(api.volumes["cache"], Volume::Managed);
    assert_eq!(spec.deploy.strategy, Strategy::Canary);
    assert_eq!(spec.deploy.gates, [Gate::Preflight, Gate::Analysis]);
    assert!(matches!(spec.deploy.max_surge, Share::Percent(_)));
    assert!(
        spec.routes
            .values()
            .all(|route| route.https_only && route.host == "a.example")
    );
    let json = serde_json::to_string(&spec).expect("json");
    let again: AppSpec = serde_json::from_str(&json).expect("reads back");
    assert_eq!(again, spec);
    assert_eq!(again.fingerprint(), spec.fingerprint());
}

#[test]
fn the_fingerprint_changes_with_meaning_only() {
    let one = spec(&with("drain = \"1m\"", ""));
    let same = spec(&with("drain   = \"60s\" # a comment", "# another"));
    let other = spec(&with("drain = \"61s\"", ""));
    assert_eq!(one.fingerprint(), same.fingerprint());
    assert_ne!(one.fingerprint(), other.fingerprint());
    let process = |spec: &AppSpec| {
        spec.services
            .values()
            .next()
            .expect("api")
            .process_fingerprint()
    };
    assert_eq!(process(&one), process(&other));
    assert_ne!(process(&one), process(&spec(&with("env = { A = 1 }", ""))));
}

#[test]
fn services_move_in_waves() {
    let service = |name: &str, after: &str| {
        format!("[services.{name}]\nartifact = \"a\"\ncommand = [\"a\"]\nafter = {after}\n")
    };
    let text = [
        "app = \"x\"\n".to_owned(),
        service("a", "[\"c\"]"),
        service("b", "[]"),
        service("c", "[]"),
        service("d", "[\"a\", \"b\"]"),
    ]
    .concat();
    assert_eq!(
        format!(
            "{:?}",
            spec(&text)
                .waves()
                .iter()
                .map(|wave| wave.iter().map(ToString::to_string).collect::<Vec<_>>())
                .collect::<Vec<_>>()
        ),
        r#"[["b", "c"], ["a"], ["d"]]"#
    );
}

#[test]
fn text_and_json_show_the_place() {
    let text = with("drain = 30", "");
    let diagnostics = parse("landfast.toml", &text, &production()).diagnostics;
    assert_snapshot!(render(&diagnostics, &text, Style::Plain), @r#"
    error[LF007]: `drain` has no unit
     --> landfast.toml:7:9
      |
    7 | drain = 30
      |         ^^
      |
      = help: write "30s"

    1 error
    "#);
    assert!(render(&diagnostics, &text, Style::Colour).contains("\u{1b}["));
    assert_snapshot!(render_json(&diagnostics).to_string(), @r#"{"errors":1,"warnings":0,"notices":0,"diagnostics":[{"code":"LF007","severity":"error","message":"`drain` has no unit","span":{"start":120,"end":122},"file":"landfast.toml","line":7,"column":9,"help":"write \"30s\""}]}"#);
    assert_eq!(render(&[], &text, Style::Plain), "");
}

#[test]
fn a_file_that_is_too_large_is_refused_unread() {
    let text = "#".repeat((1 << 20) + 1);
    let diagnostics = parse("landfast.toml", &text, &production()).diagnostics;
    assert_eq!(
        diagnostics.iter().map(|one| one.code).collect::<Vec<_>>(),
        [Code::TooLarge]
    );
}

#[test]
fn two_hundred_services_are_read_whole() {
    let mut text = "app = \"big\"\n".to_owned();
    for index in 0..200 {
        writeln!(text, "[services.s{index}]\nartifact = \"a\"\ncommand = [\"./a\"]\nport = 3000\nhealth = {{ ready = \"http:/r\" }}\n[routes.r{index}]\nhost = \"h{index}.example\"\nservice = \"s{index}\"").expect("writes");
    }
    text.push_str("[environments.production]\n");
    (0..200).for_each(|index| writeln!(text, "services.s{index}.replicas = 2").expect("writes"));
    let spec = spec(&text);
    assert_eq!((spec.services.len(), spec.routes.len()), (200, 200));
    assert!(spec.services.values().all(|service| service.replicas == 2));
    assert!(spec.jobs.values().all(|job| job.when == When::Hand));
}

#[test]
fn more_tables_than_anyone_needs_are_refused() {
    let mut text = "app = \"big\"\n".to_owned();
    for index in 0..1_001 {
        writeln!(
            text,
            "[services.s{index}]\nartifact = \"a\"\ncommand = [\"./a\"]"
        )
        .expect("writes");
    }
    check!(text, @r"2999:11 LF010 `services` has 1001 tables; it has at most 1000 | make it several apps");
}

#[test]
fn rendering_over_another_text_shows_no_line_but_does_not_fail() {
    let text = with("drain = 30", "");
    let diagnostics = parse("landfast.toml", &text, &production()).diagnostics;
    let rendered = render(&diagnostics, "short", Style::Plain);
    assert!(rendered.contains("LF007"), "{rendered}");
}

#[test]
fn who_may_come_and_how_often() {
    let route = |lines: &str| {
        with(
            "",
            &format!("[routes.r]\nhost = \"a.example\"\nservice = \"api\"\n{lines}"),
        )
    };
    check!(route("allow = []\nlimits = { rate = 100, burst = 0, by = \"ip\", total = \"1/d\" }"), @r#"
    11:9 LF010 `allow` has 0 networks; it has 1 to 1000 | leave the key out to let everybody in
    12:19 LF007 `rate` has no unit | write "100/s"
    12:32 LF010 `burst` is 0; it goes from 1 to 1000000
    12:40 LF011 `by` cannot be `ip` | "client", "route", "header:X-Api-Key" or "cookie:session"
    12:54 LF008 `1/d` is not a rate | write requests per second, minute or hour: "100/s", "300/m" or "1000/h"
    "#);
    check!(route("allow = [\"10.0.0.1/8\", \"office\", \"::/129\"]\nlimits = { rate = \"0/s\" }"), @r#"
    11:10 LF008 `10.0.0.1/8` has bits behind its prefix | write "10.0.0.0/8", or the address alone
    11:24 LF008 `office` is not a network | write an address, or one with its prefix such as `10.0.0.0/8`
    11:34 LF008 the prefix of `::/129` is longer than 128 bits
    12:19 LF010 `rate` is 0; it goes from 1 to 1000000
    "#);
    check!(route("limits = { burst = 2, by = \"route\", total_burst = 3 }"), @r#"
    11:12 LF032 `burst` has no effect here | write `rate` too
    11:23 LF032 `by` has no effect here | write `rate` too
    11:37 LF032 `total_burst` has no effect here | write `total` too
    "#);
    check!(route("limits = { rate = \"5/m\", by = \"route\", total = \"1/s\" }"), @r#"11:40 LF032 `total` has no effect here | it is what by = "route" says; remove one of them"#);
    let spec = spec(&route(
        "allow = [\"::ffff:192.0.2.1\"]\nlimits = { rate = \"300 / m\", by = \"header:X-Api-Key\", total = \"2000/s\", total_burst = 1 }",
    ));
    let route = spec.routes.values().next().expect("a route");
    let json = serde_json::to_string(&(&route.allow, &route.limits)).expect("json");
    assert_eq!(
        json,
        r#"[["192.0.2.1/32"],{"body":104857600,"rate":{"by":{"kind":"header","name":"x-api-key"},"quota":{"requests":300,"per":60000,"burst":300}},"total":{"requests":2000,"per":1000,"burst":1}}]"#
    );
}

#[test]
fn what_is_asked_of_and_done_to_messages() {
    let route = |lines: &str| {
        with(
            "",
            &format!("[routes.r]\nhost = \"a.example\"\nservice = \"api\"\n{lines}"),
        )
    };
    assert_snapshot!(said(&route(
        "auth = { users = [\"ann:hunter2\", \"ann:$2y$31$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e\", \"ann:$argon2id$v=19$m=9999999,t=1,p=1$a$b\", \"ann:$apr1$x$y\"], realm = \"a\\nb\" }"
    )));
    assert_snapshot!(said(&route(
        "cors = { origins = [\"*\"], credentials = true, headers = [\"*\"], methods = [\"get\"] }"
    )));
    assert_snapshot!(said(&route(
        "cors = { origins = [\"https://a.example/x\", \"a.example\", \"null\", \"https://*\", \"https://*.example:8443\"] }\nsecurity = { frame = \"none\", referrer = \"x\", csp = \"a\\nb\" }"
    )));
    assert_snapshot!(said(&route(
        "request_headers = { set = { Host = \"x\", X-Forwarded-For = \"1\", X_A = \"1\", \"a b\" = \"1\", Ok = 1, Fine = \"a\\nb\" }, remove = [\"Connection\"] }\nresponse_headers = { append = { Content-Length = \"1\" } }"
    )));
    let spec = spec(&route(
        "security = {}\nauth = { users = [\"ann:$2y$10$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e\"] }\ncors = { origins = [\"https://*.example\"] }\nresponse_headers = { set = { X-A = \"1\" } }",
    ));
    let route = spec.routes.values().next().expect("a route");
    insta::assert_json_snapshot!((
        &route.auth,
        &route.cors,
        &route.security,
        &route.response_headers
    ));
    let shown = format!("{route:?}");
    assert!(shown.contains("ann") && !shown.contains("$2y$"), "{shown}");
}

#[test]
fn secrets_are_files_unless_asked_for_and_were_variables_before() {
    let delivery = |text: &str| spec(text).services.values().next().expect("one").secrets;
    assert_eq!(delivery(&with("", "")), SecretDelivery::Files);
    let asked = with("secrets = \"environment\"", "");
    assert_eq!(delivery(&asked), SecretDelivery::Environment);
    // A release that was made before there was a choice goes on as it was.
    let mut old = serde_json::to_value(spec(&with("", ""))).expect("JSON");
    let services = old["services"].as_object_mut().expect("services");
    for service in services.values_mut() {
        service.as_object_mut().expect("a table").remove("secrets");
    }
    let old: AppSpec = serde_json::from_value(old).expect("it reads");
    let service = old.services.values().next().expect("one");
    assert_eq!(service.secrets, SecretDelivery::Environment);
    let asked = spec(&asked);
    let asked = asked.services.values().next().expect("one");
    assert_eq!(service.process_fingerprint(), asked.process_fingerprint());
}

#[test]
fn what_is_done_with_answers_is_checked_and_has_defaults() {
    let route = "[routes.r]\nhost = \"a.example\"\nservice = \"api\"\n";
    let plain = spec(&with("", route));
    let text = serde_json::to_string(&plain).expect("JSON");
    for added in ["protocol", "sticky", "compress", "files", "error_pages"] {
        assert!(
            !text.contains(&format!("\"{added}\":")),
            "a release of before has another fingerprint: {added}"
        );
    }
    let full = spec(&with(
        "protocol = \"h2c\"\nsticky = true",
        &format!(
            "{route}compress = true\nerror_pages = \"errors\"\nfiles = {{ folder = \"web/dist\", missing = \"index\" }}"
        ),
    ));
    let names: Vec<&str> = full.artifact_names().into_iter().collect();
    assert_eq!(names, ["api", "errors", "web/dist"]);
    let service = full.services.values().next().expect("one");
    assert!(service.sticky && service.protocol == Protocol::H2c);
    let files = full
        .routes
        .values()
        .next()
        .and_then(|route| route.files.clone());
    let files = files.expect("files");
    assert_eq!(
        (files.missing, files.cache_control.as_str()),
        (MissingFile::Index, "no-cache")
    );
    check!(with("protocol = \"grpc\"", &format!("{route}files = {{ missing = \"spa\", cache_control = \"a\\nb\" }}")), @r#"
    7:12 LF011 `protocol` cannot be `grpc` | one of "http/1.1" or "h2c"
    11:1 LF006 `folder` is missing in `[routes.r.files]` | for example folder = "public"
    11:21 LF011 `missing` cannot be `spa` | one of "service", "not-found" or "index"
    11:44 LF008 `cache_control` cannot be the value of a header | plain ASCII without blanks at its ends, at most 1024 bytes
    "#);
    check!(with("protocol = \"h2c\"", &format!("{route}websocket = true\ngzip = true")), @r#"
    11:1 LF032 `websocket` has no effect: the service `api` speaks h2c | WebSockets reach services of protocol = "http/1.1"
    12:1 LF003 unknown key `gzip` in `[routes.r]` | did you mean `compress`?
    "#);
}
