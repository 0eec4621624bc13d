//! What a compiler writes: the un-packed description of a program.

use std::borrow::Cow;

/// Largest height or width of a tensor: keeps products with strides far from overflow on 32-bit machines.
pub const EXTENT_MAX: usize = 1 << 16;
/// Most channels of a tensor: room for the largest vocabulary.
pub const CHANNELS_MAX: usize = 1 << 20;
/// Largest arena, in bytes: offsets are kept in 32 bits, and no edge device gives one model more.
pub const ARENA_BYTES_MAX: usize = 1 << 30;
/// Most steps, and most buffers, of a program: bounds what a hostile model makes `Program::new` do.
pub const STEPS_MAX: usize = 1 << 14;
/// Most taps (kernel height × width) of a window: their sum stays far inside 32 bits.
pub const TAPS_MAX: usize = 1 << 16;
/// Largest kernel height or width, stride or dilation, for the reason of [`EXTENT_MAX`].
pub const FACTOR_MAX: usize = 1 << 12;

/// A whole program: buffers, and steps in the order they run.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ProgramSpec<'a> {
    /// Tensors outside of the arena that a run reads.
    pub inputs: Vec<External>,
    /// Tensors outside of the arena that a run writes, each by exactly one step.
    pub outputs: Vec<External>,
    /// The u8 tensors between steps. Where they lie is `Program::new`'s business.
    pub buffers: Vec<BufferSpec>,
    /// Each buffer is written (by one step, or by several [`CopySpec`]s) before it is read.
    #[cfg_attr(feature = "serde", serde(borrow))]
    pub steps: Vec<StepSpec<'a>>,
}

impl ProgramSpec<'_> {
    /// Adds a buffer of `[height, width, channels]` with this zero point.
    pub fn buffer(&mut self, height: usize, width: usize, channels: usize, zero_point: u8) -> BufferId {
        self.buffers.push(BufferSpec { height, width, channels, zero_point });
        BufferId(self.buffers.len() - 1)
    }
}

/// Index into [`ProgramSpec::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BufferId(pub usize);

/// A u8 activation tensor `[height, width, channels]`, batch 1. A vector is `[1, 1, n]`, a matrix of M rows `[M, 1, n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BufferSpec {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels.
    pub channels: usize,
    /// The u8 that stands for real zero: what convolutions pad with, and what steps that write the buffer add.
    pub zero_point: u8,
}

/// A tensor of the caller, dense and little-endian, at any alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct External {
    /// Element type.
    pub element: Element,
    /// Order of the axes.
    pub layout: Layout,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels.
    pub channels: usize,
}

impl External {
    /// Bytes the caller passes for it.
    pub fn bytes(&self) -> usize {
        self.height * self.width * self.channels * self.element.size()
    }
}

/// Element type of an external tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Element {
    /// Unsigned byte, taken as it is.
    U8,
    /// Signed byte: 128 is added on the way in and taken off on the way out.
    I8,
    /// 32-bit float.
    F32,
}

impl Element {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Element::U8 | Element::I8 => 1,
            Element::F32 => 4,
        }
    }
}

/// Order of the axes of an external tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Layout {
    /// `[channels, height, width]`, ONNX's own.
    Nchw,
    /// `[height, width, channels]`.
    Nhwc,
}

/// Inclusive bounds of a quantised result: a fused ReLU raises `low` to the zero point, ReLU6 also lowers `high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Clamp {
    /// Least value.
    pub low: u8,
    /// Greatest value; not less than `low`.
    pub high: u8,
}

impl Default for Clamp {
    fn default() -> Self {
        Clamp { low: 0, high: 255 }
    }
}

/// One step.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[allow(missing_docs, reason = "each variant's struct is documented")]
pub enum StepSpec<'a> {
    Quantize(QuantizeSpec),
    Dequantize(DequantizeSpec),
    Load(LoadSpec),
    Store(StoreSpec),
    Conv(#[cfg_attr(feature = "serde", serde(borrow))] ConvSpec<'a>),
    MaxPool(MaxPoolSpec),
    AveragePool(AveragePoolSpec),
    Add(AddSpec),
    Mul(MulSpec),
    Table(TableSpec),
    Copy(CopySpec),
    Softmax(SoftmaxSpec),
    SoftmaxF32(SoftmaxF32Spec),
}

