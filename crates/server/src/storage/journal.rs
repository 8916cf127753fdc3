//! Looks over the engine's journals before the engine does, because the engine forgets without a word.
//!
//! fjall replays a journal up to the first entry it cannot parse and cuts off the rest: right for a torn tail, which a
//! crash leaves and nobody was promised, and wrong for a damaged entry in the middle, behind which acknowledged
//! writes lie. On a checksum mismatch it does not open at all. So before every open this module reads the journals,
//! tells the two apart, cuts torn tails, and where writes are lost keeps every batch that is still whole and reports
//! the loss, so that the node can take a new identity and be repaired by its peers.
//!
//! ```text
//!  batch: 1 | items (4) | sequence number (8) | item ... | 3 | xxh3-64 of the items (8) | "FJL" 3
//!  item:  2 | type | compression | keyspace (8) | key length (2) | value length (4) | length on disk (4) | key | value
//!  clear: 4 | keyspace (8)                                                    (integers are little-endian)
//! ```
//! Journals are named `<number>.jnl`, numbered without gaps, and set to 64 MiB of zeros when they are made.
//! Sequence numbers grow from batch to batch. The engine's checksum does not cover them, so we check their order.
//!
//! A tail is *torn* if it is in the newest journal, no whole batch follows, and it looks like a write that
//! was cut: it ends before its batch does, or a sector of zeros is in it. Everything else is *damage*. In doubt we
//! report damage: a needless repair costs time, an unnoticed loss costs the promise.
//! Source: fjall 3.1.13 `src/journal/{entry,batch_reader}.rs`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

const TAG_START: u8 = 1;
const TAG_ITEM: u8 = 2;
const TAG_END: u8 = 3;
const TAG_CLEAR: u8 = 4;
const TRAILER: &[u8] = b"FJL\x03";
const SECTOR_BYTES: usize = 512;
/// Flushes and compactions take sequence numbers too, a few each; a larger step between two batches is a flipped bit.
const SEQUENCE_STEP_MAX: u64 = 1 << 20;

/// What was found and done, in words for the log; empty if all was well.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Acknowledged writes are missing: one line for each place.
    pub(super) lost: Vec<String>,
    /// Unacknowledged bytes that were cut off: one line for each place.
    pub(super) cut: Vec<String>,
}

/// Which batches of otherwise sound journals to keep.
#[derive(Clone, Copy, Debug)]
pub(super) enum Keep {
    /// All of them.
    All,
    /// Those numbered below `sequence_end`, copied to new files, because the old ones failed an fsync and
    /// the kernel may have dropped what they hold.
    Acknowledged { sequence_end: u64 },
}

/// Checks all journals in `directory` and makes them such that the engine opens them and replays what is whole.
///
/// `before_loss` is called before a journal with lost writes is changed, so that the loss can be made known first.
/// A damaged journal is kept beside its repaired copy as `<number>.jnl.damaged`. O(bytes of the journals).
pub(super) fn repair(
    directory: &Path,
    keep: Keep,
    before_loss: &mut dyn FnMut(&Report) -> io::Result<()>,
) -> io::Result<Report> {
    let mut report = Report::default();
    let files = list(directory)?;
    check_numbers(&files, &mut report);
    let mut journals = Vec::new();
    for (number, path) in files {
        journals.push((number, scan(&fs::read(&path)?), path));
    }
    let last = journals.len().saturating_sub(1);
    for (index, (_, journal, _)) in journals.iter_mut().enumerate() {
        // Older journals were synced before the next one was made.
        if let (true, Tail::Torn(place)) = (index < last, journal.tail.clone()) {
            journal.damage.push(place);
            journal.tail = Tail::Clean;
        }
    }
    check_sequence(journals.iter_mut().map(|(_, journal, _)| journal));
    if let Keep::Acknowledged { sequence_end } = keep {
        for (_, journal, _) in &mut journals {
            journal.batches.retain(|batch| batch.sequence < sequence_end);
        }
    }
    for (number, journal, _) in &journals {
        for Range { start, end } in &journal.damage {
            report.lost.push(format!("journal {number}, bytes {start} to {end}"));
        }
        if let Tail::Torn(Range { start, end }) = &journal.tail {
            report.cut.push(format!("journal {number}, bytes {start} to {end}"));
        }
    }
    if !report.lost.is_empty() {
        before_loss(&report)?;
    }
    for (_, journal, path) in &journals {
        apply(path, journal, keep)?;
    }
    Ok(report)
}

