//! Finds the last whole record in bytes of WAL, so that "restorable to" is an LSN at which a record really ends.
//!
//! A file that a receiver is still writing is padded with zeros, and a server sends WAL cut anywhere. So neither the file's
//! length nor its last byte says what can be replayed: only a record whose CRC-32C is right has arrived whole. Layout and rules are
//! those of PostgreSQL's `access/xlogrecord.h`, `access/xlog_internal.h` and `xlogreader.c`, the same from 13 to 17.

use std::ops::ControlFlow;

use crc_fast::{CrcAlgorithm, Digest};

use crate::{Lsn, SegmentBytes};

/// `XLOG_BLCKSZ`: every page of WAL begins with a header.
pub const XLOG_PAGE: usize = 8_192;

const SHORT_HEADER: usize = 24;
const LONG_HEADER: usize = 40;
/// `XLP_FIRST_IS_CONTRECORD`
const IS_CONTINUED: u16 = 1;
/// `XLP_LONG_HEADER`
const IS_LONG: u16 = 2;
/// `XLP_FIRST_IS_OVERWRITE_CONTRECORD`: the record that ran on here was given up after a crash.
const IS_OVERWRITTEN: u16 = 8;
const RECORD_HEADER: usize = 24;
const CRC_AT: usize = 20;
/// `XLogRecordMaxSize`, a little above what the server itself writes.
const RECORD_BYTES_MAX: usize = 1 << 30;
/// `RM_XLOG_ID` and `XLOG_SWITCH`: the rest of the segment is empty.
const SWITCH: (u8, u8) = (0, 0x40);

/// Why a scan went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanStop {
    /// All that was given is whole records.
    OutOfBytes,
    /// The next record is there in part, or not at all.
    Incomplete,
    /// A page is not of this place: zeros, or of another file.
    NotAPage,
}

/// How far whole records go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scan {
    /// Where the last whole record ends; what the server calls its `EndRecPtr`.
    pub end: Lsn,
    /// Where that record starts, where one was read.
    pub last: Option<Lsn>,
    pub records: u64,
    pub stop: ScanStop,
}

/// Scans from a place where a record ends (and so another starts). `bytes` begin with the page that `from` lies on.
pub fn scan_wal(bytes: &[u8], from: Lsn, last: Option<Lsn>, size: SegmentBytes) -> Scan {
    Walk::new(bytes, from.page_start(), size).run(from, last)
}

/// Scans from the start of a segment, whose first bytes may belong to a record of the segment before. That record's rest
/// is skipped, so until one record was read whole, `end` is the segment's start.
pub fn scan_from_segment_start(bytes: &[u8], start: Lsn, size: SegmentBytes) -> Scan {
    let walk = Walk::new(bytes, start, size);
    let nothing = |stop| Scan {
        end: start,
        last: None,
        records: 0,
        stop,
    };
    let mut place = start;
    let mut left = match walk.header(place) {
        Some(header) if header.is_continued() => header.left as usize,
        Some(_) => 0,
        None => return nothing(ScanStop::NotAPage),
    };
    while left > 0 {
        let Some(header) = walk.header(place) else {
            return nothing(ScanStop::Incomplete);
        };
        let room = XLOG_PAGE - header.len;
        if left <= room {
            place = Lsn(place.0 + (header.len + aligned(left)) as u64);
            break;
        }
        left -= room;
        place = place + XLOG_PAGE as u64;
    }
    let scan = walk.run(place, None);
    if scan.records == 0 {
        return nothing(scan.stop);
    }
    scan
}

struct Header {
    info: u16,
    left: u32,
    len: usize,
}

impl Header {
    fn is_continued(&self) -> bool {
        self.info & IS_CONTINUED != 0
    }
}

struct Walk<'a> {
    bytes: &'a [u8],
    base: Lsn,
    size: SegmentBytes,
}

