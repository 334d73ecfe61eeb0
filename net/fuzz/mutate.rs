//! Changes bytes the way that breaks decoders: lengths and offsets that lie, pieces that are cut, doubled and swapped.

/// A reproducible stream of random numbers (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, which is positive.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// Numbers at which decoders go wrong.
const EDGES: [u32; 12] =
    [0, 1, 4, 8, 12, 16, 0x7f, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_fff0, 0xffff_ffff];

/// Longest case.
const CASE_BYTES_MAX: usize = 64 << 10;

/// Changes `case` in one to eight places; `other` lends pieces.
pub fn mutate(case: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(8) {
        mutate_once(case, other, random);
        case.truncate(CASE_BYTES_MAX);
    }
}

fn mutate_once(case: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    if case.is_empty() {
        case.extend_from_slice(other);
        return;
    }
    let at = random.below(case.len());
    match random.below(9) {
        0 => case[at] ^= 1 << random.below(8),
        1 => case[at] = random.next() as u8,
        2 => put(case, at, &EDGES[random.below(EDGES.len())].to_le_bytes()[..1 + random.below(4)]),
        3 => put(case, at, &EDGES[random.below(EDGES.len())].to_be_bytes()),
        // A small change of an aligned word: an offset or a length that points just beside.
        4 => {
            let at = at & !3;
            if let Some(word) = case.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
                let changed =
                    u32::from_le_bytes(*word).wrapping_add(random.below(33) as u32).wrapping_sub(16);
                put(case, at, &changed.to_le_bytes());
            }
        }
        5 => case.truncate(at),
        6 => {
            let length = random.below(case.len() - at) + 1;
            let piece = case[at..at + length].to_vec();
            let to = random.below(case.len());
            case.splice(to..to, piece);
        }
        7 => {
            let length = random.below((case.len() - at).min(64)) + 1;
            case.drain(at..at + length);
        }
        _ => {
            if !other.is_empty() {
                let from = random.below(other.len());
                let length = random.below(other.len() - from) + 1;
                case.splice(at..at, other[from..from + length].iter().copied());
            }
        }
    }
}

fn put(case: &mut [u8], at: usize, bytes: &[u8]) {
    let length = bytes.len().min(case.len() - at);
    case[at..at + length].copy_from_slice(&bytes[..length]);
}
