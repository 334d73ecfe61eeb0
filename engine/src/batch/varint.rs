//! Variable-length integers of the record format: zigzag, seven bits a byte, least significant first.
//!
//! Owns: their coding. A decoder reads at most 5 bytes for 32 bits and 10 for 64, whatever the bytes say.
//! Source: Kafka documentation, "Message Format" (the coding is Protocol Buffers').

/// Longest 32-bit varint.
pub const VARINT_BYTES_MAX: usize = 5;

/// Longest 64-bit varint.
pub const VARLONG_BYTES_MAX: usize = 10;

/// Appends a 32-bit varint.
pub fn put_varint(out: &mut Vec<u8>, value: i32) {
    put_unsigned(out, u64::from(((value << 1) ^ (value >> 31)) as u32));
}

/// Appends a 64-bit varint.
pub fn put_varlong(out: &mut Vec<u8>, value: i64) {
    put_unsigned(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Bytes that a 32-bit varint takes.
pub fn varint_bytes(value: i32) -> usize {
    unsigned_bytes(u64::from(((value << 1) ^ (value >> 31)) as u32))
}

/// Bytes that a 64-bit varint takes.
pub fn varlong_bytes(value: i64) -> usize {
    unsigned_bytes(((value << 1) ^ (value >> 63)) as u64)
}

/// Takes a 32-bit varint off the front of `bytes`; `None` if it does not end there or does not fit.
pub fn take_varint(bytes: &mut &[u8]) -> Option<i32> {
    let raw = u32::try_from(take_unsigned(bytes, VARINT_BYTES_MAX)?).ok()?;
    Some((raw >> 1) as i32 ^ -((raw & 1) as i32))
}

/// Takes a 64-bit varint off the front of `bytes`; `None` if it does not end there or does not fit.
pub fn take_varlong(bytes: &mut &[u8]) -> Option<i64> {
    let raw = take_unsigned(bytes, VARLONG_BYTES_MAX)?;
    Some((raw >> 1) as i64 ^ -((raw & 1) as i64))
}

fn put_unsigned(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn unsigned_bytes(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn take_unsigned(bytes: &mut &[u8], bytes_max: usize) -> Option<u64> {
    let mut value = 0_u64;
    for (i, &byte) in bytes.iter().take(bytes_max).enumerate() {
        let bits = u64::from(byte & 0x7f);
        let shift = 7 * i as u32;
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            *bytes = &bytes[i + 1..];
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: i64, coded: &[u8]) {
        let mut out = Vec::new();
        put_varlong(&mut out, value);
        assert_eq!(out, coded, "{value}");
        assert_eq!(varlong_bytes(value), coded.len());
        let mut rest = &out[..];
        assert_eq!(take_varlong(&mut rest), Some(value));
        assert!(rest.is_empty());
        if let Ok(small) = i32::try_from(value) {
            out.clear();
            put_varint(&mut out, small);
            assert_eq!(out, coded);
            assert_eq!(varint_bytes(small), coded.len());
            assert_eq!(take_varint(&mut &out[..]), Some(small));
        }
    }

    #[test]
    fn values_have_their_published_codes() {
        check(0, &[0]);
        check(-1, &[1]);
        check(1, &[2]);
        check(63, &[0x7e]);
        check(-64, &[0x7f]);
        check(64, &[0x80, 1]);
        check(300, &[0xd8, 4]);
        check(i64::from(i32::MAX), &[0xfe, 0xff, 0xff, 0xff, 0x0f]);
        check(i64::from(i32::MIN), &[0xff, 0xff, 0xff, 0xff, 0x0f]);
        check(i64::MAX, &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
        check(i64::MIN, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
    }

    #[test]
    fn endless_or_oversized_codes_are_refused() {
        for bad in [&[0x80; 20][..], &[0xff, 0xff, 0xff, 0xff, 0x1f], &[0x80, 0x80], &[]] {
            assert_eq!(take_varint(&mut &bad[..]), None, "{bad:x?}");
        }
        let eleven = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0];
        assert_eq!(take_varlong(&mut &eleven[..]), None);
        let too_wide = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2];
        assert_eq!(take_varlong(&mut &too_wide[..]), None);
    }
}
