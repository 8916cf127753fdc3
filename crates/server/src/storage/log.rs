//! The log: where a write is made durable, in one append and one sync for everything in a turn.
//!
//! The log is a row of *segments*, files of a fixed size that are filled with zeros before they are used: an append
//! then changes neither the size nor the blocks of a file, and a sync writes data only, at half the time. When a
//! segment is full it is sealed, and the flusher writes its rows into the engine's tables; then the file is used again.
//! If it were removed instead, a file system that discards freed blocks would keep every sync waiting meanwhile.
//!
//! ```text
//!  <directory>/log/FLUSHED     number of the last segment whose rows are all in tables; missing: 0
//!                  <n>.log     segments from FLUSHED + 1, without gaps; the greatest is the active one
//!                  recycled    a segment that was flushed; the next one is made of it
//!
//!  segment: records, each at a multiple of 512 bytes, then zeros
//!  record:  "oortlog2" | segment (8) | number in the segment, from 1 (8) | length of payload (8)
//!           | xxh3-64 of payload (8) | xxh3-64 of the 40 bytes before (8) | payload: row ...
//!           | zeros up to the next multiple of 512
//!  row:     space (1) | key length (2) | length of stored (4), ffffffff: deleted | key | stored
//!                                                                         (integers are little-endian)
//! ```
//! **A torn tail is not damage.** A crash leaves a record that was being written and was never acknowledged. Sectors of
//! 512 bytes reach the disk whole or not at all, in any order. So what follows the last whole record counts as torn
//! if it is in the newest segment, no whole record follows it, and a sector of zeros lies where its record should be.
//! Everything else that is not a record is damage: acknowledged writes are missing, and the node must know. In doubt
//! we report damage: a needless repair costs time, an unnoticed loss costs the promise.

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use oort_core::store::Space;
use xxhash_rust::xxh3::xxh3_64;

use super::format;
use super::row::Row;

const MAGIC: &[u8; 8] = b"oortlog2";
const SECTOR_BYTES: usize = 512;
const HEADER_BYTES: usize = 48;
const ROW_HEADER_BYTES: usize = 7;
const DELETED: u32 = u32::MAX;
const DIRECTORY: &str = "log";
const FLUSHED: &str = "FLUSHED";
/// Zeros are written and synced in pieces of this size: whoever syncs a record meanwhile waits for one of them.
const PIECE_BYTES: usize = 1 << 20;
/// A sealed segment is read in pieces of this size.
const READ_BYTES: usize = 256 << 10;

/// Number of a segment, from 1.
pub(super) type SegmentNumber = u32;

/// A segment that takes records.
pub(super) struct Segment {
    number: SegmentNumber,
    file: File,
    /// It is full when a record would end behind this.
    limit_bytes: u64,
    end: u64,
    records: u64,
}

impl Segment {
    /// Makes the file, filled with zeros and durable. Errors: those of the file system; no segment is left then.
    pub(super) fn create(directory: &Path, number: SegmentNumber, len_bytes: u64) -> io::Result<Segment> {
        let path = segment_path(directory, number);
        let recycled = recycled_path(directory);
        let segment = match Segment::open(&recycled, number, len_bytes) {
            Ok(Some(segment)) => {
                segment.zero(0..len_bytes)?;
                fs::rename(&recycled, &path)?;
                segment
            }
            _ => Segment::create_at(&path, number, len_bytes).inspect_err(|_| {
                // What is left would be taken for an empty segment, which is harmless too.
                let _ = fs::remove_file(&path);
            })?,
        };
        format::sync_directory(&log_path(directory))?;
        Ok(segment)
    }

