//! The events of the host itself, and how an event is defined. Those of children are defined beside what causes them, those of a
//! workload in the workload.

use serde::{Deserialize, Serialize};

/// Defines an event: its fields, its name in the journal, whether it is lasting, and its log line.
#[macro_export]
macro_rules! event {
    (
        $(#[$meta:meta])*
        $name:ident, $kind:literal, lasting: $lasting:literal, $level:ident $sentence:literal
        { $($(#[$field_meta:meta])* $field:ident: $type:ty),+ $(,)? }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type),+
        }

        impl $crate::journal::Event for $name {
            const KIND: &'static str = $kind;
            const LASTING: bool = $lasting;
            fn log(&self) {
                $crate::tracing::$level!($($field = ?self.$field),+, $sentence);
            }
        }
    };
}

event! {
    /// A supervisor began.
    SupervisorStarted, "supervisor_started", lasting: true, info "The supervisor starts."
    {
        /// Its process id.
        pid: u32,
        /// Its version.
        version: String,
        /// The hotkey's address.
        hotkey: String,
    }
}

event! {
    /// A supervisor ended in order.
    SupervisorStopped, "supervisor_stopped", lasting: true, info "The supervisor ends."
    {
        /// Its process id.
        pid: u32,
    }
}

event! {
    /// A place of the log, or the journal, takes no more lines at present. How many it has lost in all is in the status.
    LinesLost, "lines_lost", lasting: false, warn "A place takes no lines at present; they are counted and left out."
    {
        /// The place.
        place: String,
        /// Lines it has lost in all.
        lost: u64,
    }
}

event! {
    /// Before this record some are missing, because the disk did not keep up.
    RecordsLeftOut, "records_left_out", lasting: true, error "Records are missing in the journal: its disk did not keep up."
    {
        /// How many.
        count: u64,
    }
}