/// The journals of `directory` by number.
fn list(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut journals = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(number) = name.strip_suffix(".jnl").and_then(|number| number.parse().ok()) {
            journals.push((number, path));
        }
    }
    journals.sort();
    Ok(journals)
}

fn check_numbers(journals: &[(u64, PathBuf)], report: &mut Report) {
    if journals.is_empty() {
        report.lost.push("there is no journal".into());
    }
    for pair in journals.windows(2) {
        if pair[1].0 != pair[0].0 + 1 {
            report.lost.push(format!("journals between {} and {}", pair[0].0, pair[1].0));
        }
    }
}

/// What a journal holds.
#[derive(Debug)]
struct Journal {
    /// The whole batches, ascending by place.
    batches: Vec<Batch>,
    /// What lies between them and is no batch.
    damage: Vec<Range<usize>>,
    tail: Tail,
}

/// A batch whose checksum matches.
#[derive(Debug)]
struct Batch {
    place: Range<usize>,
    sequence: u64,
}

/// What follows the last whole batch.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tail {
    /// Zeros or nothing.
    Clean,
    /// A batch that was being written.
    Torn(Range<usize>),
}

fn scan(data: &[u8]) -> Journal {
    let data_end = data.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let mut journal = Journal { batches: Vec::new(), damage: Vec::new(), tail: Tail::Clean };
    let mut at = 0;
    while at < data_end {
        match parse(data, at) {
            Some(batch) => {
                at = batch.place.end;
                journal.batches.push(batch);
            }
            None => at = journal.skip(data, at, data_end),
        }
    }
    journal
}

impl Journal {
    /// Judges what lies at `at`, which is no batch, and returns where to go on.
    fn skip(&mut self, data: &[u8], at: usize, data_end: usize) -> usize {
        let next = (at + 1..data_end).find(|next| data[*next] == TAG_START && parse(data, *next).is_some());
        match next {
            Some(next) => self.damage.push(at..next),
            None if is_torn(data, at, data_end) => self.tail = Tail::Torn(at..data_end),
            None => self.damage.push(at..data_end),
        }
        next.unwrap_or(data_end)
    }
}

/// Turns batches whose numbers are out of order into damage: the engine's checksum does not cover the number, and
/// replaying a batch at the wrong place would let it hide newer rows or be hidden by older ones.
fn check_sequence<'a>(journals: impl Iterator<Item = &'a mut Journal>) {
    let journals: Vec<_> = journals.collect();
    let sequences = journals.iter().flat_map(|journal| &journal.batches);
    let sequences: Vec<u64> = sequences.map(|batch| batch.sequence).collect();
    let mut rest = &sequences[..];
    let mut last = None;
    for journal in journals {
        let damage = &mut journal.damage;
        journal.batches.retain(|batch| {
            rest = &rest[1..];
            let is_leap = is_leap(last, batch.sequence, rest);
            let is_good = follows(last, batch.sequence) && !is_leap;
            match is_good {
                true => last = Some(batch.sequence),
                false => damage.push(batch.place.clone()),
            }
            is_good
        });
    }
}

/// Whether `sequence` is too high rather than the next number too low: `rest` goes on where `last` was.
fn is_leap(last: Option<u64>, sequence: u64, rest: &[u64]) -> bool {
    let goes_on = |next: Option<&u64>| next.is_none_or(|next| !follows(Some(sequence), *next));
    rest.first().is_some_and(|next| follows(last, *next)) && goes_on(rest.first()) && goes_on(rest.get(1))
}

fn follows(last: Option<u64>, sequence: u64) -> bool {
    match last {
        None => sequence < 1 << 63,
        Some(last) => sequence > last && sequence - last <= SEQUENCE_STEP_MAX,
    }
}