    fn create_at(path: &Path, number: SegmentNumber, len_bytes: u64) -> io::Result<Segment> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        let segment = Segment::blank(file, number, len_bytes);
        segment.zero(0..len_bytes)?;
        segment.file.sync_all()?;
        Ok(segment)
    }

    /// Up to a quarter of it stays empty: replicas take the same writes, and should not all flush them at once.
    fn blank(file: File, number: SegmentNumber, len_bytes: u64) -> Segment {
        let spared_bytes = RandomState::new().hash_one(number) % (len_bytes / 4).max(1);
        Segment { number, file, limit_bytes: len_bytes - spared_bytes, end: 0, records: 0 }
    }

    /// Opens one that was made and never written to, unless it is of another size.
    pub(super) fn open_blank(
        directory: &Path,
        number: SegmentNumber,
        len_bytes: u64,
    ) -> io::Result<Option<Segment>> {
        Segment::open(&segment_path(directory, number), number, len_bytes)
    }

    fn open(path: &Path, number: SegmentNumber, len_bytes: u64) -> io::Result<Option<Segment>> {
        let file = OpenOptions::new().write(true).open(path)?;
        let is_whole = file.metadata()?.len() == len_bytes;
        Ok(is_whole.then(|| Segment::blank(file, number, len_bytes)))
    }

    /// Makes the segment anew with `rows` in it, in the place of a file that is not to be trusted any more.
    ///
    /// Errors: the old file is still there.
    pub(super) fn replace<'a>(
        directory: &Path,
        number: SegmentNumber,
        len_bytes: u64,
        rows: impl Iterator<Item = (Space, &'a Row)>,
    ) -> io::Result<Segment> {
        const RECORD_BYTES: usize = 1 << 20;
        let path = segment_path(directory, number);
        let new = path.with_extension("new");
        let mut segment = Segment::create_at(&new, number, len_bytes)?;
        let mut record = Record::default();
        for (space, row) in rows {
            record.push(space, row);
            if record.len_bytes() > RECORD_BYTES {
                segment.append(&mut record)?;
            }
        }
        if !record.is_empty() {
            segment.append(&mut record)?;
        }
        segment.sync()?;
        fs::rename(&new, &path)?;
        format::sync_directory(&log_path(directory))?;
        Ok(segment)
    }

    pub(super) fn number(&self) -> SegmentNumber {
        self.number
    }

    /// Whether a record fits. One that is too large for any segment fits into an empty one, which grows.
    pub(super) fn has_room(&self, record: &Record) -> bool {
        self.end == 0 || self.end + record.len_bytes() as u64 <= self.limit_bytes
    }

    /// Writes a record, which is empty afterwards; the system has it then, the disk after [`Segment::sync`].
    ///
    /// Errors: a part of it may be there.
    pub(super) fn append(&mut self, record: &mut Record) -> io::Result<()> {
        let bytes = record.seal(self.number, self.records + 1);
        self.file.write_all_at(bytes, self.end)?;
        self.end += bytes.len() as u64;
        self.records += 1;
        record.clear();
        Ok(())
    }

    /// Makes all records durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Overwrites a range with zeros, durably.
    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        let zeros = vec![0; PIECE_BYTES.min((range.end - range.start) as usize)];
        for at in range.clone().step_by(PIECE_BYTES) {
            let piece = &zeros[..zeros.len().min((range.end - at) as usize)];
            self.file.write_all_at(piece, at)?;
            self.file.sync_data()?;
        }
        Ok(())
    }
}

/// A record that is being put together.
#[derive(Default)]
pub(super) struct Record {
    bytes: Vec<u8>,
}

impl Record {
    /// Adds a row.
    pub(super) fn push(&mut self, space: Space, row: &Row) {
        if self.bytes.is_empty() {
            self.bytes.resize(HEADER_BYTES, 0);
        }
        let stored_len_bytes = row.stored().map_or(DELETED, |stored| stored.len() as u32);
        self.bytes.push(space as u8);
        self.bytes.extend_from_slice(&(row.key().len() as u16).to_le_bytes());
        self.bytes.extend_from_slice(&stored_len_bytes.to_le_bytes());
        self.bytes.extend_from_slice(row.bytes());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes it takes in a segment.
    pub(super) fn len_bytes(&self) -> usize {
        self.bytes.len().next_multiple_of(SECTOR_BYTES)
    }

    /// Forgets its rows; a buffer that a large value has made is given back.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(1 << 20);
    }

