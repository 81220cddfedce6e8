//! Write a record's time: RFC 3339 in UTC, as `@timestamp`, the first member of every object.
//! Place: within **batch**. Neighbours share the second, and all records of a slice the read time, so that most of it is
//! a copy.
//! Invariant: 3, 6 or 9 digits of the second: as many as it needs, and never fewer than Filebeat writes.

use super::Day;
use super::target::civil;

/// The beginning of an object up to its time's closing quote, kept from record to record.
#[derive(Debug, Clone)]
pub struct TimeCache {
    /// What `text` says.
    time_ns: i64,
    second: i64,
    text: [u8; LENGTH],
    /// How much of `text` counts.
    length: usize,
}

const FORM: &[u8; LENGTH] = b"{\"@timestamp\":\"0000-00-00T00:00:00.000000000Z\"";
const LENGTH: usize = 46;
/// Where the year begins.
const YEAR: usize = 15;
/// Where the digits after the point begin.
const FRACTION: usize = YEAR + 20;

const SECOND: i64 = 1_000_000_000;
const DAY: i64 = 86_400;

impl Default for TimeCache {
    fn default() -> Self {
        let mut cache = Self {
            time_ns: 0,
            second: 0,
            text: *FORM,
            length: LENGTH,
        };
        cache.set_second(0);
        cache.set(0);
        cache
    }
}

impl TimeCache {
    /// Appends `{"@timestamp":"2026-11-24T11:30:25.123Z"` for nanoseconds since 1970.
    pub fn write(&mut self, out: &mut Vec<u8>, time_ns: i64) {
        if time_ns != self.time_ns {
            self.set(time_ns);
        }
        out.extend_from_slice(&self.text[..self.length]);
    }

    fn set(&mut self, time_ns: i64) {
        self.time_ns = time_ns;
        let second = time_ns.div_euclid(SECOND);
        if second != self.second {
            self.set_second(second);
        }
        let mut rest = time_ns.rem_euclid(SECOND);
        let mut digits = 9;
        while digits > 3 && rest % 1_000 == 0 {
            digits -= 3;
            rest /= 1_000;
        }
        put(&mut self.text[FRACTION..FRACTION + digits], rest);
        let end = FRACTION + digits;
        self.text[end..end + 2].copy_from_slice(b"Z\"");
        self.length = end + 2;
    }

    fn set_second(&mut self, second: i64) {
        self.second = second;
        // An i64 of nanoseconds has less than 110,000 days either way, and its years have four digits.
        let (year, month, date) = civil(second.div_euclid(DAY) as Day);
        let of_day = second.rem_euclid(DAY);
        let text = &mut self.text[YEAR..FRACTION];
        put(&mut text[..4], year);
        put(&mut text[5..7], month);
        put(&mut text[8..10], date);
        put(&mut text[11..13], of_day / 3_600);
        put(&mut text[14..16], of_day / 60 % 60);
        put(&mut text[17..19], of_day % 60);
    }
}

/// Fills `digits` with a decimal number, zeros first.
fn put(digits: &mut [u8], mut number: i64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(cache: &mut TimeCache, time_ns: i64) -> String {
        let mut out = Vec::new();
        cache.write(&mut out, time_ns);
        let object = String::from_utf8(out).expect("ASCII") + "}";
        let object: serde_json::Value = serde_json::from_str(&object).expect("an object");
        object["@timestamp"].as_str().expect("a string").to_owned()
    }

    #[test]
    fn a_time_has_as_many_digits_as_it_needs_by_threes() {
        let cache = &mut TimeCache::default();
        for (time_ns, want) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_795_519_825_123_456_789, "2026-11-24T11:30:25.123456789Z"),
            (1_795_519_825_123_000_000, "2026-11-24T11:30:25.123Z"),
            (1_795_519_825_123_456_000, "2026-11-24T11:30:25.123456Z"),
            (1_795_519_825_000_000_001, "2026-11-24T11:30:25.000000001Z"),
            (1_795_519_825_000_000_001, "2026-11-24T11:30:25.000000001Z"),
            (-1, "1969-12-31T23:59:59.999999999Z"),
            (0, "1970-01-01T00:00:00.000Z"),
            (i64::MIN, "1677-09-21T00:12:43.145224192Z"),
            (i64::MAX, "2262-04-11T23:47:16.854775807Z"),
        ] {
            assert_eq!(written(cache, time_ns), want);
        }
    }

    proptest! {
        #[test]
        fn times_in_any_order_are_read_back_as_they_were(
            times in prop::collection::vec(
                prop_oneof![any::<i64>(), 1_795_519_825_000_000_000..1_795_519_827_000_000_000_i64],
                1..20,
            )
        ) {
            let cache = &mut TimeCache::default();
            for time_ns in times {
                let back: jiff::Timestamp = written(cache, time_ns).parse().expect("RFC 3339");
                prop_assert_eq!(back.as_nanosecond(), i128::from(time_ns));
            }
        }
    }
}
