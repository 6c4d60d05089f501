//! The logistic function and its inverse in fixed point: probabilities are mixed on a scale where evidence adds.

use std::sync::OnceLock;

/// `round(65536 / (1 + exp(-x / 4)))` for `x` from -32 to 32, at least 1 and at most 65,535.
#[rustfmt::skip]
const LOGISTIC: [u16; 65] = [
    22, 28, 36, 47, 60, 77, 98, 126, 162, 208, 267,
    342, 439, 562, 720, 922, 1179, 1506, 1921, 2446, 3108, 3938,
    4971, 6249, 7812, 9702, 11_955, 14_595, 17_625, 21_025, 24_743, 28_693, 32_768,
    36_843, 40_793, 44_511, 47_911, 50_941, 53_581, 55_834, 57_724, 59_287, 60_565, 61_598,
    62_428, 63_090, 63_615, 64_030, 64_357, 64_614, 64_816, 64_974, 65_097, 65_194, 65_269,
    65_328, 65_374, 65_410, 65_438, 65_459, 65_476, 65_489, 65_500, 65_508, 65_514,
];

/// Greatest magnitude of a stretched probability: odds of `e^8`.
pub(super) const LIMIT: i32 = 2047;

/// 16-bit probability of log-odds in 1/256, by linear interpolation.
pub(super) fn squash(log_odds: i32) -> u16 {
    let position = (log_odds.clamp(-LIMIT, LIMIT) + 2048) as u32;
    let (index, fraction) = ((position >> 6) as usize, position & 63);
    let (left, right) = (u32::from(LOGISTIC[index]), u32::from(LOGISTIC[index + 1]));
    (left + (((right - left) * fraction + 32) >> 6)) as u16
}

/// Log-odds in 1/256 of a probability in 1/4096: the least that [`squash`] maps to it or above.
pub(super) fn stretch(probability: u16) -> i32 {
    static TABLE: OnceLock<Vec<i16>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let mut log_odds = -LIMIT;
        (0..4096u32)
            .map(|slot| {
                // The middle of the slot.
                while log_odds < LIMIT && u32::from(squash(log_odds)) < 16 * slot + 8 {
                    log_odds += 1;
                }
                log_odds as i16
            })
            .collect()
    });
    i32::from(table[usize::from(probability.min(4095))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_the_logistic_function() {
        for (index, &value) in LOGISTIC.iter().enumerate() {
            let exact = 65536.0 / (1.0 + (-(index as f64 - 32.0) / 4.0).exp());
            assert_eq!(value, exact.round().clamp(1.0, 65535.0) as u16);
        }
    }

    #[test]
    fn stretch_inverts_squash() {
        for log_odds in -1500..1500 {
            let back = stretch(squash(log_odds) >> 4);
            assert!((back - log_odds).abs() <= 24, "{log_odds} {back}");
        }
        assert!((-LIMIT..LIMIT).all(|x| squash(x) <= squash(x + 1)));
    }
}
