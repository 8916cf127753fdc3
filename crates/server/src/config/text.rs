//! Values as people write them: addresses, sizes, names; and a few texts for people.

use std::net::IpAddr;

/// Accepts `host:port`, where the host is a name, an IPv4 address or an IPv6 address in brackets.
pub fn address(text: &str) -> Result<String, String> {
    let no_address =
        || format!("'{}' is no address: write host:port, such as 127.0.0.1:6379", text.escape_debug());
    let (host, port) = text.rsplit_once(':').ok_or_else(no_address)?;
    let is_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') => {
            host.parse::<std::net::Ipv4Addr>().is_ok()
        }
        None => host.len() <= 253 && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)),
    };
    if !is_host || host.is_empty() || port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(no_address());
    }
    match port.parse::<u16>() {
        Ok(1..) => Ok(text.to_owned()),
        _ => Err(format!("port {port} in '{text}': a port is 1 to 65535")),
    }
}

/// True if `address` means every address of the machine, so that it is of no use to other machines.
pub fn is_wildcard(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
}

const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Reads a number of bytes: `1048576`, `1MiB`, `1 MB`.
pub fn size(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let digits = trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &trimmed[digits.len()..];
    let factor = match unit {
        "" => Some(1),
        _ => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, factor)| *factor),
    };
    digits
        .trim_end()
        .parse::<u64>()
        .ok()
        .zip(factor)
        .and_then(|(number, factor)| number.checked_mul(factor))
        .ok_or_else(|| format!("'{}' is no size: write bytes or a unit, such as 64MiB", text.escape_debug()))
}

/// Writes a number of bytes so that [`size`] reads it back: in the largest binary unit that divides it.
pub fn size_text(bytes: u64) -> String {
    match UNITS[..4].iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => bytes.to_string(),
    }
}

/// Reads a whole number.
pub fn number(text: &str) -> Result<u64, String> {
    text.trim().parse().map_err(|_| format!("'{}' is no whole number", text.escape_debug()))
}

/// Accepts a name that people, file names and logs can take: 1 to 64 letters, digits, `-`, `_` or `.`.
pub fn name(text: &str) -> Result<String, String> {
    let is_name = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    match is_name {
        true => Ok(text.to_owned()),
        false => {
            Err(format!("'{}' is no name: 1 to 64 letters, digits, '-', '_' or '.'", text.escape_debug()))
        }
    }
}

/// This machine's name, cut to what [`name`] accepts; `node` if nothing is left.
pub fn host_name() -> String {
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy();
    match name(host.chars().take(64).collect::<String>().as_str()) {
        Ok(name) => name,
        Err(_) => "node".into(),
    }
}

/// Breaks `text` into lines of at most `width` bytes at its spaces; its own line breaks stay.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            if !line.is_empty() && line.len() + 1 + word.len() > width {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line += word;
        }
        lines.push(line);
    }
    lines
}

/// The number of single-character changes between two texts. Source: Wagner and Fischer, 1974.
pub fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["127.0.0.1:6379", "node-1.example.com:1", "[::1]:65535", "localhost:80", "0.0.0.0:1"] {
            assert_eq!(address(good).as_deref(), Ok(good));
        }
        for bad in
            ["", "6379", ":6379", "host:", "host:http", "1.2.3:5", "300.1.1.1:5", "[::1:5", "a b:5", "::1:5"]
        {
            assert!(address(bad).unwrap_err().contains("is no address"), "{bad}");
        }
        assert_eq!(address("h:0").unwrap_err(), "port 0 in 'h:0': a port is 1 to 65535");
        assert_eq!(address("h:65536").unwrap_err(), "port 65536 in 'h:65536': a port is 1 to 65535");
        assert!(is_wildcard("0.0.0.0:1") && is_wildcard("[::]:1"));
        assert!(!is_wildcard("127.0.0.1:1") && !is_wildcard("example.com:1"));
    }

    #[test]
    fn sizes() {
        let cases =
            [("0", 0), ("17", 17), ("64MiB", 64 << 20), ("64 mib", 64 << 20), ("2kB", 2000), ("1B", 1)];
        for (text, bytes) in cases {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "MiB", "-1", "1.5GiB", "64 potatoes", "99999999999TiB"] {
            assert!(size(bad).unwrap_err().contains("is no size"), "{bad}");
        }
        for bytes in [0, 1, 1000, 1024, 64 << 20, (1 << 30) + 1] {
            assert_eq!(size(&size_text(bytes)), Ok(bytes));
        }
    }

    #[test]
    fn distances() {
        for (a, b, distance) in
            [("", "abc", 3), ("kitten", "sitting", 3), ("same", "same", 0), ("ab", "ba", 2)]
        {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
        }
    }
}
