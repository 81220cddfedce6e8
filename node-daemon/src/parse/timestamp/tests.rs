//! Promises of times, against jiff's strptime and strftime.

use jiff::tz::TimeZone;
use jiff::{Timestamp, fmt::strtime};
use proptest::prelude::*;

use super::TimeFormat;
use crate::parse::tests::{NOW_NS, ns};

fn time(format: Option<&str>, zone: &str, text: &str) -> Option<i64> {
    let format = TimeFormat::new(format, zone).expect("a good format");
    format.parse(text.as_bytes(), NOW_NS)
}

/// Formats that jiff knows, too.
const KNOWN: &[&str] = &[
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S%z",
    "%Y-%m-%dT%H:%M:%S%:z",
    "%Y-%m-%dT%H:%M:%S.%f%:z",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S,%3f",
    "%Y-%m-%d %H:%M:%S.%6f %z",
    "%Y%m%d%H%M%S%3f",
    "%Y%m%d%H%M%S%9f%z",
    "%d/%b/%Y:%H:%M:%S %z",
    "%a %b %e %H:%M:%S %Y",
    "%A, %d %B %Y %T %z",
    "%F %T",
    "%D %R",
    "%m/%d/%y %I:%M:%S %p",
    "%e.%m.%Y %k:%M",
    "%b %d, %Y %l:%M:%S %P",
    "%Y-%j %H.%M.%S",
    "%s",
    "%%%Y%%%m%%%d %H",
    "[%Y-%m-%d] \u{e9} %H:%M",
    "%d-%h-%y%t%T%n%z",
];

const ZONES: &[&str] = &[
    "UTC",
    "Asia/Shanghai",
    "America/New_York",
    "+05:45",
    "Europe/Berlin",
];

