//! What the text of a source tells about its functions that compiled code does not: which take `self`, and how many
//! arguments they want.
//!
//! Objects are written in several ways. `function onGet(caller)` finds its object in the global `self`;
//! `function aso:onGet(caller)` and `onGet = function(self, caller)` are handed it. And the slides call a function
//! declared with a colon by a dot: `self.selectReplicas(neighbors)`, whose argument would arrive as `self`. So a
//! source is read once more as a stream of words: names of functions are collected, and the functions that take
//! `self` but are mentioned behind a dot get a wrapper that supplies the object.

use std::collections::{BTreeMap, BTreeSet};

/// How a function was declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    pub takes_self: bool,
    /// Whether there is any parameter besides `self`.
    pub takes_arguments: bool,
}

/// What is known of a source's functions, by their last name.
#[derive(Debug, Default)]
pub(crate) struct Shape {
    signatures: BTreeMap<Vec<u8>, Signature>,
    mentioned_with_dot: BTreeSet<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word<'a> {
    Name(&'a [u8]),
    Sign(u8),
    /// A string or a number.
    Literal,
}

impl Shape {
    pub fn of(source: &[u8]) -> Shape {
        let words = words(source);
        let mut shape = Shape::default();
        let mut at = 0;
        while at < words.len() {
            if words[at] == Word::Name(b"function") {
                at = shape.function(&words, at);
            } else {
                shape.mention(&words, at);
                at += 1;
            }
        }
        shape
    }

    pub fn signature(&self, name: &[u8]) -> Option<Signature> {
        self.signatures.get(name).copied()
    }

    /// The functions that need the wrapper.
    pub fn wrapped(&self) -> impl Iterator<Item = &[u8]> {
        let methods = self.signatures.iter().filter(|(_, signature)| signature.takes_self);
        methods.map(|(name, _)| name.as_slice()).filter(|name| self.mentioned_with_dot.contains(*name))
    }

    /// Reads a function's head. Returns the index of the first word after it.
    fn function(&mut self, words: &[Word], function: usize) -> usize {
        let mut at = function + 1;
        let mut name = None;
        let mut takes_self = false;
        while let Some(word) = words.get(at) {
            match word {
                Word::Name(part) => name = Some(*part),
                Word::Sign(b':') => takes_self = true,
                Word::Sign(b'.') => {}
                _ => break,
            }
            at += 1;
        }
        if let (None, Some([Word::Name(assigned), Word::Sign(b'=')])) =
            (name, function.checked_sub(2).map(|from| &words[from..function]))
        {
            name = Some(*assigned);
        }
        if words.get(at) == Some(&Word::Sign(b'(')) {
            at += 1;
        }
        let first = words.get(at);
        let mut takes_arguments = !matches!(first, Some(Word::Sign(b')')) | None);
        if !takes_self && first == Some(&Word::Name(b"self")) {
            takes_self = true;
            takes_arguments = words.get(at + 1) != Some(&Word::Sign(b')'));
        }
        if let Some(name) = name {
            let signature = Signature { takes_self, takes_arguments };
            let known = self.signatures.entry(name.to_vec()).or_insert(signature);
            // Two functions of one name: what one of them takes must be handed to it.
            known.takes_self |= takes_self;
            known.takes_arguments |= takes_arguments;
        }
        at
    }

