"""Drawn landscapes to feed camera-sized models: sky, clouds, hills, houses and balls, the same at every resolution."""

import numpy as np


def scene(width, height, seed):
    """u8 `[height, width, 3]`. Smooth enough to be a small JPEG, with edges, texture and colours of a photograph."""
    random = np.random.RandomState(seed)
    aspect = width / height
    x = ((np.arange(width, dtype=np.float32) + 0.5) / height)[None, :]
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    soft = np.float32(1.5 / height)
    image = sky(random, x, y)
    sun = random.uniform(0, aspect), random.uniform(0.05, 0.4), random.uniform(0.03, 0.12)
    place(image, disc(x, y, *sun, soft), warm(random))
    clouds(image, random, x, y)
    horizon = random.uniform(0.3, 0.6)
    for depth in range(random.randint(2, 5)):
        hill(image, random, x, y, horizon + 0.13 * depth, soft)
    for _ in range(random.randint(0, 9)):
        house(image, random, x, y, aspect, soft)
    for _ in range(random.randint(0, 7)):
        ball(image, random, x, y, aspect, soft)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def sky(random, x, y):
    top, bottom = random.uniform(0, 0.9, 3).astype(np.float32), random.uniform(0.3, 1, 3).astype(np.float32)
    blend = np.clip(y * 1.6, 0, 1)[:, :, None]
    return np.broadcast_to(top + (bottom - top) * blend, (*np.broadcast_shapes(x.shape, y.shape), 3)).copy()


def clouds(image, random, x, y):
    cover = waves(random, x, y, 4, 14) - random.uniform(-0.5, 1.5)
    place(image, np.clip(cover * 0.5, 0, 0.8) * (y < 0.7), random.uniform(0.7, 1, 3))


def hill(image, random, x, y, base, soft):
    ridge = base + 0.08 * sum(
        np.sin(x * random.uniform(2, 4) * 2**octave + random.uniform(0, 7)) / 1.8**octave for octave in range(5)
    )
    colour = random.uniform(0.05, 0.75, 3)
    mask = edge(y - ridge.astype(np.float32), soft)
    place(image, mask, colour)
    texture = waves(random, x, y, 30, 90) * np.float32(random.uniform(0, 0.06))
    image += (mask * texture)[:, :, None]


def house(image, random, x, y, aspect, soft):
    left, top = random.uniform(0, aspect), random.uniform(0.4, 0.8)
    wide, tall = random.uniform(0.06, 0.2), random.uniform(0.08, 0.35)
    image, x, y = part(image, x, y, left, top, left + wide, top + tall, soft)
    place(image, box(x, y, left, top, wide, tall, soft), random.uniform(0.2, 0.95, 3))
    columns, rows = random.randint(1, 5), random.randint(1, 6)
    colour = warm(random) if random.rand() < 0.5 else random.uniform(0, 0.3, 3)
    for i in range(columns):
        for j in range(rows):
            at = left + wide * (i + 0.25) / columns, top + tall * (j + 0.25) / rows
            place(image, box(x, y, *at, wide * 0.5 / columns, tall * 0.5 / rows, soft), colour)


def ball(image, random, x, y, aspect, soft):
    cx, cy, radius = random.uniform(0, aspect), random.uniform(0.5, 1), random.uniform(0.02, 0.15)
    colour = random.uniform(0.1, 1, 3).astype(np.float32)
    image, x, y = part(image, x, y, cx - radius, cy - radius, cx + radius, cy + radius, soft)
    mask = disc(x, y, cx, cy, radius, soft)
    shade = 1.15 - np.hypot(x - cx + radius / 3, y - cy + radius / 3) / np.float32(1.6 * radius)
    lit = np.clip(shade, 0.1, 1.2)[:, :, None] * colour
    image += mask[:, :, None] * (lit - image)


def part(image, x, y, left, top, right, bottom, soft):
    """The view of the image that a shape with these bounds can touch: most are small."""
    across = slice(*np.searchsorted(x[0], [left - 2 * soft, right + 2 * soft]))
    down = slice(*np.searchsorted(y[:, 0], [top - 2 * soft, bottom + 2 * soft]))
    return image[down, across], x[:, across], y[down]


def place(image, mask, colour):
    image += mask[:, :, None] * (np.asarray(colour, dtype=np.float32) - image)


def warm(random):
    return np.array([1.0, random.uniform(0.7, 1), random.uniform(0.3, 0.8)])


def disc(x, y, cx, cy, radius, soft):
    return edge(np.float32(radius) - np.hypot(x - np.float32(cx), y - np.float32(cy)), soft)


def box(x, y, left, top, wide, tall, soft):
    across = edge(wide / 2 - abs(x - np.float32(left + wide / 2)), soft)
    return across * edge(tall / 2 - abs(y - np.float32(top + tall / 2)), soft)


def edge(inside, soft):
    """0 outside, 1 inside, a ramp about a pixel wide between: edges as a lens draws them."""
    return np.clip(inside / soft + 0.5, 0, 1).astype(np.float32)


def waves(random, x, y, low, high):
    total = 0
    for _ in range(5):
        fx, fy = random.uniform(low, high, 2)
        total = total + np.sin(np.float32(fx) * x + np.float32(random.uniform(0, 7)) + np.sin(np.float32(fy) * y))
    return total.astype(np.float32)
