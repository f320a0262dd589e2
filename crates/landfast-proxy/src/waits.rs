//! Waits that nearly always end by what is waited for, and only have to end some day: an answer that does not come, a drain
//! whose time is over.
//!
//! A timer of its own for each request costs more than the rest of the wait. So a thread keeps one list, looked through
//! [`TICK`] by tick as long as there is anything in it: who is due, or may be because the table has changed, is woken and looks
//! for itself. Such a wait ends up to one tick late.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Waker},
    time::Duration,
};

use tokio::time::Instant;

use crate::{clock, thread::Thread};

const TICK: Duration = Duration::from_millis(50);
/// The memory of so many is kept when all have ended.
const KEPT: usize = 1 << 10;

/// All of a thread.
#[derive(Default)]
pub(crate) struct Waits {
    places: RefCell<Places>,
    is_ticking: Cell<bool>,
}

#[derive(Default)]
struct Places {
    list: Vec<Option<Entry>>,
    free: Vec<usize>,
}

struct Entry {
    at: Instant,
    waker: Waker,
    is_due: bool,
}

/// One of them. Dropping it ends it.
pub(crate) struct Wait {
    thread: Rc<Thread>,
    place: Option<usize>,
}

impl Wait {
    pub(crate) fn new(thread: &Rc<Thread>) -> Self {
        Self {
            thread: Rc::clone(thread),
            place: None,
        }
    }

    /// Whether it is time to look, since it is the first time, or this was woken for it. If not, the task is woken when it is.
    pub(crate) fn is_due(&mut self, cx: &Context<'_>) -> bool {
        let Some(place) = self.place else {
            return true;
        };
        let mut places = self.thread.waits.places.borrow_mut();
        let Some(Some(entry)) = places.list.get_mut(place) else {
            return true;
        };
        if !entry.waker.will_wake(cx.waker()) {
            entry.waker.clone_from(cx.waker());
        }
        std::mem::take(&mut entry.is_due)
    }

    /// Whether it was waited for already.
    pub(crate) fn has_begun(&self) -> bool {
        self.place.is_some()
    }

    /// Looks again then, or when the table has changed.
    pub(crate) fn until(&mut self, at: Instant, cx: &Context<'_>) {
        let entry = Entry {
            at,
            waker: cx.waker().clone(),
            is_due: false,
        };
        let place = self.thread.waits.places.borrow_mut().put(self.place, entry);
        self.place = Some(place);
        if !self.thread.waits.is_ticking.replace(true) {
            let owner = Rc::clone(&self.thread);
            self.thread.spawn(async move { tick(&owner).await });
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.thread.waits.places.borrow_mut().clear(place);
        }
    }
}

impl Places {
    fn put(&mut self, place: Option<usize>, entry: Entry) -> usize {
        let place = place.or_else(|| self.free.pop()).unwrap_or_else(|| {
            self.list.push(None);
            self.list.len() - 1
        });
        self.list[place] = Some(entry);
        place
    }

    fn clear(&mut self, place: usize) {
        self.list[place] = None;
        self.free.push(place);
        if self.free.len() == self.list.len() && self.list.len() > KEPT {
            *self = Self::default();
        }
    }

    /// Who is to be woken.
    fn due(&mut self, now: Instant, all: bool) -> Vec<Waker> {
        let entries = self.list.iter_mut().flatten();
        let due = entries.filter(|entry| !entry.is_due && (all || entry.at <= now));
        due.map(|entry| {
            entry.is_due = true;
            entry.waker.clone()
        })
        .collect()
    }

    fn is_empty(&self) -> bool {
        self.free.len() == self.list.len()
    }
}

async fn tick(thread: &Thread) {
    let waits = &thread.waits;
    // The first turn wakes all: the table may have changed just before.
    let mut seen = None;
    while !waits.places.borrow().is_empty() {
        tokio::time::sleep(TICK).await;
        let generation = Some(thread.shared.published());
        let all = std::mem::replace(&mut seen, generation) != generation;
        let due = waits.places.borrow_mut().due(clock::instant(), all);
        due.into_iter().for_each(Waker::wake);
    }
    waits.is_ticking.set(false);
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_is_due_is_woken_once_and_a_new_table_wakes_all() {
        let mut places = Places::default();
        let now = clock::instant();
        let counts: Vec<Arc<Count>> = (0..3).map(|_| Arc::default()).collect();
        let put = |places: &mut Places, index: usize, seconds| {
            let waker = Waker::from(Arc::clone(&counts[index]));
            let at = now + Duration::from_secs(seconds);
            let is_due = false;
            places.put(None, Entry { at, waker, is_due })
        };
        let first = put(&mut places, 0, 0);
        let second = put(&mut places, 1, 10);
        let wake = |places: &mut Places, all| {
            places.due(now, all).into_iter().for_each(Waker::wake);
        };
        let woken = || {
            let counts = counts.iter().map(|count| count.0.load(Ordering::Relaxed));
            counts.collect::<Vec<_>>()
        };
        wake(&mut places, false);
        wake(&mut places, false);
        assert_eq!(woken(), [1, 0, 0]);
        places.clear(first);
        // The place is another's now.
        assert_eq!(put(&mut places, 2, 10), first);
        wake(&mut places, false);
        assert_eq!(woken(), [1, 0, 0]);
        wake(&mut places, true);
        assert_eq!(woken(), [1, 1, 1]);
        assert!(!places.is_empty());
        places.clear(first);
        places.clear(second);
        assert!(places.is_empty());
    }
}
