//! Wall-clock instants as they stand in files and values: RFC 3339, whole seconds, never read from a clock here.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::cluster::shorten;

/// Seconds since 1970-01-01T00:00:00Z. For what people and certificates date; cores count with [`crate::Time`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// 0001-01-01 to 9999-12-31, what RFC 3339 and X.509 can write.
    const MIN: i64 = -62_135_596_800;
    const MAX: i64 = 253_402_300_799;

    /// Clamped to the years 1 to 9999, so that it can always be written down.
    pub const fn from_unix(seconds: i64) -> Self {
        if seconds < Self::MIN {
            return Self(Self::MIN);
        }
        if seconds > Self::MAX {
            return Self(Self::MAX);
        }
        Self(seconds)
    }

    pub fn from_system(time: SystemTime) -> Self {
        let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(Self::MAX);
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Self::from_unix(seconds(after)),
            Err(before) => Self::from_unix(-seconds(before.duration())),
        }
    }

    pub const fn unix(self) -> i64 {
        self.0
    }

    #[must_use]
    pub fn plus(self, after: Duration) -> Self {
        Self::from_unix(self.0.saturating_add(i64::try_from(after.as_secs()).unwrap_or(i64::MAX)))
    }

    #[must_use]
    pub fn minus(self, before: Duration) -> Self {
        Self::from_unix(self.0.saturating_sub(i64::try_from(before.as_secs()).unwrap_or(i64::MAX)))
    }

    /// Zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// RFC 3339 with any offset; a fraction of a second is read over.
    pub fn parse(text: &str) -> Result<Self, ParseTimestampError> {
        let bad = || ParseTimestampError { text: shorten(text) };
        parse(text.as_bytes()).map(Self).ok_or_else(bad)
    }
}

fn parse(text: &[u8]) -> Option<i64> {
    let number = |at: usize, len: usize| -> Option<i64> {
        text.get(at..at + len)?
            .iter()
            .try_fold(0, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
    };
    let is = |at: usize, any: &[u8]| text.get(at).is_some_and(|b| any.contains(b));
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    let shape = is(4, b"-") && is(7, b"-") && is(10, b"Tt") && is(13, b":") && is(16, b":");
    // 60 is a leap second; it is read as the second after.
    if !shape || hour > 23 || minute > 59 || second > 60 || year < 1 {
        return None;
    }
    if !(1..=12).contains(&month) || day < 1 || day > days_in(year, month) {
        return None;
    }
    let mut zone = 19;
    if is(zone, b".") {
        let digits = text[zone + 1..].iter().take_while(|b| b.is_ascii_digit()).count();
        if !(1..=9).contains(&digits) {
            return None;
        }
        zone += 1 + digits;
    }
    let offset = if is(zone, b"Zz") && text.len() == zone + 1 {
        0
    } else if is(zone, b"+-") && is(zone + 3, b":") && text.len() == zone + 6 {
        let (h, m) = (number(zone + 1, 2)?, number(zone + 4, 2)?);
        if h > 23 || m > 59 {
            return None;
        }
        (h * 3600 + m * 60) * if text[zone] == b'-' { -1 } else { 1 }
    } else {
        return None;
    };
    let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    (Timestamp::MIN..=Timestamp::MAX).contains(&seconds).then_some(seconds)
}

fn days_in(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar: years are counted from March, so that the leap day is
/// the last of its year, in eras of 400 years (146,097 days).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

impl fmt::Display for Timestamp {
    /// `2026-11-20T21:44:55Z`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil_from_days(self.0.div_euclid(86_400));
        let second = self.0.rem_euclid(86_400);
        let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}Z")
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = ParseTimestampError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("time {text:?} is not RFC 3339, like 2026-11-20T21:44:55Z")]
pub struct ParseTimestampError {
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_written_and_read_as_rfc_3339() {
        for (unix, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_795_211_095, "2026-11-20T21:44:55Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (Timestamp::MAX, "9999-12-31T23:59:59Z"),
            (Timestamp::MIN, "0001-01-01T00:00:00Z"),
        ] {
            assert_eq!(Timestamp::from_unix(unix).to_string(), text);
            assert_eq!(Timestamp::parse(text).unwrap().unix(), unix);
        }
        assert_eq!(Timestamp::from_unix(i64::MAX).to_string(), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn offsets_and_fractions_are_read() {
        let same = Timestamp::parse("2026-11-20T21:44:55Z").unwrap();
        for text in
            ["2026-11-20T23:44:55+02:00", "2026-11-20T16:14:55.123456789-05:30", "2026-11-20t21:44:55.0z"]
        {
            assert_eq!(Timestamp::parse(text).unwrap(), same, "{text}");
        }
    }

    #[test]
    fn every_day_of_nine_centuries_survives_a_round_trip() {
        for day in -200_000..130_000 {
            let (y, m, d) = civil_from_days(day);
            assert_eq!(days_from_civil(y, m, d), day);
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for bad in [
            "",
            "now",
            "2026-11-20",
            "2026-11-20T21:44:55",
            "2026-13-20T21:44:55Z",
            "2026-02-29T21:44:55Z",
            "2026-11-20T24:44:55Z",
            "2026-11-20T21:44:55.Z",
            "2026-11-20T21:44:55Zx",
            "2026-11-20T21:44:55+0200",
            "0000-01-01T00:00:00Z",
            "0001-01-01T00:00:00+01:00",
            "+026-11-20T21:44:55Z",
        ] {
            assert!(Timestamp::parse(bad).is_err(), "{bad}");
        }
    }
}
