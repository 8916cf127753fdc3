//! Looks over the engine's journals before the engine does, because the engine forgets without a word.
//!
//! fjall replays a journal up to the first entry it cannot parse and cuts off the rest: right for a torn tail, which a
//! crash leaves and nobody was promised, and wrong for a damaged entry in the middle, behind which acknowledged
//! writes lie. On a checksum mismatch it does not open at all. So before every open this module reads the journals, tells
//! the two apart, cuts torn tails, and where writes are lost keeps every batch that is still whole and reports the
//! loss, so that the node can take a new identity and be repaired by its peers.
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
use std::io::{self, Write};
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
    let journals = list(directory)?;
    check_numbers(&journals, &mut report);
    let mut repairs = Vec::new();
    let mut last_sequence = None;
    for (index, (number, path)) in journals.iter().enumerate() {
        let data = fs::read(path)?;
        let mut scan = scan(&data, last_sequence, keep);
        last_sequence = scan.last_sequence;
        let is_newest = index + 1 == journals.len();
        if let (false, Tail::Torn(at)) = (is_newest, &scan.tail) {
            scan.damage.push(*at..data.len());
        }
        for place in &scan.damage {
            let Range { start, end } = place;
            report.lost.push(format!("journal {number}, bytes {start} to {end}"));
        }
        if let (true, Tail::Torn(at)) = (is_newest, &scan.tail) {
            report.cut.push(format!("journal {number}, from byte {at}"));
        }
        repairs.push((path, scan, data.len()));
    }
    if !report.lost.is_empty() {
        before_loss(&report)?;
    }
    for (path, scan, len) in &repairs {
        apply(path, scan, *len, keep)?;
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
            report
                .lost
                .push(format!("journals between {} and {}", pair[0].0, pair[1].0));
        }
    }
}

/// What a journal holds.
#[derive(Debug)]
struct Scan {
    /// Where the batches to keep lie, ascending; neighbours are joined.
    kept: Vec<Range<usize>>,
    /// Where whole batches lie that are not to be kept.
    dropped: usize,
    damage: Vec<Range<usize>>,
    tail: Tail,
    last_sequence: Option<u64>,
}

#[derive(Debug, PartialEq, Eq)]
enum Tail {
    /// Zeros or nothing.
    Clean,
    /// A batch that was being written, from this offset.
    Torn(usize),
}

fn scan(data: &[u8], last_sequence: Option<u64>, keep: Keep) -> Scan {
    let data_end = data.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let mut scan = Scan {
        kept: Vec::new(),
        dropped: 0,
        damage: Vec::new(),
        tail: Tail::Clean,
        last_sequence,
    };
    let mut at = 0;
    while at < data_end {
        match parse(&data[at..]).filter(|batch| follows(scan.last_sequence, batch.sequence)) {
            Some(batch) => {
                scan.take(at..at + batch.len_bytes, batch.sequence, keep);
                at += batch.len_bytes;
            }
            None => at = scan.skip(data, at, data_end),
        }
    }
    scan
}

impl Scan {
    fn take(&mut self, place: Range<usize>, sequence: u64, keep: Keep) {
        if matches!(keep, Keep::Acknowledged { sequence_end } if sequence >= sequence_end) {
            self.dropped += 1;
            return;
        }
        self.last_sequence = Some(sequence);
        match self.kept.last_mut() {
            Some(last) if last.end == place.start => last.end = place.end,
            _ => self.kept.push(place),
        }
    }

    /// Judges what lies at `at`, which is no batch, and returns where to go on.
    fn skip(&mut self, data: &[u8], at: usize, data_end: usize) -> usize {
        let next = (at + 1..data_end).find(|next| {
            data[*next] == TAG_START
                && parse(&data[*next..]).is_some_and(|batch| follows(self.last_sequence, batch.sequence))
        });
        match next {
            Some(next) => self.damage.push(at..next),
            None if is_torn(data, at, data_end) => self.tail = Tail::Torn(at),
            None => self.damage.push(at..data_end),
        }
        next.unwrap_or(data_end)
    }
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
    has_hole || !has_end
}

/// A whole batch.
struct Batch {
    sequence: u64,
    len_bytes: usize,
}

