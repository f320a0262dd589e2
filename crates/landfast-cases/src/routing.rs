//! What the proxy decides for each request, and for each snapshot.

use std::{collections::BTreeMap, hint::black_box};

use http::{HeaderMap, HeaderName, HeaderValue};
use landfast_routing::{
    admission::Admission,
    balance::{self, Candidate, FULL_SHARE},
    headers::{self, Arrival},
    snapshot::{
        Backend, BackendState, EjectionPolicy, Group, Mode, Protocol, RetryPolicy, Route,
        RouteAnswers, RouteLimits, RouteTimeouts, SNAPSHOT_VERSION, Service, Snapshot,
    },
    table::Table,
};
use landfast_types::{ReleaseId, ServiceKey};

use crate::Work;

const HOSTS: usize = 500;

/// A host of 500 apps, each with two paths and three backends.
fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot {
        version: SNAPSHOT_VERSION,
        ..Snapshot::default()
    };
    for number in 0..HOSTS {
        let key: ServiceKey = format!("app{number}/production/api")
            .parse()
            .expect("a service key");
        for path in ["/", "/api/v2"] {
            snapshot.routes.push(route(number, path, &key));
        }
        snapshot.services.insert(key, service(number));
    }
    snapshot
}

fn route(number: usize, path: &str, key: &ServiceKey) -> Route {
    Route {
        name: format!("app{number}/production{path}"),
        host: format!("app{number}.customers.example"),
        path: path.into(),
        service: key.clone(),
        websocket: true,
        https_only: true,
        limits: RouteLimits {
            body_bytes_max: 100 << 20,
        },
        timeouts: RouteTimeouts {
            connect_ms: 5_000,
            first_byte_ms: 60_000,
            body_idle_ms: 60_000,
        },
        admission: Admission::default(),
        answers: RouteAnswers::default(),
    }
}

fn service(number: usize) -> Service {
    let backends = (0..3_u16).map(|replica| Backend {
        id: format!("app{number}/production/api.r1.{replica}"),
        address: ([127, 0, 0, 1], 20_000 + replica).into(),
        state: BackendState::Serving,
    });
    Service {
        mode: Mode::Serve,
        groups: vec![Group {
            release: ReleaseId(1),
            weight: 1,
            backends: backends.collect(),
        }],
        preview: None,
        protocol: Protocol::default(),
        sticky: false,
        health: None,
        retry: RetryPolicy {
            attempts_max: 1,
            budget_percent: 20,
        },
        ejection: EjectionPolicy {
            failures: 5,
            first_ms: 10_000,
            max_ms: 300_000,
        },
        slow_start_ms: 0,
    }
}

pub(crate) fn compile() -> Work {
    let snapshot = snapshot();
    Box::new(move || {
        let (table, problems) = Table::compile(black_box(&snapshot));
        assert!(problems.is_empty() && table.routes.len() == 2 * HOSTS);
    })
}

pub(crate) fn find() -> Work {
    let (table, _) = Table::compile(&snapshot());
    let hosts: Vec<String> = (0..HOSTS)
        .map(|number| format!("app{number}.customers.example"))
        .collect();
    let mut turn = 0;
    Box::new(move || {
        turn = (turn + 1) % HOSTS;
        let found = table.find(black_box(&hosts[turn]), black_box("/api/v2/orders/17"));
        assert!(found.is_some());
    })
}

pub(crate) fn balance() -> Work {
    let mut turn = 0;
    Box::new(move || {
        turn += 1;
        let look = |index: usize| {
            Some(Candidate {
                in_flight: [4, 3, 4][index],
                share: FULL_SHARE,
            })
        };
        let picked = balance::least_loaded(black_box(3), black_box(turn), look);
        assert_eq!(picked, Some(1));
    })
}

/// A browser's request on its way to a backend.
pub(crate) fn forwarded() -> Work {
    let fields = BTreeMap::from([
        ("accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("accept-language", "en-GB,en;q=0.5"),
        ("connection", "keep-alive"),
        (
            "cookie",
            "session=8f14e45fceea167a5a36dedd4bea2543; theme=dark",
        ),
        ("host", "app17.customers.example"),
        ("referer", "https://app17.customers.example/orders"),
        (
            "user-agent",
            "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101",
        ),
        ("x-forwarded-for", "203.0.113.7"),
    ]);
    let fields: HeaderMap = fields
        .into_iter()
        .map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        })
        .collect();
    Box::new(move || {
        let mut fields = fields.clone();
        headers::strip_hop_by_hop(&mut fields);
        let arrival = Arrival {
            client: [192, 0, 2, 1].into(),
            is_https: true,
            authority: "app17.customers.example",
        };
        headers::set_forwarded(&mut fields, arrival, Protocol::Http1);
        assert!(black_box(fields).contains_key("x-forwarded-for"));
    })
}