    fn seal(&mut self, segment: SegmentNumber, number: u64) -> &[u8] {
        let payload = &self.bytes[HEADER_BYTES..];
        let fields =
            [u64::from_le_bytes(*MAGIC), segment.into(), number, payload.len() as u64, xxh3_64(payload)];
        for (place, field) in self.bytes.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        let checksum = xxh3_64(&self.bytes[..HEADER_BYTES - 8]);
        self.bytes[HEADER_BYTES - 8..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
        self.bytes.resize(self.len_bytes(), 0);
        &self.bytes
    }
}

/// A segment's bytes, read and judged.
pub(super) struct Contents {
    data: Vec<u8>,
    /// Payloads of the whole records.
    payloads: Vec<Range<usize>>,
    /// A line for each place where acknowledged writes are missing.
    pub(super) damage: Vec<String>,
    /// A record that was being written when the machine or the process stopped.
    torn: Option<Range<usize>>,
}

/// A row of a segment: the engine's key, and what to store under it; `None` deletes.
pub(super) type LoggedRow<'a> = (Space, &'a [u8], Option<&'a [u8]>);

impl Contents {
    /// Reads a segment. `is_newest`: a torn tail is expected there, and nowhere else.
    ///
    /// O(bytes). Errors: those of the file system.
    pub(super) fn read(directory: &Path, number: SegmentNumber, is_newest: bool) -> io::Result<Contents> {
        Ok(Contents::judge(fs::read(segment_path(directory, number))?, number, is_newest))
    }

    fn judge(data: Vec<u8>, segment: SegmentNumber, is_newest: bool) -> Contents {
        let mut payloads = Vec::new();
        let mut damage = Vec::new();
        let mut torn = None;
        let data_end = data.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let (mut at, mut number) = (0, 1);
        while at < data_end {
            let expected = header(&data, at, segment).filter(|header| header.number == number);
            if let Some(payload) = expected.as_ref().and_then(|header| header.payload(&data, at)) {
                at = payload.end.next_multiple_of(SECTOR_BYTES);
                number += 1;
                payloads.push(payload);
                continue;
            }
            let next = (at + SECTOR_BYTES..data_end).step_by(SECTOR_BYTES).find_map(|next| {
                let header = header(&data, next, segment).filter(|header| header.number > number)?;
                header.payload(&data, next).map(|_| (next, header.number))
            });
            let end = next.map_or(data_end, |(next, _)| next);
            let extent = expected.map_or(at + SECTOR_BYTES, |header| at + header.record_bytes());
            match next.is_none() && is_newest && has_hole(&data, at..extent) {
                true => torn = Some(at..data_end),
                false => damage.push(format!("log segment {segment}, bytes {at} to {end}")),
            }
            (at, number) = next.unwrap_or((data_end, number));
        }
        if data_end == 0 && !is_newest {
            damage.push(format!("log segment {segment}, all of it"));
        }
        Contents { data, payloads, damage, torn }
    }

    /// Whether nothing was ever written to it.
    pub(super) fn is_blank(&self) -> bool {
        self.payloads.is_empty() && self.damage.is_empty() && self.torn.is_none()
    }

    /// The rows in the order of their writing; a key can come again. Ends early in a record that is not ours inside.
    pub(super) fn rows(&self) -> impl Iterator<Item = LoggedRow<'_>> {
        self.payloads.iter().flat_map(|payload| parse_rows(&self.data[payload.clone()]))
    }

    /// Overwrites a torn tail with zeros, durably: behind a newer segment it would be damage. Says what it cut.
    pub(super) fn cut(&self, directory: &Path, number: SegmentNumber) -> io::Result<Option<String>> {
        let Some(Range { start, end }) = self.torn.clone() else { return Ok(None) };
        let file = OpenOptions::new().write(true).open(segment_path(directory, number))?;
        let segment = Segment::blank(file, number, self.data.len() as u64);
        segment.zero(start as u64..end as u64)?;
        Ok(Some(format!("log segment {number}, bytes {start} to {end}")))
    }
}

