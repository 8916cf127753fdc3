//! What the text of a source tells about its functions that compiled code does not: which take `self`, and how many
//! arguments they want.
//!
//! Objects are written in several ways. `function onGet(caller)` finds its object in the global `self`;
//! `function aso:onGet(caller)` and `onGet = function(self, caller)` are handed it. The rule: a function is handed its
//! object if it is declared with a colon, or if its first parameter is named `self`. A function that is assigned to a
//! field and has another first parameter is refused when an object is made: in Lua that parameter would be the object.
//!
//! And the slides call a function declared with a colon by a dot: `self.selectReplicas(neighbors)`, whose argument
//! would arrive as `self`. So a source is read once more as a stream of words: the functions in it are collected, by
//! the line in which they begin, and those that take `self` but are mentioned behind a dot get a wrapper for that.

use std::collections::BTreeSet;

/// How a function was declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    pub takes_self: bool,
    /// Whether there is any parameter besides `self`.
    pub takes_arguments: bool,
}

/// A function in a source.
#[derive(Debug)]
struct Declared {
    /// The line in which it begins, from 1.
    line: usize,
    /// The last part of its name, or of that to which it is assigned.
    name: Option<Vec<u8>>,
    signature: Signature,
    /// It is assigned, and its first parameter is not `self`.
    is_unclear: bool,
}

/// What is known of a source's functions.
#[derive(Debug, Default)]
pub(crate) struct Shape {
    declared: Vec<Declared>,
    mentioned_with_dot: BTreeSet<Vec<u8>>,
}

