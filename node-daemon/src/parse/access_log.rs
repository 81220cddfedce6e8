//! Read access logs: nginx's combined form, Apache's common and combined forms.
//! Place: one of `parse`'s formats.
//! Invariants: one pass, no regular expression; every field but the time is a range of the line.
//! Source of names and types: fluentd's `parser_nginx.rb` and `parser_apache2.rb`, which log-pilot used. As there,
//! the protocol (`HTTP/1.1`) and Apache's identd column are not fields.

use memchr::{memchr, memchr2, memmem, memrchr};

use super::timestamp::access_log_time;
use super::{NOT_IN_FORMAT, Record, Value, span, text_value};

/// Whose form a line has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer"
    /// "$http_user_agent"`, maybe with `"$http_x_forwarded_for"` behind. All values are text.
    Nginx,
    /// `%h %l %u %t "%r" %>s %b`, maybe with `"%{Referer}i" "%{User-agent}i"` behind. `-` is null, `code` and
    /// `size` are numbers.
    Apache2,
}

const NGINX: [&str; 11] = [
    "remote",
    "host",
    "user",
    "method",
    "path",
    "code",
    "size",
    "referer",
    "agent",
    "http_x_forwarded_for",
    "time",
];
const APACHE2: [&str; 9] = [
    "host", "user", "method", "path", "code", "size", "referer", "agent", "time",
];

/// Start and end in the line.
type Place = (usize, usize);

/// The line up to `at` is read.
struct Line<'text> {
    text: &'text [u8],
    at: usize,
}

impl Line<'_> {
    /// The range up to this byte, which is passed.
    fn until(&mut self, byte: u8) -> Option<Place> {
        let start = self.at;
        let end = start + memchr(byte, self.text.get(start..)?)?;
        self.at = end + 1;
        Some((start, end))
    }

    /// Passes exactly this.
    fn pass(&mut self, what: &[u8]) -> Option<()> {
        let found = self.text.get(self.at..)?.starts_with(what);
        found.then(|| self.at += what.len())
    }

    /// The inside of a quoted text, in which `\"` does not end it, from behind its first quote to behind its last.
    fn quoted(&mut self) -> Option<Place> {
        let start = self.at;
        let mut at = start;
        loop {
            let found = at + memchr2(b'"', b'\\', self.text.get(at..)?)?;
            if self.text[found] == b'"' {
                self.at = found + 1;
                return Some((start, found));
            }
            at = found + 2;
        }
    }
}

/// Where the parts of a line are.
struct Parts {
    first: Place,
    second: Place,
    user: Place,
    time: Place,
    request: Place,
    code: Place,
    size: Place,
    referer_agent: Option<[Place; 2]>,
}

impl Form {
    /// What its fields are called; the last is `time`, which is a field only where it cannot be read.
    pub(super) fn names(self) -> &'static [&'static str] {
        match self {
            Self::Nginx => &NGINX,
            Self::Apache2 => &APACHE2,
        }
    }

    pub(super) fn parse(self, text: &[u8], record: &mut Record) -> Result<(), &'static str> {
        let text = text.trim_ascii_end();
        let mut line = Line { text, at: 0 };
        let parts = parts(&mut line).ok_or(match self {
            Self::Nginx => "nginx: not in the combined form",
            Self::Apache2 => "apache2: neither in the common nor in the combined form",
        })?;
        let mut next = 0;
        let mut put = |value: Option<Value>| {
            if let Some(value) = value {
                record.push(next, value);
            }
            next += 1;
        };
        let value = |range| match self {
            Self::Nginx => Some(text_value_of(range)),
            Self::Apache2 => Some(text_or_null(text, range)),
        };
        let number = |range| match self {
            Self::Nginx => Some(text_value_of(range)),
            Self::Apache2 => Some(number_or_null(text, range)),
        };
        put(value(parts.first));
        // nginx's second column is always a `-`, which fluentd calls its host; Apache's is identd's word.
        if self == Self::Nginx {
            put(value(parts.second));
        }
        put(value(parts.user));
        let (method, path) = split_request(text, parts.request);
        put(method.map(text_value_of));
        put(path.map(text_value_of));
        put(number(parts.code));
        put(number(parts.size));
        let [referer, agent] = match parts.referer_agent {
            Some(ranges) => ranges.map(value),
            None => [None, None],
        };
        put(referer);
        put(agent);
        if self == Self::Nginx {
            put(forwarded_for(&mut line).map(text_value_of));
        }
        if line.at != text.len() {
            return Err(match self {
                Self::Nginx => "nginx: text after the last field",
                Self::Apache2 => "apache2: text after the last field",
            });
        }
        match access_log_time(&text[parts.time.0..parts.time.1]) {
            Some(time_ns) => record.time_ns = Some(time_ns),
            None => {
                record.time_failure = Some(NOT_IN_FORMAT);
                let time = self.names().len() - 1;
                record.push(time as u16, text_value_of(parts.time));
            }
        }
        Ok(())
    }
}