struct Record {
    start: Lsn,
    end: Lsn,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8], base: Lsn, size: SegmentBytes) -> Self {
        Self { bytes, base, size }
    }

    fn run(&self, from: Lsn, last: Option<Lsn>) -> Scan {
        let mut scan = Scan {
            end: from,
            last,
            records: 0,
            stop: ScanStop::OutOfBytes,
        };
        loop {
            if scan.end.0 >= self.base.0 + self.bytes.len() as u64 {
                return scan;
            }
            match self.record(scan.end, scan.last) {
                ControlFlow::Continue(record) => {
                    scan.end = record.end;
                    scan.last = Some(record.start);
                    scan.records += 1;
                }
                ControlFlow::Break(stop) => {
                    scan.stop = stop;
                    return scan;
                }
            }
        }
    }

    /// Reads the record at or, behind a page's header, right after `at`.
    fn record(&self, at: Lsn, last: Option<Lsn>) -> ControlFlow<ScanStop, Record> {
        let mut page = at.page_start();
        let Some(header) = self.header(page) else {
            return ControlFlow::Break(ScanStop::NotAPage);
        };
        let start = if at == page {
            page + header.len as u64
        } else {
            at
        };
        let incomplete = ControlFlow::Break(ScanStop::Incomplete);
        let Some(total) = self
            .slice(start, 4)
            .map(|four| u32::from_le_bytes(four.try_into().expect("four bytes")) as usize)
        else {
            return incomplete;
        };
        if !(RECORD_HEADER..=RECORD_BYTES_MAX).contains(&total) {
            return incomplete;
        }
        let mut record = Vec::with_capacity(total.min(self.bytes.len()));
        let mut place = start;
        loop {
            let room = (page.0 + XLOG_PAGE as u64 - place.0) as usize;
            let take = room.min(total - record.len());
            let Some(part) = self.slice(place, take) else {
                return incomplete;
            };
            record.extend_from_slice(part);
            if record.len() == total {
                place = Lsn(place.0 + aligned(take) as u64);
                break;
            }
            page = page + XLOG_PAGE as u64;
            let Some(header) = self.header(page) else {
                return incomplete;
            };
            if header.info & IS_OVERWRITTEN != 0 {
                // The server crashed while it wrote this record and went on here with another one.
                return self.record(page, None);
            }
            if !header.is_continued() || header.left as usize != total - record.len() {
                return incomplete;
            }
            place = page + header.len as u64;
        }
        if !is_whole(&record, last) {
            return incomplete;
        }
        let kind = (record[17], record[16] & 0xf0);
        let end = if kind == SWITCH {
            Lsn(place.0.next_multiple_of(self.size.get()))
        } else {
            place
        };
        ControlFlow::Continue(Record { start, end })
    }

    fn header(&self, page: Lsn) -> Option<Header> {
        let bytes = self.slice(page, SHORT_HEADER)?;
        let (magic, info) = (u16_at(bytes, 0), u16_at(bytes, 2));
        let address = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
        let is_first = page.0.is_multiple_of(self.size.get());
        if magic == 0 || address != page.0 || (info & IS_LONG != 0) != is_first {
            return None;
        }
        let len = if is_first { LONG_HEADER } else { SHORT_HEADER };
        self.slice(page, len)?;
        Some(Header {
            info,
            left: u32_at(bytes, 16),
            len,
        })
    }

    fn slice(&self, at: Lsn, len: usize) -> Option<&'a [u8]> {
        let from = usize::try_from(at.0.checked_sub(self.base.0)?).ok()?;
        self.bytes.get(from..from.checked_add(len)?)
    }
}

/// Whether its checksum is right, and it follows the record it says it follows.
fn is_whole(record: &[u8], last: Option<Lsn>) -> bool {
    let follows = u64::from_le_bytes(record[8..16].try_into().expect("eight bytes"));
    if last.is_some_and(|last| last.0 != follows) {
        return false;
    }
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(&record[RECORD_HEADER..]);
    digest.update(&record[..CRC_AT]);
    digest.finalize() == u64::from(u32_at(record, CRC_AT))
}

