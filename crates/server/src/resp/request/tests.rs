//! Requests however they are cut, and hostile ones.

use super::*;
use proptest::prelude::*;

fn parser() -> RequestParser {
    RequestParser::new(Limits::default())
}

/// Feeds all of `bytes` at once and returns each command as texts, and how it ended.
fn parse_all(bytes: &[u8]) -> (Vec<Vec<String>>, Result<(), ProtocolError>) {
    let (commands, end) = parse_in_chunks(bytes, bytes.len().max(1));
    let texts = commands
        .iter()
        .map(|command| command.iter().map(|arg| arg.escape_ascii().to_string()).collect())
        .collect();
    (texts, end)
}

fn parse_in_chunks(bytes: &[u8], chunk_bytes: usize) -> (Vec<Command>, Result<(), ProtocolError>) {
    let (mut parser, mut input, mut commands) = (parser(), BytesMut::new(), Vec::new());
    for chunk in bytes.chunks(chunk_bytes) {
        input.extend_from_slice(chunk);
        loop {
            match parser.next(&mut input) {
                Ok(Some(command)) => commands.push(command),
                Ok(None) => break,
                Err(error) => return (commands, Err(error)),
            }
        }
    }
    (commands, Ok(()))
}

fn request<A: AsRef<[u8]>>(arguments: &[A]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        out.extend_from_slice(format!("${}\r\n", argument.as_ref().len()).as_bytes());
        out.extend_from_slice(argument.as_ref());
        out.extend_from_slice(b"\r\n");
    }
    out
}

#[test]
fn arrays_and_lines_become_commands() {
    let cases: [(&str, &[&[&str]]); 12] = [
        ("*1\r\n$4\r\nPING\r\n", &[&["PING"]]),
        ("*2\r\n$3\r\nGET\r\n$0\r\n\r\n", &[&["GET", ""]]),
        ("*0\r\n*-1\r\n*1\r\n$1\r\na\r\n", &[&["a"]]),
        ("PING\r\nGET k\n", &[&["PING"], &["GET", "k"]]),
        ("\r\n  \r\n  SET  a  b  \r\n", &[&["SET", "a", "b"]]),
        ("SET a \"b c\\n\\x41\\\"\" 'd e\\''\r\n", &[&["SET", "a", "b c\\nA\\\"", "d e\\'"]]),
        ("SET a \"\" ''\r\n", &[&["SET", "a", "", ""]]),
        ("a\"b\" c'd'\r\n", &[&["ab", "cd"]]),
        ("a \"\\xzz\"\r\n", &[&["a", "xzz"]]),
        ("*2\r\n$1\r\na\r\n$3\r\n", &[]),
        ("PING", &[]),
        ("*", &[]),
    ];
    for (bytes, want) in cases {
        let (commands, end) = parse_all(bytes.as_bytes());
        assert_eq!(commands, want, "{bytes:?}");
        assert_eq!(end, Ok(()), "{bytes:?}");
    }
}

#[test]
fn malformed_requests_get_the_words_of_redis() {
    let long_line = "a".repeat(INLINE_BYTES_MAX);
    let long_count = format!("*{}", "1".repeat(COUNT_LINE_BYTES_MAX));
    let long_length = format!("*1\r\n${}", "1".repeat(COUNT_LINE_BYTES_MAX));
    let cases = [
        ("*x\r\n", "invalid multibulk length"),
        ("*\r\n", "invalid multibulk length"),
        ("*+1\r\n", "invalid multibulk length"),
        ("*01\r\n", "invalid multibulk length"),
        ("*1048577\r\n", "invalid multibulk length"),
        ("*9223372036854775807\r\n", "invalid multibulk length"),
        ("*99999999999999999999\r\n", "invalid multibulk length"),
        ("*1\r\n$-1\r\n", "invalid bulk length"),
        ("*1\r\n$x\r\n", "invalid bulk length"),
        ("*1\r\n$16781313\r\n", "invalid bulk length"),
        ("*1\r\n$4294967295\r\n", "invalid bulk length"),
        ("*1\r\n$9223372036854775807\r\n", "invalid bulk length"),
        ("*1\r\n:1\r\n", "expected '$', got ':'"),
        ("*1\r\n*1\r\n$1\r\na\r\n", "expected '$', got '*'"),
        ("*1\r\n\r\n", "expected '$', got '\\r'"),
        ("SET a \"b\r\n", "unbalanced quotes in request"),
        ("SET a 'b\r\n", "unbalanced quotes in request"),
        ("SET a \"b\"c\r\n", "unbalanced quotes in request"),
        (&long_line, "too big inline request"),
        (&long_count, "too big mbulk count string"),
        (&long_length, "too big bulk count string"),
    ];
    for (bytes, want) in cases {
        let (commands, end) = parse_all(bytes.as_bytes());
        assert!(commands.is_empty(), "{bytes:?}");
        let text = end.expect_err(bytes).to_string();
        assert_eq!(text, format!("Protocol error: {want}"), "{bytes:?}");
    }
}

