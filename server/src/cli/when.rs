//! Where to start and end reading, as people write it: `earliest`, `latest`, an offset, a time.
//!
//! Owns: the text forms, and the arithmetic of dates (UTC, proleptic Gregorian calendar). Pure.

use corelog_client::{Offset, StartAt};

/// What `--from` says, before it is known what time it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The first record.
    Earliest,
    /// Only what comes from now on.
    Latest,
    /// This offset.
    Offset(u64),
    /// This time in ms since the Unix epoch.
    TimestampMs(i64),
    /// So long before now, in ms.
    AgoMs(i64),
}

impl From {
    /// The position to start at.
    pub fn start(self, now_ms: i64) -> StartAt {
        match self {
            Self::Earliest => StartAt::Earliest,
            Self::Latest => StartAt::Latest,
            Self::Offset(offset) => StartAt::Offset(Offset(offset)),
            Self::TimestampMs(at) => StartAt::TimestampMs(at),
            Self::AgoMs(ago) => StartAt::TimestampMs(now_ms.saturating_sub(ago)),
        }
    }
}

impl std::str::FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "earliest" => return Ok(Self::Earliest),
            "latest" => return Ok(Self::Latest),
            _ => {}
        }
        if let Some(time) = text.strip_prefix('@') {
            let time = time.parse().ok().or_else(|| date_time_ms(time));
            return time.map(Self::TimestampMs).ok_or_else(|| {
                "after @, expected ms since 1970 or a time in UTC such as 2026-11-24T09:30:00Z".to_owned()
            });
        }
        if let Some(ago) = text.strip_suffix(" ago").or_else(|| text.strip_prefix('-')) {
            return duration_ms(ago)
                .map(Self::AgoMs)
                .ok_or_else(|| "expected for example -90s, -10m, -2h, -1d".to_owned());
        }
        text.parse().map(Self::Offset).map_err(|_| {
            "expected earliest, latest, an offset, @TIME (ms since 1970, or 2026-11-24T09:30:00Z), or -10m".to_owned()
        })
    }
}

/// `500ms`, `90s`, `10m`, `2h`, `1d`.
pub fn duration_ms(text: &str) -> Option<i64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(unit_ms)
}

/// `2026-11-24`, `2026-11-24T09:30`, `2026-11-24T09:30:05`, with or without a fraction, `Z` or nothing behind.
fn date_time_ms(text: &str) -> Option<i64> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00"));
    let mut parts = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if !(1..=9999).contains(&year)
        || !(1..=12).contains(&month)
        || !(1..=days_in_month(year, month)).contains(&day)
    {
        return None;
    }
    let mut parts = time.split(':');
    let hour: i64 = parts.next()?.parse().ok()?;
    let minute: i64 = parts.next()?.parse().ok()?;
    let second: f64 = parts.next().unwrap_or("0").parse().ok()?;
    if parts.next().is_some() || !(0..24).contains(&hour) || !(0..60).contains(&minute) {
        return None;
    }
    if !(0.0..60.0).contains(&second) {
        return None;
    }
    let seconds = days_since_epoch(year, month, day) * 86_400 + hour * 3_600 + minute * 60;
    Some(seconds * 1_000 + (second * 1_000.0) as i64)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a date: years are counted from March, so that the leap day is the last of a year.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let march_year = if month > 2 { year } else { year - 1 };
    let march_month = (month + 9) % 12;
    let day_of_year = (153 * march_month + 2) / 5 + day - 1;
    let leap_days = march_year / 4 - march_year / 100 + march_year / 400;
    // Day 0 of this count is 0000-03-01, 719468 days before the epoch.
    march_year * 365 + leap_days + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let cases = [
            ("earliest", From::Earliest),
            ("latest", From::Latest),
            ("0", From::Offset(0)),
            ("42", From::Offset(42)),
            ("@1700000000000", From::TimestampMs(1_700_000_000_000)),
            ("@2023-11-14T22:13:20Z", From::TimestampMs(1_700_000_000_000)),
            ("@1970-01-01", From::TimestampMs(0)),
            ("@2024-02-29 12:00", From::TimestampMs(1_709_208_000_000)),
            ("@2000-03-01T00:00:00.250", From::TimestampMs(951_868_800_250)),
            ("-10m", From::AgoMs(600_000)),
            ("2h ago", From::AgoMs(7_200_000)),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let cases = [
            "",
            "first",
            "-",
            "-10",
            "-10x",
            "@",
            "@2023-02-29",
            "@2023-13-01",
            "@2023-01-01T24:00",
            "@1-1",
            "1.5",
        ];
        for text in cases {
            assert!(text.parse::<From>().is_err(), "{text}");
        }
    }
}
