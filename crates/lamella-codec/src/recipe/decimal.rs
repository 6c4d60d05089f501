//! Decimal texts of numbers, exact in both directions.

/// The shortest decimal text that reads back as `value`, its decimal point moved `shift` places to the right.
///
/// Moving the point of the *text* (not multiplying) is what lets a percentage return to the same fraction.
pub(super) fn text(value: f64, shift: i32) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let scientific = format!("{value:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return scientific; // Not finite: no recipe that was read holds such a number.
    };
    let exponent = exponent.parse::<i32>().unwrap_or(0) + shift;
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    if !(-5..16).contains(&exponent) {
        return format!("{sign}{mantissa}e{exponent}");
    }
    let digits: String = mantissa.chars().filter(|&c| c != '.').collect();
    if exponent < 0 {
        let zeros = "0".repeat((-exponent - 1) as usize);
        return format!("{sign}0.{zeros}{digits}");
    }
    let whole = exponent as usize + 1;
    if digits.len() <= whole {
        return format!("{sign}{digits}{}", "0".repeat(whole - digits.len()));
    }
    format!("{sign}{}.{}", &digits[..whole], &digits[whole..])
}

/// The number that `text` (which follows the grammar) names, its decimal point moved `shift` places to the left;
/// `None` where no finite number is that large.
pub(super) fn value(text: &str, shift: i32) -> Option<f64> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent = exponent.parse::<i32>().ok()?.checked_sub(shift)?;
    let value = format!("{mantissa}e{exponent}").parse::<f64>().ok()?;
    // Minus zero would have a text of its own.
    value.is_finite().then_some(if value == 0.0 { 0.0 } else { value })
}
