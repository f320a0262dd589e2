use super::*;

pub(crate) const SIZE: SegmentBytes = SegmentBytes::DEFAULT;
pub(crate) const SEG: u64 = 16 << 20;

pub(crate) fn shipped(timeline: u32, from: u64, to: u64) -> Event {
    Event::Shipped {
        timeline: Timeline(timeline),
        piece: Piece {
            from: Lsn(from),
            to: Lsn(to),
            digest: Digest::of(&from.to_be_bytes()),
            boundary: Lsn(to),
        },
    }
}

pub(crate) fn beat(sequence: u64, seconds: i64, lsn: u64) -> Event {
    Event::Heartbeat(Heartbeat {
        sequence,
        timeline: Timeline(1),
        at: Timestamp::from_millis(seconds * 1_000),
        lsn: Lsn(lsn),
    })
}

pub(crate) fn ledger(events: &[Event]) -> Ledger {
    let mut ledger = Ledger::new(7, SIZE);
    events.iter().for_each(|event| ledger.apply(event));
    ledger
}

fn page(number: u64, previous: Option<Digest>, events: Vec<Event>) -> (Page, Digest) {
    let page = Page {
        format: Page::FORMAT,
        number,
        previous,
        oldest: 0,
        system: 7,
        segment_bytes: SIZE,
        events,
    };
    let digest = Digest::of(&serde_json::to_vec(&page).unwrap());
    (page, digest)
}

#[test]
fn a_missing_or_changed_page_is_named() {
    let first = page(0, None, vec![shipped(1, 0, SEG)]);
    let second = page(1, Some(first.1), vec![shipped(1, SEG, 2 * SEG)]);
    let third = page(2, Some(second.1), vec![]);
    let all = [first.clone(), second.clone(), third.clone()];
    assert_eq!(Ledger::read(&all).unwrap().unwrap().holes(), []);
    assert_eq!(
        Ledger::read(&[first.clone(), third.clone()]),
        Err(LedgerError::PageMissing { number: 1, next: 2 })
    );
    assert_eq!(
        Ledger::read(&[second.clone(), third.clone()]),
        Err(LedgerError::PageMissing { number: 0, next: 1 })
    );
    let other = page(1, Some(first.1), vec![]);
    assert_eq!(
        Ledger::read(&[first, other, third]),
        Err(LedgerError::PageChanged { number: 1, next: 2 })
    );
    assert_eq!(Ledger::read(&[]), Ok(None));
}

#[test]
fn pages_that_were_removed_on_purpose_are_not_missed() {
    let first = page(0, None, vec![shipped(1, 0, SEG)]);
    let (mut second, _) = page(1, Some(first.1), vec![shipped(1, SEG, 2 * SEG)]);
    second.oldest = 1;
    let digest = Digest::of(b"x");
    assert!(Ledger::read(&[(second, digest)]).unwrap().is_some());
}

#[test]
fn a_page_reads_back_as_it_was_written() {
    let (page, _) = page(
        3,
        Some(Digest::of(b"p")),
        vec![
            shipped(1, 0, 100),
            beat(1, 5, 90),
            Event::Pruned {
                timeline: Timeline(1),
                from: Lsn(0),
                to: Lsn(5),
            },
        ],
    );
    let text = serde_json::to_string(&page).unwrap();
    assert_eq!(serde_json::from_str::<Page>(&text).unwrap(), page);
}

#[test]
fn holes_show_by_themselves() {
    let ledger = ledger(&[
        shipped(1, 0, 10),
        shipped(1, 20, 30),
        shipped(1, 30, 40),
        shipped(1, 50, 60),
    ]);
    let hole = |from, to| Hole {
        timeline: Timeline(1),
        from: Lsn(from),
        to: Lsn(to),
    };
    assert_eq!(ledger.holes(), [hole(10, 20), hole(40, 50)]);
    assert_eq!(ledger.hole(Timeline(1), Lsn(20), Lsn(40)), None);
    assert_eq!(
        ledger.hole(Timeline(1), Lsn(55), Lsn(70)),
        Some(hole(60, 70))
    );
    assert_eq!(
        ledger.hole(Timeline(2), Lsn(1), Lsn(2)).map(|h| h.from),
        Some(Lsn(1))
    );
    assert_eq!(ledger.hole(Timeline(1), Lsn(5), Lsn(5)), None);
}

