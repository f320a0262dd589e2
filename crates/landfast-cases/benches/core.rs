//! Criterion over all cases: `cargo bench -p landfast-cases`.

use criterion::{Criterion, criterion_group, criterion_main};
use landfast_cases::CASES;

fn all(criterion: &mut Criterion) {
    for case in CASES {
        let mut work = (case.prepare)();
        criterion.bench_function(case.name, |bencher| bencher.iter(&mut work));
    }
}

criterion_group!(cases, all);
criterion_main!(cases);
