use std::time::Duration;

use landfast_types::{InstanceId, ReleaseId};
use proptest::prelude::*;

use super::*;

const OLD: ReleaseId = ReleaseId(4);
const NEW: ReleaseId = ReleaseId(5);
const HOLD: Duration = Duration::from_secs(300);

fn analysis() -> Analysis {
    Analysis::new(&AnalysisSettings::default(), OLD, NEW)
}

/// Requests and errors of one instance, without latencies.
fn counted(release: ReleaseId, number: u64, requests: u64, errors: u64) -> InstanceObservation {
    InstanceObservation {
        instance: InstanceId::new("api", release, number),
        live: Sample {
            requests,
            errors: errors.min(requests),
            ..Sample::default()
        },
        probes: Sample::default(),
    }
}

fn second(old: (u64, u64), new: (u64, u64)) -> Observation {
    Observation {
        millis: 1000,
        old: vec![counted(OLD, 0, old.0, old.1)],
        new: vec![counted(NEW, 1, new.0, new.1)],
    }
}

/// Twenty answers: most fast, two slow, one slower; all of them so many times longer.
fn twenty(release: ReleaseId, number: u64, times: u32) -> InstanceObservation {
    let mut seen = counted(release, number, 20, 0);
    for (millis, count) in [(20, 17), (60, 2), (120, 1)] {
        let bucket = landfast_types::Histogram::bucket(Duration::from_millis(millis) * times);
        seen.live.latency.add(bucket, count);
    }
    seen
}

