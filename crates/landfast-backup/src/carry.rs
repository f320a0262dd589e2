//! Which pages of the ledger may go, so that an archive that lives for years is not read through years of pages.
//!
//! What is still meant by an old page (a backup that is kept, its WAL, a name) is told once more in the newest page; that page says
//! which one is the oldest now. Put together they are one write, so a crash leaves either all old pages in force or none. Pages before the
//! oldest are never read; they are removed after that, or by the next prune.

use crate::{Event, Ledger, Lsn, PAGE_EVENTS_MAX, Page, Timeline};

/// Events that are told again at once: half a page, so that a page always takes them.
const CARRIED_MAX: usize = PAGE_EVENTS_MAX / 2;

/// What the newest page is to say when older ones go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carry {
    /// The oldest page that stays.
    pub oldest: u64,
    /// To be told again.
    pub events: Vec<Event>,
}

/// The pages that may go, oldest first and never the newest; `None` where none may. `ledger` is all of them folded, with what
/// was pruned taken out.
pub fn pages_to_drop(ledger: &Ledger, pages: &[Page]) -> Option<Carry> {
    let (newest, older) = pages.split_last()?;
    let older = older.iter().filter(|page| page.number >= newest.oldest);
    let mut carry: Option<Carry> = None;
    let mut events = Vec::new();
    for page in older {
        events.extend(
            page.events
                .iter()
                .filter(|event| ledger.means(event))
                .cloned(),
        );
        // More is told again than goes, or it may not fit.
        if events.len() > CARRIED_MAX {
            break;
        }
        carry = Some(Carry {
            oldest: page.number + 1,
            events: events.clone(),
        });
    }
    carry
}

impl Ledger {
    /// Whether an event that was folded long ago still says something.
    fn means(&self, event: &Event) -> bool {
        match event {
            Event::Shipped { timeline, piece } => {
                let key = crate::PieceKey {
                    timeline: *timeline,
                    from: piece.from,
                    to: piece.to,
                };
                self.piece(key) == Some(piece)
            }
            Event::History {
                timeline, digest, ..
            } => self.history_digest(*timeline) == Some(*digest),
            Event::Heartbeat(beat) => self.has(beat.timeline, beat.lsn),
            Event::Point {
                name,
                timeline,
                lsn,
                at,
            } => self.point(name) == Some((*timeline, *lsn, *at)) && self.has(*timeline, *lsn),
            Event::BackupDone { backup, digest } => self.backups().get(backup) == Some(digest),
            // What it removed is told of no more.
            Event::BackupRemoved { .. } => false,
            // Between pieces that stay it says that nothing is missing there.
            Event::Pruned { timeline, from, .. } | Event::Broken { timeline, from, .. } => {
                self.first_of(*timeline).is_some_and(|first| first < *from)
            }
        }
    }

    /// Whether the byte before a place is there.
    fn has(&self, timeline: Timeline, lsn: Lsn) -> bool {
        let before = Lsn(lsn.0.saturating_sub(1));
        self.hole(timeline, before, lsn).is_none()
    }
}

#[cfg(test)]
mod tests {
    use landfast_types::{Digest, Timestamp};

    use super::*;
    use crate::{
        BackupId, SegmentBytes,
        ledger::tests::{SEG, beat, ledger, shipped},
    };

    fn page(number: u64, events: Vec<Event>) -> Page {
        Page {
            format: Page::FORMAT,
            number,
            previous: None,
            oldest: 0,
            system: 7,
            segment_bytes: SegmentBytes::DEFAULT,
            events,
        }
    }

    fn pruned(from: u64, to: u64) -> Event {
        Event::Pruned {
            timeline: Timeline(1),
            from: Lsn(from),
            to: Lsn(to),
        }
    }

    fn done(sequence: u64) -> Event {
        Event::BackupDone {
            backup: BackupId::of(sequence),
            digest: Digest::of(&[1]),
        }
    }

    fn point(name: &str, lsn: u64) -> Event {
        Event::Point {
            name: name.to_owned(),
            timeline: Timeline(1),
            lsn: Lsn(lsn),
            at: Timestamp::from_millis(1),
        }
    }

    /// Three old pages: one backup of the first stays with its WAL, one goes; then a page of what is kept whole.
    fn pages() -> Vec<Page> {
        vec![
            page(
                0,
                vec![shipped(1, 0, SEG), beat(1, 1, 10), done(1), point("a", 20)],
            ),
            page(
                1,
                vec![
                    shipped(1, SEG, 2 * SEG),
                    beat(2, 2, SEG + 10),
                    done(2),
                    point("b", SEG + 20),
                ],
            ),
            page(
                2,
                vec![
                    Event::BackupRemoved {
                        backup: BackupId::of(2),
                    },
                    pruned(SEG, 2 * SEG),
                ],
            ),
            page(
                3,
                vec![
                    shipped(1, 2 * SEG, 3 * SEG),
                    beat(3, 3, 2 * SEG + 10),
                    done(3),
                ],
            ),
        ]
    }

    fn folded(pages: &[Page]) -> Ledger {
        let events: Vec<_> = pages.iter().flat_map(|page| page.events.clone()).collect();
        ledger(&events)
    }

    #[test]
    fn what_is_told_again_means_the_same() {
        let mut pages = pages();
        let before = folded(&pages);
        let carry = pages_to_drop(&before, &pages).unwrap();
        assert_eq!(carry.oldest, 3);
        let expected = [
            shipped(1, 0, SEG),
            beat(1, 1, 10),
            done(1),
            point("a", 20),
            pruned(SEG, 2 * SEG),
        ];
        assert_eq!(carry.events, expected);
        let mut newest = pages.pop().unwrap();
        newest.events.extend(carry.events);
        let after = folded(&[newest]);
        assert_eq!(
            after.pieces().collect::<Vec<_>>(),
            before.pieces().collect::<Vec<_>>()
        );
        assert_eq!(after.heartbeats().len(), 2);
        assert_eq!(after.heartbeats()[0].sequence, 1);
        assert_eq!(after.backups(), before.backups());
        assert_eq!((after.holes(), before.holes()), (vec![], vec![]));
        assert_eq!(after.point("a"), before.point("a"));
        assert_eq!(after.end(), before.end());
    }

    #[test]
    fn nothing_goes_where_more_would_be_told_again_than_a_page_takes() {
        let mut pages = pages();
        assert_eq!(pages_to_drop(&folded(&pages), &[]), None);
        assert_eq!(pages_to_drop(&folded(&pages[..1]), &pages[..1]), None);
        // The second page holds what is needed whole, so only the first one goes.
        let many = (0..CARRIED_MAX as u64).map(|n| beat(n + 2, 2, SEG + 10 + n));
        pages[1].events = many.collect();
        pages[1].events.push(shipped(1, SEG, 2 * SEG));
        pages[2].events.clear();
        let carry = pages_to_drop(&folded(&pages), &pages).unwrap();
        assert_eq!(carry.oldest, 1);
        // Pages that went are not looked at again.
        pages[3].oldest = 1;
        assert_eq!(pages_to_drop(&folded(&pages), &pages), None);
    }
}
