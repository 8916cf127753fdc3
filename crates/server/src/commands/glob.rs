//! Patterns of `KEYS`, `SCAN ... MATCH` and `CONFIG GET`.
//!
//! Source: `stringmatchlen` in Redis 7's `util.c`.
//! Differs: works without recursion, going back only to the last `*`, which is enough since an earlier `*` could not
//! match more usefully; so the time is at most the product of both lengths, for patterns made to be slow too.

/// True if `pattern` matches all of `text`: `*` any bytes, `?` one byte, `[a-c]` one of them, `[^a]` none of them, `\`
/// takes the next byte as it is.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            star = Some((p, t));
            continue;
        }
        if let Some(length) = matches_one(&pattern[p..], text[t]) {
            (p, t) = (p + length, t + 1);
            continue;
        }
        let Some((after_star, taken)) = star else {
            return false;
        };
        // The last star takes one byte more.
        (p, t) = (after_star, taken + 1);
        star = Some((after_star, t));
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

/// The length of the pattern's first element if it matches `byte`.
fn matches_one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'[', set @ ..] => {
            let (is_in, length) = in_set(set, byte);
            is_in.then_some(1 + length)
        }
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [literal, ..] => (*literal == byte).then_some(1),
    }
}

/// Whether `byte` is in the set that starts behind `[`, and the set's length with its `]`, which may be missing.
fn in_set(set: &[u8], byte: u8) -> (bool, usize) {
    let is_negated = set.first() == Some(&b'^');
    let mut at = is_negated as usize;
    let mut is_in = false;
    loop {
        at += match &set[at..] {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', escaped, ..] => {
                is_in |= *escaped == byte;
                2
            }
            [start, b'-', end, ..] => {
                is_in |= (*start.min(end)..=*start.max(end)).contains(&byte);
                3
            }
            [literal, ..] => {
                is_in |= *literal == byte;
                1
            }
        };
    }
    (is_in != is_negated, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        let cases = [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "anything", true),
            ("***", "a", true),
            ("a", "a", true),
            ("a", "A", false),
            ("a", "ab", false),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h*llo", "hllo", true),
            ("h*llo", "heeeello", true),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-b]llo", "hbllo", true),
            ("h[b-a]llo", "hallo", true),
            ("h[a-b]llo", "hcllo", false),
            ("[\\]]", "]", true),
            ("[a\\-z]", "-", true),
            ("[a\\-z]", "m", false),
            ("[a", "a", true),
            ("[", "a", false),
            ("[^", "a", true),
            ("[]", "a", false),
            ("[a-]", "-", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a\\", "a\\", true),
            ("*a*b*c", "xxaxxbxxc", true),
            ("*a*b*c", "xxaxxcxxb", false),
            ("user:*:name", "user:1:2:name", true),
            ("*.jpg", "a.jpg.jpg", true),
            ("a*?", "a", false),
            ("a*?", "ab", true),
        ];
        for (pattern, text, want) in cases {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), want, "{pattern} {text}");
        }
    }

    #[test]
    fn patterns_made_to_be_slow_are_not() {
        let pattern = "*a".repeat(2000);
        let text = "a".repeat(1999) + &"b".repeat(2000);
        assert!(!matches(pattern.as_bytes(), text.as_bytes()));
    }
}