/// Shows the rows of a sealed segment in the order of their writing, reading it piece by piece. Returns whether it is
/// whole; if not, [`Contents::read`] finds out what is wrong.
///
/// `rest` is called between pieces of work. O(bytes), and memory for the largest record. Errors: those of the file
/// system.
pub(super) fn visit_sealed(
    directory: &Path,
    segment: SegmentNumber,
    mut rest: impl FnMut(),
    mut visit: impl FnMut(LoggedRow),
) -> io::Result<bool> {
    let file = File::open(segment_path(directory, segment))?;
    let mut left = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let mut reader = BufReader::with_capacity(READ_BYTES, file);
    let mut head = [0; HEADER_BYTES];
    let mut body = Vec::new();
    let mut number = 1;
    while left >= HEADER_BYTES {
        reader.read_exact(&mut head)?;
        let Some(header) = header(&head, 0, segment).filter(|header| header.number == number) else {
            return Ok(number > 1 && is_zero(&head) && is_zero_to_the_end(&mut reader)?);
        };
        let record_bytes = header.record_bytes().checked_next_multiple_of(SECTOR_BYTES);
        let Some(record_bytes) = record_bytes.filter(|bytes| *bytes <= left) else { return Ok(false) };
        body.resize(record_bytes - HEADER_BYTES, 0);
        reader.read_exact(&mut body)?;
        let payload = &body[..header.payload_bytes];
        if xxh3_64(payload) != header.checksum {
            return Ok(false);
        }
        parse_rows(payload).for_each(&mut visit);
        left -= record_bytes;
        number += 1;
        rest();
    }
    Ok(number > 1)
}

fn is_zero_to_the_end(reader: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() || !is_zero(bytes) {
            return Ok(bytes.is_empty());
        }
        let len_bytes = bytes.len();
        reader.consume(len_bytes);
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

struct Header {
    number: u64,
    payload_bytes: usize,
    checksum: u64,
}

impl Header {
    fn record_bytes(&self) -> usize {
        self.payload_bytes.saturating_add(HEADER_BYTES)
    }

    /// Where the payload lies, if it is whole.
    fn payload(&self, data: &[u8], at: usize) -> Option<Range<usize>> {
        let range = at + HEADER_BYTES..at.checked_add(self.record_bytes())?;
        let payload = data.get(range.clone())?;
        (xxh3_64(payload) == self.checksum).then_some(range)
    }
}

/// The header at `at`, if there is a whole one of this segment.
fn header(data: &[u8], at: usize, segment: SegmentNumber) -> Option<Header> {
    let bytes = data.get(at..at + HEADER_BYTES)?;
    let (covered, checksum) = bytes.split_last_chunk::<8>()?;
    let mut fields = covered.chunks_exact(8).map(|field| field.try_into().map_or(0, u64::from_le_bytes));
    let mut field = || fields.next().unwrap_or(0);
    let (magic, of_segment, number) = (field(), field(), field());
    let (payload_bytes, payload_checksum) = (field(), field());
    let is_ours = magic == u64::from_le_bytes(*MAGIC) && of_segment == u64::from(segment);
    (is_ours && xxh3_64(covered) == u64::from_le_bytes(*checksum)).then_some(Header {
        number,
        payload_bytes: usize::try_from(payload_bytes).ok()?,
        checksum: payload_checksum,
    })
}

/// Whether one of the sectors of `range` is missing or all zeros.
fn has_hole(data: &[u8], range: Range<usize>) -> bool {
    let sectors = data.get(range).map(|record| record.chunks(SECTOR_BYTES));
    sectors.is_none_or(|mut sectors| sectors.any(is_zero))
}

fn parse_rows(mut rest: &[u8]) -> impl Iterator<Item = LoggedRow<'_>> {
    std::iter::from_fn(move || {
        let (row, after) = parse_row(rest)?;
        rest = after;
        Some(row)
    })
}