/// Whether the bytes from `at` look like a write that was cut short.
fn is_torn(data: &[u8], at: usize, data_end: usize) -> bool {
    let tail = &data[at..data_end];
    let sectors = at.div_ceil(SECTOR_BYTES)..data_end / SECTOR_BYTES;
    let has_hole = sectors
        .map(|sector| &data[sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES])
        .any(|sector| sector.iter().all(|byte| *byte == 0));
    let has_end = tail.windows(TRAILER.len()).any(|bytes| bytes == TRAILER);
    has_hole || !(has_end || has_full_length(&data[..data_end], at))
}

/// Whether a batch at `start` has all its parts, whatever their contents.
fn has_full_length(data: &[u8], start: usize) -> bool {
    let mut reader = Reader { data, at: start };
    reader.batch().is_some()
}

/// The batch at `start`, if it is whole and its checksum matches.
fn parse(data: &[u8], start: usize) -> Option<Batch> {
    let mut reader = Reader { data, at: start };
    let parts = reader.batch()?;
    let is_whole = parts.tags == (TAG_START, TAG_END)
        && parts.trailer == TRAILER
        && parts.checksum == xxh3_64(parts.items);
    is_whole.then_some(Batch { place: start..reader.at, sequence: parts.sequence })
}

/// A batch taken apart, nothing of it verified.
struct Parts<'a> {
    tags: (u8, u8),
    sequence: u64,
    items: &'a [u8],
    checksum: u64,
    trailer: &'a [u8],
}

struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let bytes = self.data.get(self.at..self.at.checked_add(len)?)?;
        self.at += len;
        Some(bytes)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn batch(&mut self) -> Option<Parts<'a>> {
        let start_tag = self.byte()?;
        let items = u32::from_le_bytes(self.array()?);
        let sequence = u64::from_le_bytes(self.array()?);
        let items_start = self.at;
        for _ in 0..items {
            self.item()?;
        }
        let items = &self.data[items_start..self.at];
        Some(Parts {
            tags: (start_tag, self.byte()?),
            sequence,
            items,
            checksum: u64::from_le_bytes(self.array()?),
            trailer: self.take(TRAILER.len())?,
        })
    }

    fn item(&mut self) -> Option<()> {
        match self.byte()? {
            TAG_ITEM => {
                let [_type, compression] = self.array()?;
                self.take(8)?;
                let key_len = u16::from_le_bytes(self.array()?) as usize;
                let value_len = u32::from_le_bytes(self.array()?);
                let disk_len = u32::from_le_bytes(self.array()?);
                // Our journals are never compressed.
                if compression != 0 || value_len != disk_len {
                    return None;
                }
                self.take(key_len)?;
                self.take(disk_len as usize)?;
            }
            TAG_CLEAR => {
                self.take(8)?;
            }
            _ => return None,
        }
        Some(())
    }
}

/// Leaves exactly the whole batches in the journal at `path`.
fn apply(path: &Path, journal: &Journal, keep: Keep) -> io::Result<()> {
    match (keep, &journal.tail) {
        (Keep::All, Tail::Clean) if journal.damage.is_empty() => Ok(()),
        (Keep::All, Tail::Torn(place)) if journal.damage.is_empty() => {
            let file = OpenOptions::new().write(true).open(path)?;
            file.set_len(place.start as u64)?;
            file.sync_all()
        }
        _ => rewrite(path, journal),
    }
}