/// The batch at the start of `data`, if it is whole and its checksum matches.
fn parse(data: &[u8]) -> Option<Batch> {
    let mut reader = Reader { data, at: 0 };
    if reader.byte()? != TAG_START {
        return None;
    }
    let items = u32::from_le_bytes(reader.array()?);
    let sequence = u64::from_le_bytes(reader.array()?);
    let start = reader.at;
    for _ in 0..items {
        reader.item()?;
    }
    let end = reader.at;
    if reader.byte()? != TAG_END {
        return None;
    }
    let checksum = u64::from_le_bytes(reader.array()?);
    if reader.take(TRAILER.len())? != TRAILER || xxh3_64(&data[start..end]) != checksum {
        return None;
    }
    Some(Batch {
        sequence,
        len_bytes: reader.at,
    })
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

/// Leaves exactly the kept batches in the journal at `path`.
fn apply(path: &Path, scan: &Scan, len: usize, keep: Keep) -> io::Result<()> {
    let is_prefix = match &scan.kept[..] {
        [] => true,
        [only] => only.start == 0,
        _ => false,
    };
    let is_sound = scan.damage.is_empty() && scan.tail == Tail::Clean && scan.dropped == 0;
    match keep {
        Keep::All if is_sound => Ok(()),
        Keep::All if is_prefix && scan.damage.is_empty() => {
            let file = OpenOptions::new().write(true).open(path)?;
            file.set_len(scan.kept.last().map_or(0, |kept| kept.end as u64))?;
            file.sync_all()
        }
        _ => rewrite(path, scan, len),
    }
}

fn rewrite(path: &Path, scan: &Scan, len: usize) -> io::Result<()> {
    let data = fs::read(path)?;
    if data.len() != len {
        return Err(io::Error::other("the journal changed while it was being repaired"));
    }
    let copy = path.with_extension("jnl.repaired");
    let mut file = File::create(&copy)?;
    for range in &scan.kept {
        file.write_all(&data[range.clone()])?;
    }
    file.sync_all()?;
    if !scan.damage.is_empty() {
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

    #[test]
    fn a_sound_journal_is_one_range() {
        let (data, len) = three();
        let scan = scan(&data, None, Keep::All);
        assert_eq!((scan.kept, scan.damage, scan.tail), (vec![0..len * 3], vec![], Tail::Clean));
        assert_eq!(scan.last_sequence, Some(5));
    }

    #[test]
    fn every_flipped_bit_in_the_middle_is_damage_and_costs_one_batch() {
        let (data, len) = three();
        for bit in (len * 8..len * 2 * 8).filter(|bit| bit % 8 == bit / 8 % 8) {
            let mut data = data.clone();
            data[bit / 8] ^= 1 << (bit % 8);
            let scan = scan(&data, None, Keep::All);
            // The engine does not protect its numbers: a 2 that became a 3 still lies between 1 and 5, harmless.
            if scan.kept != [0..len * 3] {
                assert_eq!(scan.kept, [0..len, len * 2..len * 3], "bit {bit}");
                assert_eq!(scan.damage, [len..len * 2], "bit {bit}");
            }
            assert_eq!(scan.tail, Tail::Clean, "bit {bit}");
        }
    }

    #[test]
    fn a_cut_at_any_byte_of_the_last_batch_is_torn() {
        let (data, len) = three();
        for end in len * 2 + 1..len * 3 {
            for zeros in [0, 4096] {
                let mut data = data[..end].to_vec();
                data.resize(end + zeros, 0);
                let scan = scan(&data, None, Keep::All);
                assert_eq!(scan.kept, [0..len * 2], "cut at {end}");
                assert_eq!((scan.damage, scan.tail), (vec![], Tail::Torn(len * 2)), "cut at {end}");
            }
        }
    }

    #[test]
    fn a_flip_in_the_last_batch_is_damage_unless_a_sector_is_missing() {
        let (mut data, len) = three();
        data[len * 2 + 100] ^= 1;
        assert_eq!(scan(&data, None, Keep::All).damage, [len * 2..len * 3]);
        let hole = (len * 2 + 100).div_ceil(SECTOR_BYTES) * SECTOR_BYTES;
        data[hole..hole + SECTOR_BYTES].fill(0);
        let scan = scan(&data, None, Keep::All);
        assert_eq!((scan.damage, scan.tail), (vec![], Tail::Torn(len * 2)));
    }

    #[test]
    fn batches_past_the_acknowledged_ones_are_dropped() {
        let (data, len) = three();
        let scan = scan(&data, None, Keep::Acknowledged { sequence_end: 3 });
        assert_eq!((scan.kept, scan.dropped), (vec![0..len * 2], 1));
    }

    #[test]
    fn numbers_that_go_back_or_leap_are_damage() {
        let data = [batch(5, b"a"), batch(4, b"b"), batch(6, b"c")].concat();
        assert_eq!(scan(&data, None, Keep::All).damage.len(), 1);
        let data = [batch(5, b"a"), batch(1 << 40, b"b"), batch(6, b"c")].concat();
        let scan = scan(&data, None, Keep::All);
        assert_eq!((scan.damage.len(), scan.last_sequence), (1, Some(6)));
    }
}
