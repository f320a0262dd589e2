//! What is refused and what is not, by category (RFC 9110, RFC 9112), and that no cut of the bytes changes it.

mod support;

use landfast_framing::Refusal::{self, *};
use support::{Verdict, in_pieces, scan};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// A POST with these fields and this body.
fn post(fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n{body}")
}

fn chunked(body: &str) -> String {
    post("transfer-encoding: chunked", body)
}

fn line(line: &str) -> String {
    format!("{line}\r\nhost: a\r\n\r\n")
}

fn field(field: &str) -> String {
    format!("GET / HTTP/1.1\r\nhost: a\r\n{field}\r\n\r\n")
}

/// Each is one whole request; a plain one follows it and is seen as such.
fn accepted() -> Vec<String> {
    let mut all = vec![
        GET.into(),
        format!("\r\n{GET}"),
        line("GET /a/b?c=d HTTP/1.1"),
        line("GET / HTTP/1.0"),
        "GET / HTTP/1.0\r\n\r\n".into(),
        line("GET http://A/x HTTP/1.1"),
        line("OPTIONS * HTTP/1.1"),
        line("M-SEARCH / HTTP/1.1"),
        field("x:y"),
        field("x: \t y \t "),
        field("x:"),
        field("x: caf\u{e9} \"()<>@,;:\\\""),
        field("expect: 100-Continue"),
        "GET / HTTP/1.1\r\nHOST:\ta:80 \r\n\r\n".into(),
        "GET / HTTP/1.0\r\nhost: a\r\nupgrade: websocket\r\n\r\n".into(),
        post("content-length: 0", ""),
        post("Content-Length:  5 ", "GET /"),
        post("content-length: 27", GET),
        chunked("0\r\n\r\n"),
        chunked("5\r\nGET /\r\n0\r\n\r\n"),
        chunked("A\r\n0123456789\r\n00a\r\n0123456789\r\n000\r\n\r\n"),
        chunked("1;a\r\nx\r\n1;a=b;c=\"d;\\\" e\"\r\nx\r\n0; a\r\n\r\n"),
        chunked("0\r\nx-checksum: abc\r\ny:\r\n\r\n"),
        post("transfer-encoding: \tCHUNKED ", "1\r\n\n\r\n0\r\n\r\n"),
        post(
            "transfer-encoding:chunked\r\nexpect: 100-continue",
            "0\r\n\r\n",
        ),
    ];
    let fields: String = (0..49).map(|n| format!("x-{n}: 1\r\n")).collect();
    all.push(format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n"));
    all
}

fn refused() -> Vec<(String, Refusal)> {
    let mut all: Vec<(String, Refusal)> = Vec::new();
    let mut add = |refusal: Refusal, request: String| all.push((request, refusal));

    // Line ends.
    add(BareLineFeed, GET.replace("\r\n", "\n"));
    add(BareLineFeed, "GET / HTTP/1.1\nhost: a\r\n\r\n".into());
    add(BareLineFeed, "GET / HTTP/1.1\r\nhost: a\n\r\n".into());
    add(BareLineFeed, "GET / HTTP/1.1\r\nhost: a\r\n\n".into());
    add(BareLineFeed, format!("\n{GET}"));
    add(BareLineFeed, "GET /\n".into());
    add(BareLineFeed, "GET\n".into());
    add(BareCarriageReturn, field("x: a\rb"));
    add(BareCarriageReturn, "GET / HTTP/1.1\rhost: a\r\n\r\n".into());
    add(
        BareCarriageReturn,
        "GET / HTTP/1.1\r\nhost: a\r\n\r\r\n".into(),
    );
    add(BareCarriageReturn, format!("\r{GET}"));
    add(Method, format!("\r\n\r\n{GET}"));

    // The request line.
    for bad in [
        "get / HTTP/1.1",
        " GET / HTTP/1.1",
        "G@T / HTTP/1.1",
        "\u{16}\u{3}\u{1}",
        "\0",
        "GET\t/ HTTP/1.1",
        "{}",
        "A/ / HTTP/1.1",
    ] {
        add(Method, line(bad));
    }
    add(Method, line(&format!("{} / HTTP/1.1", "A".repeat(33))));
    for bad in [
        "CONNECT a:80 HTTP/1.1",
        "CONNECT / HTTP/1.1",
        "CONNECT a:443 HTTP/1.0",
    ] {
        add(Connect, line(bad));
    }
    for bad in [
        "GET  / HTTP/1.1",
        "GET a HTTP/1.1",
        "GET * HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET /\u{e9} HTTP/1.1",
        "GET /\0 HTTP/1.1",
        "GET /%00 HTTP/1.1",
        "GET a:80 HTTP/1.1",
        "GET http://u@a/ HTTP/1.1",
        "GET ftp://a/ HTTP/1.1",
        "GET /\t HTTP/1.1",
        "GET /a\\b HTTP/1.1",
    ] {
        add(Target, line(bad));
    }
    add(DotSegment, line("GET /a/../b HTTP/1.1"));
    add(DotSegment, line("GET /a/%2e%2e%2fb HTTP/1.1"));
    for bad in [
        "GET /",
        "GET / ",
        "GET /  HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET / http/1.1",
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET / HTTP/0.9",
        "GET / HTTP/11",
        "GET / HTTP/1.10",
        "GET / HTTP/1,1",
        "GET / HTTP/+1.1",
        "GET /a b HTTP/1.1",
        "GET / HTTPS/1.1",
        "GET / HTTP/1.1\t",
    ] {
        add(Version, line(bad));
    }
    add(Target, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into());

    // Fields.
    add(Folded, field("x: a\r\n b"));
    add(Folded, field("x: a\r\n\tb"));
    add(Folded, "GET / HTTP/1.1\r\n host: a\r\n\r\n".into());
    for bad in [
        "x : a",
        "x",
        ": a",
        "x\t: a",
        "x y: a",
        "x(): a",
        "\u{e9}: a",
        "x\0: a",
        "x\u{1}: a",
        "[x]: a",
        "\u{7f}: a",
    ] {
        add(FieldName, field(bad));
    }
    for bad in [
        "x: a\0b",
        "x: a\u{1}b",
        "x: a\u{b}b",
        "x: a\u{7f}b",
        "x: \u{c}",
        "x: \u{8}",
    ] {
        add(FieldValue, field(bad));
    }
    let many: String = (0..50).map(|n| format!("x-{n}: 1\r\n")).collect();
    add(
        TooManyFields,
        format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n"),
    );
    add(
        HeadTooLarge,
        field(&format!("x: {}", "a".repeat(100 << 10))),
    );
    add(
        HeadTooLarge,
        field(&format!("{}: a", "a".repeat(100 << 10))),
    );
    add(
        TargetTooLong,
        line(&format!("GET /{} HTTP/1.1", "a".repeat(100 << 10))),
    );
    add(
        TargetTooLong,
        line(&format!("GET /{} HTTP/1.1", "a".repeat(33 << 10))),
    );

    // The host.
    add(HostMissing, "GET / HTTP/1.1\r\n\r\n".into());
    add(HostMissing, "GET http://a/ HTTP/1.1\r\n\r\n".into());
    add(HostTwice, field("host: a"));
    add(HostTwice, field("Host: b"));
    for bad in [
        "", " ", "a/b", "u@a", "a b", "a,b", "a:b", "a:80:80", "\u{e9}", "[::1", "a%2eb",
        "http://a",
    ] {
        add(
            HostInvalid,
            format!("GET / HTTP/1.1\r\nhost: {bad}\r\n\r\n"),
        );
    }
    add(HostMismatch, line("GET http://b/ HTTP/1.1"));
    add(HostMismatch, line("GET http://a:80/ HTTP/1.1"));

    // The length of the body.
    for bad in [
        "",
        "x",
        "-1",
        "+5",
        "5, 5",
        "5,5",
        "0x5",
        "5 5",
        "5;",
        "05",
        "00",
        "1e1",
        "\u{b2}",
        "9223372036854775808",
        "18446744073709551616",
        "99999999999999999999999",
    ] {
        add(
            ContentLength,
            post(&format!("content-length: {bad}"), "hello"),
        );
    }
    add(
        ContentLengthTwice,
        post("content-length: 5\r\ncontent-length: 5", "hello"),
    );
    add(
        ContentLengthTwice,
        post("content-length: 5\r\nContent-Length: 6", "hello!"),
    );
    add(
        LengthAndEncoding,
        post(
            "content-length: 5\r\ntransfer-encoding: chunked",
            "0\r\n\r\n",
        ),
    );
    add(
        LengthAndEncoding,
        post(
            "transfer-encoding: chunked\r\ncontent-length: 5",
            "0\r\n\r\n",
        ),
    );
    for bad in [
        "",
        ",",
        "chunked, chunked",
        "chunked,gzip",
        "chunked,",
        ",chunked",
        "chun ked",
        "\"chunked\"",
        "chunked;q=1",
        "gzip,,chunked",
    ] {
        add(
            TransferEncoding,
            post(&format!("transfer-encoding: {bad}"), "0\r\n\r\n"),
        );
    }
    add(
        TransferEncoding,
        post(
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
            "0\r\n\r\n",
        ),
    );
    add(
        TransferEncoding,
        post(
            "transfer-encoding: chunked\r\ntransfer-encoding: identity",
            "0\r\n\r\n",
        ),
    );
    for bad in [
        "xchunked",
        "chunkedx",
        "gzip, chunked",
        "identity",
        "gzip",
        "x-chunked",
        "deflate, gzip, Chunked",
    ] {
        add(
            UnknownTransferEncoding,
            post(&format!("transfer-encoding: {bad}"), "0\r\n\r\n"),
        );
    }
    add(
        UnknownTransferEncoding,
        post(
            "transfer-encoding: identity\r\ntransfer-encoding: chunked",
            "0\r\n\r\n",
        ),
    );
    add(FieldName, post("transfer-encoding : chunked", "0\r\n\r\n"));
    add(
        FieldValue,
        post("transfer-encoding: \u{b}chunked", "0\r\n\r\n"),
    );
    add(
        Folded,
        post("transfer-encoding: chunked\r\n , x", "0\r\n\r\n"),
    );
    add(
        TransferEncoding,
        post("transfer-encoding:\r\n chunked", "0\r\n\r\n"),
    );
    add(
        TransferEncodingInHttp10,
        "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".into(),
    );
    for bad in [
        "",
        "y 100-continue",
        "100-continue, x",
        "200-ok",
        "100-continue ",
    ] {
        if bad.trim() != "100-continue" {
            add(Expectation, field(&format!("expect: {bad}")));
        }
    }
    add(
        Expectation,
        field("expect: 100-continue\r\nexpect: 100-continue"),
    );

    // Chunks.
    for bad in [
        "",
        "x\r\n",
        " 5\r\nhello\r\n",
        "+5\r\nhello\r\n",
        "-5\r\nhello\r\n",
        "0x5\r\nhello\r\n",
        "5_0\r\n",
        "5 \r\nhello\r\n",
        "5\t;a\r\n",
        "\r\n",
        ";a\r\n",
        "5g\r\n",
        "0000000000000005\r\nhello\r\n",
        "ffffffffffffffff\r\n",
        "10000000000000005\r\n",
        "5,5\r\n",
    ] {
        if !bad.is_empty() {
            add(ChunkSize, chunked(bad));
        }
    }
    for bad in [
        "5\nhello\r\n0\r\n\r\n",
        "5;a\nhello\r\n0\r\n\r\n",
        "5;a=\"b\n\"\r\n",
        "5;\n",
        "0\n\r\n",
    ] {
        add(BareLineFeed, chunked(bad));
    }
    add(BareLineFeed, chunked("0\r\n\n"));
    for bad in ["5\rhello\r\n", "5;a\rb\r\n", "0\r\r\n"] {
        add(BareCarriageReturn, chunked(bad));
    }
    for bad in [
        "5;\r\nhello\r\n",
        "5;;a\r\n",
        "5;=a\r\n",
        "5;a=\r\n",
        "5;a=\"b\r\n\"",
        "5;a=\"\u{1}\"\r\n",
        "5;a b\r\n",
        "5;\u{e9}\r\n",
        "5;a=\"b\"c\r\n",
        "5;\0\r\n",
        "5;a=b=c\r\n",
    ] {
        add(ChunkExtension, chunked(bad));
    }
    add(
        ChunkExtensionTooLong,
        chunked(&format!("5;{}\r\n", "a".repeat(5_000))),
    );
    add(
        ChunkExtensionTooLong,
        chunked(&"1;aaaaaaaaaaaaaaa\r\nx\r\n".repeat(300)),
    );
    for bad in [
        "5\r\nhello0\r\n\r\n",
        "5\r\nhelloo\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "4\r\nhello\r\n",
        "5\r\nhell\r\n0\r\n\r\n",
    ] {
        add(ChunkEnd, chunked(bad));
    }
    for bad in [
        "content-length: 5",
        "Transfer-Encoding: chunked",
        "host: b",
        "x-forwarded-for: 1.2.3.4",
        "cookie: a=b",
        "authorization: x",
        "x_real_ip: y",
        "trailer: x",
    ] {
        add(TrailerField, chunked(&format!("0\r\n{bad}\r\n\r\n")));
    }
    add(Folded, chunked("0\r\nx: a\r\n b\r\n\r\n"));
    add(FieldName, chunked(&format!("0\r\n{GET}")));
    add(
        TrailerTooLarge,
        chunked(&format!("0\r\nx: {}\r\n\r\n", "a".repeat(9 << 10))),
    );
    add(
        TrailerTooLarge,
        chunked(&format!("0\r\n{many}x: y\r\n\r\n")),
    );
    all
}

#[test]
fn what_is_sound_is_passed_and_ends_where_it_ends() {
    for request in accepted() {
        let bytes = [request.as_bytes(), GET.as_bytes()].concat();
        let expected = Verdict {
            ends: vec![request.len(), bytes.len()],
            refusal: None,
        };
        assert_eq!(scan(&bytes), expected, "{request:?}");
    }
}

#[test]
fn what_has_two_readings_is_refused_and_nothing_of_it_or_after_it_is_passed() {
    for (request, refusal) in refused() {
        let bytes = [GET.as_bytes(), request.as_bytes(), GET.as_bytes()].concat();
        let verdict = scan(&bytes);
        assert_eq!(verdict.refusal, Some(refusal), "{request:?}");
        assert_eq!(verdict.ends, [GET.len()], "{request:?}");
        assert_eq!(support::passed(&bytes), GET.len(), "{request:?}");
        assert!(matches!(refusal.status(), 400..=499 | 501));
        assert!(!refusal.to_string().is_empty());
    }
}

#[test]
fn no_cut_of_the_bytes_changes_the_verdict() {
    let all = accepted()
        .into_iter()
        .chain(refused().into_iter().map(|(request, _)| request));
    for request in all {
        let bytes = [GET.as_bytes(), request.as_bytes(), GET.as_bytes()].concat();
        let whole = scan(&bytes);
        assert_eq!(
            in_pieces(&bytes, std::iter::repeat(1)),
            whole,
            "{request:?}"
        );
        if bytes.len() < 1_000 {
            for cut in 1..bytes.len() {
                let cuts = [cut, bytes.len()].into_iter();
                assert_eq!(in_pieces(&bytes, cuts), whole, "{request:?} at {cut}");
            }
        }
    }
}

#[test]
fn after_a_request_for_another_protocol_nothing_is_passed() {
    for upgrade in ["websocket", "h2c", "x"] {
        let request = field(&format!("connection: upgrade\r\nupgrade: {upgrade}"));
        let bytes = [request.as_bytes(), GET.as_bytes()].concat();
        assert_eq!(support::passed(&bytes), request.len());
        assert_eq!(scan(&bytes).ends, [request.len()]);
    }
}
