//! Step 3: which kernel libtorch takes for what is asked of it, and what it costs to meet lengths for the first time.

use grail_model::{Kind, Tensor};
use grail_process::clock;

use super::{Outcome, Site};

/// Query heads, key heads and width of a head of a 1.5B.
const HEADS: (i64, i64, i64) = (12, 2, 128);
/// Lengths that nothing was computed for before.
const NEW_LENGTHS: i64 = 64;

/// A call of attention as the modes make it.
struct Case {
    name: String,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Option<Tensor>,
    causal: bool,
    grouped: bool,
}

impl Case {
    /// Queries see what is before them; key heads are shared.
    fn causal(site: &Site, kind: Kind, length: i64) -> anyhow::Result<Self> {
        let (heads, shared, width) = HEADS;
        let random = |heads: i64| Tensor::f_randn([1, heads, length, width], (Kind::Float, site.device()))?.f_to_kind(kind);
        Ok(Self {
            name: format!("causal, {length} tokens"),
            query: random(heads)?,
            key: random(shared)?,
            value: random(shared)?,
            mask: None,
            causal: length > 1,
            grouped: true,
        })
    }

    /// A batch of 16 that is padded: a mask of its own for each, key heads repeated.
    fn padded(site: &Site, kind: Kind, length: i64) -> anyhow::Result<Self> {
        let (heads, _, width) = HEADS;
        let random = || Tensor::f_randn([16, heads, length, width], (Kind::Float, site.device()))?.f_to_kind(kind);
        let places = Tensor::f_arange(length, (Kind::Int64, site.device()))?;
        let causal = places.f_unsqueeze(0)?.f_less_equal_tensor(&places.f_unsqueeze(1)?)?;
        let ends = Tensor::f_arange(16, (Kind::Int64, site.device()))?.f_mul_scalar(-(length / 32))?.f_add_scalar(length)?;
        let real = places.f_unsqueeze(0)?.f_lt_tensor(&ends.f_unsqueeze(1)?)?;
        let mask = causal.f_view([1, 1, length, length])?.f_logical_and(&real.f_view([16, 1, 1, length])?)?;
        let name = format!("16 padded to {length} tokens");
        Ok(Self { name, query: random()?, key: random()?, value: random()?, mask: Some(mask), causal: false, grouped: false })
    }

    /// One query for each of 16 rows over a cache.
    fn one_query(site: &Site, kind: Kind, length: i64) -> anyhow::Result<Self> {
        let padded = Self::padded(site, kind, length)?;
        let last = |x: &Tensor| x.f_narrow(2, length - 1, 1);
        let mask = padded.mask.as_ref().map(last).transpose()?;
        let name = format!("one query over {length} tokens, 16 rows");
        Ok(Self { name, query: last(&padded.query)?, mask, ..padded })
    }

    /// Its kernel, by libtorch's own choice.
    fn kernel(&self) -> anyhow::Result<&'static str> {
        let Self { query, key, value, mask, causal, grouped, .. } = self;
        let chosen = Tensor::f_internal_fused_sdp_choice(query, key, value, mask.as_ref(), 0.0, *causal, None, *grouped)?;
        Ok(match chosen {
            0 => "math",
            1 => "flash",
            2 => "memory-efficient",
            3 => "cuDNN",
            _ => "another one",
        })
    }

    fn call(&self) -> anyhow::Result<Tensor> {
        let Self { query, key, value, mask, causal, grouped, .. } = self;
        Ok(Tensor::f_scaled_dot_product_attention(query, key, value, mask.as_ref(), 0.0, *causal, None, *grouped)?)
    }

    /// Milliseconds of a call, of several that are waited for together.
    fn milliseconds(&self, calls: u32) -> anyhow::Result<f64> {
        let begun = clock::monotonic();
        let mut last = None;
        for _ in 0..calls {
            last = Some(self.call()?);
        }
        // Reading one value waits for the device.
        if let Some(last) = last {
            last.f_double_value(&[0, 0, 0, 0])?;
        }
        Ok(begun.elapsed().as_secs_f64() * 1000.0 / f64::from(calls.max(1)))
    }
}

pub(super) fn check(site: &Site) -> anyhow::Result<Outcome> {
    let kind = site.precision.on(site.device());
    let (longest, calls) = if site.on_gpu() { (1000, 20) } else { (128, 4) };
    let mut cases = Vec::new();
    for length in [1, 2, 100, longest] {
        cases.push(Case::causal(site, kind, length)?);
    }
    cases.push(Case::padded(site, kind, longest)?);
    cases.push(Case::one_query(site, kind, longest)?);
    let mut of_the_causal = "none";
    for case in &cases {
        let kernel = case.kernel()?;
        // Untimed: the kernel is loaded, or compiled.
        case.milliseconds(1)?;
        println!("{}: {kernel}, {:.3} ms", case.name, case.milliseconds(calls)?);
        if case.causal {
            of_the_causal = kernel;
        }
    }
    if !site.on_gpu() {
        return Ok(Outcome::Passed(format!("causal attention without a mask takes {of_the_causal}; new lengths need a GPU")));
    }
    let (first, second, host, device) = new_lengths(site, kind)?;
    println!(
        "{NEW_LENGTHS} new lengths: {first:.2} ms each, the second time {second:.2} ms; {host} MiB more in this process, {device} MiB less free on the device"
    );
    Ok(Outcome::Passed(format!(
        "causal attention without a mask takes {of_the_causal}; a new length costs {:.2} ms more than a known one",
        first - second
    )))
}

/// Milliseconds of a call for lengths that are new, and again; MiB that the process and the device have taken for it.
fn new_lengths(site: &Site, kind: Kind) -> anyhow::Result<(f64, f64, i64, i64)> {
    // The strides that slices of a packed batch have.
    let all = Case::causal(site, kind, 4096)?;
    let slice = |x: &Tensor, length: i64| x.f_narrow(2, 7, length);
    let cases: Vec<Case> = (0..NEW_LENGTHS)
        .map(|index| {
            let length = 301 + 37 * index;
            let (query, key, value) = (slice(&all.query, length)?, slice(&all.key, length)?, slice(&all.value, length)?);
            Ok(Case { name: String::new(), query, key, value, mask: None, causal: true, grouped: true })
        })
        .collect::<anyhow::Result<_>>()?;
    let taken = || (resident(), grail_model::free_memory(site.device()).unwrap_or(0) as i64);
    let (host, free) = taken();
    let mut rounds = [0.0; 2];
    for round in &mut rounds {
        for case in &cases {
            *round += case.milliseconds(1)? / NEW_LENGTHS as f64;
        }
    }
    let (host_after, free_after) = taken();
    Ok((rounds[0], rounds[1], (host_after - host) >> 20, (free - free_after) >> 20))
}

/// Resident bytes of this process.
fn resident() -> i64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<i64>().ok()).unwrap_or(0) << 10
}
