//! The numbers on the wire. Every one is frozen: a number is added, never changed, never used again.

use core::fmt;

/// An enum whose discriminants are its wire numbers, and whose names are those of logs, JSON and manifests.
macro_rules! wire_enum {
    ($(#[$doc:meta])* $name:ident: $repr:ident { $($(#[$vdoc:meta])* $variant:ident = $number:literal $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr($repr)]
        pub enum $name { $($(#[$vdoc])* $variant = $number,)* }

        impl $name {
            /// Every value, in the order of the numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The number on the wire.
            pub const fn number(self) -> $repr {
                self as $repr
            }

            /// The value of a wire number.
            pub const fn from_number(number: $repr) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The word for people, logs and JSON.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }

            /// The value of a word that [`name`](Self::name) gave.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.name() == name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

wire_enum! {
    /// What a frame carries.
    Kind: u8 {
        /// A [`Request`](crate::Request) with its tensors or its image.
        Request = 1 "request",
        /// A [`Reply`](crate::Reply) with its tensors.
        Reply = 2 "reply",
        /// A [`Query`](crate::Query) about the daemon; no body.
        Query = 3 "query",
        /// An [`Answer`](crate::Answer) with a JSON body.
        Answer = 4 "answer",
    }
}

wire_enum! {
    /// A tensor's element type. Elements are little-endian.
    DType: u8 {
        /// Unsigned, 8 bits.
        U8 = 1 "u8",
        /// Signed, 8 bits.
        I8 = 2 "i8",
        /// Unsigned, 16 bits.
        U16 = 3 "u16",
        /// Signed, 16 bits.
        I16 = 4 "i16",
        /// Unsigned, 32 bits.
        U32 = 5 "u32",
        /// Signed, 32 bits.
        I32 = 6 "i32",
        /// Unsigned, 64 bits.
        U64 = 7 "u64",
        /// Signed, 64 bits.
        I64 = 8 "i64",
        /// IEEE 754 binary16.
        F16 = 9 "f16",
        /// IEEE 754 binary32.
        F32 = 10 "f32",
        /// IEEE 754 binary64.
        F64 = 11 "f64",
        /// One byte, 0 or 1.
        Bool = 12 "bool",
    }
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 | Self::F16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }
}

wire_enum! {
    /// Which requests go first when a model is busy.
    #[derive(Default)]
    Priority: u8 {
        /// After everything else.
        Low = 0 "low",
        /// The default.
        #[default]
        Normal = 1 "normal",
        /// Before everything else.
        High = 2 "high",
    }
}

wire_enum! {
    /// What a request's body is.
    Content: u8 {
        /// The raw bytes of the described tensors, one after another, in their order.
        Tensors = 0 "tensors",
        /// One JPEG or PNG, which the daemon decodes and scales as the model's manifest says.
        Media = 1 "media",
    }
}

wire_enum! {
    /// What a query asks for.
    What: u8 {
        /// The models and their tensors.
        Models = 1 "models",
        /// Counters, queues, versions.
        Status = 2 "status",
        /// Look into the registry now.
        CheckUpdates = 3 "check-updates",
    }
}

wire_enum! {
    /// How a request ended: one table for socket, MQTT and firmware, in the manner of HTTP.
    Status: u16 {
        /// Answered.
        Ok = 200 "ok",
        /// The frame or message is not what the specification says.
        Malformed = 400 "malformed",
        /// This client may not ask this.
        Forbidden = 403 "forbidden",
        /// No model of that name, version or label.
        ModelNotFound = 404 "model-not-found",
        /// The deadline passed before the answer was there.
        DeadlineExceeded = 408 "deadline-exceeded",
        /// A head, a body or an image beyond the limits.
        TooLarge = 413 "too-large",
        /// Neither JPEG nor PNG, or a model that takes no image.
        UnsupportedType = 415 "unsupported-type",
        /// A tensor's name, type, shape or value is not what the model takes.
        InvalidInput = 422 "invalid-input",
        /// Queues are full; try again after `retry_after_ms`.
        Busy = 429 "busy",
        /// The daemon's fault.
        Internal = 500 "internal",
        /// The model crashed; it answers nobody until it is reloaded.
        Quarantined = 502 "quarantined",
        /// The daemon is stopping; try another or try later.
        Draining = 503 "draining",
        /// The frame's version is not spoken here.
        Version = 505 "version",
        /// Not enough memory to run the model now.
        InsufficientMemory = 507 "insufficient-memory",
    }
}

impl Status {
    /// The number on the wire; the same as [`number`](Self::number), by the word people use.
    pub const fn code(self) -> u16 {
        self.number()
    }

    /// The status of a code.
    pub const fn from_code(code: u16) -> Option<Self> {
        Self::from_number(code)
    }

    /// Whether the same request may succeed later, unchanged. A missed deadline is not: it is late already.
    pub const fn retryable(self) -> bool {
        matches!(self, Self::Busy | Self::Draining | Self::InsufficientMemory)
    }
}

/// What a reply should carry: a set of bits on the wire. Neither is legal and asks for the timings alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Want {
    /// Bit 1: the output tensors.
    pub tensors: bool,
    /// Bit 2: the classes with their labels, where the model gives any.
    pub classes: bool,
}

impl Want {
    /// The output tensors alone.
    pub const TENSORS: Self = Self { tensors: true, classes: false };
    /// The classes alone.
    pub const CLASSES: Self = Self { tensors: false, classes: true };
    /// Both, the default.
    pub const ALL: Self = Self { tensors: true, classes: true };

    /// The byte on the wire.
    pub const fn number(self) -> u8 {
        self.tensors as u8 | (self.classes as u8) << 1
    }

    /// The set of a wire byte; none when a bit is set that has no meaning.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0..=3 => Some(Self { tensors: number & 1 != 0, classes: number & 2 != 0 }),
            _ => None,
        }
    }
}

impl Default for Want {
    fn default() -> Self {
        Self::ALL
    }
}