/// What jiff reads, with a zone for what says none.
fn by_jiff(format: &str, zone: &TimeZone, text: &str) -> Option<i64> {
    let parsed = strtime::parse(format, text).ok()?;
    let time = match (parsed.to_timestamp(), parsed.to_datetime()) {
        (Ok(time), _) => time,
        (Err(_), Ok(shown)) => zone.to_timestamp(shown).ok()?,
        _ => return None,
    };
    i64::try_from(time.as_nanosecond())
        .ok()
        .filter(|time| *time >= 0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn what_jiff_writes_is_read_as_jiff_reads_it(
        seconds in 0i64..9_200_000_000,
        nanos in 0i32..1_000_000_000,
        format in prop::sample::select(KNOWN),
        zone in prop::sample::select(ZONES),
        at: prop::sample::Index,
        byte in 0x20u8..0x7f,
    ) {
        let named = jiff::fmt::temporal::DateTimeParser::new().parse_time_zone(zone).expect("a zone");
        let written = Timestamp::new(seconds, nanos).expect("in range").to_zoned_datetime(named.clone());
        let text = written.strftime(format).to_string();
        let compiled = TimeFormat::new(Some(format), zone).expect("a good format");
        let expected = by_jiff(format, &named, &text);
        // A year of two digits ends in 2068.
        let short_year = format.contains("%y") || format.contains("%D");
        prop_assert!(expected.is_some() || short_year, "{}", text);
        prop_assert_eq!(compiled.parse(text.as_bytes(), NOW_NS), expected, "{}", text);

        // With one wrong byte: whatever jiff still reads means the same here.
        let mut wrong = text.into_bytes();
        let at = at.index(wrong.len());
        wrong[at] = byte;
        // jiff takes a sign before numbers.
        if byte != b'+'
            && let Ok(text) = str::from_utf8(&wrong)
            && let Some(expected) = by_jiff(format, &named, text)
        {
            prop_assert_eq!(compiled.parse(&wrong, NOW_NS), Some(expected), "{}", text);
        }
    }

    #[test]
    fn what_jiff_prints_is_read_without_a_format(
        seconds in 0i64..9_200_000_000,
        nanos in 0i32..1_000_000_000,
        zone in prop::sample::select(ZONES),
    ) {
        let time = Timestamp::new(seconds, nanos).expect("in range");
        let expected = i64::try_from(time.as_nanosecond()).ok();
        let compiled = TimeFormat::new(None, zone).expect("a good format");
        let read = |text: &str| compiled.parse(text.as_bytes(), NOW_NS);
        prop_assert_eq!(read(&time.to_string()), expected);
        let offset = jiff::tz::offset(-7);
        prop_assert_eq!(read(&time.display_with_offset(offset).to_string()), expected);
        prop_assert_eq!(read(&format!("{seconds}.{nanos:09}")), expected);
        // Of milliseconds, the finer unit begins in April 1970.
        if seconds > 10_000_000 {
            let of_seconds = seconds.checked_mul(1_000_000_000);
            prop_assert_eq!(read(&format!("{seconds}000")), of_seconds);
            prop_assert_eq!(read(&format!("{seconds}000000")), of_seconds);
            prop_assert_eq!(read(&format!("{seconds}{nanos:09}")), expected);
        }
    }

    #[test]
    fn no_format_and_no_text_panics(format in "(%?[-0-9a-zA-Z:. %+]){0,8}", text in any::<Vec<u8>>(), now: i64) {
        if let Ok(compiled) = TimeFormat::new(Some(&format), "Europe/Berlin") {
            compiled.parse(&text, now);
            compiled.parse(b"2024-05-01 10:00:00.5 +0800", now);
            compiled.parse(b"1 2 3 4 5 6 7 8 9", now);
        }
        let any = TimeFormat::new(None, "UTC").expect("a good format");
        any.parse(&text, now);
    }

    #[test]
    fn numbers_of_any_length_are_a_time_or_none(text in "[0-9]{0,60}(\\.[0-9]{0,60})?([eE][-+]?[0-9]{1,4})?", now: i64) {
        let read = TimeFormat::new(None, "UTC").expect("a good format").parse(text.as_bytes(), now);
        prop_assert!(read.is_none_or(|time| time >= 0));
    }
}

#[test]
fn what_ruby_reads_and_jiff_does_not() {
    let (ten, half) = (ns("2024-05-01T10:00:00Z"), ns("2024-05-01T10:00:00.5Z"));
    for (format, text, expected) in [
        ("%Y-%m-%d %H:%M:%S.%L", "2024-05-01 10:00:00.500", half),
        ("%Y-%m-%d %H:%M:%S.%L", "2024-05-01 10:00:00.500000", half),
        ("%Y-%m-%d %H:%M:%S,%3N", "2024-05-01 10:00:00,500", half),
        ("%Y-%m-%d %H:%M:%S.%6N", "2024-05-01 10:00:00.5000", half),
        (
            "%Y-%m-%d %H:%M:%S.%9N",
            "2024-05-01 10:00:00.5000000001",
            half,
        ),
        ("%Y%m%d%H%M%L%S", "20240501100050000", half),
        // A fraction that the format forgot.
        ("%Y-%m-%d %H:%M:%S", "2024-05-01 10:00:00.5", half),
        ("%Y-%m-%d %H:%M:%S", " 2024-05-01  10:00:00,50 ", half),
        ("%s", "1714557600.5", half),
        (
            "%Y-%m-%d %H:%M:%S.%N %z",
            "2024-05-01 18:00:00.5 +08:00",
            half,
        ),
        ("%Y-%m-%d %H:%M:%S.%N %z", "2024-05-01 10:00:00.5 UTC", half),
        ("%Y-%m-%d %H:%M:%S.%N%z", "2024-05-01 10:00:00.5Z", half),
        (
            "%Y-%m-%d %H:%M:%S.%N %Z",
            "2024-05-01 18:00:00.5 GMT+8",
            half,
        ),
        // A name that is several zones is none: the declared one counts.
        ("%Y-%m-%d %H:%M:%S %Z", "2024-05-01 10:00:00 CST", ten),
        ("%Y-%m-%d %H:%M:%S %z", "2024-05-01 10:00:00 CST", None),
        ("%Y-%m-%d %r", "2024-05-01 10:00:00 AM", ten),
        ("%Y-%m-%d %I:%M %p", "2024-05-01 10:00 a.m.", ten),
        ("%Y-%-m-%-d %T", "2024-5-1 10:00:00.5", half),
        ("%c", "Wed May  1 10:00:00 2024", ten),
        ("%+", "Wed May  1 10:00:00 UTC 2024", ten),
        ("%v %T", " 1-May-2024 10:00:00.5", half),
        ("%s.%L", "1714557600.500", half),
        ("%Q", "1714557600500", half),
    ] {
        assert_eq!(time(Some(format), "UTC", text), expected, "{format} {text}");
    }
}

#[test]
fn without_a_format_the_forms_of_rfc_3339_and_its_neighbours_are_read() {
    for text in [
        "2024-05-01T10:00:00Z",
        "2024-05-01t10:00:00z",
        "2024-05-01 10:00:00",
        "2024-05-01 10:00:00 UTC",
        "2024-05-01T18:00:00+0800",
        "2024-05-01T18:00:00 +08:00",
        "2024-05-01T10:00",
        "1714557600",
        "1714557600.000",
        "1.7145576e9",
        "17145576E+2",
        "1714557600000",
        "1714557600000000",
        "1714557600000000000",
    ] {
        assert_eq!(
            time(None, "UTC", text),
            ns("2024-05-01T10:00:00Z"),
            "{text}"
        );
    }
    for text in [
        "",
        "-",
        "-5",
        "2024",
        "2024-05-01",
        "2024-13-01T10:00:00Z",
        "2024-02-30T10:00:00Z",
        "2024-05-01T24:00:00Z",
        "2024-05-01T10:00:00X1",
        "2024-05-01T10:00:00Z and more",
        "1969-12-31T23:59:59Z",
        "2263-01-01T00:00:00Z",
        "1.2.3",
        "12e",
        "1e99999",
        "99999999999999999999",
    ] {
        // A bare year is a number of seconds.
        let expected = (text == "2024").then_some(2_024_000_000_000);
        assert_eq!(time(None, "UTC", text), expected, "{text}");
    }
}

#[test]
fn a_time_without_year_is_of_the_year_that_puts_it_at_most_a_day_ahead() {
    let read = |text: &str, now: &str| {
        let format = TimeFormat::new(Some("%b %d %H:%M:%S"), "Asia/Shanghai").expect("good");
        format.parse(text.as_bytes(), ns(now).expect("a time"))
    };
    // Written before midnight in Shanghai, read after it.
    assert_eq!(
        read("Dec 31 23:59:59", "2024-12-31T16:00:05Z"),
        ns("2024-12-31T15:59:59Z")
    );
    assert_eq!(
        read("Dec 31 23:59:59", "2025-01-02T00:00:00Z"),
        ns("2024-12-31T15:59:59Z")
    );
    // A clock that is ahead by less than a day has the new year already.
    assert_eq!(
        read("Jan  1 00:00:10", "2024-12-31T15:59:00Z"),
        ns("2024-12-31T16:00:10Z")
    );
    assert_eq!(
        read("Mar 12 10:00:00", "2024-03-12T08:00:00Z"),
        ns("2024-03-12T02:00:00Z")
    );
    assert_eq!(
        read("Mar 20 10:00:00", "2024-03-12T08:00:00Z"),
        ns("2023-03-20T02:00:00Z")
    );
    assert_eq!(
        read("Feb 29 10:00:00", "2023-03-12T08:00:00Z"),
        ns("2020-02-29T02:00:00Z")
    );
    assert_eq!(read("Feb 30 10:00:00", "2023-03-12T08:00:00Z"), None);
}

#[test]
fn a_time_without_date_is_of_the_day_that_puts_it_at_most_an_hour_ahead() {
    let read = |text: &str, now: &str| {
        let format = TimeFormat::new(Some("%H:%M:%S,%L"), "+08:00").expect("good");
        format.parse(text.as_bytes(), ns(now).expect("a time"))
    };
    assert_eq!(
        read("23:59:59,5", "2024-03-12T16:00:01Z"),
        ns("2024-03-12T15:59:59.5Z")
    );
    assert_eq!(
        read("00:00:10,0", "2024-03-12T15:59:50Z"),
        ns("2024-03-12T16:00:10Z")
    );
    assert_eq!(
        read("12:00:00,0", "2024-03-12T15:59:50Z"),
        ns("2024-03-12T04:00:00Z")
    );
}

#[test]
fn a_zone_of_the_text_wins_over_the_declared_one() {
    let format = Some("%Y-%m-%d %H:%M:%S %z");
    let shanghai = "Asia/Shanghai";
    assert_eq!(
        time(format, shanghai, "2024-05-01 10:00:00 -0500"),
        ns("2024-05-01T15:00:00Z")
    );
    let format = Some("%Y-%m-%d %H:%M:%S");
    assert_eq!(
        time(format, shanghai, "2024-05-01 10:00:00"),
        ns("2024-05-01T02:00:00Z")
    );
    // A leap second is the one before it.
    assert_eq!(
        time(format, "UTC", "2016-12-31 23:59:60"),
        ns("2016-12-31T23:59:59Z")
    );
}

#[test]
fn a_format_that_cannot_be_read_says_why() {
    let error = |format: &str| {
        TimeFormat::new(Some(format), "UTC")
            .map(|_| ())
            .expect_err("refused")
    };
    assert_eq!(
        error("%Y-%K"),
        "the time format `%Y-%K` has `%K`, which is not known"
    );
    assert_eq!(
        error("%G-W%V"),
        "the time format `%G-W%V` has `%G`, which is not known"
    );
    assert_eq!(error("%Y %"), "the time format `%Y %` ends within a `%`");
    assert_eq!(
        error("%M:%S"),
        "the time format `%M:%S` says neither a date nor an hour"
    );
    assert_eq!(
        error("%Y %d"),
        "the time format `%Y %d` has a day, but no month"
    );
    assert_eq!(
        error(""),
        "the time format `` says neither a date nor an hour"
    );
    let zone = TimeFormat::new(None, "Nowhere")
        .map(|_| ())
        .expect_err("refused");
    assert_eq!(zone, "no time zone is called `Nowhere`");
}
