//! From a JPEG or PNG to an input tensor, by the manifest's [`ImageSpec`].
//!
//! In this order: decode; turn upright as EXIF says, because a camera held sideways still shows the same thing;
//! drop transparency; 16-bit values to 8; colour to gray where the model wants it; resize in 8 bits; scale.

use std::io::Cursor;

use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader};
use fast_image_resize as fir;
use tract_onnx::prelude::Tensor;
use tractd_bundle::{Channels, DType, Fit, ImageSpec, Layout, Resize};

use crate::RunError;

/// A decoder's own buffers, in bytes per pixel: coefficients of a progressive JPEG beside the pixels.
const DECODER_BYTES_PER_PIXEL: u64 = 16;

/// Pixels, `channels` bytes each, row by row.
pub(crate) struct Picture {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

/// Decodes as far as 8-bit pixels of the channels `spec` asks for.
pub(crate) fn decode(bytes: &[u8], spec: &ImageSpec, pixels_max: u64) -> Result<Picture, RunError> {
    let format = match bytes {
        [0xff, 0xd8, 0xff, ..] => ImageFormat::Jpeg,
        [0x89, b'P', b'N', b'G', ..] => ImageFormat::Png,
        _ => {
            let problem = "not a JPEG or PNG, and no other pictures are understood";
            return Err(RunError::UnsupportedMedia(problem.to_owned()));
        }
    };
    let mut limits = ::image::Limits::no_limits();
    limits.max_alloc = Some(pixels_max.saturating_mul(DECODER_BYTES_PER_PIXEL));
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(refusal)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > pixels_max {
        let what = "the picture's number of pixels".to_owned();
        return Err(RunError::TooLarge { what, got: pixels, limit: pixels_max });
    }
    // Damaged metadata does not make the picture unusable.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(refusal)?;
    image.apply_orientation(orientation);
    let (width, height) = (image.width(), image.height());
    let pixels = match spec.channels {
        Channels::Gray => image.into_luma8().into_raw(),
        Channels::Rgb => image.into_rgb8().into_raw(),
    };
    Ok(Picture { width, height, pixels })
}

fn refusal(error: ImageError) -> RunError {
    match error {
        ImageError::Unsupported(error) => RunError::UnsupportedMedia(error.to_string()),
        error => RunError::MediaDecode(error.to_string()),
    }
}

/// Resizes and scales; keeps its buffers from one picture to the next.
#[derive(Default)]
pub(crate) struct Resizer(fir::Resizer);

impl Resizer {
    /// Fills `tensor`, which is zero and of the spec's shape and `dtype` (f32 or u8).
    pub(crate) fn fill(
        &mut self,
        picture: Picture,
        spec: &ImageSpec,
        dtype: DType,
        tensor: &mut Tensor,
    ) -> Result<(), RunError> {
        let pixels = self.resize(picture, spec).map_err(RunError::Internal)?;
        let internal = |error| RunError::Internal(format!("{error:#}"));
        let mut plain = tensor.try_as_plain_ram_mut().map_err(internal)?;
        if dtype == DType::U8 {
            lay_out(&pixels, spec, plain.as_slice_mut::<u8>().map_err(internal)?, |_, value| value);
        } else {
            let tables = tables(spec);
            let table = |channel: usize, value: u8| tables[channel][usize::from(value)];
            lay_out(&pixels, spec, plain.as_slice_mut::<f32>().map_err(internal)?, table);
        }
        Ok(())
    }

    /// To exactly the spec's width and height.
    fn resize(&mut self, picture: Picture, spec: &ImageSpec) -> Result<Vec<u8>, String> {
        if (picture.width, picture.height) == (spec.width, spec.height) {
            return Ok(picture.pixels);
        }
        let (width, height) = match spec.fit {
            Fit::Stretch | Fit::Crop => (spec.width, spec.height),
            Fit::Pad => inner_size(&picture, spec),
        };
        let pixel = match spec.channels {
            Channels::Gray => fir::PixelType::U8,
            Channels::Rgb => fir::PixelType::U8x3,
        };
        let source = fir::images::ImageRef::new(picture.width, picture.height, &picture.pixels, pixel)
            .map_err(|error| error.to_string())?;
        let mut target = fir::images::Image::new(width, height, pixel);
        let algorithm = match spec.resize {
            Resize::Nearest => fir::ResizeAlg::Nearest,
            Resize::Bilinear => fir::ResizeAlg::Convolution(fir::FilterType::Bilinear),
            Resize::Area => fir::ResizeAlg::Convolution(fir::FilterType::Box),
        };
        let mut options = fir::ResizeOptions::new().resize_alg(algorithm);
        if spec.fit == Fit::Crop {
            options = options.fit_into_destination(None);
        }
        self.0.resize(&source, &mut target, &options).map_err(|error| error.to_string())?;
        let pixels = target.into_vec();
        Ok(if (width, height) == (spec.width, spec.height) {
            pixels
        } else {
            centre(&pixels, width, height, spec)
        })
    }
}

/// The largest size of the picture's aspect ratio inside the spec's.
fn inner_size(picture: &Picture, spec: &ImageSpec) -> (u32, u32) {
    let (pw, ph) = (u64::from(picture.width), u64::from(picture.height));
    let (w, h) = (u64::from(spec.width), u64::from(spec.height));
    // Whichever side fills its whole; the other rounded to nearest, and at least one pixel.
    let scaled = |side: u64, by: u64, of: u64| ((side * by + of / 2) / of.max(1)).max(1) as u32;
    if pw * h >= ph * w {
        (spec.width, scaled(ph, w, pw).min(spec.height))
    } else {
        (scaled(pw, h, ph).min(spec.width), spec.height)
    }
}

fn centre(pixels: &[u8], width: u32, height: u32, spec: &ImageSpec) -> Vec<u8> {
    let channels = spec.channels.count();
    let (row, whole_row) = (width as usize * channels, spec.width as usize * channels);
    let (left, top) = ((spec.width - width) as usize / 2 * channels, (spec.height - height) as usize / 2);
    let mut whole = vec![0; whole_row * spec.height as usize];
    for (from, to) in pixels.chunks_exact(row).zip(whole.chunks_exact_mut(whole_row).skip(top)) {
        to[left..left + row].copy_from_slice(from);
    }
    whole
}

/// The value of each of the 256 pixel values, by channel: the formula once, not once per pixel.
fn tables(spec: &ImageSpec) -> Vec<[f32; 256]> {
    let of = |values: &[f32], channel: usize, default: f32| match values {
        [] => default,
        [one] => *one,
        many => many[channel],
    };
    (0..spec.channels.count())
        .map(|channel| {
            let (mean, std) = (of(&spec.mean, channel, 0.0), of(&spec.std, channel, 1.0));
            std::array::from_fn(|value| ((value as f32 * spec.scale) - mean) / std)
        })
        .collect()
}

fn lay_out<T>(pixels: &[u8], spec: &ImageSpec, out: &mut [T], value: impl Fn(usize, u8) -> T) {
    let channels = spec.channels.count();
    match spec.layout {
        Layout::Nhwc => {
            for (pixel, out) in pixels.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
                for (channel, (&byte, out)) in pixel.iter().zip(out).enumerate() {
                    *out = value(channel, byte);
                }
            }
        }
        Layout::Nchw => {
            let plane = spec.width as usize * spec.height as usize;
            for (channel, out) in out.chunks_exact_mut(plane).enumerate() {
                for (out, &byte) in out.iter_mut().zip(pixels.iter().skip(channel).step_by(channels)) {
                    *out = value(channel, byte);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