/// External f32 → buffer, `round(x / scale) + zero point of the buffer`.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct QuantizeSpec {
    /// Index into [`ProgramSpec::inputs`]; an f32 tensor of the buffer's shape.
    pub input: usize,
    /// Written.
    pub output: BufferId,
    /// Scale of the buffer.
    pub scale: f32,
}

/// Buffer → external f32, `(q − zero point) * scale`.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DequantizeSpec {
    /// Read.
    pub input: BufferId,
    /// Index into [`ProgramSpec::outputs`]; an f32 tensor of the buffer's shape.
    pub output: usize,
    /// Scale of the buffer.
    pub scale: f32,
}

/// External u8 or i8 → buffer; i8 is shifted by +128.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LoadSpec {
    /// Index into [`ProgramSpec::inputs`]; a u8 or i8 tensor of the buffer's shape.
    pub input: usize,
    /// Written.
    pub output: BufferId,
}

/// Buffer → external u8 or i8; i8 is shifted by −128.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct StoreSpec {
    /// Read.
    pub input: BufferId,
    /// Index into [`ProgramSpec::outputs`]; a u8 or i8 tensor of the buffer's shape.
    pub output: usize,
}

/// A sliding window, `[y, x]` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Window {
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Steps between windows.
    pub stride: [usize; 2],
    /// Steps between taps.
    pub dilation: [usize; 2],
    /// Rows above and columns left of the input that windows start in. What is needed below and to the right follows from
    /// the output's size.
    pub pad: [usize; 2],
}

impl Window {
    /// A square window without padding or dilation.
    pub const fn square(kernel: usize, stride: usize) -> Window {
        Window { kernel: [kernel; 2], stride: [stride; 2], dilation: [1; 2], pad: [0; 2] }
    }
}

/// Convolution of any grouping, and dense layers: a dense layer is 1×1 over `[M, 1, K]`, or a window of the input's whole size
/// over `[H, W, C]` (then ONNX's flattened `[O, C·H·W]` weights are already in the order wanted here).
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ConvSpec<'a> {
    /// Read; padded with its zero point.
    pub input: BufferId,
    /// Written; its size decides how many windows there are (in floor mode, padded ends included).
    pub output: BufferId,
    /// The window.
    pub window: Window,
    /// Divides both channel counts; depthwise when equal to the input's.
    pub groups: usize,
    /// `[c_out, c_in / groups, kernel height, kernel width]`, ONNX's OIHW. (u8 weights: take 128 off them and their zero points.)
    /// Read from bytes, they stay where these lie.
    #[cfg_attr(feature = "serde", serde(borrow, with = "crate::bytes::signed"))]
    pub weights: Cow<'a, [i8]>,
    /// Empty (all zero), one, or one per output channel.
    pub weight_zero_points: Vec<i8>,
    /// Empty (all zero) or one per output channel, in units of input scale × weight scale.
    pub bias: Vec<i32>,
    /// One, or one per output channel: input scale × weight scale / output scale.
    pub multipliers: Vec<f32>,
    /// Zero point and bounds of the requantised sums.
    pub zero_point: u8,
    /// Bounds of the requantised sums.
    pub clamp: Clamp,
    /// Adds a buffer afterwards, to the bit as an [`AddSpec`] of its own would.
    pub residual: Option<ResidualSpec>,
    /// Looks the result up afterwards, as a [`TableSpec`] of its own would.
    #[cfg_attr(feature = "serde", serde(with = "crate::bytes::optional_table"))]
    pub table: Option<Box<[u8; 256]>>,
}