/// Finds the parts of a line up to its agent.
fn parts(line: &mut Line<'_>) -> Option<Parts> {
    let first = line.until(b' ')?;
    let second = line.until(b' ')?;
    // A user may have spaces in his name.
    let user_start = line.at;
    let user_end = user_start + memmem::find(line.text.get(user_start..)?, b" [")?;
    line.at = user_end + 2;
    let time = line.until(b']')?;
    line.pass(b" \"")?;
    let request = line.quoted()?;
    line.pass(b" ")?;
    let code = line.until(b' ')?;
    let size_start = line.at;
    let length = memchr(b' ', line.text.get(size_start..)?);
    let size = (
        size_start,
        length.map_or(line.text.len(), |length| size_start + length),
    );
    line.at = size.1;
    let referer_agent = match line.pass(b" \"") {
        None => None,
        Some(()) => {
            let referer = line.quoted()?;
            line.pass(b" \"")?;
            Some([referer, line.quoted()?])
        }
    };
    Some(Parts {
        first,
        second,
        user: (user_start, user_end),
        time,
        request,
        code,
        size,
        referer_agent,
    })
}

/// The method and path of `GET /path HTTP/1.1`. The protocol may be missing, and a path may have spaces.
fn split_request(text: &[u8], (start, end): Place) -> (Option<Place>, Option<Place>) {
    let request = &text[start..end];
    let Some(space) = memchr(b' ', request) else {
        let method = (!request.is_empty()).then_some((start, end));
        return (method, None);
    };
    let rest = request[space..].trim_ascii_end();
    let rest = match memrchr(b' ', rest) {
        Some(last) if last > 0 && is_protocol(&rest[last + 1..]) => rest[..last].trim_ascii_end(),
        _ => rest,
    };
    let path_end = start + space + rest.len();
    let path_start = path_end - rest.trim_ascii_start().len();
    let path = (path_start < path_end).then_some((path_start, path_end));
    ((space > 0).then_some((start, start + space)), path)
}

/// Whether this is like `HTTP/1.1`.
fn is_protocol(word: &[u8]) -> bool {
    match memchr(b'/', word) {
        Some(slash) if slash > 0 => {
            word[..slash].iter().all(u8::is_ascii_uppercase)
                && word.len() > slash + 1
                && word[slash + 1..]
                    .iter()
                    .all(|byte| byte.is_ascii_digit() || *byte == b'.')
        }
        _ => false,
    }
}

/// Behind the agent: one quoted text, or one word.
fn forwarded_for(line: &mut Line<'_>) -> Option<Place> {
    let start = line.at;
    let rest = line.text.get(start..)?;
    let word = rest.trim_ascii_start();
    if word.is_empty() || word.len() == rest.len() {
        return None;
    }
    line.at += rest.len() - word.len();
    let found = match line.pass(b"\"") {
        Some(()) => line.quoted(),
        None if memchr(b' ', word).is_none() => {
            let range = (line.at, line.text.len());
            line.at = line.text.len();
            Some(range)
        }
        None => None,
    };
    if found.is_none() {
        line.at = start;
    }
    found
}

fn text_value_of((start, end): Place) -> Value {
    text_value(start, end)
}

fn text_or_null(text: &[u8], (start, end): Place) -> Value {
    match &text[start..end] {
        b"-" => Value::Null,
        _ => text_value(start, end),
    }
}