fn parse_row(bytes: &[u8]) -> Option<(LoggedRow<'_>, &[u8])> {
    let (head, rest) = bytes.split_at_checked(ROW_HEADER_BYTES)?;
    let space = match head[0] {
        0 => Space::Data,
        1 => Space::Hints,
        2 => Space::Meta,
        _ => return None,
    };
    let key_bytes = u16::from_le_bytes([head[1], head[2]]);
    let stored_bytes = u32::from_le_bytes([head[3], head[4], head[5], head[6]]);
    let (key, rest) = rest.split_at_checked(key_bytes.into())?;
    if stored_bytes == DELETED {
        return Some(((space, key, None), rest));
    }
    let (stored, rest) = rest.split_at_checked(stored_bytes as usize)?;
    Some(((space, key, Some(stored)), rest))
}

/// Where the log is.
pub(super) fn log_path(directory: &Path) -> PathBuf {
    directory.join(DIRECTORY)
}

/// Makes the log's directory.
pub(super) fn make(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(log_path(directory))?;
    format::sync_directory(directory)
}

/// The files of the log.
pub(super) struct Found {
    /// Those with rows that the tables may lack, ascending.
    pub(super) segments: Vec<SegmentNumber>,
    /// The last segment of which the tables have everything.
    pub(super) flushed: SegmentNumber,
    /// A line for each place where segments are missing.
    pub(super) lost: Vec<String>,
}

/// Lists the log and removes what is flushed. Errors: those of the file system.
pub(super) fn list(directory: &Path) -> io::Result<Found> {
    let mut lost = Vec::new();
    let mut numbers: Vec<SegmentNumber> = files(directory)?.map(|(number, _)| number).collect();
    numbers.sort_unstable();
    let flushed = match fs::read(log_path(directory).join(FLUSHED)) {
        Ok(bytes) => std::str::from_utf8(&bytes).ok().and_then(|text| text.trim_end().parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(0),
        Err(error) => return Err(error),
    };
    let flushed: SegmentNumber = flushed.unwrap_or_else(|| {
        lost.push("how far the log was flushed is not known".into());
        numbers.first().map_or(0, |first| first - 1)
    });
    let (done, segments): (Vec<_>, Vec<_>) = numbers.into_iter().partition(|number| *number <= flushed);
    for number in done {
        remove(directory, number)?;
    }
    let mut expected = flushed + 1;
    for number in &segments {
        if *number != expected {
            lost.push(format!("log segments {expected} to {}", number - 1));
        }
        expected = number + 1;
    }
    if segments.is_empty() {
        lost.push(format!("log segment {expected} and all after it"));
    }
    Ok(Found { segments, flushed, lost })
}

/// Notes that the rows of a segment, and of all before it, are in tables, and keeps its file for another one.
pub(super) fn set_flushed(directory: &Path, number: SegmentNumber) -> io::Result<()> {
    format::replace(&log_path(directory).join(FLUSHED), &format!("{number}\n"))?;
    fs::rename(segment_path(directory, number), recycled_path(directory))
}

/// Removes a segment's file.
pub(super) fn remove(directory: &Path, number: SegmentNumber) -> io::Result<()> {
    fs::remove_file(segment_path(directory, number))
}

/// Bytes of all segments, as the file system has allocated them.
pub(super) fn size_bytes(directory: &Path) -> io::Result<u64> {
    let recycled_bytes = fs::metadata(recycled_path(directory)).map_or(0, |file| file.len());
    Ok(recycled_bytes + files(directory)?.map(|(_, size_bytes)| size_bytes).sum::<u64>())
}

fn files(directory: &Path) -> io::Result<impl Iterator<Item = (SegmentNumber, u64)>> {
    let entries = fs::read_dir(log_path(directory))?;
    Ok(entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let number = entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok()?;
        Some((number, entry.metadata().ok()?.len()))
    }))
}

fn segment_path(directory: &Path, number: SegmentNumber) -> PathBuf {
    log_path(directory).join(format!("{number:08}.log"))
}