fn rewrite(path: &Path, journal: &Journal) -> io::Result<()> {
    let data = fs::read(path)?;
    let copy = path.with_extension("jnl.repaired");
    let mut file = BufWriter::new(File::create(&copy)?);
    for batch in &journal.batches {
        let bytes = data.get(batch.place.clone());
        file.write_all(bytes.ok_or_else(|| io::Error::other("the journal shrank while it was repaired"))?)?;
    }
    file.into_inner()?.sync_all()?;
    if !journal.damage.is_empty() {
        fs::rename(path, path.with_extension("jnl.damaged"))?;
    }
    fs::rename(&copy, path)?;
    super::format::sync_directory(path.parent().unwrap_or(Path::new(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch as the engine writes it.
    fn batch(sequence: u64, value: &[u8]) -> Vec<u8> {
        let mut items = vec![TAG_ITEM, 0, 0];
        items.extend(7u64.to_le_bytes());
        items.extend(3u16.to_le_bytes());
        items.extend((value.len() as u32).to_le_bytes());
        items.extend((value.len() as u32).to_le_bytes());
        items.extend(b"key");
        items.extend(value);
        let mut batch = vec![TAG_START];
        batch.extend(1u32.to_le_bytes());
        batch.extend(sequence.to_le_bytes());
        batch.extend(&items);
        batch.push(TAG_END);
        batch.extend(xxh3_64(&items).to_le_bytes());
        batch.extend(TRAILER);
        batch
    }

    fn three() -> (Vec<u8>, usize) {
        let one = batch(1, &[7; 1000]);
        let len = one.len();
        let mut data = [one, batch(2, &[8; 1000]), batch(5, &[9; 1000])].concat();
        data.resize(data.len() + 4096, 0);
        (data, len)
    }

    /// Numbers of the whole batches, places of damage and the tail.
    fn judge(data: &[u8]) -> (Vec<u64>, Vec<(usize, usize)>, Tail) {
        let mut journal = scan(data);
        check_sequence(std::iter::once(&mut journal));
        let sequences = journal.batches.iter().map(|batch| batch.sequence).collect();
        let damage = journal.damage.iter().map(|place| (place.start, place.end)).collect();
        (sequences, damage, journal.tail)
    }

    #[test]
    fn a_sound_journal_is_clean() {
        assert_eq!(judge(&three().0), (vec![1, 2, 5], vec![], Tail::Clean));
        assert_eq!(judge(&[0; 4096]), (vec![], vec![], Tail::Clean));
    }

    #[test]
    fn every_flipped_bit_in_the_middle_is_damage_and_costs_one_batch() {
        let (data, len) = three();
        let header_end = (len + 40) * 8;
        for bit in (len * 8..header_end).chain((header_end..len * 2 * 8).step_by(11)) {
            let mut data = data.clone();
            data[bit / 8] ^= 1 << (bit % 8);
            let (sequences, damage, tail) = judge(&data);
            assert_eq!(tail, Tail::Clean, "bit {bit}");
            // The engine does not protect its numbers: a 2 that became a 3 still lies between 1 and 5, harmless.
            if sequences != [1, 3, 5] {
                assert_eq!(sequences, [1, 5], "bit {bit}");
                assert_eq!(damage, [(len, len * 2)], "bit {bit}");
            }
        }
    }

    #[test]
    fn a_cut_at_any_byte_of_the_last_batch_is_torn() {
        let (data, len) = three();
        for end in len * 2 + 1..len * 3 {
            for zeros in [0, 4096] {
                let mut data = data[..end].to_vec();
                data.resize(end + zeros, 0);
                let (sequences, damage, tail) = judge(&data);
                assert_eq!((sequences, damage), (vec![1, 2], vec![]), "cut at {end}");
                assert!(matches!(tail, Tail::Torn(place) if place.start == len * 2), "cut at {end}");
            }
        }
    }

    #[test]
    fn a_flip_in_the_last_batch_is_damage_unless_a_sector_is_missing() {
        let (mut data, len) = three();
        data[len * 2 + 100] ^= 1;
        assert_eq!(judge(&data), (vec![1, 2], vec![(len * 2, len * 3)], Tail::Clean));
        for back in 1..=13 {
            let mut data = three().0;
            data[len * 3 - back] ^= 4;
            assert_eq!(judge(&data).1, [(len * 2, len * 3)], "{back} bytes before the end");
        }
        let hole = (len * 2 + 100).div_ceil(SECTOR_BYTES) * SECTOR_BYTES;
        data[hole..hole + SECTOR_BYTES].fill(0);
        assert_eq!(judge(&data), (vec![1, 2], vec![], Tail::Torn(len * 2..len * 3)));
    }

    #[test]
    fn numbers_that_go_back_or_leap_cost_the_batch_that_has_them() {
        for (wrong, sequences) in [(4, [5, 7]), (90, [5, 7]), (1 << 40, [5, 7]), (u64::MAX, [5, 7])] {
            let data = [batch(5, b"a"), batch(wrong, b"b"), batch(7, b"c")].concat();
            let (found, damage, _) = judge(&data);
            assert_eq!((&found[..], damage.len()), (&sequences[..], 1), "{wrong}");
        }
        let data = [batch(1 << 40, b"a"), batch(6, b"b"), batch(7, b"c")].concat();
        assert_eq!(judge(&data).0, [6, 7]);
    }
}
