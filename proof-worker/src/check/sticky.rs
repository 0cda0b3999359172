//! Step 10: an error after which a process can do nothing more with its device.

use anyhow::bail;
use grail_faults::Fault;
use grail_model::{Kind, Tensor};

use super::{Outcome, Site};

pub(super) fn check(site: &Site) -> anyhow::Result<Outcome> {
    if !site.on_gpu() {
        return Ok(Outcome::needs_a_gpu());
    }
    let values = Tensor::f_zeros([8], (Kind::Float, site.device()))?;
    let stray = Tensor::f_from_slice(&[1_000_000_i64])?.f_to(site.device())?;
    let first = values.f_index_select(0, &stray).and_then(|taken| taken.f_double_value(&[0]));
    let Err(first) = first else { bail!("an index far outside was taken, and nothing was said") };
    println!("the error: {first}");
    let next = Tensor::f_zeros([8], (Kind::Float, site.device())).and_then(|zeros| zeros.f_double_value(&[0]));
    match next {
        Ok(_) => bail!("the device goes on after it"),
        Err(next) => {
            println!("what comes next: {next}");
            match Fault::in_text(&next.to_string()) {
                Some(Fault::Sticky) => Ok(Outcome::Passed("the error stays, and is known as one that ends the process".into())),
                known => bail!("the error stays, and is taken for {known:?}"),
            }
        }
    }
}