fn recycled_path(directory: &Path) -> PathBuf {
    log_path(directory).join("recycled")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: SegmentNumber = 7;

    /// The bytes of records with one row each: a small one, one of two kilobytes, a small one.
    fn three() -> (Vec<u8>, [usize; 3]) {
        let mut data = Vec::new();
        let mut ends = [0; 3];
        for (number, len_bytes) in [10, 2_000, 10].into_iter().enumerate() {
            let mut record = Record::default();
            record.push(Space::Data, &Row::new(&[b'a' + number as u8], Some(&vec![7; len_bytes])));
            data.extend_from_slice(record.seal(SEGMENT, number as u64 + 1));
            ends[number] = data.len();
        }
        data.resize(data.len() + 4_096, 0);
        (data, ends)
    }

    fn keys(contents: &Contents) -> Vec<u8> {
        contents.rows().map(|(_, key, _)| key[0]).collect()
    }

    fn judge(data: &[u8]) -> Contents {
        Contents::judge(data.to_vec(), SEGMENT, true)
    }

    #[test]
    fn whole_records_come_back() {
        let contents = judge(&three().0);
        assert_eq!(keys(&contents), b"abc");
        assert_eq!((contents.damage.len(), contents.torn), (0, None));
        assert_eq!(keys(&judge(&[0; 9_000])), b"");
        assert_eq!(keys(&judge(&[])), b"");
    }

    #[test]
    fn rows_keep_their_space_and_deletions() {
        let mut record = Record::default();
        record.push(Space::Meta, &Row::new(b"m", Some(b"1")));
        record.push(Space::Hints, &Row::new(b"h", None));
        let data = record.seal(SEGMENT, 1).to_vec();
        let contents = judge(&data);
        let rows: Vec<_> =
            contents.rows().map(|(space, key, stored)| (space, key, stored.is_some())).collect();
        assert_eq!(rows, [(Space::Meta, &b"m"[..], true), (Space::Hints, &b"h"[..], false)]);
    }

    #[test]
    fn a_flipped_bit_costs_one_record_and_is_damage() {
        let (data, ends) = three();
        for bit in 0..ends[2] * 8 {
            let mut data = data.clone();
            data[bit / 8] ^= 1 << (bit % 8);
            let contents = judge(&data);
            let keys = keys(&contents);
            assert!(contents.torn.is_none() || keys == b"abc", "bit {bit}");
            assert!(keys == b"abc" || (keys.len() == 2 && contents.damage.len() == 1), "bit {bit}: {keys:?}");
        }
    }

    #[test]
    fn missing_sectors_of_the_last_record_are_torn_and_of_others_damage() {
        let (data, ends) = three();
        let last = &data[..ends[1]];
        for sector in (ends[0]..ends[1]).step_by(SECTOR_BYTES) {
            let mut torn = last.to_vec();
            torn[sector..sector + SECTOR_BYTES].fill(0);
            let contents = judge(&torn);
            assert_eq!(keys(&contents), b"a");
            assert!(contents.damage.is_empty() && contents.torn.is_some(), "sector at {sector}");
            assert_eq!(Contents::judge(torn, SEGMENT, false).damage.len(), 1, "an older segment was synced");
            let mut damaged = data.clone();
            damaged[sector..sector + SECTOR_BYTES].fill(0);
            let contents = judge(&damaged);
            assert_eq!((keys(&contents), contents.damage.len()), (b"ac".to_vec(), 1), "sector at {sector}");
        }
        let contents = judge(&last[..ends[0] + 700]);
        assert!(contents.damage.is_empty() && contents.torn.is_some(), "cut by the end of the file");
    }

    #[test]
    fn records_of_another_segment_or_out_of_order_are_not_believed() {
        let (data, ends) = three();
        assert_eq!(Contents::judge(data.clone(), SEGMENT + 1, true).rows().count(), 0);
        let swapped = [&data[ends[1]..ends[2]], &data[..ends[0]]].concat();
        let contents = judge(&swapped);
        assert_eq!((keys(&contents), contents.damage.len()), (b"".to_vec(), 1));
    }
}
