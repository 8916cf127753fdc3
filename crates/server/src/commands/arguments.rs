//! Reading arguments that several commands share: numbers, times to live, quorums, options.

use oort_core::client::Quorum;
use oort_core::mutation::{parse_integer, Expiry};

use super::errors::{refusal, NOT_AN_INTEGER, SYNTAX};
use super::Call;
use crate::resp::Value;

/// An integer as Redis reads it: no plus sign, no spaces, no leading zeros.
pub fn integer(text: &[u8]) -> Result<i64, Value> {
    parse_integer(text).ok_or(NOT_AN_INTEGER)
}

/// How a command gives a point in time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimeForm {
    pub unit_ms: i64,
    pub is_relative: bool,
}

/// `EX`: seconds from now.
pub const SECONDS: TimeForm = TimeForm { unit_ms: 1000, is_relative: true };
/// `PX`: milliseconds from now.
pub const MILLIS: TimeForm = TimeForm { unit_ms: 1, is_relative: true };
/// `EXAT`: seconds since 1970.
pub const AT_SECONDS: TimeForm = TimeForm { unit_ms: 1000, is_relative: false };
/// `PXAT`: milliseconds since 1970.
pub const AT_MILLIS: TimeForm = TimeForm { unit_ms: 1, is_relative: false };

impl TimeForm {
    /// The form an option word names.
    pub fn of_option(word: &[u8]) -> Option<TimeForm> {
        let forms = [("ex", SECONDS), ("px", MILLIS), ("exat", AT_SECONDS), ("pxat", AT_MILLIS)];
        let (_, form) = forms.iter().find(|(name, _)| word.eq_ignore_ascii_case(name.as_bytes()))?;
        Some(*form)
    }

    /// Milliseconds since 1970; negative if it lies before. `None` if it does not fit.
    fn millis(self, number: i64, now_ms: u64) -> Option<i64> {
        let millis = number.checked_mul(self.unit_ms)?;
        match self.is_relative {
            true => millis.checked_add(i64::try_from(now_ms).ok()?),
            false => Some(millis),
        }
    }
}

impl Call<'_> {
    /// Argument `i` as an integer.
    pub fn integer(&self, i: usize) -> Result<i64, Value> {
        integer(self.arg(i))
    }

    /// `ERR invalid expire time in '...' command`.
    pub fn invalid_expiry(&self) -> Value {
        refusal(format!("ERR invalid expire time in '{}' command", self.name()))
    }

    /// Argument `i` as the time a value is stored until. Errors: it is not after the start of time.
    pub fn expiry(&self, i: usize, form: TimeForm) -> Result<u64, Value> {
        let number = self.integer(i)?;
        if number <= 0 {
            return Err(self.invalid_expiry());
        }
        match form.millis(number, self.now_ms) {
            Some(millis) if millis > 0 => Ok(millis as u64),
            _ => Err(self.invalid_expiry()),
        }
    }

    /// Argument `i` as a time to change an expiry to, which may lie in the past: then the key is as good as gone.
    pub fn new_expiry(&self, i: usize, form: TimeForm) -> Result<u64, Value> {
        let millis = form.millis(self.integer(i)?, self.now_ms).ok_or_else(|| self.invalid_expiry())?;
        Ok(millis.max(0) as u64)
    }

    /// Reads the options from argument `first` on, each a word or a word and a value.
    pub fn options(&self, first: usize) -> Options<'_> {
        Options { call: self, next: first, expiry: None, quorum: Quorum::default() }
    }
}

/// A walk over a command's options.
pub struct Options<'a> {
    call: &'a Call<'a>,
    next: usize,
    /// The expiry that `EX`, `PX`, `EXAT` or `PXAT` gave: which form, and the argument with the number.
    expiry: Option<(TimeForm, usize)>,
    /// What `R` and `W` gave.
    pub quorum: Quorum,
}

impl<'a> Options<'a> {
    /// The next option's word.
    pub fn next_word(&mut self) -> Option<&'a [u8]> {
        let word = self.call.command.get(self.next)?;
        self.next += 1;
        Some(word)
    }

    /// The place of the value of the option just read. Errors: there is none.
    pub fn value(&mut self) -> Result<usize, Value> {
        match self.next < self.call.count() {
            true => {
                self.next += 1;
                Ok(self.next - 1)
            }
            false => Err(SYNTAX),
        }
    }

    /// Takes `word` if it gives an expiry; false if it does not. Errors: a second one.
    pub fn take_expiry(&mut self, word: &[u8]) -> Result<bool, Value> {
        let Some(form) = TimeForm::of_option(word) else {
            return Ok(false);
        };
        if self.expiry.is_some() {
            return Err(SYNTAX);
        }
        self.expiry = Some((form, self.value()?));
        Ok(true)
    }

    /// True if an expiry was given.
    pub fn has_expiry(&self) -> bool {
        self.expiry.is_some()
    }

    /// The expiry that was given. Errors: its number.
    pub fn expiry_ms(&self) -> Result<Option<u64>, Value> {
        self.expiry.map(|(form, i)| self.call.expiry(i, form)).transpose()
    }

    /// The expiry to store with. Errors: its number.
    pub fn expiry(&self, otherwise: Expiry) -> Result<Expiry, Value> {
        Ok(self.expiry_ms()?.map_or(otherwise, Expiry::At))
    }

    /// Takes `word` if it is `R` or `W`; false if it does not. Errors: its number.
    pub fn take_quorum(&mut self, word: &[u8]) -> Result<bool, Value> {
        let is_read = word.eq_ignore_ascii_case(b"r");
        if !is_read && !word.eq_ignore_ascii_case(b"w") {
            return Ok(false);
        }
        let number = integer(self.call.arg(self.value()?))?;
        let number = match u8::try_from(number) {
            Ok(number) if number > 0 => number,
            _ => return Err(refusal(format!("ERR quorum of {number}: it must be 1 to the bucket's n"))),
        };
        match is_read {
            true => self.quorum.r = Some(number),
            false => self.quorum.w = Some(number),
        }
        Ok(true)
    }
}