fn latencies(new_times: &[u32]) -> Observation {
    let new = new_times
        .iter()
        .zip(10..)
        .map(|(times, number)| twenty(NEW, number, *times));
    let old = (0..3).map(|number| twenty(OLD, number, 1));
    Observation {
        millis: 1000,
        old: old.collect(),
        new: new.collect(),
    }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Feeds the same second until the hold is over or a verdict falls.
fn held(analysis: &mut Analysis, second: &Observation) -> (Verdict, u64) {
    for elapsed in 1..=HOLD.as_secs() {
        analysis.observe(second);
        let verdict = analysis.verdict(at(elapsed), HOLD);
        if verdict != Verdict::Continue {
            return (verdict, elapsed);
        }
    }
    unreachable!("the hold ends")
}

fn severity(verdict: &Verdict) -> u32 {
    match verdict {
        Verdict::Continue => 0,
        Verdict::Pass => 1,
        Verdict::Inconclusive { .. } => 2,
        Verdict::Fail(_) => 3,
    }
}

#[test]
fn silence_is_neither_a_pass_nor_a_failure() {
    let (verdict, elapsed) = held(&mut analysis(), &Observation::default());
    let Verdict::Inconclusive { reason } = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(
        reason,
        "release 5 answered 0 requests; 30 are the least to judge by"
    );
    assert_eq!(elapsed, 300);
}

#[test]
fn a_new_release_nobody_compares_with_is_inconclusive() {
    let (verdict, _) = held(&mut analysis(), &second((0, 0), (100, 0)));
    assert!(
        matches!(verdict, Verdict::Inconclusive { .. }),
        "{verdict:?}"
    );
}

#[test]
fn enough_faultless_requests_pass() {
    let mut analysis = analysis();
    let (verdict, elapsed) = held(&mut analysis, &second((19, 0), (1, 0)));
    assert_eq!((verdict, elapsed), (Verdict::Pass, 300));
    assert!(analysis.unjudged()[0].starts_with("latency of release 5 was not judged"));
}

#[test]
fn two_errors_before_any_old_one_abort_a_five_percent_step() {
    let mut analysis = analysis();
    let faultless = second((19, 0), (1, 0));
    let failing = second((19, 0), (1, 1));
    for second in [&faultless, &failing, &faultless] {
        analysis.observe(second);
        assert_eq!(analysis.verdict(at(3), HOLD), Verdict::Continue);
    }
    analysis.observe(&failing);
    let Verdict::Fail(finding) = analysis.verdict(at(4), HOLD) else {
        panic!("it fails")
    };
    assert_eq!(finding.metric, Metric::Errors);
    assert_eq!(
        finding.sentence,
        "5xx of release 5: 50.0 % of 4 requests; release 4 in the same seconds: 0.0 % of 76"
    );
}

#[test]
fn two_errors_after_an_old_one_do_not() {
    let mut analysis = analysis();
    analysis.observe(&second((19, 1), (1, 0)));
    analysis.observe(&second((19, 0), (1, 1)));
    analysis.observe(&second((19, 0), (1, 1)));
    assert_eq!(analysis.verdict(at(3), HOLD), Verdict::Continue);
}

#[test]
fn no_single_second_convicts() {
    let mut analysis = analysis();
    analysis.observe(&second((950, 0), (50, 50)));
    assert_eq!(analysis.verdict(at(1), HOLD), Verdict::Continue);
    analysis.observe(&second((950, 0), (50, 50)));
    assert!(matches!(analysis.verdict(at(2), HOLD), Verdict::Fail(_)));
}

#[test]
fn a_failure_that_begins_late_is_still_found_soon() {
    let mut analysis = analysis();
    for _ in 0..2000 {
        analysis.observe(&second((190, 19), (10, 1)));
    }
    let hour = at(3600);
    assert_eq!(analysis.verdict(at(2000), hour), Verdict::Continue);
    // The rate of the whole step must rise by a fifth before it counts: with one in ten for so long, a minute.
    let late = (1..=200).find(|elapsed| {
        analysis.observe(&second((190, 19), (10, 10)));
        matches!(analysis.verdict(at(2000 + elapsed), hour), Verdict::Fail(_))
    });
    assert!(late.is_some_and(|elapsed| elapsed <= 60), "{late:?}");
}

#[test]
fn a_difference_too_small_to_matter_is_noted_and_passes() {
    let mut analysis = analysis();
    for elapsed in 1..=300 {
        let errors = u64::from(elapsed % 40 == 0);
        analysis.observe(&second((950, 0), (50, errors)));
        assert!(
            severity(&analysis.verdict(at(elapsed), HOLD)) <= 1,
            "after {elapsed} s"
        );
    }
    assert_eq!(analysis.verdict(HOLD, HOLD), Verdict::Pass);
    let notes = analysis.unjudged().join("\n");
    assert!(
        notes.contains("release 5 has more errors than release 4, but by less than 0.1 %"),
        "{notes}"
    );
}

#[test]
fn a_release_slow_on_all_instances_fails() {
    let (verdict, elapsed) = held(&mut analysis(), &latencies(&[3, 3]));
    let Verdict::Fail(finding) = verdict else {
        panic!("{verdict:?}")
    };
    assert_ne!(finding.metric, Metric::Errors);
    assert!(finding.new > finding.old * 2.0, "{finding:?}");
    assert!(
        finding
            .sentence
            .contains("answers of 2 instances; release 4 in the same seconds: "),
        "{finding:?}"
    );
    assert!(elapsed > 15, "no instance was warm after {elapsed} s");
}

#[test]
fn a_minority_of_slow_instances_is_no_slow_release() {
    for new_times in [&[3, 1][..], &[1, 8], &[8, 1, 1], &[3, 8, 1, 1]] {
        let (verdict, _) = held(&mut analysis(), &latencies(new_times));
        assert_eq!(verdict, Verdict::Pass, "{new_times:?}");
    }
    let (verdict, _) = held(&mut analysis(), &latencies(&[3, 1, 3]));
    assert!(
        matches!(verdict, Verdict::Fail(_)),
        "two of three are a majority: {verdict:?}"
    );
}

#[test]
fn one_instance_alone_is_doubted_unless_it_is_beyond_a_slow_machine() {
    let mut single = analysis();
    let (verdict, elapsed) = held(&mut single, &latencies(&[3]));
    let Verdict::Inconclusive { reason } = verdict else {
        panic!("{verdict:?}")
    };
    assert!(
        reason.ends_with("one instance cannot tell a slow release from a slow machine"),
        "{reason}"
    );
    assert_eq!(elapsed, 300);
    assert!(single.unjudged()[0].contains("rests on one instance"));
    let (verdict, _) = held(&mut analysis(), &latencies(&[16]));
    assert!(matches!(verdict, Verdict::Fail(_)), "{verdict:?}");
}

#[test]
fn a_cold_start_does_not_count_for_latency() {
    let mut analysis = analysis();
    for _ in 0..14 {
        analysis.observe(&latencies(&[16, 16]));
    }
    let (verdict, _) = held(&mut analysis, &latencies(&[1, 1]));
    assert_eq!(verdict, Verdict::Pass);
    assert_eq!(analysis.unjudged(), Vec::<String>::new());
}

#[test]
fn bursts_that_hit_both_sides_convict_nobody() {
    let mut analysis = analysis();
    let calm = latencies(&[1, 1]);
    let mut burst = latencies(&[8, 8]);
    burst.old = (0..3).map(|number| twenty(OLD, number, 8)).collect();
    for elapsed in 1..=300 {
        analysis.observe(if elapsed % 30 < 5 { &burst } else { &calm });
        assert!(
            severity(&analysis.verdict(at(elapsed), HOLD)) <= 1,
            "after {elapsed} s"
        );
    }
}

/// Two steps with traffic on both sides, then one in which the old side only stands by.
fn at_full_traffic() -> Analysis {
    let mut analysis = analysis();
    for _ in 0..100 {
        analysis.observe(&latencies(&[1, 1]));
    }
    analysis.begin_step();
    analysis
}

fn full(errors: u64, times: u32, old_probe_errors: u64) -> Observation {
    let mut second = latencies(&[times, times, times]);
    for seen in &mut second.old {
        seen.live = Sample::default();
        seen.probes = Sample {
            requests: 1,
            errors: old_probe_errors,
            ..Sample::default()
        };
    }
    for seen in &mut second.new {
        seen.live.errors = errors;
        seen.probes = Sample {
            requests: 1,
            ..Sample::default()
        };
    }
    second
}

#[test]
fn in_the_last_step_the_old_release_of_before_is_the_measure() {
    let (verdict, _) = held(&mut at_full_traffic(), &full(0, 1, 0));
    assert_eq!(verdict, Verdict::Pass);
    let (verdict, elapsed) = held(&mut at_full_traffic(), &full(10, 1, 0));
    let Verdict::Fail(finding) = verdict else {
        panic!("{verdict:?}")
    };
    assert!(
        finding.sentence.contains("release 4 before: 0.0 % of "),
        "{}",
        finding.sentence
    );
    assert!((5..=10).contains(&elapsed), "{elapsed}");
    let (verdict, _) = held(&mut at_full_traffic(), &full(0, 8, 0));
    let Verdict::Fail(finding) = verdict else {
        panic!("{verdict:?}")
    };
    assert!(
        finding.sentence.contains("release 4 before: "),
        "{}",
        finding.sentence
    );
}

#[test]
fn in_the_last_step_an_outage_the_old_release_shares_is_no_evidence() {
    let mut analysis = at_full_traffic();
    for elapsed in 1..=60 {
        analysis.observe(&full(10, 1, 1));
        assert_eq!(analysis.verdict(at(elapsed), HOLD), Verdict::Continue);
    }
}

#[test]
fn probes_that_fail_only_on_the_new_side_abort() {
    let mut analysis = analysis();
    let mut second = second((19, 0), (1, 0));
    second.old[0].probes.requests = 2;
    second.new[0].probes = Sample {
        requests: 2,
        errors: 2,
        ..Sample::default()
    };
    let (verdict, elapsed) = held(&mut analysis, &second);
    let Verdict::Fail(finding) = verdict else {
        panic!("{verdict:?}")
    };
    assert!(
        finding.sentence.contains(" probes; release 4"),
        "{}",
        finding.sentence
    );
    assert!(elapsed <= 6, "{elapsed}");
}

#[test]
fn a_probe_path_worse_than_the_live_ones_is_not_held_against_the_new_side() {
    let mut analysis = analysis();
    let mut second = second((190, 0), (10, 0));
    second.old[0].probes = Sample {
        requests: 2,
        errors: 1,
        ..Sample::default()
    };
    second.new[0].probes = Sample {
        requests: 2,
        errors: 1,
        ..Sample::default()
    };
    let (verdict, _) = held(&mut analysis, &second);
    assert_eq!(verdict, Verdict::Pass);
}

#[test]
fn probes_are_wanted_where_either_side_is_thin() {
    let mut analysis = analysis();
    assert_eq!(analysis.probes_wanted(), 2, "nothing is known yet");
    for _ in 0..30 {
        analysis.observe(&second((190, 0), (10, 0)));
    }
    assert_eq!(analysis.probes_wanted(), 0);
    for _ in 0..30 {
        analysis.observe(&second((0, 0), (200, 0)));
    }
    assert_eq!(analysis.probes_wanted(), 2, "the old side stands by");
    let never = AnalysisSettings {
        probes_per_second: 0,
        ..AnalysisSettings::default()
    };
    assert_eq!(Analysis::new(&never, OLD, NEW).probes_wanted(), 0);
}

#[test]
fn each_step_begins_with_fresh_evidence_and_a_smaller_budget() {
    let mut analysis = analysis();
    analysis.observe(&second((19, 0), (1, 1)));
    analysis.begin_step();
    assert_eq!(analysis.errors, Evidence::default());
    analysis.observe(&second((19, 0), (1, 1)));
    assert_eq!(analysis.verdict(at(1), HOLD), Verdict::Continue);
    assert!(ERRORS_BUDGET.nats(&analysis.settings, 1) > ERRORS_BUDGET.nats(&analysis.settings, 0));
}

#[test]
fn the_budget_covers_any_number_of_steps_and_services() {
    let spent = |settings: &AnalysisSettings| -> f64 {
        let budgets = [
            ERRORS_BUDGET,
            latency::LATENCY_BUDGET,
            latency::LATENCY_BUDGET,
        ];
        budgets
            .iter()
            .flat_map(|budget| (0..50).map(|step| (-budget.nats(settings, step)).exp()))
            .sum()
    };
    let settings = AnalysisSettings::default();
    assert!(spent(&settings) <= 0.0076, "{}", spent(&settings));
    assert!(spent(&settings.shared_among(3)) * 3.0 <= 0.0076);
}

#[test]
fn it_stays_small_however_long_it_watches() {
    let mut analysis = analysis();
    for number in 0..2000_u64 {
        let mut second = latencies(&[1, 1, 1]);
        for (seen, offset) in second.new.iter_mut().zip(0..) {
            seen.instance = InstanceId::new("api", NEW, number * 3 + offset);
        }
        analysis.observe(&second);
    }
    let text = serde_json::to_string(&analysis).expect("it serialises");
    assert!(text.len() < 40_000, "{} bytes", text.len());
}

#[test]
fn settings_of_an_older_journal_take_the_defaults() {
    let settings: AnalysisSettings =
        serde_json::from_str(r#"{"requests_min":7}"#).expect("it reads");
    assert_eq!(
        settings,
        AnalysisSettings {
            requests_min: 7,
            ..AnalysisSettings::default()
        }
    );
}

fn any_sample() -> impl Strategy<Value = Sample> {
    let buckets = prop::collection::vec((20_usize..60, 1_u64..4), 0..6);
    (0_u64..40, 0.0..1.0_f64, buckets).prop_map(|(requests, errors, buckets)| {
        let errors = (requests as f64 * errors * errors) as u64;
        let mut sample = Sample {
            requests,
            errors,
            ..Sample::default()
        };
        for (bucket, count) in buckets {
            sample.latency.add(bucket, count);
        }
        sample
    })
}

fn any_side(release: ReleaseId) -> impl Strategy<Value = Vec<InstanceObservation>> {
    prop::collection::vec((any_sample(), any_sample()), 0..4).prop_map(move |samples| {
        let numbered = samples.into_iter().zip(0..);
        let seen = numbered.map(|((live, probes), number)| InstanceObservation {
            instance: InstanceId::new("api", release, number),
            live,
            probes,
        });
        seen.collect()
    })
}

fn any_seconds() -> impl Strategy<Value = Vec<Observation>> {
    let second = (any_side(OLD), any_side(NEW));
    let second = second.prop_map(|(old, new)| Observation {
        millis: 1000,
        old,
        new,
    });
    prop::collection::vec(second, 1..60)
}

fn with_more_errors(seconds: &[Observation], new: bool, every: usize) -> Vec<Observation> {
    let mut worse = seconds.to_vec();
    for second in worse.iter_mut().step_by(every) {
        let side = if new {
            &mut second.new
        } else {
            &mut second.old
        };
        for seen in side {
            for sample in [&mut seen.live, &mut seen.probes] {
                sample.errors = (sample.errors + 1).min(sample.requests);
            }
        }
    }
    worse
}

proptest! {
    #[test]
    fn identical_sides_never_fail(sides in prop::collection::vec(any_side(OLD), 1..120)) {
        let mut analysis = analysis();
        for (elapsed, old) in (1..).zip(sides) {
            let mut new = old.clone();
            for (seen, number) in new.iter_mut().zip(0..) {
                seen.instance = InstanceId::new("api", NEW, number);
            }
            analysis.observe(&Observation { millis: 1000, old, new });
            let verdict = analysis.verdict(at(elapsed), HOLD);
            prop_assert_eq!(verdict, Verdict::Continue);
        }
    }

    #[test]
    fn a_new_side_without_errors_never_fails_for_errors(seconds in any_seconds()) {
        let mut analysis = analysis();
        for mut second in seconds {
            for seen in &mut second.new {
                seen.live.errors = 0;
                seen.probes.errors = 0;
            }
            analysis.observe(&second);
            if let Verdict::Fail(finding) = analysis.verdict(at(1), HOLD) {
                prop_assert_ne!(finding.metric, Metric::Errors);
            }
        }
    }

    #[test]
    fn more_errors_on_the_new_side_never_make_the_verdict_better(
        seconds in any_seconds(),
        every in 1_usize..5,
    ) {
        let worse = with_more_errors(&seconds, true, every);
        let (mut plain, mut failing) = (analysis(), analysis());
        for (second, worse) in seconds.iter().zip(&worse) {
            plain.observe(second);
            failing.observe(worse);
            for elapsed in [at(1), HOLD] {
                let (plain, failing) = (plain.verdict(elapsed, HOLD), failing.verdict(elapsed, HOLD));
                prop_assert!(severity(&failing) >= severity(&plain), "{failing:?} after {plain:?}");
            }
        }
    }

    #[test]
    fn a_state_read_back_goes_on_equally(seconds in any_seconds(), cut in 0_usize..60) {
        let mut straight = analysis();
        let mut broken = analysis();
        for (index, second) in seconds.iter().enumerate() {
            straight.observe(second);
            broken.observe(second);
            if index == cut {
                let text = serde_json::to_string(&broken).expect("it serialises");
                broken = serde_json::from_str(&text).expect("it reads back");
                broken.begin_step();
                straight.begin_step();
            }
        }
        prop_assert_eq!(straight.verdict(HOLD, HOLD), broken.verdict(HOLD, HOLD));
        prop_assert_eq!(straight, broken);
    }

    #[test]
    fn an_observation_reads_back_as_it_was(seconds in any_seconds()) {
        for second in seconds {
            let text = serde_json::to_string(&second).expect("it serialises");
            let back: Observation = serde_json::from_str(&text).expect("it reads back");
            prop_assert_eq!(back, second);
        }
    }
}