    /// Notes `.name` unless it is assigned to.
    fn mention(&mut self, words: &[Word], at: usize) {
        let [Word::Sign(b'.'), Word::Name(name)] = words[at..(at + 2).min(words.len())] else { return };
        let is_assigned =
            words.get(at + 2) == Some(&Word::Sign(b'=')) && words.get(at + 3) != Some(&Word::Sign(b'='));
        if !is_assigned {
            self.mentioned_with_dot.insert(name.to_vec());
        }
    }
}

/// The words of a source, without comments.
fn words(source: &[u8]) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let mut at = 0;
    while let Some(byte) = source.get(at) {
        let rest = &source[at..];
        match byte {
            b'-' if rest.starts_with(b"--") => {
                at += 2;
                at += long_bracket(&source[at..]).unwrap_or_else(|| line(&source[at..]));
            }
            b'[' => match long_bracket(rest) {
                Some(length) => {
                    words.push(Word::Literal);
                    at += length;
                }
                None => {
                    words.push(Word::Sign(b'['));
                    at += 1;
                }
            },
            b'"' | b'\'' | b'`' => {
                words.push(Word::Literal);
                at += quoted(rest);
            }
            b'0'..=b'9' => {
                words.push(Word::Literal);
                at += rest.iter().take_while(|b| b.is_ascii_alphanumeric() || b"._".contains(b)).count();
            }
            byte if is_name(*byte) => {
                let length = rest.iter().take_while(|b| is_name(**b) || b.is_ascii_digit()).count();
                words.push(Word::Name(&rest[..length]));
                at += length;
            }
            byte => {
                if !byte.is_ascii_whitespace() {
                    words.push(Word::Sign(*byte));
                }
                at += 1;
            }
        }
    }
    words
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_'
}

fn line(text: &[u8]) -> usize {
    text.iter().position(|b| *b == b'\n').unwrap_or(text.len())
}

/// The length of `[[...]]` or `[==[...]==]` at the start of `text`, up to its end where it is not closed.
fn long_bracket(text: &[u8]) -> Option<usize> {
    let level = text.strip_prefix(b"[")?.iter().take_while(|b| **b == b'=').count();
    let open = level + 2;
    if text.get(open - 1) != Some(&b'[') {
        return None;
    }
    let mut at = open;
    while at < text.len() {
        let Some(found) = text[at..].iter().position(|b| *b == b']') else { break };
        at += found + 1;
        let equals = text[at..].iter().take_while(|b| **b == b'=').take(level).count();
        if equals == level && text.get(at + level) == Some(&b']') {
            return Some(at + level + 1);
        }
    }
    Some(text.len())
}

/// The length of a quoted string, quotes included.
fn quoted(text: &[u8]) -> usize {
    let quote = text[0];
    let mut at = 1;
    while let Some(byte) = text.get(at) {
        match byte {
            b'\\' => at += 2,
            byte if *byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_read_from_every_way_of_writing() {
        let cases = [
            ("function onGet() end", "onGet", Some((false, false))),
            ("function onGet(caller) end", "onGet", Some((false, true))),
            ("function aso:onTimer() end", "onTimer", Some((true, false))),
            ("function aso:onGet(caller) end", "onGet", Some((true, true))),
            ("aso.onGet = function(self, ...) end", "onGet", Some((true, true))),
            ("aso.onGet = function(self) end", "onGet", Some((true, false))),
            ("return { onGet = function (caller) end }", "onGet", Some((false, true))),
            ("function object.onGet(self) end", "onGet", Some((true, false))),
            (
                "-- function onGet(self) end\nlocal x = 'function onGet() end' [[function onGet()]]",
                "onGet",
                None,
            ),
            ("--[==[ ]] function a() ]==] function b() end", "b", Some((false, false))),
        ];
        for (source, name, wanted) in cases {
            let found = Shape::of(source.as_bytes()).signature(name.as_bytes());
            assert_eq!(found.map(|s| (s.takes_self, s.takes_arguments)), wanted, "{source}");
        }
    }

    #[test]
    fn methods_mentioned_with_a_dot_are_wrapped() {
        let cases = [
            ("function aso:m(a) end self.m(1)", true),
            ("function aso:m(a) end dht.lookup(key, self.m)", true),
            ("function aso:m(a) end self:m(1)", false),
            ("function aso.m(a) end self.m(1)", false),
            ("aso.m = function(self) end", false),
            ("aso.m = function(self) end x = aso.m == nil", true),
        ];
        for (source, is_wrapped) in cases {
            assert_eq!(Shape::of(source.as_bytes()).wrapped().count() == 1, is_wrapped, "{source}");
        }
    }

    #[test]
    fn any_bytes_are_read_to_their_end() {
        for source in
            ["function", "function (", "'", "\\", "'\\", "[[", "[==", "--", "--[[", "x.", "9.", "\u{e9}"]
        {
            Shape::of(source.as_bytes());
        }
    }
}
