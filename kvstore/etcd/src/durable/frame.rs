//! Frames: how a batch of records lies in a log, and how a reader tells a torn tail from damage.
//!
//! One frame is one group commit: it is written whole and synced before the next is begun. So a bad frame with
//! a good one behind it was once good, and was acknowledged: that is damage. A bad frame with nothing behind it
//! was being written when the machine stopped, and nobody was told it was there: that is a torn tail.
//!
//! Layout, little endian: magic u32, payload length u32, sequence u64, CRC-32 u32 over the store's lineage,
//! length, sequence and payload; then the payload: per record its length u32 and its bytes. The lineage makes a
//! frame of another store unreadable here, and a frame copied into a value no frame.

use bytes::Bytes;

const MAGIC: [u8; 4] = *b"HwFr";
const HEADER: usize = 20;

/// No frame is longer: lengths are 32 bits, and a reader takes nothing that a writer would not write.
pub(crate) const MAX_PAYLOAD: usize = 1 << 30;

/// One frame as read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) seq: u64,
    pub(crate) records: Vec<Bytes>,
}

/// What follows the last good frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    Clean,
    /// `lost` bytes that were never acknowledged.
    Torn {
        lost: usize,
    },
    /// A good frame stands at `next_good`, behind what cannot be read.
    Damaged {
        next_good: usize,
    },
}

#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) frames: Vec<Frame>,
    /// Where the last good frame begins and ends.
    pub(crate) last: usize,
    pub(crate) good: usize,
    pub(crate) tail: Tail,
}

/// The size `records` take as one frame's payload.
pub(crate) fn payload_len(records: &[Bytes]) -> usize {
    records.iter().map(|r| 4 + r.len()).sum()
}

/// Appends one frame to `out`. Cost: one copy of the records and a CRC over them.
/// The caller keeps `payload_len(records) <= MAX_PAYLOAD`.
pub(crate) fn encode(lineage: u64, seq: u64, records: &[Bytes], out: &mut Vec<u8>) {
    let len = payload_len(records);
    debug_assert!(len <= MAX_PAYLOAD, "the writer splits batches before this");
    let start = out.len();
    out.reserve(HEADER + len);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&(len as u32).to_le_bytes());
    out.extend_from_slice(&seq.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for record in records {
        out.extend_from_slice(&(record.len() as u32).to_le_bytes());
        out.extend_from_slice(record);
    }
    let crc = checksum(lineage, &out[start..]);
    out[start + 16..start + HEADER].copy_from_slice(&crc.to_le_bytes());
}

/// Over a whole frame, leaving out the magic and the checksum's own place.
fn checksum(lineage: u64, frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&lineage.to_le_bytes());
    hasher.update(&frame[4..16]);
    hasher.update(&frame[HEADER..]);
    hasher.finalize()
}

/// Reads frames from `offset` on. `bytes` is shared, not copied.
pub(crate) fn scan(lineage: u64, bytes: &Bytes, offset: usize) -> Scan {
    let mut frames = Vec::new();
    let mut good = offset.min(bytes.len());
    let mut last = good;
    while let Some((frame, end)) = decode(lineage, bytes, good) {
        frames.push(frame);
        last = good;
        good = end;
    }
    let tail = match bytes.len() - good {
        0 => Tail::Clean,
        lost => match next_frame(lineage, bytes, good + 1) {
            Some(next_good) => Tail::Damaged { next_good },
            None => Tail::Torn { lost },
        },
    };
    Scan { frames, last, good, tail }
}

/// Where the next readable frame begins at or after `from`. Runs only over what could not be read.
fn next_frame(lineage: u64, bytes: &Bytes, from: usize) -> Option<usize> {
    (from..bytes.len().saturating_sub(HEADER - 1))
        .filter(|at| bytes[*at..].starts_with(&MAGIC))
        .find(|at| decode(lineage, bytes, *at).is_some())
}

