//! Where each request of a connection begins and ends, and how its head says so.
//!
//! hyper reads the framing headers itself and hides a part of them: a second `Content-Length` of the same value, and
//! any beside `Transfer-Encoding`. Two readers of one connection that disagree about such a request can be played off
//! against each other, so it must be refused. This watches the bytes on their way to hyper, line by line, stores none
//! of a body, and tells the framing of each request in their order.
//!
//! Source: RFC 9112 §6.3, §11.2 (request smuggling).

use std::collections::VecDeque;

/// A longer line is no HTTP: hyper refuses heads long before.
const LINE_BYTES_MAX: usize = 1 << 20;
/// More requests than this are not sent ahead: hyper stops reading.
const HEADS_MAX: usize = 16 << 10;

/// How one request says where its body ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Framing {
    /// Lines of `Content-Length`.
    pub lengths: u8,
    /// The value of the last one, in bytes; `None` if it is no number.
    pub length_bytes: Option<u64>,
    /// There is a `Transfer-Encoding`.
    pub has_coding: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    /// Before the request's first line.
    Gap,
    Head,
    /// Bytes of the body that are still to come.
    Body(u64),
    ChunkSize,
    /// Bytes of the chunk that are still to come, and the end of its line.
    Chunk(u64),
    Trailers,
    /// What came is no HTTP: hyper ends the connection.
    Lost,
}

/// Follows one connection.
pub struct Watch {
    part: Part,
    line: Vec<u8>,
    framing: Framing,
    heads: VecDeque<Framing>,
}

impl Default for Watch {
    fn default() -> Watch {
        Watch { part: Part::Gap, line: Vec::new(), framing: Framing::default(), heads: VecDeque::new() }
    }
}

impl Watch {
    /// Takes in the next bytes of the connection.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match &mut self.part {
                Part::Lost => return,
                Part::Body(left) | Part::Chunk(left) => {
                    let taken = (*left).min(bytes.len() as u64);
                    *left -= taken;
                    let is_over = *left == 0;
                    bytes = &bytes[taken as usize..];
                    if is_over {
                        self.part = match self.part {
                            Part::Chunk(_) => Part::ChunkSize,
                            _ => Part::Gap,
                        };
                    }
                }
                _ => {
                    let end = bytes.iter().position(|&byte| byte == b'\n');
                    let taken = end.map_or(bytes.len(), |end| end + 1);
                    if self.line.len() + taken > LINE_BYTES_MAX {
                        self.part = Part::Lost;
                        return;
                    }
                    self.line.extend_from_slice(&bytes[..taken]);
                    bytes = &bytes[taken..];
                    if end.is_some() {
                        let mut line = std::mem::take(&mut self.line);
                        self.end_line(line.trim_ascii_end());
                        line.clear();
                        self.line = line;
                    }
                }
            }
        }
    }

    /// The framing of the next request, in the order of the requests; `None` if the bytes made no sense.
    pub fn take_next(&mut self) -> Option<Framing> {
        self.heads.pop_front()
    }

    /// True if all bytes of every request that began have come.
    pub fn is_between_requests(&self) -> bool {
        self.part == Part::Gap && self.line.is_empty()
    }

    fn end_line(&mut self, line: &[u8]) {
        self.part = match self.part {
            Part::Gap if line.is_empty() => Part::Gap,
            Part::Gap => {
                self.framing = Framing::default();
                Part::Head
            }
            Part::Head if line.is_empty() => self.end_head(),
            Part::Head => {
                self.framing.note(line);
                Part::Head
            }
            Part::ChunkSize => match chunk_bytes(line) {
                None => Part::Lost,
                Some(0) => Part::Trailers,
                // The line ends with CR and LF; hyper refuses anything else.
                Some(bytes) => Part::Chunk(bytes.saturating_add(2)),
            },
            Part::Trailers if line.is_empty() => Part::Gap,
            other => other,
        };
    }

    fn end_head(&mut self) -> Part {
        if self.heads.len() >= HEADS_MAX {
            return Part::Lost;
        }
        self.heads.push_back(self.framing);
        match self.framing {
            Framing { has_coding: true, .. } => Part::ChunkSize,
            Framing { length_bytes: Some(bytes @ 1..), .. } => Part::Body(bytes),
            Framing { lengths: 0, .. } | Framing { length_bytes: Some(0), .. } => Part::Gap,
            Framing { length_bytes: None, .. } => Part::Lost,
        }
    }
}

impl Framing {
    /// True if two readers may disagree about where the body ends.
    pub fn is_ambiguous(&self) -> bool {
        self.lengths > 1 || self.lengths > 0 && self.has_coding
    }

    fn note(&mut self, line: &[u8]) {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { return };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            self.lengths = self.lengths.saturating_add(1);
            self.length_bytes = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        }
        self.has_coding |= name.eq_ignore_ascii_case(b"transfer-encoding");
    }
}

/// The number before a chunk and its extensions.
fn chunk_bytes(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    u64::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: &[u8] = b"\r\nPUT /a HTTP/1.1\r\nContent-Length: 3\r\ncontent-length:3\r\n\r\nabc\
        GET /b HTTP/1.1\nHost: h\n\n\
        PUT /c HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\nContent-Length: 1\r\n\r\n\
        2;x=y\r\n\r\n\r\n0\r\nT: v\r\n\r\n\
        DELETE /d HTTP/1.1\r\n\r\n";

    fn framings(watch: &mut Watch) -> Vec<Framing> {
        std::iter::from_fn(|| watch.take_next()).collect()
    }

    #[test]
    fn each_request_is_seen_however_its_bytes_come() {
        let want = [
            Framing { lengths: 2, length_bytes: Some(3), has_coding: false },
            Framing::default(),
            Framing { lengths: 1, length_bytes: Some(1), has_coding: true },
            Framing::default(),
        ];
        for size in [1, 2, 3, 7, THREE.len()] {
            let mut watch = Watch::default();
            THREE.chunks(size).for_each(|bytes| watch.feed(bytes));
            assert_eq!(framings(&mut watch), want, "in pieces of {size} bytes");
            assert!(watch.is_between_requests());
        }
    }

    #[test]
    fn an_unfinished_body_is_noticed() {
        for unfinished in [
            &b"GET"[..],
            b"PUT /a HTTP/1.1\r\nHost: h\r\n",
            b"PUT /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nab",
            b"PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
            b"PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
            b"PUT /a HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        ] {
            let mut watch = Watch::default();
            watch.feed(unfinished);
            assert!(!watch.is_between_requests(), "{}", unfinished.escape_ascii());
        }
    }
}