#[test]
fn a_million_nested_arrays_are_refused_at_the_second() {
    let nested = "*1\r\n".repeat(1_000_000);
    let (_, end) = parse_all(nested.as_bytes());
    assert_eq!(end, Err(ProtocolError::ExpectedBulk { got: b'*' }));
}

#[test]
fn nothing_is_reserved_for_what_was_only_announced() {
    let mut input = BytesMut::from(&b"*1048576\r\n$16777216\r\nabc"[..]);
    let capacity = input.capacity();
    let mut parser = parser();
    assert_eq!(parser.next(&mut input), Ok(None));
    assert_eq!(input.capacity(), capacity);
    assert!(matches!(parser.spans, Spans::Few { .. }));
    assert_eq!(parser.missing_bytes(input.len()), 16777216 + 2 - 3);
}

#[test]
fn a_command_has_a_size_limit() {
    let limits = Limits { bulk_bytes_max: 100, command_bytes_max: 150 };
    let mut parser = RequestParser::new(limits);
    let mut input = BytesMut::from(&request(&[[b'a'; 90], [b'b'; 90]])[..]);
    let error = parser.next(&mut input).expect_err("two arguments exceed the limit");
    assert_eq!(error, ProtocolError::CommandLength { limit_bytes: 150 });
    assert_eq!(error.to_string(), "Protocol error: command exceeds the limit of 150 bytes");
}

#[test]
fn many_arguments_are_one_command() {
    let arguments: Vec<String> = (0..10_000).map(|i| format!("argument-{i}")).collect();
    let (commands, end) = parse_in_chunks(&request(&arguments), 777);
    assert_eq!(end, Ok(()));
    assert_eq!(commands, [Command::new(&arguments)]);
    assert_eq!(commands[0].bytes(9_999), "argument-9999");
}

fn commands() -> impl Strategy<Value = Vec<Vec<Vec<u8>>>> {
    let argument = proptest::collection::vec(any::<u8>(), 0..40);
    proptest::collection::vec(proptest::collection::vec(argument, 1..12), 0..8)
}

/// Bytes that look like requests more often than chance would have it.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..20),
        (-3i64..70).prop_map(|n| format!("*{n}\r\n").into_bytes()),
        (-3i64..20).prop_map(|n| format!("${n}\r\n").into_bytes()),
        any::<i64>().prop_map(|n| format!("*{n}\r\n").into_bytes()),
        any::<i64>().prop_map(|n| format!("${n}\r\n").into_bytes()),
        proptest::collection::vec(proptest::sample::select(&b" \"'ac\\\r\n*$x4"[..]), 0..20),
        Just(b"*1\r\n$1\r\na\r\n".to_vec()),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn what_was_written_is_read(commands in commands(), chunk_bytes in 1usize..50) {
        let bytes: Vec<u8> = commands.iter().flat_map(|arguments| request(arguments)).collect();
        let (parsed, end) = parse_in_chunks(&bytes, chunk_bytes);
        prop_assert_eq!(end, Ok(()));
        let want: Vec<Command> = commands.iter().map(|arguments| Command::new(arguments)).collect();
        prop_assert_eq!(parsed, want);
    }

    #[test]
    fn how_bytes_are_cut_changes_nothing(bytes in hostile(), chunk_bytes in 1usize..20) {
        prop_assert_eq!(parse_in_chunks(&bytes, chunk_bytes), parse_in_chunks(&bytes, bytes.len().max(1)));
    }
}