fn decode(lineage: u64, bytes: &Bytes, at: usize) -> Option<(Frame, usize)> {
    let header: &[u8; HEADER] = bytes.get(at..)?.first_chunk()?;
    if header[..4] != MAGIC {
        return None;
    }
    let len = u32_at(header, 4)? as usize;
    let seq = u64::from_le_bytes(*header[8..].first_chunk()?);
    let end = at.checked_add(HEADER)?.checked_add(len)?;
    if len > MAX_PAYLOAD || end > bytes.len() || checksum(lineage, &bytes[at..end]) != u32_at(header, 16)? {
        return None;
    }
    Some((Frame { seq, records: records(bytes.slice(at + HEADER..end))? }, end))
}

fn records(mut payload: Bytes) -> Option<Vec<Bytes>> {
    let mut records = Vec::new();
    while !payload.is_empty() {
        let len = u32_at(&payload, 0)? as usize;
        if payload.len() - 4 < len {
            return None;
        }
        let mut record = payload.split_to(4 + len);
        records.push(record.split_off(4));
    }
    Some(records)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_of(batches: &[&[&'static str]]) -> Vec<u8> {
        let mut out = Vec::new();
        for (i, batch) in batches.iter().enumerate() {
            let records: Vec<Bytes> = batch.iter().map(|r| Bytes::from_static(r.as_bytes())).collect();
            encode(7, i as u64 + 1, &records, &mut out);
        }
        out
    }

    #[test]
    fn what_was_written_is_read_back_in_order() {
        let bytes = Bytes::from(log_of(&[&["a", ""], &["bc"], &[]]));
        let scan = scan(7, &bytes, 0);
        assert_eq!(scan.tail, Tail::Clean);
        let read: Vec<(u64, Vec<Bytes>)> = scan.frames.into_iter().map(|f| (f.seq, f.records)).collect();
        assert_eq!(
            read,
            [(1, vec![Bytes::from("a"), Bytes::new()]), (2, vec![Bytes::from("bc")]), (3, vec![])]
        );
    }

    #[test]
    fn a_log_cut_anywhere_keeps_every_whole_frame_and_calls_the_rest_torn() {
        let batches: [&[&str]; 3] = [&["first"], &["second", "third"], &["fourth"]];
        let whole = log_of(&batches);
        let ends: Vec<usize> = (1..=3).map(|n| log_of(&batches[..n]).len()).collect();
        for cut in 0..=whole.len() {
            let scan = scan(7, &Bytes::copy_from_slice(&whole[..cut]), 0);
            let complete = ends.iter().filter(|end| **end <= cut).count();
            assert_eq!(scan.frames.len(), complete, "cut at {cut}");
            let lost = cut - ends[..complete].last().copied().unwrap_or(0);
            assert_eq!(scan.tail, if lost == 0 { Tail::Clean } else { Tail::Torn { lost } }, "cut at {cut}");
        }
    }

    #[test]
    fn a_flipped_bit_before_the_last_frame_is_damage_and_in_it_is_a_torn_tail() {
        let whole = log_of(&[&["first"], &["second"], &["third"]]);
        let last = log_of(&[&["first"], &["second"]]).len();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let scan = scan(7, &Bytes::from(bytes), 0);
            match scan.tail {
                Tail::Damaged { next_good } => assert!(bit / 8 < last && next_good <= last, "bit {bit}"),
                Tail::Torn { .. } => assert!(bit / 8 >= last, "bit {bit}"),
                Tail::Clean => panic!("bit {bit} was not noticed"),
            }
        }
    }

    #[test]
    fn a_frame_of_another_store_is_not_ours() {
        let bytes = Bytes::from(log_of(&[&["first"]]));
        assert!(scan(8, &bytes, 0).frames.is_empty());
    }

    #[test]
    fn zeros_behind_the_last_frame_are_a_torn_tail() {
        let mut bytes = log_of(&[&["first"]]);
        bytes.extend_from_slice(&[0; 4096]);
        assert_eq!(scan(7, &Bytes::from(bytes), 0).tail, Tail::Torn { lost: 4096 });
    }

    #[test]
    fn a_length_that_promises_gigabytes_allocates_nothing() {
        let mut bytes = log_of(&[&["first"]]);
        bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let scan = scan(7, &Bytes::from(bytes), 0);
        assert!(scan.frames.is_empty());
    }
}
