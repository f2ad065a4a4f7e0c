//! The macros that declare shared structs, and the layout they leave behind for the header.

/// One field of a shared struct.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub name: &'static str,
    /// The type as Rust spells it, `f32` or `[u32; 4]`.
    pub rust_type: &'static str,
    pub offset: usize,
    pub bytes: usize,
}

/// A shared struct as the compiler laid it out.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub name: &'static str,
    pub bytes: usize,
    pub align: usize,
    pub fields: &'static [Field],
}

/// Declares a `repr(C)` struct with its size in bytes. Padding does not compile (`Pod`), and
/// neither does a size that differs from the declared one.
macro_rules! abi_struct {
    (
        $(#[$meta:meta])*
        pub struct $name:ident : $bytes:literal {
            $( $(#[$field_meta:meta])* pub $field:ident : $type:ty, )*
        }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable,
                 serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $( $(#[$field_meta])* pub $field: $type, )* }

        const _: () = assert!(size_of::<$name>() == $bytes);

        impl $name {
            /// Where each field lies, for the CUDA header.
            pub const fn layout() -> $crate::Layout {
                $crate::Layout {
                    name: stringify!($name),
                    bytes: size_of::<$name>(),
                    align: align_of::<$name>(),
                    fields: &[ $( $crate::Field {
                        name: stringify!($field),
                        rust_type: stringify!($type),
                        offset: std::mem::offset_of!($name, $field),
                        bytes: size_of::<$type>(),
                    }, )* ],
                }
            }
        }
    };
}

/// Declares an enum that crosses to the GPU as `u32`.
macro_rules! abi_constants {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $( $(#[$variant_meta:meta])* $variant:ident = $value:literal, )*
        }
    ) => {
        $(#[$meta])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $( $(#[$variant_meta])* $variant = $value, )* }

        impl $name {
            /// Every name with its value, for the CUDA header.
            pub const VALUES: &'static [(&'static str, u32)] =
                &[ $( (stringify!($variant), $value), )* ];

            /// The variant with this value.
            pub const fn of(value: u32) -> Option<Self> {
                match value {
                    $( $value => Some(Self::$variant), )*
                    _ => None,
                }
            }

            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$variant => stringify!($variant), )*
                }
            }
        }
    };
}

pub(crate) use {abi_constants, abi_struct};
