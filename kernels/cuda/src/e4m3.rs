//! `__nv_fp8_e4m3`: a sign, four bits of exponent with bias 7, three of fraction; no infinities, 0x7f is NaN (OCP 8-bit floating point
//! specification 1.0).

/// The largest value.
pub const MAX: f32 = 448.0;

/// To the nearest e4m3, ties to even; what is larger than 448 becomes 448.
#[must_use]
pub fn encode(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs();
    if value.is_nan() {
        return 0x7f;
    }
    if magnitude >= MAX {
        return sign | 0x7e;
    }
    // Numbers lie 2^(exponent - 3) apart, and 2^-9 below 2^-6.
    let exponent = (magnitude.to_bits() >> 23).cast_signed() - 127;
    let exponent = exponent.max(-6);
    let steps = (magnitude * 2f32.powi(3 - exponent)).round_ties_even() as u8;
    // Eight steps are the 1 that is not stored; sixteen carry into the exponent.
    sign | ((exponent + 6) as u8 * 8 + steps)
}

/// Exact.
#[must_use]
pub fn decode(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match code & 0x7f {
        0x7f => f32::NAN,
        _ if exponent == 0 => fraction * 2f32.powi(-9),
        _ => (8.0 + fraction) * 2f32.powi(exponent - 10),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_is_as_its_definition_says() {
        // OCP 8-bit floating point specification 1.0, table 1: largest, smallest normal, largest and smallest subnormal.
        let known = [(0x7e, 448.0), (0x08, 2f32.powi(-6)), (0x07, 0.875 * 2f32.powi(-6)), (0x01, 2f32.powi(-9))];
        for (code, value) in known {
            assert_eq!((decode(code), decode(code | 0x80)), (value, -value));
        }
        for code in (0..=255u8).filter(|code| code & 0x7f != 0x7f) {
            assert_eq!(encode(decode(code)), code);
            // Halfway to the next one goes to the even of both, a little less or more does not.
            if code & 0x7f < 0x7e {
                let (low, high) = (decode(code), decode(code + 1));
                let middle = f32::midpoint(low, high);
                assert_eq!(encode(middle), if code % 2 == 0 { code } else { code + 1 }, "{middle}");
                assert_eq!(encode(middle + (low - middle) * 1e-3), code);
                assert_eq!(encode(middle + (high - middle) * 1e-3), code + 1);
            }
        }
        assert_eq!([1e9, f32::INFINITY, -1e9].map(encode), [0x7e, 0x7e, 0xfe]);
    }

    #[test]
    fn every_code_of_e4m3_comes_back_and_middles_go_to_even() {
        for code in (0..=255u8).filter(|code| code & 0x7f != 0x7f) {
            assert_eq!(encode(decode(code)), code);
            if code & 0x7f < 0x7e {
                let middle = f32::midpoint(decode(code), decode(code + 1));
                assert_eq!(encode(middle), code + code % 2, "{middle}");
                let (below, above) = (middle.abs().next_down(), middle.abs().next_up());
                assert_eq!([below, above].map(encode), [code & 0x7f, (code & 0x7f) + 1]);
            }
        }
        let ends = [1e9, f32::NEG_INFINITY, f32::NAN, 1e-40].map(encode);
        assert_eq!(ends, [0x7e, 0xfe, 0x7f, 0]);
    }
}
