//! How large a rate may be of which a sample was seen.

/// The upper end of the one-sided 95 % confidence interval (Clopper and Pearson's) for the probability of an event
/// that occurred `events` times in `trials`. 0 of n is not 0: about 3 / n. Without trials, 1.
pub fn upper_95(events: u64, trials: u64) -> f64 {
    if trials == 0 || events >= trials {
        return 1.0;
    }
    let (k, n) = (float(events), float(trials));
    // The p for which `events` or fewer would be seen with 5 %: I_p(k + 1, n - k) = 0.95.
    let (mut low, mut high) = (k / n, 1.0);
    for _ in 0..100 {
        let middle = f64::midpoint(low, high);
        if incomplete_beta(k + 1.0, n - k, middle) < 0.95 {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

#[expect(clippy::cast_precision_loss, reason = "counts above 2^53 do not occur")]
fn float(n: u64) -> f64 {
    n as f64
}

/// The regularised incomplete beta function, by Lentz's continued fraction.
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return if x <= 0.0 { 0.0 } else { 1.0 };
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (-x).ln_1p()).exp();
    if x < (a + 1.0) / (a + b + 2.0) {
        front * fraction(a, b, x) / a
    } else {
        1.0 - front * fraction(b, a, 1.0 - x) / b
    }
}

fn fraction(a: f64, b: f64, x: f64) -> f64 {
    let away = |v: f64| if v.abs() < 1e-300 { 1e-300 } else { v };
    let mut numerator = 1.0;
    let mut denominator = 1.0 / away(1.0 - (a + b) * x / (a + 1.0));
    let mut value = denominator;
    for step in 1..500_u32 {
        let m = f64::from(step);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        for term in [even, odd] {
            denominator = 1.0 / away(1.0 + term * denominator);
            numerator = away(1.0 + term / numerator);
            value *= denominator * numerator;
        }
        if (denominator * numerator - 1.0).abs() < 1e-14 {
            break;
        }
    }
    value
}

/// Lanczos' approximation (g = 7, n = 9).
fn ln_gamma(x: f64) -> f64 {
    const TERMS: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    let x = x - 1.0;
    let mut sum = 0.999_999_999_999_809_9;
    let mut i = 1.0;
    for term in TERMS {
        sum += term / (x + i);
        i += 1.0;
    }
    let t = x + 7.5;
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probability of `k` or fewer events, summed.
    fn at_most(k: u64, n: u64, p: f64) -> f64 {
        let (mut term, mut sum) = ((float(n) * (-p).ln_1p()).exp(), 0.0);
        for i in 0..=k {
            sum += term;
            term *= float(n - i) / float(i + 1) * p / (1.0 - p);
        }
        sum
    }

    #[test]
    fn bounds() {
        for (k, n) in [(0, 1), (0, 3), (0, 100), (0, 100_000), (1, 10), (3, 1_000), (50, 100), (7, 1_000_000)]
        {
            let p = upper_95(k, n);
            assert!((at_most(k, n, p) - 0.05).abs() < 1e-6, "{k} of {n}: {p}, {}", at_most(k, n, p));
        }
        assert!((upper_95(0, 1_000) - 3.0 / 1_000.0).abs() < 1e-4, "the rule of three");
        assert!((upper_95(99, 100) - 0.95_f64.powf(0.01)).abs() < 1e-9, "all but one");
        for (k, n) in [(0, 0), (5, 5)] {
            assert!(upper_95(k, n) >= 1.0, "{k} of {n}");
        }
        let (few, many) = (upper_95(0, 10), upper_95(0, 1_000_000_000));
        assert!(many > 0.0 && many < few);
    }
}
