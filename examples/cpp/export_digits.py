"""Write scikit-learn's handwritten digits to digits.bin, for the C++ examples: python export_digits.py [digits.bin]

The file is little-endian: three int32 (rows, pixels, classes), then rows * pixels float32 from 0 to 1, then rows int32
labels. The rows are shuffled, the same way each time; the last 360 are for testing.
"""

import sys

import numpy as np
from sklearn.datasets import load_digits

images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
path = sys.argv[1] if len(sys.argv) > 1 else "digits.bin"
with open(path, "wb") as file:
    file.write(np.array([*images.shape, labels.max() + 1], "<i4").tobytes())
    file.write((images[order] / 16).astype("<f4").tobytes())
    file.write(labels[order].astype("<i4").tobytes())
print(f"{path}: {len(labels)} digits of {images.shape[1]} pixels")
