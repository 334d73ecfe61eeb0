//! Sizes, times and core lists as people write them.

use std::time::Duration;

/// Parses a size: a number with an optional unit (k, m, g are powers of 1024; `KiB`, `MiB`, `GiB`, `B` are
/// accepted).
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let number: u64 = lower[..digits].parse().map_err(|_| format!("{text:?} is no size, such as 64KiB"))?;
    let shift = match lower[digits..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        unit => return Err(format!("unknown unit {unit:?} in {text:?}; use B, KiB, MiB or GiB")),
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is too large"))
}

/// Parses a duration: a number with a unit (ms, s, m); a bare number means seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().map_err(|_| format!("{text:?} is no duration, such as 10s"))?;
    let unit_seconds = match text[digits..].trim() {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" | "min" => 60.0,
        unit => return Err(format!("unknown unit {unit:?} in {text:?}; use ms, s or m")),
    };
    Duration::try_from_secs_f64(number * unit_seconds).map_err(|e| format!("{text:?}: {e}"))
}

/// A size for people, in units of 1024.
pub(crate) fn show_bytes(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 && b % (1 << 30) == 0 => format!("{} GiB", b >> 30),
        b if b >= 1 << 20 && b % (1 << 20) == 0 => format!("{} MiB", b >> 20),
        b if b >= 1 << 10 && b % (1 << 10) == 0 => format!("{} KiB", b >> 10),
        b => format!("{b} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        let table =
            [("0", 0), ("512", 512), ("4k", 4096), ("64KiB", 65536), ("1 MiB", 1 << 20), ("2g", 2 << 30)];
        for (text, expected) in table {
            assert_eq!(parse_bytes(text), Ok(expected), "{text:?}");
        }
        for text in ["", "KiB", "-1", "4 parsecs", "99999999999g"] {
            assert!(parse_bytes(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn durations_read_as_people_write_them() {
        let table = [("10", 10_000), ("0.5s", 500), ("250ms", 250), ("2m", 120_000)];
        for (text, expected_ms) in table {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(expected_ms)), "{text:?}");
        }
        for text in ["", "s", "-1s", "3 weeks"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn sizes_show_in_the_unit_that_fits() {
        assert_eq!(show_bytes(1 << 20), "1 MiB");
        assert_eq!(show_bytes(4096), "4 KiB");
        assert_eq!(show_bytes(1000), "1000 B");
    }
}
