//! Names of targets: `{target}` and `{date}` in an index, topic, path or key.
//! Place: settings give the pattern, a declaration the target, a batch the day.

use super::Day;

/// Fills a pattern in; `{date}` is `YYYY.MM.DD` (UTC), as log-pilot and Filebeat name indices.
pub fn render(pattern: &str, target: &str, day: Day) -> String {
    let (year, month, date) = civil(day);
    pattern
        .replace("{target}", target)
        .replace("{date}", &format!("{year:04}.{month:02}.{date:02}"))
}

/// Year, month and day of the month of a day since 1970-01-01, in the proleptic Gregorian calendar.
pub(super) fn civil(day: Day) -> (i64, i64, i64) {
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
    let z = i64::from(day) + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (
        yoe + era * 400 + i64::from(month <= 2),
        month,
        doy - (153 * mp + 2) / 5 + 1,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_the_calendars_own() {
        assert_eq!(render("{target}-{date}", "web", 0), "web-1970.01.01");
        assert_eq!(render("{target}-{date}", "web", 19_782), "web-2024.02.29");
        assert_eq!(render("all", "web", 20_782), "all");
        assert_eq!(render("{date}", "", -1), "1969.12.31");
    }
}
