use serde::{Deserialize, Serialize};

/// How a JPEG or PNG becomes an input tensor: decode, turn upright, reduce to `channels`, resize to
/// `width` × `height`, then for each value `((px * scale) - mean[c]) / std[c]`. Integer inputs take the raw
/// pixels, and then `scale`, `mean` and `std` must be left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// What a pixel is made of.
    pub channels: Channels,
    /// The order of the tensor's axes.
    pub layout: Layout,
    /// How pixels in between are found. Default: bilinear.
    #[serde(default)]
    pub resize: Resize,
    /// What becomes of another aspect ratio. Default: stretch.
    #[serde(default)]
    pub fit: Fit,
    /// Multiplies the pixel's value, 0 to 255. Default: 1.
    #[serde(default = "one")]
    pub scale: f32,
    /// Subtracted after scaling, one value per channel or one for all. Default: 0.
    #[serde(default)]
    pub mean: Vec<f32>,
    /// Divides what is left, one value per channel or one for all. Default: 1.
    #[serde(default)]
    pub std: Vec<f32>,
}

/// What a pixel is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channels {
    /// One value, luma by Rec. 709 as the `image` crate weighs it.
    Gray,
    /// Red, green, blue.
    Rgb,
}

/// The order of the tensor's axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// `[1, channels, height, width]`
    Nchw,
    /// `[1, height, width, channels]`
    Nhwc,
}

/// How pixels in between are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resize {
    /// The nearest pixel.
    Nearest,
    /// A triangle filter as wide as the reduction, so that shrinking does not alias.
    #[default]
    Bilinear,
    /// The mean over the covered area.
    Area,
}

/// What becomes of another aspect ratio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// Width and height are scaled each on its own.
    #[default]
    Stretch,
    /// The middle is cut out at the right aspect ratio, then resized.
    Crop,
    /// All of the picture is kept, centred on black.
    Pad,
}

impl Channels {
    /// How many values a pixel has.
    pub const fn count(self) -> usize {
        match self {
            Channels::Gray => 1,
            Channels::Rgb => 3,
        }
    }
}

fn one() -> f32 {
    1.0
}
