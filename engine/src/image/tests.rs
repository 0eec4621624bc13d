use ::image::{ImageEncoder, Rgb, RgbImage};
use tract_onnx::prelude::DatumType;

use super::*;

const PIXELS_MAX: u64 = 1 << 20;

fn spec(width: u32, height: u32, channels: Channels, layout: Layout) -> ImageSpec {
    let (resize, fit) = (Resize::Area, Fit::Stretch);
    ImageSpec { width, height, channels, layout, resize, fit, scale: 1.0, mean: vec![], std: vec![] }
}

fn png(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
    bytes
}

/// Two by one: red, then blue.
fn red_blue() -> RgbImage {
    RgbImage::from_fn(2, 1, |x, _| if x == 0 { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) })
}

fn fill(bytes: &[u8], spec: &ImageSpec, dtype: DType) -> Tensor {
    let datum = if dtype == DType::U8 { DatumType::U8 } else { DatumType::F32 };
    let len = spec.width as usize * spec.height as usize * spec.channels.count();
    let mut tensor = Tensor::zero_dt(datum, &[len]).unwrap();
    let picture = decode(bytes, spec, PIXELS_MAX).unwrap();
    Resizer::default().fill(picture, spec, dtype, &mut tensor).unwrap();
    tensor
}

fn bytes(picture: &[u8], spec: &ImageSpec) -> Vec<u8> {
    fill(picture, spec, DType::U8).as_bytes().to_vec()
}

fn floats(picture: &[u8], spec: &ImageSpec) -> Vec<f32> {
    let tensor = fill(picture, spec, DType::F32);
    tensor.try_as_plain_ram().unwrap().as_slice::<f32>().unwrap().to_vec()
}

#[test]
fn layouts() {
    let picture = png(&red_blue());
    assert_eq!(bytes(&picture, &spec(2, 1, Channels::Rgb, Layout::Nhwc)), [255, 0, 0, 0, 0, 255]);
    assert_eq!(bytes(&picture, &spec(2, 1, Channels::Rgb, Layout::Nchw)), [255, 0, 0, 0, 0, 255]);
    let green = RgbImage::from_pixel(2, 1, Rgb([1, 2, 3]));
    assert_eq!(bytes(&png(&green), &spec(2, 1, Channels::Rgb, Layout::Nhwc)), [1, 2, 3, 1, 2, 3]);
    assert_eq!(bytes(&png(&green), &spec(2, 1, Channels::Rgb, Layout::Nchw)), [1, 1, 2, 2, 3, 3]);
}

#[test]
fn gray_is_weighed_as_eyes_see() {
    // Rec. 709: 0.2126, 0.7152, 0.0722.
    let picture = png(&red_blue());
    assert_eq!(bytes(&picture, &spec(2, 1, Channels::Gray, Layout::Nchw)), [54, 18]);
}

#[test]
fn scale_mean_std() {
    let picture = png(&RgbImage::from_pixel(1, 1, Rgb([0, 128, 255])));
    let mut spec = spec(1, 1, Channels::Rgb, Layout::Nchw);
    assert_eq!(floats(&picture, &spec), [0.0, 128.0, 255.0]);
    spec.scale = 0.5;
    spec.mean = vec![1.0];
    spec.std = vec![2.0, 4.0, 8.0];
    assert_eq!(floats(&picture, &spec), [-0.5, 15.75, 15.8125]);
}

#[test]
fn fits() {
    // Four by two: columns of 10, 20, 30, 40.
    let columns = RgbImage::from_fn(4, 2, |x, _| Rgb([(x as u8 + 1) * 10; 3]));
    let mut spec = spec(2, 2, Channels::Gray, Layout::Nchw);
    let picture = png(&columns);
    assert_eq!(bytes(&picture, &spec), [15, 35, 15, 35]);
    spec.fit = Fit::Crop;
    assert_eq!(bytes(&picture, &spec), [20, 30, 20, 30]);
    (spec.fit, spec.width, spec.height) = (Fit::Pad, 4, 4);
    let row = [10, 20, 30, 40];
    assert_eq!(bytes(&picture, &spec), [[0; 4], row, row, [0; 4]].concat());
}

#[test]
fn pad_keeps_a_thin_picture_visible() {
    let line = png(&RgbImage::from_pixel(100, 1, Rgb([9; 3])));
    let mut spec = spec(3, 3, Channels::Gray, Layout::Nchw);
    spec.fit = Fit::Pad;
    assert_eq!(bytes(&line, &spec), [0, 0, 0, 9, 9, 9, 0, 0, 0]);
}

#[test]
fn exif_turns_the_picture_upright() {
    let mut jpeg = Vec::new();
    // Sixteen pixels to a block: colours stay apart.
    let wide = RgbImage::from_fn(32, 16, |x, _| Rgb([if x < 16 { 0 } else { 255 }; 3]));
    let mut encoder = ::image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 100);
    // One entry: orientation (0x0112), short, 1, value 6: turn by 90 degrees clockwise.
    let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
    encoder.set_exif_metadata(exif).unwrap();
    encoder.encode_image(&wide).unwrap();
    // What was left is now on top.
    assert_eq!(bytes(&jpeg, &spec(1, 2, Channels::Gray, Layout::Nchw)), [0, 255]);
}

#[test]
fn sixteen_bits_and_transparency() {
    let mut picture = Vec::new();
    let encoder = ::image::codecs::png::PngEncoder::new(&mut picture);
    let pixel: Vec<u8> = [0xffff_u16, 0x8080, 0, 0].iter().flat_map(|v| v.to_ne_bytes()).collect();
    encoder.write_image(&pixel, 1, 1, ::image::ExtendedColorType::Rgba16).unwrap();
    assert_eq!(bytes(&picture, &spec(1, 1, Channels::Rgb, Layout::Nhwc)), [255, 128, 0]);
}

#[test]
fn refusals() {
    let spec = spec(1, 1, Channels::Rgb, Layout::Nchw);
    let refusal = |bytes: &[u8], pixels_max| decode(bytes, &spec, pixels_max).err().unwrap();
    assert!(matches!(refusal(b"GIF89a", 10), RunError::UnsupportedMedia(_)));
    assert!(matches!(refusal(b"", 10), RunError::UnsupportedMedia(_)));
    let picture = png(&RgbImage::new(4, 4));
    let what = "the picture's number of pixels".to_owned();
    assert_eq!(refusal(&picture, 15), RunError::TooLarge { what, got: 16, limit: 15 });
    assert!(matches!(refusal(&picture[..picture.len() / 2], 16), RunError::MediaDecode(_)));
    assert!(matches!(refusal(&[0xff, 0xd8, 0xff, 0xe0, 0, 16], 16), RunError::MediaDecode(_)));
}