#[test]
fn a_piece_takes_the_place_of_those_it_covers() {
    let mut events = vec![
        shipped(1, 0, 10),
        shipped(1, 10, 20),
        shipped(1, 0, 30),
        beat(1, 1, 5),
        shipped(1, 30, 40),
    ];
    let before = ledger(&events);
    assert_eq!(before.pieces().count(), 2);
    compact(&mut events);
    assert_eq!(events.len(), 3);
    assert_eq!(ledger(&events), before);
    // One that is covered already, said again after a crash, changes nothing.
    events.push(shipped(1, 10, 20));
    assert_eq!(ledger(&events), before);
}

#[test]
fn a_timeline_keeps_its_history() {
    let history = |at| Event::History {
        timeline: Timeline(2),
        digest: Digest::of(b"h"),
        switches: vec![TimelineSwitch {
            parent: Timeline(1),
            at: Lsn(at),
        }],
    };
    let ledger = ledger(&[shipped(1, 0, 30), history(20), shipped(2, 20, 50)]);
    assert_eq!(ledger.check(&history(20)), Ok(()));
    assert_eq!(
        ledger.check(&history(21)),
        Err(LedgerError::OtherHistory {
            timeline: Timeline(2)
        })
    );
    assert!(ledger.is_on_path(Timeline(1), Lsn(20), Timeline(2), Lsn(50)));
    assert!(!ledger.is_on_path(Timeline(1), Lsn(21), Timeline(2), Lsn(50)));
    assert_eq!(ledger.end().unwrap().timeline, Timeline(2));
}

#[test]
fn the_end_carries_the_time_of_the_newest_row_in_it() {
    let ledger = ledger(&[
        shipped(1, 0, 100),
        beat(1, 5, 50),
        beat(2, 10, 90),
        beat(3, 15, 120),
    ]);
    let end = ledger.end().unwrap();
    assert_eq!(end.lsn, Lsn(100));
    assert_eq!(end.at, Some(Timestamp::from_millis(10_000)));
}

#[test]
fn a_lost_object_is_a_hole_and_the_end_stays_where_it_was() {
    let mut ledger = ledger(&[
        shipped(1, 0, 100),
        shipped(1, 100, 200),
        shipped(1, 200, 300),
    ]);
    let key = |from, to| PieceKey {
        timeline: Timeline(1),
        from: Lsn(from),
        to: Lsn(to),
    };
    ledger.mark_lost(key(200, 300));
    assert_eq!(ledger.end().unwrap().lsn, Lsn(300));
    let hole = ledger.hole(Timeline(1), Lsn(0), Lsn(300)).unwrap();
    assert_eq!((hole.from, hole.to), (Lsn(200), Lsn(300)));
    ledger.mark_lost(key(0, 100));
    assert_eq!(
        ledger.hole(Timeline(1), Lsn(0), Lsn(300)).unwrap().from,
        Lsn(0)
    );
    // It is shipped again.
    ledger.apply(&shipped(1, 0, 100));
    assert_eq!(ledger.hole(Timeline(1), Lsn(0), Lsn(200)), None);
}

#[test]
fn what_was_removed_on_purpose_is_no_hole_but_nothing_is_restored_over_it() {
    let pruned = Event::Pruned {
        timeline: Timeline(1),
        from: Lsn(10),
        to: Lsn(30),
    };
    let ledger = ledger(&[
        shipped(1, 0, 10),
        shipped(1, 10, 20),
        shipped(1, 20, 30),
        shipped(1, 30, 40),
        pruned,
    ]);
    assert_eq!(ledger.pieces().count(), 2);
    assert_eq!(ledger.holes(), []);
    assert!(ledger.hole(Timeline(1), Lsn(0), Lsn(40)).is_some());
}

#[test]
fn only_what_is_covered_or_pruned_is_let_go() {
    let ledger = ledger(&[
        shipped(1, 0, SEG),
        shipped(1, SEG, SEG + 100),
        shipped(2, 0, SEG),
        Event::Pruned {
            timeline: Timeline(2),
            from: Lsn(0),
            to: Lsn(SEG),
        },
    ]);
    let is_let_go = |timeline: u32, from: u64, to: u64| {
        ledger.is_let_go(PieceKey {
            timeline: Timeline(timeline),
            from: Lsn(from),
            to: Lsn(to),
        })
    };
    // Known; in the place of others; on its way to the ledger; pruned with all there was.
    assert!(!is_let_go(1, 0, SEG));
    assert!(is_let_go(1, 100, 200));
    assert!(!is_let_go(1, SEG + 100, SEG + 200));
    assert!(is_let_go(2, 0, SEG));
    assert!(!is_let_go(3, 0, SEG));
}