/// The second operand of an addition fused into a convolution: `a` is the convolution's result, `b` this buffer.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ResidualSpec {
    /// Of the output's shape.
    pub buffer: BufferId,
    /// Scale of the convolution's result / scale of the sum.
    pub a_multiplier: f32,
    /// Scale of the buffer / scale of the sum.
    pub b_multiplier: f32,
    /// Zero point of the sum.
    pub zero_point: u8,
    /// Bounds of the sum.
    pub clamp: Clamp,
}

/// Maximum over windows; what lies outside never wins. Every window must touch the input.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MaxPoolSpec {
    /// Read.
    pub input: BufferId,
    /// Written; may end in partial windows (ceil mode).
    pub output: BufferId,
    /// The window.
    pub window: Window,
}

/// Average over windows; a global average has a window of the input's size and one output pixel.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AveragePoolSpec {
    /// Read.
    pub input: BufferId,
    /// Written; may end in partial windows (ceil mode).
    pub output: BufferId,
    /// The window.
    pub window: Window,
    /// What sums are divided by.
    pub divisor: Divisor,
    /// Input scale / output scale.
    pub multiplier: f32,
    /// Which way halves go.
    pub rounding: Rounding,
}

/// On which side of the rounding to even the zero point is added: with an odd one, halves go another way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Rounding {
    /// `round(value) + zero point`, as ONNX defines quantisation and ONNX Runtime averages globally.
    Before,
    /// `round(value + zero point)`, as ONNX Runtime averages windows and multiplies.
    After,
}

/// What an average is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Divisor {
    /// Elements inside the input (`count_include_pad = 0`).
    Inside,
    /// The window's size (`count_include_pad = 1`); what lies outside counts as real zero.
    Window,
}

/// Element-wise sum of two buffers of the output's shape; `b` may be `[1, 1, channels]`.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AddSpec {
    /// Read.
    pub a: BufferId,
    /// Read.
    pub b: BufferId,
    /// Written.
    pub output: BufferId,
    /// Scale of a / scale of the output.
    pub a_multiplier: f32,
    /// Scale of b / scale of the output.
    pub b_multiplier: f32,
    /// Bounds of the result.
    pub clamp: Clamp,
}

/// Element-wise product; `b` has the output's shape or is `[1, 1, channels]` (squeeze-and-excite).
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MulSpec {
    /// Read.
    pub a: BufferId,
    /// Read.
    pub b: BufferId,
    /// Written.
    pub output: BufferId,
    /// Scale of a × scale of b / scale of the output.
    pub multiplier: f32,
    /// Bounds of the result.
    pub clamp: Clamp,
}

/// `output = table[input]`: any unary function of a quantised tensor, requantisation included.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TableSpec {
    /// Read.
    pub input: BufferId,
    /// Written.
    pub output: BufferId,
    /// By input value.
    #[cfg_attr(feature = "serde", serde(with = "crate::bytes::table"))]
    pub table: Box<[u8; 256]>,
}

/// Copies a box `[height, width, channels]`: slices, and the parts of a concatenation.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CopySpec {
    /// Read.
    pub input: BufferId,
    /// Written; several copies may fill one buffer, and must fill it whole (checked by area).
    pub output: BufferId,
    /// First `[y, x, channel]` read.
    pub from: [usize; 3],
    /// First `[y, x, channel]` written.
    pub to: [usize; 3],
    /// Extent.
    pub size: [usize; 3],
    /// Requantises on the way.
    #[cfg_attr(feature = "serde", serde(with = "crate::bytes::optional_table"))]
    pub table: Option<Box<[u8; 256]>>,
}

/// Softmax over the channels of each pixel.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SoftmaxSpec {
    /// Read.
    pub input: BufferId,
    /// Written, of the same shape.
    pub output: BufferId,
    /// Scale of the input.
    pub input_scale: f32,
    /// Scale of the output.
    pub output_scale: f32,
}

/// Softmax over the channels of each pixel, to an external f32 tensor.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SoftmaxF32Spec {
    /// Read.
    pub input: BufferId,
    /// Index into [`ProgramSpec::outputs`].
    pub output: usize,
    /// Scale of the input.
    pub input_scale: f32,
}