/// Why a function is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unclear {
    /// It is assigned to a field, and its first parameter is not `self`.
    FirstParameter,
    /// Two functions begin in its line, of which only one takes `self`.
    TwoInOneLine,
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
        let (words, lines) = words(source);
        let mut shape = Shape::default();
        let mut at = 0;
        while at < words.len() {
            if words[at] == Word::Name(b"function") {
                at = shape.function(&words, at, lines[at]);
            } else {
                shape.mention(&words, at);
                at += 1;
            }
        }
        shape
    }

    /// How the function under `name` that begins in `line` was declared. `None`: not in this source.
    ///
    /// Errors: what it takes cannot be told, or is told in a way that means two things. With the answer all the same.
    pub fn signature(&self, name: &[u8], line: usize) -> (Option<Signature>, Result<(), Unclear>) {
        let in_line = || self.declared.iter().filter(|one| one.line == line);
        let named = || in_line().filter(|one| one.name.as_deref() == Some(name));
        let found: Vec<&Declared> = match named().next() {
            Some(_) => named().collect(),
            None => in_line().collect(),
        };
        let Some(first) = found.first() else { return (None, Ok(())) };
        let signature = Signature {
            takes_self: first.signature.takes_self,
            // What one of them takes must be handed to it.
            takes_arguments: found.iter().any(|one| one.signature.takes_arguments),
        };
        // A function of another name got here by an assignment too.
        let is_renamed = first.name.as_deref() != Some(name);
        let is_unclear = is_renamed && !signature.takes_self && signature.takes_arguments;
        let is_clear = if found.iter().any(|one| one.signature.takes_self != signature.takes_self) {
            Err(Unclear::TwoInOneLine)
        } else if first.is_unclear || is_unclear {
            Err(Unclear::FirstParameter)
        } else {
            Ok(())
        };
        (Some(signature), is_clear)
    }

    /// True if the function under this name is called, or handed on, behind a dot.
    pub fn is_mentioned_with_dot(&self, name: &[u8]) -> bool {
        self.mentioned_with_dot.contains(name)
    }

    /// Reads a function's head. Returns the index of the first word after it.
    fn function(&mut self, words: &[Word], function: usize, line: usize) -> usize {
        let mut at = function + 1;
        let mut name = None;
        let (mut takes_self, mut is_assigned) = (false, false);
        while let Some(word) = words.get(at) {
            match word {
                Word::Name(part) => name = Some(*part),
                Word::Sign(b':') => takes_self = true,
                Word::Sign(b'.') => is_assigned = true,
                _ => break,
            }
            at += 1;
        }
        if let (None, Some([Word::Name(assigned), Word::Sign(b'=')])) =
            (name, function.checked_sub(2).map(|from| &words[from..function]))
        {
            name = Some(*assigned);
            // `local f = function` is a local function by another spelling.
            let before = function.checked_sub(3).and_then(|before| words.get(before));
            is_assigned = before != Some(&Word::Name(b"local"));
        }
        if words.get(at) == Some(&Word::Sign(b'(')) {
            at += 1;
        }
        let first = words.get(at);
        let mut takes_arguments = !matches!(first, Some(Word::Sign(b')')) | None);
        let is_unclear = is_assigned && !takes_self && takes_arguments && first != Some(&Word::Name(b"self"));
        if !takes_self && first == Some(&Word::Name(b"self")) {
            takes_self = true;
            takes_arguments = words.get(at + 1) != Some(&Word::Sign(b')'));
        }
        let signature = Signature { takes_self, takes_arguments };
        self.declared.push(Declared { line, name: name.map(<[u8]>::to_vec), signature, is_unclear });
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

/// The words of a source, without comments, and the lines in which they begin.
fn words(source: &[u8]) -> (Vec<Word<'_>>, Vec<usize>) {
    let (mut words, mut lines) = (Vec::new(), Vec::new());
    let (mut at, mut line, mut counted) = (0, 1, 0);
    while let Some(byte) = source.get(at) {
        let rest = &source[at..];
        line += source[counted..at].iter().filter(|byte| **byte == b'\n').count();
        counted = at;
        match byte {
            b'-' if rest.starts_with(b"--") => {
                at += 2;
                at += long_bracket(&source[at..]).unwrap_or_else(|| rest_of_line(&source[at..]));
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
        // Each turn makes a word at most.
        lines.resize(words.len(), line);
    }
    (words, lines)
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_'
}

fn rest_of_line(text: &[u8]) -> usize {
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
            ("function onGet(self, x) end", "onGet", Some((true, true))),
            ("function aso:onTimer() end", "onTimer", Some((true, false))),
            ("function aso:onGet(caller) end", "onGet", Some((true, true))),
            ("aso.onGet = function(self, ...) end", "onGet", Some((true, true))),
            ("aso.onGet = function(self) end", "onGet", Some((true, false))),
            ("return { onGet = function () end }", "onGet", Some((false, false))),
            ("function object.onGet(self) end", "onGet", Some((true, false))),
            (
                "-- function onGet(self) end\nlocal x = 'function onGet() end' [[function onGet()]]",
                "onGet",
                None,
            ),
            ("--[==[ ]] function a() ]==] function b() end", "b", Some((false, false))),
            ("local f = function() end aso.g = f", "g", Some((false, false))),
            ("local function f(self, x) end aso.g = f", "g", Some((true, true))),
        ];
        for (source, name, wanted) in cases {
            let (found, is_clear) = Shape::of(source.as_bytes()).signature(name.as_bytes(), 1);
            assert_eq!(found.map(|s| (s.takes_self, s.takes_arguments)), wanted, "{source}");
            assert_eq!(is_clear, Ok(()), "{source}");
        }
    }

    #[test]
    fn what_a_function_takes_is_never_guessed() {
        let cases = [
            ("aso.f = function(x) end", Unclear::FirstParameter),
            ("return { f = function(caller) end }", Unclear::FirstParameter),
            ("function aso.f(this) end", Unclear::FirstParameter),
            ("aso.f = function(...) end", Unclear::FirstParameter),
            ("local function g(me) end aso.f = g", Unclear::FirstParameter),
            ("local f = function(x) end aso.g = f", Unclear::FirstParameter),
            ("if x then function f() end else function f(self) end end", Unclear::TwoInOneLine),
            ("local a, b = function(x) end, function(self) end aso.f = b", Unclear::TwoInOneLine),
        ];
        for (source, wanted) in cases {
            let name = if source.contains("aso.g") { b"g" } else { b"f" };
            let (_, is_clear) = Shape::of(source.as_bytes()).signature(name, 1);
            assert_eq!(is_clear, Err(wanted), "{source}");
        }
        let two_lines = Shape::of(b"local function f(x) return x end\n[[\n]] function aso:f(x) end");
        let takes_self = |line| two_lines.signature(b"f", line).0.map(|signature| signature.takes_self);
        assert_eq!([takes_self(1), takes_self(2), takes_self(3)], [Some(false), None, Some(true)]);
    }

    #[test]
    fn methods_mentioned_with_a_dot_are_known() {
        let cases = [
            ("function aso:m(a) end self.m(1)", true),
            ("function aso:m(a) end dht.lookup(key, self.m)", true),
            ("function aso:m(a) end self:m(1)", false),
            ("aso.m = function(self) end", false),
            ("aso.m = function(self) end x = aso.m == nil", true),
        ];
        for (source, is_mentioned) in cases {
            assert_eq!(Shape::of(source.as_bytes()).is_mentioned_with_dot(b"m"), is_mentioned, "{source}");
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
