"""Image sets: readers, preprocessing and calibration draws. Nothing here imports torch."""

from csr_deploy.data.builtin import BUILTIN
from csr_deploy.data.calibration import ImageSet, sample
from csr_deploy.data.classes import class_map
from csr_deploy.data.dataset import ArrayDataset, ImageDataset, Split, fingerprint
from csr_deploy.data.detect import natural_preprocessing
from csr_deploy.data.open import open_dataset
from csr_deploy.data.preprocess import Preprocessing, fit_image

__all__ = [
    "BUILTIN",
    "ArrayDataset",
    "ImageDataset",
    "ImageSet",
    "Preprocessing",
    "Split",
    "class_map",
    "fingerprint",
    "fit_image",
    "natural_preprocessing",
    "open_dataset",
    "sample",
]
