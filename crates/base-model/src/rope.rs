//! Rotary position embedding: which frequencies the pairs of a head turn with.

/// Base and scaling of the rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths (`rope_theta`).
    pub theta: f64,
    /// What was changed for longer contexts.
    pub scaling: RopeScaling,
}

/// The kinds of scaling that are computed exactly; all others are refused by name when the model is opened.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// Every frequency divided by `factor`.
    Linear {
        /// Above 0.
        factor: f64,
    },
    /// Llama 3.1's: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context length before the scaling.
        original_context: f64,
    },
    /// A divisor per frequency, as GGUF stores Llama 3.1's (tensor `rope_freqs.weight`); `[head_dim / 2]`.
    Divisors(Vec<f32>),
}

impl Rope {
    /// Angle per position of each pair: `[head_dim / 2]`, in f32 as transformers keeps them
    /// (`modeling_rope_utils.py`).
    #[must_use]
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f32> {
        let plain = (0..head_dim / 2).map(|pair| {
            // The exponent is rounded to f32 first, as in `torch.arange(0, dim, 2).float() / dim`.
            let exponent = (2 * pair) as f32 / head_dim as f32;
            (1.0 / self.theta.powf(f64::from(exponent)) as f32) as f64
        });
        plain.enumerate().map(|(pair, freq)| self.scale(pair, freq) as f32).collect()
    }

    /// Factor on cos and sin. 1 for every scaling that is supported.
    #[must_use]
    pub fn attention_factor(&self) -> f32 {
        1.0
    }

    fn scale(&self, pair: usize, freq: f64) -> f64 {
        match &self.scaling {
            RopeScaling::Default => freq,
            RopeScaling::Linear { factor } => freq / factor,
            RopeScaling::Divisors(divisors) => freq / f64::from(divisors[pair]),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let wavelength = 2.0 * std::f64::consts::PI / freq;
                if wavelength > original_context / low_freq_factor {
                    return freq / factor;
                }
                if wavelength < original_context / high_freq_factor {
                    return freq;
                }
                let ramp = (original_context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - ramp) * freq / factor + ramp * freq
            }
        }
    }

    pub(crate) fn check(&self, head_dim: usize) -> Result<(), String> {
        let positive = |field: &str, value: f64| {
            if value.is_finite() && value > 0.0 { Ok(()) } else { Err(format!("{field} {value} is not above 0")) }
        };
        positive("rope theta", self.theta)?;
        match &self.scaling {
            RopeScaling::Default => Ok(()),
            RopeScaling::Linear { factor } => positive("rope scaling factor", *factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                positive("rope scaling factor", *factor)?;
                positive("rope scaling low_freq_factor", *low_freq_factor)?;
                positive("rope scaling original_max_position_embeddings", *original_context)?;
                if high_freq_factor > low_freq_factor && high_freq_factor.is_finite() {
                    return Ok(());
                }
                Err(format!(
                    "rope scaling high_freq_factor {high_freq_factor} is not above low_freq_factor {low_freq_factor}"
                ))
            }
            RopeScaling::Divisors(divisors) => {
                if divisors.len() != head_dim / 2 {
                    return Err(format!("rope_freqs.weight has {} values, not {}", divisors.len(), head_dim / 2));
                }
                divisors.iter().try_for_each(|value| positive("rope_freqs.weight", f64::from(*value)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_frequencies_fall_from_one() {
        let rope = Rope { theta: 10_000.0, scaling: RopeScaling::Default };
        let freqs = rope.inv_freq(8);
        assert_eq!(freqs.len(), 4);
        assert_eq!(freqs[0], 1.0);
        assert!((freqs[1] - 0.1).abs() < 1e-7 && (freqs[3] - 0.001).abs() < 1e-9, "{freqs:?}");
    }

    #[test]
    fn llama3_scaling_keeps_short_and_divides_long_wavelengths() {
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192.0 };
        let scaled = Rope { theta: 500_000.0, scaling }.inv_freq(128);
        let plain = Rope { theta: 500_000.0, scaling: RopeScaling::Default }.inv_freq(128);
        assert_eq!(scaled[0], plain[0]);
        assert!((scaled[63] * 8.0 / plain[63] - 1.0).abs() < 1e-6);
        assert!(scaled.iter().zip(&plain).all(|(s, p)| s <= p && *s * 8.0 >= p * 0.999_999));
    }

    #[test]
    fn scaling_that_cannot_be_computed_is_refused() {
        let rope = |scaling| Rope { theta: 1e4, scaling };
        assert!(rope(RopeScaling::Linear { factor: 0.0 }).check(64).is_err());
        assert!(rope(RopeScaling::Linear { factor: f64::NAN }).check(64).is_err());
        assert!(rope(RopeScaling::Divisors(vec![1.0; 31])).check(64).is_err());
        assert!(rope(RopeScaling::Divisors(vec![1.0; 32])).check(64).is_ok());
        assert!(Rope { theta: -1.0, scaling: RopeScaling::Default }.check(64).is_err());
    }
}