fn number_or_null(text: &[u8], (start, end): Place) -> Value {
    match &text[start..end] {
        b"-" => Value::Null,
        [b'0'] | [b'1'..=b'9', ..] if text[start..end].iter().all(u8::is_ascii_digit) => {
            let (start, end) = span(start, end);
            Value::Number(start, end)
        }
        _ => text_value(start, end),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use regex::bytes::Regex;

    use super::*;
    use crate::declare::Format;
    use crate::parse::tests::{ns, parsed, parser, shown};

    fn fields(format: &Format, text: &str) -> Vec<String> {
        let parser = parser(format);
        let record = parsed(&parser, text.as_bytes());
        assert_eq!(record.failure, None, "{text}");
        shown(&parser, text.as_bytes(), &record)
    }

    const COMBINED: &str = r#"192.168.0.1 - - [28/Feb/2013:12:00:00 +0900] "GET /a?b=[c] HTTP/1.1" 200 777 "-" "Opera/12.0""#;

    #[test]
    fn nginx_lines_have_the_fields_of_fluentd() {
        assert_eq!(
            fields(&Format::Nginx, COMBINED),
            [
                "remote=\"192.168.0.1\"",
                "host=\"-\"",
                "user=\"-\"",
                "method=\"GET\"",
                "path=\"/a?b=[c]\"",
                "code=\"200\"",
                "size=\"777\"",
                "referer=\"-\"",
                "agent=\"Opera/12.0\""
            ]
        );
        let record = parsed(&parser(&Format::Nginx), COMBINED.as_bytes());
        assert_eq!(record.time_ns, ns("2013-02-28T12:00:00+09:00"));
        for (more, forwarded) in [
            (
                " \"1.2.3.4, 5.6.7.8\"",
                "http_x_forwarded_for=\"1.2.3.4, 5.6.7.8\"",
            ),
            (" \"-\"", "http_x_forwarded_for=\"-\""),
            (" 1.2.3.4\n", "http_x_forwarded_for=\"1.2.3.4\""),
        ] {
            let found = fields(&Format::Nginx, &format!("{COMBINED}{more}"));
            assert_eq!(found.last().map(String::as_str), Some(forwarded));
        }
    }

    #[test]
    fn apache_lines_have_numbers_and_nulls_as_with_fluentd() {
        assert_eq!(
            fields(&Format::Apache2, COMBINED),
            [
                "host=\"192.168.0.1\"",
                "user=null",
                "method=\"GET\"",
                "path=\"/a?b=[c]\"",
                "code=200",
                "size=777",
                "referer=null",
                "agent=\"Opera/12.0\""
            ]
        );
        let common = r#"::1 - frank [10/Oct/2000:13:55:36 -0700] "POST /" 304 -"#;
        assert_eq!(
            fields(&Format::Apache2, common),
            [
                "host=\"::1\"",
                "user=\"frank\"",
                "method=\"POST\"",
                "path=\"/\"",
                "code=304",
                "size=null"
            ]
        );
        // A number that JSON would not take is text.
        let odd = common.replace("304 -", "007 1e9");
        let found = fields(&Format::Apache2, &odd);
        assert_eq!(found[4..], ["code=\"007\"", "size=\"1e9\""]);
    }

    #[test]
    fn requests_are_cut_whatever_stands_in_them() {
        let request = |request: &str| {
            let line = format!(
                r#"1.1.1.1 - john doe [10/Oct/2000:13:55:36 -0700] "{request}" 400 0 "a \"b\"" "c\\""#
            );
            let found = fields(&Format::Nginx, &line);
            assert_eq!(found[2], "user=\"john doe\"");
            assert_eq!(
                found[found.len() - 2..],
                ["referer=\"a \\\"b\\\"\"", "agent=\"c\\\\\""]
            );
            found[3..found.len() - 4].join(" ")
        };
        for (text, expected) in [
            ("GET /a b HTTP/1.1", "method=\"GET\" path=\"/a b\""),
            ("GET /a b", "method=\"GET\" path=\"/a b\""),
            ("GET  /a   HTTP/2.0", "method=\"GET\" path=\"/a\""),
            ("GET", "method=\"GET\""),
            ("GET ", "method=\"GET\""),
            ("GET HTTP/1.1", "method=\"GET\" path=\"HTTP/1.1\""),
            (
                "GET /\\\"x\\\" HTTP/1.1",
                "method=\"GET\" path=\"/\\\"x\\\"\"",
            ),
            ("\\x16\\x03\\x01", "method=\"\\x16\\x03\\x01\""),
            ("-", "method=\"-\""),
            ("", ""),
        ] {
            assert_eq!(request(text), expected, "{text}");
        }
    }

    #[test]
    fn a_time_that_cannot_be_read_stays_as_a_field() {
        for bad in [
            "28/Feb/2013:12:00:00",
            "30/Feb/2013:12:00:00 +0900",
            "x",
            "",
        ] {
            let line = COMBINED.replace("28/Feb/2013:12:00:00 +0900", bad);
            for format in [Format::Nginx, Format::Apache2] {
                let record = parsed(&parser(&format), line.as_bytes());
                assert_eq!(
                    (record.time_ns, record.time_failure),
                    (None, Some(NOT_IN_FORMAT))
                );
                let found = fields(&format, &line);
                assert_eq!(found.last(), Some(&format!("time=\"{bad}\"")));
            }
        }
    }

    #[test]
    fn other_lines_are_named() {
        for bad in [
            "",
            "x",
            "a b c",
            "a b c [d] \"GET / HTTP/1.1\" 200",
            "a b c [d] \"GET 200 1",
        ] {
            let nginx = parsed(&parser(&Format::Nginx), bad.as_bytes());
            assert_eq!(
                nginx.failure,
                Some("nginx: not in the combined form"),
                "{bad}"
            );
            let apache = parsed(&parser(&Format::Apache2), bad.as_bytes());
            let form = "apache2: neither in the common nor in the combined form";
            assert_eq!(apache.failure, Some(form), "{bad}");
        }
        let timed = format!("{COMBINED} 0.003 0.001");
        let nginx = parsed(&parser(&Format::Nginx), timed.as_bytes());
        assert_eq!(nginx.failure, Some("nginx: text after the last field"));
        let apache = parsed(&parser(&Format::Apache2), timed.as_bytes());
        assert_eq!(apache.failure, Some("apache2: text after the last field"));
    }

    /// fluentd's own expressions.
    static FLUENTD: LazyLock<[(Form, Format, Regex); 2]> = LazyLock::new(|| {
        let nginx = r#"^(?<remote>[^ ]*) (?<host>[^ ]*) (?<user>[^ ]*) \[(?<time>[^\]]*)\] "(?<method>\S+)(?: +(?<path>[^"]*?)(?: +\S*)?)?" (?<code>[^ ]*) (?<size>[^ ]*)(?: "(?<referer>[^"]*)" "(?<agent>[^"]*)")?$"#;
        let apache2 = r#"^(?<host>[^ ]*) [^ ]* (?<user>[^ ]*) \[(?<time>[^\]]*)\] "(?<method>\S+)(?: +(?<path>(?:[^"]|\\.)*?)(?: +\S*)?)?" (?<code>[^ ]*) (?<size>[^ ]*)(?: "(?<referer>(?:[^"]|\\.)*)" "(?<agent>(?:[^"]|\\.)*)")?$"#;
        let compiled = |expression| Regex::new(expression).expect("fluentd's expression");
        [
            (Form::Nginx, Format::Nginx, compiled(nginx)),
            (Form::Apache2, Format::Apache2, compiled(apache2)),
        ]
    });

    fn line() -> impl Strategy<Value = String> {
        let word = "[0-9a-z.:-]{1,9}";
        let request = "[A-Z]{1,6}( /[a-z0-9/?=&%._-]{0,12}){1,2}( HTTP/[012](\\.[01])?)?";
        let quoted = "[a-zA-Z0-9 ();/.,:\\-é]{0,20}";
        let tail = prop::option::of((quoted, quoted));
        let start = (word, word, word, request, "[0-9]{3}", "-|[0-9]{1,7}");
        (start, tail).prop_map(|((a, b, c, request, code, size), tail)| {
            let tail = tail.map(|(referer, agent)| format!(" \"{referer}\" \"{agent}\""));
            let tail = tail.unwrap_or_default();
            format!("{a} {b} {c} [10/Oct/2000:13:55:36 -0700] \"{request}\" {code} {size}{tail}")
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn fields_are_those_of_fluentds_expressions(line in line()) {
            for (form, format, expression) in FLUENTD.iter() {
                let parser = parser(format);
                let record = parsed(&parser, line.as_bytes());
                prop_assert_eq!(record.failure, None);
                let groups = expression.captures(line.as_bytes()).expect("a line that fluentd reads");
                for (n, name) in form.names().iter().enumerate() {
                    let found = record.fields.iter().find(|field| field.name == crate::parse::Name::Own(n as u16));
                    let found = found.map(|field| match field.value {
                        Value::Text(start, end) | Value::Number(start, end) => &line[start as usize..end as usize],
                        _ => "-",
                    });
                    let known = groups.name(name).map(|group| String::from_utf8_lossy(group.as_bytes()));
                    match *name {
                        "time" => prop_assert!(record.time_ns.is_some() && found.is_none()),
                        "http_x_forwarded_for" => prop_assert!(found.is_none()),
                        // fluentd takes the last of several words for the protocol, whatever it is.
                        "path" if !line.contains(" HTTP/") && line.matches(" /").count() > 1 => {}
                        _ => prop_assert_eq!(found, known.as_deref(), "{}", name),
                    }
                }
            }
        }
    }
}
