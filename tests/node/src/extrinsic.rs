//! Taking an extrinsic apart by the metadata, and verifying its signature over what this node holds to be signed. Written apart
//! from the product's signer, so that a mistake there is not repeated here.

use blake2::{Blake2b256, Digest};
use grail_chain::era::Era;
use parity_scale_codec::{Compact, Decode};

use crate::runtime::Runtime;

/// A signed extrinsic, taken apart.
#[derive(Debug, Clone)]
pub(crate) struct Parsed {
    pub account: [u8; 32],
    pub nonce: u32,
    pub tip: u64,
    pub netuid: u16,
    /// The `info` argument, encoded.
    pub info: Vec<u8>,
}

/// Why it is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The runtime would trap.
    Trap,
    /// The signature does not fit what this node holds to be signed.
    BadProof,
}

/// What the node knows that is signed.
pub(crate) struct Known<'a> {
    pub runtime: &'a Runtime,
    pub genesis: [u8; 32],
    pub height: u64,
    /// Hash of a block of the best chain.
    pub hash: &'a dyn Fn(u64) -> [u8; 32],
}

/// Reads and verifies.
pub(crate) fn parse(known: &Known<'_>, bytes: &[u8]) -> Result<Parsed, Refusal> {
    let rest = &mut &*bytes;
    let length = Compact::<u32>::decode(rest).map_err(|_| Refusal::Trap)?.0 as usize;
    if rest.len() != length || take::<2>(rest)? != [0x84, 0] {
        return Err(Refusal::Trap);
    }
    let account = take::<32>(rest)?;
    let [kind] = take::<1>(rest)?;
    let signature = take::<64>(rest)?;
    let (extra, additional, era, nonce, tip) = extensions(known, rest)?;
    let call = *rest;
    let (netuid, info) = set_commitment(known.runtime, call)?;
    let mut signed = [call, &extra, &additional].concat();
    if signed.len() > 256 {
        signed = Blake2b256::digest(&signed).to_vec();
    }
    let alive = match era {
        Era::Immortal => true,
        Era::Mortal { .. } => known.height < era.death(known.height),
    };
    let key = schnorrkel::PublicKey::from_bytes(&account).map_err(|_| Refusal::BadProof)?;
    let signature = schnorrkel::Signature::from_bytes(&signature).map_err(|_| Refusal::BadProof)?;
    if kind != 1 || !alive || key.verify_simple(b"substrate", &signed, &signature).is_err() {
        return Err(Refusal::BadProof);
    }
    Ok(Parsed { account, nonce, tip, netuid, info })
}

type Extensions = (Vec<u8>, Vec<u8>, Era, u32, u64);

fn extensions(known: &Known<'_>, rest: &mut &[u8]) -> Result<Extensions, Refusal> {
    let types = known.runtime.metadata.types();
    let (mut extra, mut additional) = (Vec::new(), Vec::new());
    let (mut era, mut nonce, mut tip) = (Era::Immortal, 0, 0);
    for extension in known.runtime.metadata.extensions() {
        let before = *rest;
        scale_value::scale::decode_as_type(rest, extension.extra, types).map_err(|_| Refusal::Trap)?;
        let own = &mut &before[..before.len() - rest.len()];
        extra.extend_from_slice(own);
        match extension.name.as_str() {
            "CheckSpecVersion" => additional.extend(known.runtime.spec_version.to_le_bytes()),
            "CheckTxVersion" => additional.extend(known.runtime.transaction_version.to_le_bytes()),
            "CheckGenesis" => additional.extend(known.genesis),
            "CheckMortality" => {
                era = Era::decode(own).ok_or(Refusal::Trap)?;
                additional.extend((known.hash)(era.birth(known.height)));
            }
            "CheckNonce" => nonce = Compact::<u32>::decode(own).map_err(|_| Refusal::Trap)?.0,
            name if name.starts_with("ChargeTransactionPayment") => {
                tip = Compact::<u64>::decode(own).map_err(|_| Refusal::Trap)?.0;
            }
            "CheckMetadataHash" => additional.push(0),
            _ => {}
        }
    }
    Ok((extra, additional, era, nonce, tip))
}

fn set_commitment(runtime: &Runtime, call: &[u8]) -> Result<(u16, Vec<u8>), Refusal> {
    let (pallet, variant) = runtime.metadata.call("Commitments", "set_commitment").map_err(|_| Refusal::Trap)?;
    let rest = &mut &*call;
    if take::<2>(rest)? != [pallet, variant.index] {
        return Err(Refusal::Trap);
    }
    let netuid = u16::from_le_bytes(take::<2>(rest)?);
    let info = rest.to_vec();
    scale_value::scale::decode_as_type(rest, variant.fields[1].ty.id, runtime.metadata.types()).map_err(|_| Refusal::Trap)?;
    if rest.is_empty() { Ok((netuid, info)) } else { Err(Refusal::Trap) }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Refusal> {
    let (taken, left) = rest.split_first_chunk().ok_or(Refusal::Trap)?;
    *rest = left;
    Ok(*taken)
}