fn aligned(len: usize) -> usize {
    len.next_multiple_of(8)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Writes WAL as a server does: pages with headers, records that run on over them.
    pub(crate) struct Writer {
        pub(crate) bytes: Vec<u8>,
        base: Lsn,
        last: u64,
        pub(crate) ends: Vec<Lsn>,
    }

    impl Writer {
        pub(crate) fn new(base: Lsn) -> Self {
            Self {
                bytes: Vec::new(),
                base,
                last: 0,
                ends: Vec::new(),
            }
        }

        fn at(&self) -> u64 {
            self.base.0 + self.bytes.len() as u64
        }

        fn header(&mut self, info: u16, left: usize) {
            let at = self.at();
            let is_first = at.is_multiple_of(SegmentBytes::DEFAULT.get());
            let info = if is_first { info | IS_LONG } else { info };
            self.bytes.extend(0xd110_u16.to_le_bytes());
            self.bytes.extend(info.to_le_bytes());
            self.bytes.extend(1_u32.to_le_bytes());
            self.bytes.extend(at.to_le_bytes());
            self.bytes.extend((left as u32).to_le_bytes());
            let len = if is_first { LONG_HEADER } else { SHORT_HEADER };
            self.bytes.resize(self.bytes.len() + len - 20, 0);
        }

        pub(crate) fn record(&mut self, body: usize, kind: (u8, u8)) {
            if self.at().is_multiple_of(XLOG_PAGE as u64) {
                self.header(0, 0);
            }
            let start = self.at();
            let mut record = Vec::new();
            record.extend(((RECORD_HEADER + body) as u32).to_le_bytes());
            record.extend(7_u32.to_le_bytes());
            record.extend(self.last.to_le_bytes());
            record.extend([kind.1, kind.0, 0, 0, 0, 0, 0, 0]);
            record.extend((0..body).map(|n| (n % 251) as u8));
            let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
            digest.update(&record[RECORD_HEADER..]);
            digest.update(&record[..CRC_AT]);
            let crc = digest.finalize() as u32;
            record[CRC_AT..RECORD_HEADER].copy_from_slice(&crc.to_le_bytes());
            let mut rest = record.as_slice();
            loop {
                let room = XLOG_PAGE - (self.at() % XLOG_PAGE as u64) as usize;
                let (now, later) = rest.split_at(room.min(rest.len()));
                self.bytes.extend(now);
                rest = later;
                if rest.is_empty() {
                    break;
                }
                self.header(IS_CONTINUED, rest.len());
            }
            let padded = self.bytes.len().next_multiple_of(8);
            self.bytes.resize(padded, 0);
            self.last = start;
            self.ends.push(Lsn(self.at()));
        }
    }

    const BASE: Lsn = Lsn(3 << 24);
    const SIZE: SegmentBytes = SegmentBytes::DEFAULT;

    fn written() -> Writer {
        let mut writer = Writer::new(BASE);
        for body in [10, 8_000, 200, 30_000, 0, 24] {
            writer.record(body, (1, 0));
        }
        writer
    }

    #[test]
    fn ends_at_the_last_whole_record_wherever_it_is_cut() {
        let writer = written();
        let mut padded = writer.bytes.clone();
        padded.resize(1 << 17, 0);
        for cut in 0..=writer.bytes.len() {
            let mut bytes = padded.clone();
            bytes[cut..].fill(0);
            let scan = scan_from_segment_start(&bytes, BASE, SIZE);
            let place = BASE.0 + cut as u64;
            let whole = writer.ends.iter().rfind(|end| end.0 <= place);
            // Bytes of a record that are zero anyway need not have arrived.
            let next = writer.ends.iter().find(|end| end.0 > place);
            let tail_is_zero = next.is_some_and(|end| {
                padded[cut..(end.0 - BASE.0) as usize]
                    .iter()
                    .all(|b| *b == 0)
            });
            let expected = if tail_is_zero { next } else { whole };
            assert_eq!(scan.end, *expected.unwrap_or(&BASE), "cut at {cut}");
        }
    }

    #[test]
    fn goes_on_from_where_it_ended() {
        let writer = written();
        let first = scan_from_segment_start(&writer.bytes[..9_000], BASE, SIZE);
        assert_eq!(first.end, writer.ends[2]);
        let page = (first.end.page_start().0 - BASE.0) as usize;
        let second = scan_wal(&writer.bytes[page..], first.end, first.last, SIZE);
        assert_eq!(second.end, *writer.ends.last().unwrap());
        assert_eq!(first.records + second.records, 6);
    }

    #[test]
    fn a_flipped_bit_ends_it_there() {
        let writer = written();
        for place in [45, 9_500, 20_000] {
            let mut bytes = writer.bytes.clone();
            bytes[place] ^= 1;
            let scan = scan_from_segment_start(&bytes, BASE, SIZE);
            assert!(scan.end.0 <= BASE.0 + place as u64, "{place}");
            assert_ne!(scan.stop, ScanStop::OutOfBytes);
        }
    }

    #[test]
    fn a_switch_ends_the_segment() {
        let mut writer = Writer::new(BASE);
        writer.record(10, (1, 0));
        writer.record(0, SWITCH);
        let mut bytes = writer.bytes;
        bytes.resize(16 << 20, 0);
        let scan = scan_from_segment_start(&bytes, BASE, SIZE);
        assert_eq!(scan.end, Lsn(4 << 24));
        assert_eq!(scan.stop, ScanStop::OutOfBytes);
    }

    #[test]
    fn skips_what_belongs_to_the_segment_before() {
        let start = Lsn(BASE.0 - XLOG_PAGE as u64);
        let mut writer = Writer::new(start);
        writer.record(20_000, (1, 0));
        writer.record(100, (1, 0));
        let scan = scan_from_segment_start(&writer.bytes[XLOG_PAGE..], BASE, SIZE);
        assert_eq!((scan.end, scan.records), (writer.ends[1], 1));
    }

    #[test]
    fn takes_no_foreign_page_for_its_own() {
        let writer = written();
        let scan = scan_from_segment_start(&writer.bytes, Lsn(5 << 24), SIZE);
        assert_eq!(scan.stop, ScanStop::NotAPage);
        assert_eq!(scan.records, 0);
        assert_eq!(
            scan_from_segment_start(&[0; 64], BASE, SIZE).stop,
            ScanStop::NotAPage
        );
    }
}
