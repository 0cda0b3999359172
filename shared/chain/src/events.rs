//! Inclusion is not success: what a block's events say of one extrinsic (chain 6).

use scale_info::TypeDef;
use scale_value::{Composite, Value, ValueDef};

use crate::bounds::{Reader, Unreadable};
use crate::metadata::{Metadata, MetadataError};
use crate::storage::{Decoded, StorageError, bytes, count, field, named, number};

/// One event of a block.
#[derive(Debug, Clone)]
pub struct Event {
    /// Position of the extrinsic that it belongs to, if it belongs to one.
    pub extrinsic: Option<u32>,
    /// Pallet.
    pub pallet: String,
    /// Name.
    pub name: String,
    /// Fields.
    pub fields: Composite<u32>,
}

/// The events of a block, as far as they could be decoded.
#[derive(Debug)]
pub struct Events {
    /// In order.
    pub events: Vec<Event>,
    /// Records from the first one on that could not be decoded.
    pub undecoded: u32,
}

/// Why a runtime refused an extrinsic that was in a block, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DispatchError {
    /// Pallet, for an error of a pallet.
    pub pallet: Option<String>,
    /// Name of the error.
    pub name: String,
}

impl std::fmt::Display for DispatchError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.pallet {
            Some(pallet) => write!(formatter, "{pallet}.{}", self.name),
            None => formatter.write_str(&self.name),
        }
    }
}

/// What became of one extrinsic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It did what it says.
    Success,
    /// It was included, consumed its nonce, and did nothing.
    Failed(DispatchError),
    /// The events do not tell: the record was not reached or is not there.
    Untold,
}

/// Decodes the value of `System.Events`. A record that cannot be decoded ends the reading, because nothing says how long it is.
///
/// # Errors
/// When the runtime's metadata describes no list of events, or the node's are not to be believed.
pub fn decode(metadata: &Metadata, mut encoded: &[u8]) -> Result<Events, StorageError> {
    let list = metadata.storage("System", "Events")?.value;
    let TypeDef::Sequence(sequence) = metadata.definition(list)? else {
        return Err(MetadataError::missing("list in", "System.Events").into());
    };
    let total = count(&mut encoded)
        .ok_or_else(|| StorageError::Value { what: "System.Events".into(), reason: "it has no count".into() })?;
    let (mut events, mut reader) = (Vec::new(), Reader::new(metadata.types()));
    for read in 0..total {
        let record = match reader.value(sequence.type_param.id, &mut encoded) {
            Err(Unreadable::Excess(reason)) => return Err(StorageError::Excess { what: "System.Events".into(), reason }),
            record => record.ok().and_then(event),
        };
        match record {
            Some(event) => events.push(event),
            None => return Ok(Events { events, undecoded: total - read }),
        }
    }
    Ok(Events { events, undecoded: 0 })
}

fn event(record: Decoded) -> Option<Event> {
    let extrinsic = match &field(&record, "phase")?.value {
        ValueDef::Variant(phase) if phase.name == "ApplyExtrinsic" => Some(number(phase.values.values().next()?)?),
        _ => None,
    };
    let ValueDef::Variant(outer) = &field(&record, "event")?.value else { return None };
    let ValueDef::Variant(inner) = &outer.values.values().next()?.value else { return None };
    Some(Event { extrinsic, pallet: outer.name.clone(), name: inner.name.clone(), fields: inner.values.clone() })
}

impl Events {
    /// What became of the extrinsic at `position` in the block.
    #[must_use]
    pub fn verdict(&self, metadata: &Metadata, position: u32) -> Verdict {
        let own = self.events.iter().filter(|event| event.extrinsic == Some(position) && event.pallet == "System");
        for event in own {
            match event.name.as_str() {
                "ExtrinsicSuccess" => return Verdict::Success,
                "ExtrinsicFailed" => return Verdict::Failed(dispatch_error(metadata, event)),
                _ => {}
            }
        }
        Verdict::Untold
    }
}

fn dispatch_error(metadata: &Metadata, event: &Event) -> DispatchError {
    let unnamed = || DispatchError { pallet: None, name: "an error that the metadata does not name".into() };
    let Some(Value { value: ValueDef::Variant(variant), .. }) = named(&event.fields, "dispatch_error") else { return unnamed() };
    if variant.name != "Module" {
        return DispatchError { pallet: None, name: variant.name.clone() };
    }
    // One field, itself the module error, or its two fields directly.
    let module = match variant.values.values().next() {
        Some(Value { value: ValueDef::Composite(inner), .. }) if variant.values.len() == 1 => inner,
        _ => &variant.values,
    };
    let index = named(module, "index").and_then(number::<u8>);
    let error = named(module, "error").and_then(|error| bytes(error)?.first().copied());
    match (index, error) {
        (Some(index), Some(error)) => match metadata.error_name(index, error) {
            Ok((pallet, name)) => DispatchError { pallet: Some(pallet.into()), name: name.into() },
            Err(_) => {
                DispatchError { pallet: None, name: format!("error {error} of pallet {index}, which the metadata does not name") }
            }
        },
        _ => unnamed(),
    }
}
